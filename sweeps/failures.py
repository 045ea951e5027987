"""What a trial died of, in one line: from what Ray says of it and what its log says."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cluster.secrets import redacted
from sweeps.grace import SAID
from sweeps.plan import Trajectory

LONGEST = 300  # characters of a reason
LOG_BYTES = 1 << 16  # of the log's end, which holds the last attempt's last words
FATAL = "Fatal Python error: "  # how Python's faulthandler begins
_STAMP = re.compile(r"\d{4}-\d\d-\d\d ")  # of the log's own lines
_FRAME = re.compile(r'\s*File "(?P<file>.+)", line (?P<line>\d+)')
LIBRARIES = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
SILENT = "it said nothing"  # as a line of the log begins, of a trial that was ended for it
NODE_LOST = "its node was lost"
LOST = (NODE_LOST, SAID)  # no failures of the trial's
LESS = "fewer trials at once (--set resources.cpu=2) or a smaller batch_size takes less"


def described(one: Trajectory) -> str:
    """A trajectory as its user knows it: workload, schemes, seed."""
    schemes = dict.fromkeys("none" if c.scheme is None else type(c.scheme).__name__.lower() for c in one.cells)
    training = one.cells[0].training
    return f"{training.workload} · {', '.join(schemes)} · seed {training.seed}"


def reason(said: str, log: Path, was_short_of_memory: bool = False) -> str:
    """Why the trial died.

    said: the error as Ray gives it. was_short_of_memory: whether the kernel of this machine has killed anything for
    want of memory while the trial ran.
    """
    lines = tail(log)
    if "OutOfMemory" in said or "low on memory" in said:
        return f"out of memory: Ray ended its process to save the machine; {LESS}"
    if lines and lines[-1].endswith(SAID):
        return SAID
    if not died_without_a_word(said):
        return _exception(said.splitlines()) or _exception(lines) or "it ended and did not say why"
    if lines and lines[-1].startswith(SILENT):
        return f"{lines[-1]}; the log says where it stood"
    crash = _crash(lines)
    if crash is not None:
        return crash
    if lost_its_node(said):
        return NODE_LOST
    if was_short_of_memory:
        return f"out of memory: the kernel killed its process (SIGKILL); {LESS}"
    return f"its process vanished (SIGKILL, or os._exit); if it was for want of memory, {LESS}"


def died_without_a_word(said: str) -> bool:
    """Whether its process is gone, as Ray says."""
    return "actor died" in said.lower() or lost_its_node(said)


def lost_its_node(said: str) -> bool:
    """Whether its node is gone or cut off, as Ray says; before Ray knows which, a process there is "unavailable"."""
    return "node has died" in said or re.search(r"[Tt]he actor \w+ is unavailable: ", said) is not None


def _exception(lines: Sequence[str]) -> str | None:
    """What a traceback ends with: the exception's kind and all of its message, on one line."""
    lines = [line for line in redacted("\n".join(lines)).splitlines() if line.strip()]
    last = max((i for i, line in enumerate(lines) if _FRAME.match(line)), default=None)
    if last is None:
        return " ".join(lines[-1].split())[:LONGEST] if lines else None
    after = [line for line in lines[last + 1 :] if not line.startswith(" ")]
    return " ".join(" ".join(after).split())[:LONGEST] or None


def _crash(lines: Sequence[str]) -> str | None:
    """A fatal signal after the last line that the log's own writer stamped."""
    after = lines[max((i for i, line in enumerate(lines, start=1) if _STAMP.match(line)), default=0) :]
    told = next((line for line in after if line.startswith(FATAL)), None)
    if told is None:
        return None
    frames = [found for line in after if (found := _FRAME.match(line))]
    own = [found for found in frames if not found["file"].startswith(LIBRARIES)]
    frame = next(iter(own or frames), None)
    where = "" if frame is None else f" in {Path(frame['file']).name}, line {frame['line']}"
    return f"crashed: {told.removeprefix(FATAL).lower()}{where}; the log has its stack"


def tail(log: Path) -> list[str]:
    """The last lines of a log that are not blank; none where there is none."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - LOG_BYTES))
            return [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []


def memory_kills() -> int:
    """How many processes this machine's kernel has killed for want of memory; 0 where it does not tell."""
    kills = 0
    for path in (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")):
        with suppress(OSError):
            kills += sum(map(int, re.findall(r"^oom_kill (\d+)$", path.read_text(encoding="ascii"), re.MULTILINE)))
    return kills
