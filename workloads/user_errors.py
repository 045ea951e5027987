"""What went wrong in a user's code, in one line that says where."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

from cluster.secrets import redacted

_OURS = Path(__file__).resolve().parent.parent
OUR_PACKAGES = ("wa", "workloads", "sweeps", "analysis", "cluster")
MOST = 300  # characters of a message


def one_line(error: BaseException) -> str:
    """``ValueError: no such luck (mymodule.py:12)``: the error, without secrets, and the user's last line in it."""
    if isinstance(error, SystemExit):
        told = f"SystemExit: it called exit({'' if error.code is None else repr(error.code)})"
    else:
        told = traceback.format_exception_only(error)[-1].strip()
    told = " ".join(redacted(told).split())  # before it is cut: half a secret is one too
    where = _where(error)
    return (told if len(told) <= MOST else told[: MOST - 1] + "…") + (f" ({where})" if where else "")


def _where(error: BaseException) -> str | None:
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if is_users(Path(frame.filename)):
            return f"{frame.filename}:{frame.lineno}"
    return None


def is_users(file: Path) -> bool:
    """Whether a source file belongs neither to Python, nor to an installed package, nor to this product."""
    if not file.is_absolute() or not file.suffix:  # <frozen importlib._bootstrap>, <string>
        return False
    file = file.resolve()
    inside = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    inside += [_OURS / name for name in OUR_PACKAGES]
    inside += [Path(path).resolve() for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    return not any(folder in file.parents for folder in inside)
