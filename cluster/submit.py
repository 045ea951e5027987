"""Send studies to a running Ray cluster as a Ray Job and follow it."""

import asyncio
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from cluster import secrets
from cluster.errors import first_line
from cluster.upload import SubmitError, listing, stage, staged

logger = logging.getLogger(__name__)

Echo = Callable[[str], object]
CHATTY = (  # they tell of each upload and each closed socket
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
PATIENCE_S = 60.0  # how long the cluster may be out of reach before following gives up
POLL_S = 0.5
# A head forks a server for each ray:// client; now and then that fork hangs, and the next does not
CLIENT_TRIES = 3


def submit(
    studies: Sequence[Path],
    address: str,
    *,
    out: str,
    overrides: Sequence[str] = (),
    storage: str | None = None,
    working_dir: Path | None = None,
    send: Sequence[Path] = (),
    list_only: bool = False,
    wait: bool = True,
    echo: Echo = print,
    command: Sequence[str] = ("wa", "run"),
) -> int:
    """Run `wa run STUDY... --out OUT --address auto` on the cluster at `address` as a Ray Job.

    `address`: `http://HEAD:8265` (or https) of the dashboard, or `ray://HEAD:10001`. `out` is a path on the cluster; a
    relative one lies in the home folder of the cluster's user on the head, since the job's own folder is temporary.
    `storage`, handed to `wa run`: a folder that every node sees, or s3://… or gs://….

    Uploads the studies and, if given, the code under `working_dir`, all of it listed before it goes; with `list_only`
    that is all. No secret of this environment travels: keys belong in the cluster's own, Ray's token in the headers
    that Ray itself sends. `send`: files that are sent though they look like a secret.

    Returns the exit code: 0 the job succeeded (or, without `wait`, was accepted); 2 the command on the
    cluster refused its input; 1 anything else. Raises SubmitError, one line, when it cannot be submitted.
    """
    check_address(address)
    with tempfile.TemporaryDirectory(prefix="wa-submit-") as folder:
        staging = Path(folder)
        paths = stage(studies, staging, working_dir, send)
        entrypoint = command_line(command, paths, out, overrides, storage)
        echo(listing(staged(staging), whole=list_only))
        if list_only:
            return 0
        client = connect(address)
        names = " ".join(study.name for study in studies)
        job = _send(client, entrypoint, staging, {"study": names, "out": out}, address)
    echo(f"job {job} at {address}: {entrypoint}")
    if not wait:
        return 0
    return _follow(client, job, address, echo)


def command_line(
    command: Sequence[str],
    studies: Sequence[str],
    out: str,
    overrides: Sequence[str] = (),
    storage: str | None = None,
) -> str:
    """The job's shell command, every word quoted, a relative `out` put below the cluster user's $HOME.

    Raises SubmitError where a secret would stand in it, or `storage` is a relative path, which no two nodes share.
    """
    words = [*command, *studies, "--out", out, "--address", "auto"]
    if storage is not None:
        if "://" not in storage and not PurePosixPath(storage).is_absolute():
            raise SubmitError(f"--storage {storage}: allowed: s3://…, gs://… or an absolute path of the cluster")
        words += ["--storage", storage]
    for override in overrides:
        words += ["--set", override]
    for word in words:
        if held := secrets.found(word):
            raise SubmitError(f"{held[0]} stands in the command, which every user of the cluster can read")
    quoted = [shlex.quote(word) for word in words]
    if not PurePosixPath(out).is_absolute():
        place = len(command) + len(studies) + 1
        quoted[place] = f'"$HOME"/{shlex.quote(out.removeprefix("~/"))}'
    return " ".join(quoted)


def check_address(address: str) -> None:
    """Raises: SubmitError where it can be none of a cluster."""
    scheme, separator, host = address.partition("://")
    if not separator or scheme not in {"http", "https", "ray"} or not host:
        raise SubmitError(f"--address {address}: must be http://HEAD:8265, https://… or ray://HEAD:10001")


def connect(address: str) -> Any:
    """A ray.job_submission.JobSubmissionClient on `address`. Raises SubmitError naming it and the remedy."""
    check_address(address)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            for _ in range(CLIENT_TRIES - 1):
                try:
                    return JobSubmissionClient(address)
                except ConnectionAbortedError:  # after Ray's 30 s; nothing has been sent yet
                    logger.warning("%s: Ray's client server did not start; once more", address)
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise SubmitError(_refused(address)) from error
    except Exception as error:  # what Ray lets through: requests, grpc, its own, by the kind of address
        raise SubmitError(
            f"no Ray dashboard answers at {address} ({first_line(error)}); is the head up, started with "
            "`ray start --head --dashboard-host=0.0.0.0`, and the port forwarded? A cluster that asks for a "
            "token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here too"
        ) from error


def _send(client: Any, entrypoint: str, staging: Path, metadata: dict[str, str], address: str) -> str:
    from ray.exceptions import AuthenticationError

    environment = {"working_dir": str(staging)}
    try:
        return str(client.submit_job(entrypoint=entrypoint, runtime_env=environment, metadata=metadata))
    except AuthenticationError as error:
        raise SubmitError(_refused(address)) from error
    except (RuntimeError, OSError) as error:
        raise SubmitError(f"{address} did not take the job: {first_line(error)}") from error


def _follow(client: Any, job: str, address: str, echo: Echo) -> int:
    try:
        asyncio.run(_print_logs(client, job, address, echo))
        info = client.get_job_info(job)
    except KeyboardInterrupt:
        echo(f"no longer following; the job goes on. `ray job logs -f {job}`, `ray job stop {job}`")
        return 1
    code = 0 if info.status == "SUCCEEDED" else 2 if info.driver_exit_code == 2 else 1
    reason = f": {' '.join((info.message or '').split())[:300]}" if code else ""
    echo(f"job {job} {info.status.lower()}{reason}")
    return code


async def _print_logs(client: Any, job: str, address: str, echo: Echo) -> None:
    """Echo the job's log line by line until it ends. A broken connection is taken up where it broke."""
    echoed = 0
    lost_since: float | None = None
    while True:
        read, rest = 0, ""
        try:
            async for chunk in client.tail_job_logs(job):  # a new tail begins at the log's first character
                lost_since = None
                text = chunk[max(0, echoed - read) :]
                read += len(chunk)
                *lines, rest = (rest + text).split("\n")
                for line in lines:
                    echo(line)
                    echoed += len(line) + 1
            if client.get_job_status(job).is_terminal():
                if rest:
                    echo(rest)
                return
        except Exception as error:  # aiohttp, requests and Ray's own, all of them: the line is broken
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > PATIENCE_S:
                raise SubmitError(
                    f"{address} has been out of reach for {PATIENCE_S:.0f} s ({first_line(error)}); "
                    f"job {job} may go on, and submitting again continues its folder"
                ) from error
        await asyncio.sleep(POLL_S)


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hide variables that Ray would put above the address the user wrote."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _refused(address: str) -> str:
    return (
        f"{address} asks for another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or "
        "RAY_AUTH_TOKEN) to the cluster's own before this command starts"
    )
