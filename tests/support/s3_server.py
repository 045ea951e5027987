"""A server that speaks S3 on loopback, moto's, and a door before it that can be slow, refuse, or slam."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sweeps import storage
from sweeps.storage import Place

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY000000", "AWS_SECRET_ACCESS_KEY": "planted/secret+of/the+storage"}


class Door:
    """What goes between a client and the server: bytes both ways, unless a test says otherwise."""

    def __init__(self, server: int) -> None:
        self.server = server
        self.answer: int | None = None  # the status that each request gets instead of the server's
        self.is_open = threading.Event()  # else nothing passes, and nobody is told
        self.is_open.set()
        self.slams_after: int | None = None  # bytes from the client, after which no connection lives or is made
        self.passed = self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_slammed(self) -> bool:
        return self.slams_after is not None and self.passed >= self.slams_after

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.server)) as server:
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()
            while not self.is_slammed and (data := client.recv(1 << 16)):
                self.is_open.wait()
                self.passed += len(data)
                if self.is_slammed:
                    return
                if self.answer is not None:
                    said = f"<Error><Code>Said</Code><Message>no ({self.answer})</Message></Error>".encode()
                    head = f"HTTP/1.1 {self.answer} No\r\nContent-Length: {len(said)}\r\nConnection: close\r\n\r\n"
                    client.sendall(head.encode() + said)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(1 << 16):  # else what it still sends would reset the connection
                        pass
                    return
                server.sendall(data)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                self.is_open.wait()
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


def moto_server() -> str | None:
    """The program beside this Python, or where MOTO_SERVER says: another version may be on the path."""
    return shutil.which(os.environ.get("MOTO_SERVER") or Path(sys.executable).with_name("moto_server"))


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of the server, which a session shares."""
    program = moto_server()
    if program is None:
        pytest.skip("moto's server is not installed (the extra `dev` has it)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], **quiet)
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        assert server.poll() is None, "moto's server did not start"
        assert time.monotonic() < deadline, "moto's server does not answer"
        time.sleep(0.05)
    yield port
    server.kill()
    server.wait()


@pytest.fixture
def s3_door(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """A door of its own, with planted credentials in the environment and quick time-outs."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(storage, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    door = Door(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{door.port}")
    yield door
    door.is_open.set()
    door.listener.close()


@pytest.fixture
def bucket(s3_door: Door) -> Place:
    """A prefix of a new bucket, behind the door."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    connection = http.client.HTTPConnection("127.0.0.1", s3_door.server, timeout=30)
    connection.request(
        "PUT", f"/{name}", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3"}
    )
    assert connection.getresponse().status == 200
    connection.close()
    return Place.of(f"s3://{name}/runs/one")
