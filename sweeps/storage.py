"""Where checkpoints, forks and traces lie: a folder, or a prefix of a bucket of S3 or GCS, in the same few words.

A name there has all of its bytes or is absent, whatever is killed: a folder by `durable.write_atomic`, a bucket since
an object appears when its upload is closed. Credentials come from the environment (`AWS_*`, `~/.aws`, an instance's
role; `GOOGLE_APPLICATION_CREDENTIALS`), never from a URI, and are in no message.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from pyarrow import fs

from cluster.secrets import redacted
from sweeps import durable
from sweeps.blocks import SpecError
from sweeps.durable import Write

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 20.0  # without a byte from the server
ATTEMPTS = 3  # of a request that times out, or that the server says to repeat (503, 500)
AT_ONCE = 8 << 20  # bytes
ALLOWED = "allowed: a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
OPTIONS = {"s3": ("endpoint_override", "region"), "gs": ("endpoint_override", "anonymous")}
DENIED = ("ACCESS_DENIED", "HTTP status 403", "SIGNATURE", "INVALID_ACCESS_KEY", "Permission denied")
_WITH_USER = re.compile(r"//[^/\s@]*@")


@dataclass(frozen=True)
class Place:
    """A file or folder of the storage, there or not. What fails raises OSError in one line that names it."""

    path: str  # of a folder absolute; of a bucket BUCKET/KEY
    scheme: str = ""  # "s3", "gs"; "" for a folder
    options: str = ""  # of a bucket, as in the URI: where it is reached, which is no secret

    @classmethod
    def of(cls, where: str | Path | Place) -> Place:
        """The place of a URI or a path. Raises: SpecError."""
        if isinstance(where, Place):
            return where
        scheme, mark, rest = str(where).partition("://")
        if not mark or isinstance(where, Path):
            return cls(os.path.abspath(where))
        if scheme == "file" and rest.startswith("/"):
            return cls(os.path.abspath(unquote(rest)))
        if scheme not in OPTIONS:
            raise SpecError("--storage", f"no storage is known for {scheme}://; {ALLOWED}", "")
        return cls._of_bucket(scheme, str(where))

    @classmethod
    def _of_bucket(cls, scheme: str, uri: str) -> Place:
        told = urlsplit(uri)
        options = parse_qsl(told.query, keep_blank_values=True)
        if "@" in told.netloc or any("@" in value for _, value in options):
            raise SpecError("--storage", "a URI with a user or password; take them from the environment", "")
        if unknown := [name for name, _ in options if name not in OPTIONS[scheme]]:
            raise SpecError("--storage", f"unknown option {unknown[0]}; allowed: {', '.join(OPTIONS[scheme])}", "")
        parts = [part for part in (told.netloc + told.path).split("/") if part]
        if not told.netloc or told.fragment or {".", ".."} & set(parts):
            raise SpecError("--storage", f"{told.scheme}:// without a bucket, or with . or # in it; {ALLOWED}", "")
        return cls("/".join(parts), scheme, urlencode(options, safe=":/"))

    @property
    def is_bucket(self) -> bool:
        return self.scheme != ""

    @property
    def uri(self) -> str:
        """What `of` reads back."""
        query = f"?{self.options}" if self.options else ""
        return f"{self.scheme}://{self.path}{query}" if self.is_bucket else self.path

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> Place:
        return replace(self, path=self.path.rpartition("/")[0] or "/")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}" if self.is_bucket else self.path

    def __truediv__(self, name: str) -> Place:
        """What lies below it. Raises: ValueError for a name that leads out of it."""
        if name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"{name!r} is no name of what lies below {self}")
        return replace(self, path=f"{self.path.rstrip('/')}/{name}")

    def write(self, data: bytes | Callable[[Write], None]) -> None:
        """Put `data` there, whole or not at all; lasting when this returns.

        data: bytes, or a function that writes them one after another; they are uploaded as they come.
        """
        if not self.is_bucket:
            path = Path(self.path)
            durable.make_folder(path.parent)
            durable.write_atomic(path, data)
            return
        with self._failing_as_one_line("write"):
            stream = self._system().open_output_stream(self.path)
            try:
                if callable(data):
                    data(stream.write)
                else:
                    stream.write(data)
            except BaseException:
                # pyarrow cannot give an upload up: closed, also by the garbage collector, half of it would be visible.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
                raise
            stream.close()

    def read(self) -> bytes:
        """All of its bytes. Raises: FileNotFoundError."""
        with self._reading() as stream:
            found: bytes = stream.read()
        return found

    def read_start(self, size: int) -> bytes:
        """Its first bytes, `size` of them or what there is. Raises: FileNotFoundError."""
        with self._reading() as stream:
            found: bytes = stream.read(size)
        return found

    def size(self) -> int | None:
        """Of a file, in bytes; None where none is."""
        info = self._info()
        return int(info.size) if info.is_file else None

    def exists(self) -> bool:
        """Whether a file is there."""
        return self.size() is not None

    def remove(self) -> None:
        """Remove a file; that none is there is fine."""
        if not self.is_bucket:
            durable.remove(Path(self.path))
            return
        with suppress(FileNotFoundError), self._failing_as_one_line("remove"):
            self._system().delete_file(self.path)

    def copy_of(self, other: Place) -> None:
        """Have the bytes of another file of the same storage; in a folder, the same file by another name."""
        if self.is_bucket:
            with self._failing_as_one_line("copy to"):
                self._system().copy_file(other.path, self.path)
            return
        durable.make_folder(Path(self.path).parent)
        try:
            os.link(other.path, self.path)
        except OSError:  # a file system without links
            self.write(other.read())

    def files(self, pattern: str = "*") -> list[Place]:
        """The files in it whose names match, by name; hidden ones only where the pattern names them."""
        return self._children(fs.FileType.File, pattern)

    def folders(self) -> list[Place]:
        """The folders in it, by name."""
        return self._children(fs.FileType.Directory, "*")

    def all_below(self) -> dict[str, tuple[int, int]]:
        """name -> size in bytes and time of the last change in ns, of every file below it; a bucket's is a second's."""
        with self._failing_as_one_line("list"):
            selector = fs.FileSelector(self.path, allow_not_found=True, recursive=True)
            found = [info for info in self._system().get_file_info(selector) if info.is_file]
        return {info.path.removeprefix(f"{self.path}/"): (info.size, info.mtime_ns) for info in found}

    @contextmanager
    def local(self) -> Iterator[Path]:
        """A path that can be opened and mapped, here and by other processes of this user; maps outlive the context.

        A folder's own file; of a bucket a temporary file without a name, so that nothing is left of it after a kill.
        """
        if not self.is_bucket:
            yield Path(self.path)
            return
        with tempfile.TemporaryFile() as file:
            self.copy_to(file)
            file.flush()
            yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")

    def copy_to(self, file: IO[bytes]) -> None:
        """Write its bytes to an open file, a part at a time. Raises: FileNotFoundError."""
        with self._reading() as stream:
            while part := stream.read(AT_ONCE):
                file.write(part)

    def _children(self, kind: Any, pattern: str) -> list[Place]:
        with self._failing_as_one_line("list"):
            found = self._system().get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        names = sorted(info.base_name for info in found if info.type == kind)
        hidden = pattern.startswith(".")
        return [self / name for name in names if name.startswith(".") == hidden and fnmatch.fnmatchcase(name, pattern)]

    def _info(self) -> Any:
        with self._failing_as_one_line("look for"):
            return self._system().get_file_info(self.path)

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        with self._failing_as_one_line("read"), self._system().open_input_file(self.path) as stream:
            yield stream

    def _system(self) -> fs.FileSystem:
        return _file_system(self.scheme, self.options, os.environ.get("AWS_ENDPOINT_URL", ""))

    @contextmanager
    def _failing_as_one_line(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self.is_bucket:
                number = error.errno or errno.EIO
                raise OSError(number, error.strerror or os.strerror(number), self.path) from None
            told = redacted(" ".join(str(error).split()))
            denied = errno.EACCES if any(word in told for word in DENIED) else errno.EREMOTEIO
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else denied
            raise OSError(number, f"cannot {doing} it: {_WITH_USER.sub('//', told)[:300]}", str(self)) from None


@cache
def _file_system(scheme: str, options: str, aws_endpoint: str) -> fs.FileSystem:
    """One a storage, for the process: it keeps connections. aws_endpoint: of a storage like S3 that is not Amazon's."""
    if not scheme:
        return fs.LocalFileSystem()
    told = dict(parse_qsl(options))
    if scheme == "gs":
        return fs.GcsFileSystem(
            anonymous=told.get("anonymous") == "true",
            retry_time_limit=timedelta(seconds=REQUEST_SECONDS * ATTEMPTS),
            **_endpoint(told.get("endpoint_override", "")),
        )
    return fs.S3FileSystem(
        region=told.get("region"),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # one request for a small object
        **_endpoint(told.get("endpoint_override") or aws_endpoint),
    )


def _endpoint(url: str) -> dict[str, str]:
    """``http://host:port`` as pyarrow takes it, which takes https where none is said."""
    if not url:
        return {}
    scheme, mark, host = url.rpartition("://")
    return {"endpoint_override": host.rstrip("/"), **({"scheme": scheme} if mark else {})}
