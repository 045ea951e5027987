"""Places of the storage: a folder, and a bucket of a real server that may be slow, refuse, or go away."""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from s3_server import CREDENTIALS, Door

from sweeps.blocks import SpecError
from sweeps.durable import Write
from sweeps.storage import Place

PART = 10 << 20  # bytes; pyarrow sends larger objects in several parts
BIG = bytes(range(256)) * ((PART + (2 << 20)) // 256)


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The same words for both."""
    if request.param == "folder":
        return Place.of(tmp_path / "below" / "it")
    found: Place = request.getfixturevalue("bucket")
    return found


def _fails(do: Callable[[], object], seconds: float) -> OSError:
    """The one line in which it fails, within so many seconds and without a secret."""
    began = time.monotonic()
    with pytest.raises(OSError, match="s3://") as caught:
        do()
    assert time.monotonic() - began < seconds
    assert "\n" not in str(caught.value)
    assert not any(value in str(caught.value) for value in CREDENTIALS.values())
    return caught.value


def test_files(place: Place) -> None:
    """What is written is read, listed and removed; missing things are None, absent or FileNotFoundError."""
    one = place / "trajectories/one/checkpoint-1-20"
    assert (one.exists(), one.size(), place.files(), place.folders()) == (False, None, [], [])
    with pytest.raises(FileNotFoundError):
        one.read()
    with pytest.raises(FileNotFoundError):
        one.read_start(3)
    one.remove()
    one.write(b"first")
    one.write(lambda write: [write(b"12"), write(memoryview(b"345678"))][0])
    assert (one.read(), one.read_start(3), one.size(), one.name) == (b"12345678", b"123", 8, "checkpoint-1-20")
    assert one.read_start(100) == b"12345678"
    folder = place / "trajectories/one"
    for name in ("checkpoint-1-8", "fork-3", ".hidden"):
        (folder / name).write(b"")
    assert folder.files("checkpoint-*") == [one, folder / "checkpoint-1-8"]
    assert [found.name for found in folder.files()] == ["checkpoint-1-20", "checkpoint-1-8", "fork-3"]
    assert place.folders() == [place / "trajectories"]
    assert not folder.exists()  # it is no file
    one.remove()
    one.remove()
    assert not one.exists()
    assert Place.of(one.uri) == one
    with pytest.raises(FileNotFoundError):
        (place / "other").read()


def test_local(place: Place) -> None:
    """A path that torch maps; what is mapped stays after the context, and no file does."""
    there = place / "state"
    before = set(os.listdir("/proc/self/fd"))
    there.write(lambda write: torch.save({"a": torch.arange(1000)}, _Into(write)))  # type: ignore[arg-type]
    with there.local() as path:
        state = torch.load(path, mmap=True, weights_only=True)
    assert state["a"].equal(torch.arange(1000))
    assert place.is_bucket == (not path.exists())
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 3  # connections that are kept


class _Into:
    def __init__(self, write: Write) -> None:
        self.write = write

    def flush(self) -> None:
        """Nothing is held back."""


def test_whole_or_absent(place: Place) -> None:
    """An error while the bytes are made leaves what was there, also after the garbage collector."""

    def fails(write: Write) -> None:
        write(BIG[: PART + 5])
        raise ValueError("no such luck")

    one = place / "one"
    with pytest.raises(ValueError, match="no such luck"):
        one.write(fails)
    gc.collect()
    assert not one.exists()
    one.write(BIG)
    with pytest.raises(ValueError, match="no such luck"):
        one.write(fails)
    gc.collect()
    assert one.read() == BIG


@pytest.mark.parametrize("status", [403, 503])
def test_refused(bucket: Place, s3_door: Door, status: int) -> None:
    """A server that says no: one line each, soon; 403 is a lasting error, 503 one that passes."""
    one = bucket / "one"
    one.write(b"before")
    s3_door.answer = status
    for do in (lambda: one.write(b"after"), one.read, one.exists, one.size, one.remove, bucket.files):
        assert isinstance(_fails(do, 5), PermissionError) == (status == 403)
    _fails(lambda: (bucket / "big").write(BIG), 5)
    s3_door.answer = None
    assert (one.read(), [found.name for found in bucket.files()]) == (b"before", ["one"])


def test_a_server_that_hangs(bucket: Place, s3_door: Door) -> None:
    """Nothing passes: an error within the time-outs; then all is as before."""
    (bucket / "one").write(b"before")
    s3_door.is_open.clear()
    _fails((bucket / "one").read, 10)
    _fails(lambda: (bucket / "two").write(BIG), 20)
    s3_door.is_open.set()
    assert (bucket / "one").read() == b"before"


def test_a_server_that_dies_in_an_upload(bucket: Place, s3_door: Door) -> None:
    """After a part of it has arrived: an error, and no half object when the server is back."""
    two = bucket / "two"
    s3_door.passed, s3_door.slams_after = 0, PART + (1 << 20)
    _fails(lambda: two.write(BIG), 20)
    gc.collect()
    s3_door.slams_after = None
    assert not two.exists()
    two.write(BIG)
    assert two.read() == BIG


def test_nobody_listens(bucket: Place, s3_door: Door) -> None:
    """And a bucket that is not there."""
    _fails(lambda: Place.of("s3://no-such-bucket-here/x").write(b""), 5)
    s3_door.listener.close()
    s3_door.slams_after = 0
    _fails((bucket / "one").exists, 10)


def test_endpoint_in_the_uri(bucket: Place, s3_door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """`endpoint_override` serves instead of AWS_ENDPOINT_URL, and what lies below keeps it."""
    (bucket / "one").write(b"here")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    found = Place.of(f"{bucket.uri}?endpoint_override=http://127.0.0.1:{s3_door.port}&region=us-east-1")
    assert [one.read() for one in found.files()] == [b"here"]
    assert Place.of((found / "one").uri).read() == b"here"
    assert str(found) == bucket.uri  # what messages say


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://key:secret@bucket/x", "from the environment"),
        ("s3://bucket/x?endpoint_override=http://key:secret@host", "from the environment"),
        ("s3://bucket/x?access_key=secret", "unknown option access_key; allowed: endpoint_override, region"),
        ("s3:///x", "without a bucket"),
        ("s3://bucket/x/../y", "without a bucket"),
        ("s3://bucket/x#secret", "without a bucket"),
        ("ftp://secret@host/x", "allowed: a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
    ],
)
def test_bad_uris(uri: str, said: str) -> None:
    """One line that repeats no secret."""
    with pytest.raises(SpecError) as caught:
        Place.of(uri)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths become absolute; slashes too many go; names lead nowhere else."""
    monkeypatch.chdir(tmp_path)
    assert Place.of("runs/x").uri == str(tmp_path / "runs/x")
    assert Place.of(f"file://{tmp_path}/x%20y") == Place.of(tmp_path / "x y")
    assert Place.of("s3://bucket//a/b/").uri == "s3://bucket/a/b"
    assert (Place.of("gs://bucket") / "x").uri == "gs://bucket/x"
    for name in ("../x", "/x", "a//b", "", "."):
        with pytest.raises(ValueError, match="no name"):
            Place.of("gs://bucket") / name


def test_local_errors_name_the_path(tmp_path: Path) -> None:
    """As the system says them."""
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotADirectoryError, match="file/below"):
        Place.of(tmp_path / "file/below").read()
