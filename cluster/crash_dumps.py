"""Where a fatal signal leaves a trial's stack on its node, where it stands on demand, and how the driver gets that."""

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ASK_SECONDS = 15.0  # for a node to answer
DUMP_SECONDS = 1.0  # for a process to write down its threads
Process = dict[str, Any]  # node: of Ray; pid; dump: a file there


@contextmanager
def kept() -> Iterator[Process]:
    """Inside a Ray worker, have what `dumping` writes among Ray's logs of the node. Yields where, in plain values."""
    path = Path(ray._private.worker._global_node.get_logs_dir_path()) / f"wa-trial-{os.getpid()}.dump"
    _remove_empty(path.parent)
    with dumping(path):
        yield {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(), "dump": str(path)}


@contextmanager
def dumping(path: Path) -> Iterator[None]:
    """Inside, a fatal signal writes this thread's stack into a file, and SIGUSR1 those of all threads.

    A process that ends in order leaves no file.
    """
    with open(path, "wb") as stream:
        faulthandler.enable(stream, all_threads=False)
        faulthandler.register(signal.SIGUSR1, stream, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR1)
            faulthandler.disable()
    path.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    """Those of killed processes, which had no time for a word; what has one is for the driver to fetch."""
    for path in folder.glob("wa-trial-*.dump"):
        with suppress(OSError):  # gone meanwhile
            if path.stat().st_size == 0 and not Path(f"/proc/{path.stem.rpartition('-')[2]}").exists():
                path.unlink()


def fetched(process: Process) -> str:
    """What a process that crashed has written down; nothing where its node does not answer."""
    return str(_there(process, _read, process["dump"]) or "")


def stopped(process: Process) -> str:
    """Where the threads of a process stand that does not go on; then it is killed."""
    return str(_there(process, _dump_and_kill, process["pid"], process["dump"]) or "")


def _read(dump: str) -> str:
    """All of it; then it goes."""
    with suppress(OSError):
        said = Path(dump).read_text(errors="replace")
        os.unlink(dump)
        return said
    return ""


def _dump_and_kill(pid: int, dump: str) -> str:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
        time.sleep(DUMP_SECONDS)
        said = _read(dump)
        os.kill(pid, signal.SIGKILL)
        return said
    return ""


def _there(process: Process, function: Callable[..., str], *arguments: Any) -> str | None:
    """Call it on the process's node. None where that does not answer in time."""
    with suppress(Exception):  # whatever Ray raises, it is no answer
        if process["node"] == ray.get_runtime_context().get_node_id():
            return function(*arguments)
        pinned = NodeAffinitySchedulingStrategy(process["node"], soft=False)
        task = ray.remote(function).options(num_cpus=0, scheduling_strategy=pinned, max_retries=0)
        return str(ray.get(task.remote(*arguments), timeout=ASK_SECONDS))
    return None
