"""Commands on a run that is mirrored in a bucket: what they copy, say and write back."""

import json
import re
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from growing_run import Writer, console, plan_folder
from s3_server import CREDENTIALS, Door

from analysis.run_folder.records import load
from sweeps import remote_run, screen
from sweeps.cli import main
from sweeps.mirror import Mirror, files
from sweeps.remote_run import MADE, copied
from sweeps.storage import Place


@pytest.fixture
def run(outside: Path) -> Path:
    """A folder with one trajectory that goes on."""
    run = outside / "run"
    (one,) = plan_folder(run)
    writer = Writer(run, one)
    writer.attempt()
    writer.record((writer.raw, 20, 1.0), (writer.ema, 20, 0.9))
    return run


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is read, in their order."""
    found, read = list[str](), Place.read

    def spy(place: Place) -> bytes:
        found.append(place.name)
        return read(place)

    monkeypatch.setattr(Place, "read", spy)
    return found


def _writer(run: Path) -> Writer:
    from sweeps.run_folder import started

    return Writer(run, started(run)[0])


def _wa(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_a_copy(run: Path, bucket: Place, scratch: Path, fetched: list[str]) -> None:
    """What is copied is what is there; what tells of files comes before them; a second look copies what changed."""
    copies = Mirror(run, bucket, console()[0])
    (run / "report.html").write_text("<p>")
    (bucket / "traces/one/1-8.safetensors").write(b"")
    copies.look()
    fetched.clear()
    with copied(bucket.uri) as here:
        assert {name: (here / name).read_bytes() for name in files(here)} == {
            name: (run / name).read_bytes() for name in files(run) if not MADE.fullmatch(name)
        }
        assert fetched[0] == "plan.json"
        time.sleep(1.1)  # a bucket's times are seconds
        _writer(run).finish()
        copies.look()
        remote_run.refresh(here)  # with what may have changed in the last second before
        fetched.clear()
        remote_run.refresh(here)
        assert set(fetched) <= {"attempt-0.json", "done", f"{_writer(run).one.name}.parquet"}  # of the last second
        assert not list(here.rglob("records.jsonl"))
        assert load(here).equals(load(run))
    assert list(scratch.iterdir()) == []


def test_commands(run: Path, bucket: Place, scratch: Path, uncharted: None) -> None:
    """report writes into the bucket and says so; the others say there what they say of the folder."""
    writer = _writer(run)
    writer.record(
        *((cell, step, 1.0 / step) for step in range(40, 601, 20) for cell in (writer.raw, writer.ema, writer.wide))
    )
    writer.finish()
    Mirror(run, bucket, console()[0]).look()
    uri = bucket.uri
    done = _wa("report", uri)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"report: {bucket}/report.html"
    assert (bucket / "report.html").read()[:15].lower() == b"<!doctype html>"
    assert b"tinywork:Tiny" in (bucket / "tables/settings.csv").read()
    for command in (("recommend", "--json"), ("watch", "--json")):
        there, here = (_wa(*command, where) for where in (uri, run))
        assert there.exit_code == here.exit_code == 0
        assert _untimed(there.stdout) == _untimed(here.stdout)
    there, here = (_wa("compare", "--json", where, run) for where in (uri, run))
    assert there.exit_code == here.exit_code == 0
    assert json.loads(there.stdout) == {**json.loads(here.stdout), "a": uri}
    (bucket / "plan.json").write(b"{")
    assert _wa("report", uri).stderr.startswith(f"wa: {bucket}/plan.json: not whole JSON")
    assert list(scratch.iterdir()) == []


def test_what_is_made_goes_back(run: Path, bucket: Place) -> None:
    """Also the workspace; what is made elsewhere stays there, and what was copied is not sent again."""
    Mirror(run, bucket, console()[0]).look()
    (bucket / "spec.yaml").write(b"of the driver")
    with copied(bucket.uri) as here:
        made = here / "wandb" / "workspace.json"
        made.parent.mkdir()
        made.write_text("{}")
        (here / "spec.yaml").write_text("of the copy")
        assert remote_run.put_back(here, made) == f"{bucket}/wandb/workspace.json"
        assert remote_run.put_back(here, run / "file") == str(run / "file")
        assert remote_run.named(here) == bucket.uri
    assert (bucket / "wandb/workspace.json").read() == b"{}"
    assert (bucket / "spec.yaml").read() == b"of the driver"
    assert (remote_run.put_back(run, run / "x"), remote_run.named(run)) == (str(run / "x"), str(run))


def _untimed(text: str) -> str:
    return re.sub(r'"(run|folder|quiet_seconds|updated)": [^\n]*', "", text)


def test_watch_follows(run: Path, bucket: Place, s3_door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a run that is to come, goes on while the bucket is away, and ends with the run."""
    copies, looks = Mirror(run, bucket, console()[0]), 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        s3_door.answer = {3: 503}.get(looks)
        if looks == 2:
            copies.look()
        if looks == 4:
            _writer(run).finish()
            copies.look()

    monkeypatch.setattr(screen.time, "sleep", sleep)
    done = _wa("watch", bucket.uri, "--every", 0.1)
    assert done.exit_code == 0, done.output
    assert "waiting for one" in done.stdout.splitlines()[0]
    assert looks == 4


def test_what_is_not_there(bucket: Place, s3_door: Door, scratch: Path) -> None:
    """One line without secrets, exit code 2, and no copy left."""
    for command in (("report",), ("recommend",), ("compare", "."), ("dashboard",)):
        done = _wa(*command, bucket.uri)
        assert (done.exit_code, done.stderr.count("\n"), str(bucket) in done.stderr) == (2, 1, True), done.output
        assert "no plan.json there" in done.stderr
    s3_door.answer = 403
    done = _wa("watch", bucket.uri)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"wa: {bucket}: cannot list it: ")
    assert not any(value in done.stderr for value in CREDENTIALS.values())
    assert _wa("report", "s3://key:secret@bucket/x").stderr.count("secret") == 0
    assert list(scratch.iterdir()) == []
