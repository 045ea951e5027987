"""`wa doctor`: is this place ready for a sweep? Looks, tries, and says what to do; changes nothing."""

import contextlib
import netrc
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from cluster.place import Check, folder_checks, place
from cluster.ray_folder import NoFolder, ray_folder

RAY_TIMEOUT_S = 120.0
_START_RAY = """
import os, sys, time
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # so it listens on 127.0.0.1 alone
import ray
began = time.monotonic()
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=100 << 20, _temp_dir=sys.argv[1])
answer = ray.get(ray.remote(lambda: 6 * 7).remote())
ray.shutdown()
print(f"answered {answer} after {time.monotonic() - began:.1f} s")
"""


def examine(run: Path | None = None, address: str | None = None, *, start_ray: bool = False) -> list[Check]:
    """All checks: the machine, W&B, and if asked for the run folder, the cluster's address, a Ray start.

    `address`: a dashboard (http://…), a Ray client (ray://…) or a head (host:port). `start_ray` starts a real
    local Ray in a process of its own for some 10 s. Raises nothing: what fails is a Check with ok False.
    """
    checks = [*place(), wandb()]
    if run is not None:
        checks += folder_checks(run)
    if address is not None:
        checks.append(reachable(address))
    if start_ray:
        checks.append(ray_starts())
    return checks


def render(checks: list[Check]) -> str:
    """Plain text: one line a check, its remedy below it."""
    marks = {True: "ok", False: "BAD", None: "-"}
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.ok]:<4}{check.name:<{width}}  {check.detail}")
        if check.remedy:
            lines.append(f"{'':<{width + 6}}→ {check.remedy}")
    return "\n".join(lines)


def wandb() -> Check:
    """The mode that the environment asks for, and whether there is a key: yes or no, never the key."""
    mode = os.environ.get("WANDB_MODE", "")
    key = _has_key()
    ok = None if mode != "online" or key else False
    said = f"WANDB_MODE={mode}" if mode else "WANDB_MODE not set, so the study decides"
    remedy = "" if ok is None else "run `wandb login`, or set WANDB_MODE=offline and sync later"
    return Check("wandb", ok, f"{said}; key: {'yes' if key else 'no'}", remedy)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return bool(netrc.netrc(path).authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False


def reachable(address: str) -> Check:
    """Does a cluster answer there: its version over http, an open port otherwise."""
    if address == "auto":
        return Check("cluster", None, "auto: found by Ray itself, on a machine of the cluster")
    scheme, _, rest = address.rpartition("://")
    if scheme in {"http", "https"}:
        return _dashboard(address)
    host, _, port = rest.rpartition(":")
    if not host or not port.isdigit():
        return Check("cluster", False, f"{address}: no host:port", "as in http://HEAD:8265 or HEAD:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        return Check("cluster", False, f"{address}: {error}", "is the head up, and the port open or forwarded?")
    return Check("cluster", True, f"{address} takes connections")


def _dashboard(address: str) -> Check:
    from importlib.metadata import version

    from cluster.submit import connect
    from cluster.upload import SubmitError

    try:
        # What Ray's client learnt while connecting; its public get_version() is that of the REST interface.
        there = getattr(connect(address), "_server_ray_version", None)
    except SubmitError as error:
        return Check("cluster", False, str(error), "as said")
    if there is None:
        return Check("cluster", True, f"{address} answers")
    here = version("ray")
    if there.split(".")[:2] != here.split(".")[:2]:  # releases of one minor version understand each other
        return Check("cluster", None, f"{address} runs Ray {there}, this place {here}", "use one version everywhere")
    return Check("cluster", True, f"{address} runs Ray {there}")


def ray_starts(timeout_s: float = RAY_TIMEOUT_S) -> Check:
    """Start a local Ray of one CPU in a process group of its own, run one task, end all of it."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    try:
        with ray_folder() as folder:
            process = subprocess.Popen(
                [sys.executable, "-c", _START_RAY, str(folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                output = f"no answer within {timeout_s:.0f} s"
            finally:
                _end_group(process)
    except (OSError, NoFolder) as error:
        return Check("ray starts", False, str(error), "as said under temp path")
    last = (output.strip().splitlines() or ["no output"])[-1][:300]
    ok = process.returncode == 0 and last.startswith("answered 42")
    return Check("ray starts", ok, last, "" if ok else "mend what stands above first; then `ray start --head --block`")


def _end_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):  # all gone already, as they should be
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
