"""The run folder in the storage: what goes there, in which order, and what a storage that fails costs."""

import json
import os
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from growing_run import Writer, console, plan_folder
from s3_server import CREDENTIALS, Door
from trained import done

from analysis.run_folder.records import load
from sweeps import mirror
from sweeps.blocks import SpecError
from sweeps.cli import main
from sweeps.mirror import Mirror, mirroring, refuse_foreign, try_out
from sweeps.spec import load_spec
from sweeps.storage import Place

KEPT_BACK = [
    *(
        "trajectories/{}/checkpoint",
        "trajectories/{}/checkpoint-1-20",
        "trajectories/{}/fork-20",
        "traces/{}/1-8.safetensors",
    ),
    *(".lock", ".plan.json.1.new", ".tune/state", "ray.log", "wandb.log", "wandb/run-1/secret", "trajectories/.x/done"),
    *(".env", "trajectories/{}/.hidden", "traces/{}/1-8.safetensors", "trajectories/{}/trace/1-8.safetensors"),
]


@pytest.fixture
def run(outside: Path) -> Path:
    """A folder in which one of two trajectories is done and one goes on."""
    run = outside / "run"
    first, second = (Writer(run, one) for one in plan_folder(run, seeds=[0, 1]))
    for one in (first, second):
        one.attempt()
        one.record((one.raw, 20, 1.0), (one.ema, 20, 0.9))
    first.finish()
    for name in KEPT_BACK:
        path = run / name.format(first.one.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not this")
    (run / "report.html").write_text("<p>")
    (run / "tables").mkdir()
    (run / "tables" / "settings.csv").write_text("a")
    (run / "tables" / "key.csv").symlink_to(run / ".env")
    return run


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are written, in their order."""
    written, write = list[str](), Place.write

    def spy(place: Place, data: bytes) -> None:
        write(place, data)
        written.append(place.path)

    monkeypatch.setattr(Place, "write", spy)
    return written


def _there(storage: Place) -> set[str]:
    return set(storage.all_below())


def _same(run: Path, storage: Place) -> bool:
    return all((storage / name).read() == (run / name).read_bytes() for name in mirror.files(run))


def test_what_is_copied(run: Path, tmp_path: Path, names: list[str]) -> None:
    """The finished files and live records; nothing hidden, linked, temporary, or of the training; only what changed."""
    storage = Place.of(tmp_path / "there")
    copies = Mirror(run, storage, console()[0])
    copies.look()
    over, going_on = (json.loads((run / "plan.json").read_text())["trajectories"][i]["name"] for i in (0, 1))
    if not (run / "records" / f"{over}.parquet").exists():
        over, going_on = going_on, over
    expected = {"spec.yaml", "plan.json", "cells.parquet", "report.html", "tables/settings.csv"}
    expected |= {f"records/{over}.parquet", f"trajectories/{over}/done", f"trajectories/{going_on}/records.jsonl"}
    expected |= {
        f"trajectories/{one}/{name}" for one in (over, going_on) for name in ("attempt-0.json", "trajectory.json")
    }
    assert _there(storage) == expected
    assert _same(run, storage)
    assert names[-1].endswith("/plan.json")
    assert names[-2].endswith("/done")
    names.clear()
    copies.look()
    assert names == []
    (run / "report.html").write_text("<p>more")
    copies.look()
    assert [Path(name).name for name in names] == ["report.html"]


def test_compaction(run: Path, tmp_path: Path, names: list[str]) -> None:
    """Records before `done`, then the live ones go; a growing file waits a while, an end does not."""
    storage = Place.of(tmp_path / "there")
    copies = Mirror(run, storage, console()[0])
    copies.look()
    (live,) = (run / "trajectories").glob("*/records.jsonl")
    (one,) = [one for one in plan_folder(run, seeds=[0, 1]) if one.name == live.parent.name]
    writer = Writer(run, one)
    writer.record((writer.raw, 40, 0.8))
    copies.look(everything=True)
    names.clear()
    writer.record((writer.raw, 60, 0.7))
    copies.look(everything=False)
    assert names == []
    writer.finish()
    copies.look(everything=False)
    last = [str(Path(name).relative_to(tmp_path / "there")) for name in names]
    assert last.index(f"records/{one.name}.parquet") < last.index(f"trajectories/{one.name}/done")
    assert not (storage / f"trajectories/{one.name}/records.jsonl").exists()
    assert _same(run, storage)
    pd.testing.assert_frame_equal(load(Path(storage.path)), load(run))


def test_what_tells_of_files_is_never_ahead(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that is written while files are copied goes with the next look, since its cells have gone before."""
    storage, write = Place.of(tmp_path / "there"), Place.write
    before = (run / "plan.json").read_bytes()

    def meanwhile(place: Place, data: bytes) -> None:
        write(place, data)
        if place.name == "report.html":
            (run / "plan.json").write_text(json.dumps({**json.loads(before), "created": "later"}))

    monkeypatch.setattr(Place, "write", meanwhile)
    copies = Mirror(run, storage, console()[0])
    copies.look()
    assert (storage / "plan.json").read() == before
    copies.look()
    assert _same(run, storage)


def test_a_second_driver_sends_what_changed(
    run: Path, tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there is known by its size and time; what went here, goes there, but for what reports made."""
    storage = Place.of(tmp_path / "there")
    Mirror(run, storage, console()[0]).look()
    (storage / "trajectories/gone/done").write(b"{}")
    (storage / "tables/of_wa_report.csv").write(b"")
    (storage / "trajectories/gone/checkpoint-1-20").write(b"")
    before = time.time() - 1000
    for name in mirror.files(run):
        os.utime(run / name, (before, before))
    names.clear()
    (run / "report.html").write_text("<P>")  # as large as before
    Mirror(run, storage, console()[0]).look()
    assert [Path(name).name for name in names] == ["report.html"]
    left = {name for name in _there(storage) if "gone" in name or "of_wa" in name}
    assert left == {"tables/of_wa_report.csv", "trajectories/gone/checkpoint-1-20"}


def test_another_run_is_refused(run: Path, tmp_path: Path, names: list[str]) -> None:
    """By its id, from a folder that is new, or that is another run's; before anything is written."""
    storage = Place.of(tmp_path / "there")
    refuse_foreign(run, storage)
    Mirror(run, storage, console()[0]).look()
    refuse_foreign(run, storage)
    names.clear()
    told = json.loads((run / "plan.json").read_text())
    other = tmp_path / "other"
    for plan in (None, {**told, "id": "another"}):
        if plan is not None:
            other.mkdir()
            (other / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(SpecError, match=f"--storage: {storage} holds another run; choose another prefix"):
            refuse_foreign(other, storage)
        with pytest.raises(SpecError):
            Mirror(other, storage, console()[0]).look()
    (storage / "plan.json").write(b"<html>")
    names.clear()
    with pytest.raises(SpecError, match="holds another run"):
        refuse_foreign(run, storage)
    assert names == []


def test_a_bucket_that_is_not_there_is_refused(bucket: Place) -> None:
    with pytest.raises(OSError, match="nobodys"):
        try_out(Place.of(bucket.uri.replace(bucket.path.split("/")[0], "nobodys-bucket")))
    try_out(bucket)
    assert not bucket.files(), "the probe is gone"


def test_the_folder_itself(run: Path) -> None:
    """Where the storage is the run folder nothing is copied or said."""
    screen, out = console()
    before = mirror.files(run)
    with mirroring(run, Place.of(run), screen):
        pass
    assert (out.getvalue(), mirror.files(run)) == ("", before)


def test_beside_a_run(run: Path, bucket: Place, s3_door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that refuses is complained of once and asked again; at the end all is there."""
    monkeypatch.setattr(mirror, "EVERY_SECONDS", 0.1)
    screen, out = console()
    s3_door.answer = 403
    with mirroring(run, bucket, screen):
        _wait_for(lambda: s3_door.connections > 3)
        (run / "report.html").write_text("<p>last")
        s3_door.answer = None
    assert _same(run, bucket)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"mirror: {bucket}/plan.json: cannot read it: ")
    assert lines[0].endswith("; the run goes on, and it is tried again")
    assert lines[1] == f"mirrored: {bucket.uri} has all that `wa report` and `wa watch` read"
    assert not any(value in out.getvalue() for value in CREDENTIALS.values())


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_a_storage_that_stays_away(
    run: Path, bucket: Place, s3_door: Door, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It costs the run a bounded time at its end, and a line says what is missing."""
    monkeypatch.setattr(mirror, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "FINISH_SECONDS", 1.0)
    screen, out = console()
    if how == "hangs":
        s3_door.is_open.clear()
    else:
        s3_door.answer = 503
    began = time.monotonic()
    with mirroring(run, bucket, screen):
        began = time.monotonic()
    assert time.monotonic() - began < 2
    last = out.getvalue().splitlines()[-1]
    assert last.startswith(f"mirror: {bucket} lacks {len(mirror.files(run))} files, such as ")
    assert last.endswith("; the same command sends them")
    s3_door.answer = None
    s3_door.is_open.set()


def test_wa_run(outside: Path, bucket: Place, uncharted: None) -> None:
    """A folder with nothing left to train: its report and all else are mirrored; another's storage is bad input."""
    spec = {"study": "w", "workloads": "tinywork:Tiny", "averaging": {"scheme": "none"}, "evaluate": {"every": 7}}
    spec |= {"tracking": {"wandb": "disabled"}}
    (outside / "w.yaml").write_text(json.dumps(spec))
    done([load_spec(outside / "w.yaml")], outside / "run")
    ran = CliRunner().invoke(main, ["run", "w.yaml", "--out", "run", "--storage", bucket.uri])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.splitlines()[-1] == f"mirrored: {bucket.uri} has all that `wa report` and `wa watch` read"
    assert _same(outside / "run", bucket)
    assert (bucket / "report.html").exists()
    ran = CliRunner().invoke(main, ["run", "w.yaml", "--out", "other", "--storage", bucket.uri])
    assert (ran.exit_code, ran.stderr.count("\n"), (outside / "other").exists()) == (2, 1, False)
    assert f"--storage: {bucket} holds another run" in ran.stderr
    bad = bucket.uri.replace("s3://", "s3://key:planted@")
    ran = CliRunner().invoke(main, ["run", "w.yaml", "--out", "run", "--storage", bad])
    assert (ran.exit_code, ran.stderr.count("\n"), "planted" in ran.output) == (2, 1, False)


def _wait_for(condition: object) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)
