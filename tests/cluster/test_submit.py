"""Submitting, against a real Ray head: what arrives there, what comes back, what stays at home."""

import asyncio
import json
import shlex
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from cluster.submit import _print_logs, command_line, connect, submit
from cluster.upload import SubmitError
from sweeps.cli import main

# Stands in for the command `wa run` on the cluster: tells what it was given, imports the user's module.
PROBE = """
import json, os, sys, time
import mypkg.mine
studies = [open(path).read() for path in sys.argv[1:sys.argv.index("--out")]]
study = studies[0]
print(json.dumps({"argv": sys.argv[1:], "studies": studies, "answer": mypkg.mine.ANSWER,
                  "key": os.environ.get("WANDB_API_KEY"), "files": sorted(os.listdir("."))}), flush=True)
for line in range(30 * ("slow" in study)):
    print("line", line, "." * 40, flush=True)
    time.sleep(0.1)
print("no newline at the end", end="")
sys.exit(int(study.split("exit:")[1]))
"""
SUBMIT = """
import json, sys
from pathlib import Path
from cluster.submit import submit
from cluster.upload import SubmitError
given = json.loads(sys.argv[1])
given["studies"] = [Path(study) for study in given["studies"]]
given["working_dir"] = given["working_dir"] and Path(given["working_dir"])
try:
    sys.exit(10 + submit(given.pop("studies"), given.pop("address"), **given))
except SubmitError as error:
    print("SubmitError", error)
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "user code"
    (folder / "mypkg").mkdir(parents=True)
    (folder / "probe.py").write_text(PROBE)
    (folder / "mypkg" / "mine.py").write_text("ANSWER = 42\n")
    (folder / ".env").write_text("WANDB_API_KEY=secret")
    (folder / "venv").mkdir()
    (folder / "venv" / "pyvenv.cfg").touch()
    (folder / "dangling").symlink_to("nowhere")
    return folder


def run_submit(
    env: dict[str, str], study: Path | list[Path], address: str, code: Path | None, **options: Any
) -> tuple[int, str]:
    given = {
        "studies": [str(each) for each in (study if isinstance(study, list) else [study])],
        "address": address,
        "working_dir": code and str(code),
        "out": "/runs/x y",
        "command": [sys.executable, "probe.py"],
        **options,
    }
    done = subprocess.run(  # a fresh process: Ray reads its authentication mode once
        [sys.executable, "-c", SUBMIT, json.dumps(given)],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,  # each failed start of Ray's client server takes 40 s
        check=False,
    )
    assert not [word for word in ("Traceback", "Uploading", "WebSocket") if word in done.stderr], done.stderr
    return done.returncode - 10, done.stdout


def probed(output: str) -> dict[str, Any]:
    return dict(json.loads(next(line for line in output.splitlines() if line.startswith("{"))))


@pytest.mark.slow
def test_hostile_names_code_and_logs_arrive_and_secrets_do_not(head: Any, code: Path, tmp_path: Path) -> None:
    study = tmp_path / "my 'study'; $(touch pwned) \".yaml"
    study.write_text("exit: 0")
    second = tmp_path / "second.yaml"
    second.write_text("another")
    sets = ["optimizer.lr=[0.1, 0.2]", "-x='; touch pwned #", "name=ü\n"]
    env = head.env | {"WANDB_API_KEY": "topsecret", "RAY_ADDRESS": "http://127.0.0.1:1"}
    status, output = run_submit(env, [study, second], head.dashboard, code, overrides=sets)
    assert status == 0, output
    told = probed(output)
    expected = [f"wa_study/{study.name}", "wa_study/second.yaml", "--out", "/runs/x y", "--address", "auto"]
    assert told["argv"] == expected + [word for each in sets for word in ("--set", each)]
    assert told["studies"] == ["exit: 0", "another"]
    assert told["answer"] == 42
    assert told["key"] is None
    assert told["files"] == ["mypkg", "probe.py", "wa_study"]
    assert "topsecret" not in output
    assert output.splitlines()[-2] == "no newline at the end"
    assert output.splitlines()[-1].endswith("succeeded")


@pytest.mark.parametrize(("failures", "reached"), [(0, True), (2, True), (3, False)])
def test_a_client_server_that_does_not_start_is_asked_for_again(
    failures: int, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def client(address: str) -> str:  # a fork that hangs cannot be had at will
        asked.append(address)
        if len(asked) <= failures:
            raise ConnectionAbortedError("Initialization failure from server:")
        return "connected"

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", client)
    if reached:
        assert connect("ray://head:10001") == "connected"
        assert len(asked) == failures + 1
    else:
        with pytest.raises(SubmitError, match="no Ray dashboard answers at ray://head:10001"):
            connect("ray://head:10001")
        assert len(asked) == 3


@pytest.mark.slow
def test_without_wait_it_returns_before_the_job_ends(head: Any, code: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("slow exit: 3")
    status, output = run_submit(head.env, study, head.client, code, wait=False)
    assert status == 0, output
    first, *files, job = output.splitlines()
    assert first.startswith("3 files, ")
    assert [line.split()[-1] for line in files] == ["mypkg/mine.py", "probe.py", "wa_study/study.yaml"]
    assert job.startswith("job ")


@pytest.mark.slow
def test_a_broken_connection_loses_no_line_and_exit_codes_come_back(head: Any, code: Path, tmp_path: Path) -> None:
    failing, refused = tmp_path / "failing.yaml", tmp_path / "refused.yaml"
    failing.write_text("slow exit: 3")
    refused.write_text("exit: 2")
    with CuttingProxy(int(head.dashboard.rsplit(":", 1)[1])) as proxy, ThreadPoolExecutor() as pool:
        there = pool.submit(run_submit, head.env, refused, head.dashboard, code)
        status, output = run_submit(head.env, failing, f"http://127.0.0.1:{proxy.port}", code)
    assert status == 1, output
    assert proxy.cuts == 2
    lines = [line for line in output.splitlines() if line.startswith("line ")]
    assert lines == [f"line {number} {'.' * 40}" for number in range(30)]
    assert output.splitlines()[-1].split()[2] == "failed:"
    assert there.result()[0] == 2


@pytest.mark.slow
def test_a_wrong_token_is_one_clear_line(head: Any, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("exit: 0")
    nobody = {name: value for name, value in head.env.items() if not name.startswith("RAY_AUTH")}
    for env in (head.env | {"RAY_AUTH_TOKEN": "f" * 32}, nobody | {"RAY_AUTH_MODE": "disabled"}):
        _, output = run_submit(env, study, head.dashboard, None)
        assert output.splitlines()[-1].startswith("SubmitError")
        assert len(output.splitlines()) == 3  # the others list what would go
        assert head.dashboard in output
        assert "RAY_AUTH_TOKEN_PATH" in output


@pytest.mark.slow
def test_a_head_answers_nobody_without_its_token(head: Any) -> None:
    """Neither Ray's own port nor the dashboard's."""
    with grpc.insecure_channel(head.gcs) as channel:
        nodes = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        for metadata in ([], [("authorization", f"Bearer {'f' * 32}")]):
            with pytest.raises(grpc.RpcError) as refused:
                nodes(b"", timeout=30, metadata=metadata)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        token = head.env["RAY_AUTH_TOKEN"]
        assert nodes(b"", timeout=30, metadata=[("authorization", f"Bearer {token}")])
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{head.dashboard}/api/version", timeout=30)


@pytest.mark.slow
def test_the_doctor_reads_the_version_of_a_real_dashboard(head: Any) -> None:
    script = f"from cluster.doctor import reachable; c = reachable({head.dashboard!r}); print(c.ok, c.detail)"
    done = subprocess.run([sys.executable, "-c", script], env=head.env, capture_output=True, text=True, check=True)
    assert done.stdout == f"True {head.dashboard} runs Ray {version('ray')}\n"


def test_no_cluster_names_address_and_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SubmitError, match="RAY_AUTH_MODE=token") as caught:
            connect(address)
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["head:8265", "auto", "", "ftp://head", "http://"])
def test_address_needs_a_known_scheme(address: str) -> None:
    with pytest.raises(SubmitError, match="http://HEAD:8265"):
        connect(address)


def test_a_relative_out_lies_in_the_home_of_the_clusters_user() -> None:
    line = command_line(("printf", "%s\\n"), ["s.yaml", "b c.yaml"], "runs/a '$b", ["x=~ *"])
    done = subprocess.run(["sh", "-c", line], env={"HOME": "/home/u v"}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        *("s.yaml", "b c.yaml", "--out", "/home/u v/runs/a '$b"),
        *("--address", "auto", "--set", "x=~ *"),
    ]


def test_a_dry_run_lists_and_does_not_connect(tmp_path: Path, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(address: str) -> None:
        said.append("connected")
        raise SubmitError("no")

    monkeypatch.setattr("cluster.submit.connect", connected)
    study = tmp_path / "study.yaml"
    study.write_text("study: s")
    said: list[str] = []
    options: Any = {"out": "/o", "working_dir": code, "echo": said.append}
    assert submit([study], "http://head:8265", list_only=True, **options) == 0
    (told,) = said
    assert told.splitlines()[2].split() == [f"{len(PROBE)}", "B", "probe.py"]
    with pytest.raises(SubmitError):
        submit([study], "http://head:8265", **options)
    assert said == [told, told, "connected"]  # listed before it goes


def test_the_storage_is_handed_on_to_the_run_there() -> None:
    line = command_line(("wa", "run"), ["s.yaml"], "/o", storage="s3://bucket/a b")
    assert shlex.split(line)[-4:] == ["--address", "auto", "--storage", "s3://bucket/a b"]
    with pytest.raises(SubmitError, match="absolute path"):
        command_line(("wa", "run"), ["s.yaml"], "/o", storage="checkpoints")
    with pytest.raises(SubmitError, match="a password in an address") as caught:
        command_line(("wa", "run"), ["s.yaml"], "/o", storage="s3://key:s3cr3tkey@bucket/a")
    assert "s3cr3tkey" not in str(caught.value)


def test_command_line_refuses_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "topsecret")
    assert command_line(("wa", "run"), ["s.yaml"], "/o") == "wa run s.yaml --out /o --address auto"
    with pytest.raises(SubmitError, match="WANDB_API_KEY") as caught:
        command_line(("wa", "run"), ["s.yaml"], "/o", ["a=topsecret"])
    assert "topsecret" not in str(caught.value)


class Job:
    """A job client whose log connection breaks after so many characters, once each."""

    def __init__(self, log: str, cuts: list[int], chunk: int) -> None:
        self.log, self.cuts, self.chunk = log, list(cuts), chunk

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        until = self.cuts.pop(0) if self.cuts else None
        for at in range(0, len(self.log), self.chunk):
            if until is not None and at + self.chunk > until:
                raise ConnectionError("cut")
            yield self.log[at : at + self.chunk]

    def get_job_status(self, job: str) -> Any:
        return SimpleNamespace(is_terminal=lambda: not self.cuts)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("cuts", [[], [0], [5], [6], [17, 3, 17, 40], [39, 40, 41, 42, 43]])
def test_a_log_is_said_once_wherever_the_connection_breaks(
    monkeypatch: pytest.MonkeyPatch, chunk: int, cuts: list[int]
) -> None:
    """Lines of every length, an empty one, two alike, and a last one without its end."""
    monkeypatch.setattr("cluster.submit.POLL_S", 0.0)
    log = "first\n\nsame\nsame\na longer line with ünïcödé\nlast"
    said: list[str] = []
    asyncio.run(_print_logs(Job(log, cuts, chunk), "job", "http://head", said.append))
    assert said == log.split("\n")


def test_the_command_sends_several_studies_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr("cluster.submit.submit", lambda *given, **options: sent.append((given, options)) or 0)
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file in files:
        file.write_text(f"study: {file.stem}\nworkloads: lm\naveraging: {{scheme: none}}\n")
    names, to = [str(file) for file in files], ["--address", "http://head:8265"]
    refused = CliRunner().invoke(main, ["submit", *names, *to])
    assert refused.exit_code == 2
    assert "--out: is required" in refused.output
    assert sent == []
    assert CliRunner().invoke(main, ["submit", *names, *to, "--out", "/runs/both"]).exit_code == 0
    assert CliRunner().invoke(main, ["submit", names[0], *to]).exit_code == 0
    assert [(given, options["out"]) for given, options in sent] == [
        ((files, to[1]), "/runs/both"),
        ((files[:1], to[1]), "runs/a"),
    ]


class CuttingProxy:
    """Forwards TCP to `target`; the first two log followers are cut off in the middle of a message."""

    def __init__(self, target: int) -> None:
        self.target, self.cuts = target, 0

    def __enter__(self) -> "CuttingProxy":
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", self.target))
        request = near.recv(1 << 16)
        far.sendall(request)
        limit = 10**12
        if b"/logs/tail" in request and self.cuts < 2:
            self.cuts += 1
            limit = 900 + 600 * self.cuts  # the handshake's answer and some of the log
        threading.Thread(target=_pump, args=(near, far, 10**12), daemon=True).start()
        _pump(far, near, limit)


def _pump(source: socket.socket, sink: socket.socket, limit: int) -> None:
    with source, sink:
        try:
            while limit > 0 and (data := source.recv(min(1 << 16, limit))):
                sink.sendall(data)
                limit -= len(data)
            for end in (source, sink):
                end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def test_changed_code_is_accepted_over_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "s.yaml"
    study.write_text("study: s\nworkloads: [lm]\naveraging: {scheme: none}\n")
    asked: list[Any] = []
    monkeypatch.setattr("cluster.submit.submit", lambda *_, **options: asked.append(options["command"]) or 0)
    for flags in ([], ["--accept-changed-code"]):
        CliRunner().invoke(main, ["submit", str(study), "--address", "http://head:8265", *flags])
    assert asked == [("wa", "run"), ("wa", "run", "--accept-changed-code")]
