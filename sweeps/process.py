"""What a trial may change in its process: made alike before each, put back after each.

Trials run one after another in one worker process, and in whatever process a user calls the loop from. What a
workload sets while it trains (the default dtype, logging, the current folder) ends with its trial; what its module
sets when it is imported, which happens once a process, holds in each of its trials and in nobody else's.
"""

from __future__ import annotations

import gc
import locale
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch

from sweeps import random_streams

Values = dict[str, Any]
T = TypeVar("T")

_set_by_import: dict[str, tuple[ModuleType | None, Values]] = {}  # by name: a module, what importing it set


def begin(seed: int, device: str, num_devices: float, precision: str = "fp32", deterministic: bool = True) -> None:
    """Make the first and the tenth trajectory of a process alike, in what numbers depend on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    torch.set_num_threads(max(1, int(num_devices)) if device == "cpu" else 1)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # It costs time, and nothing here reads empty memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # of convolutions, where torch allows it by itself
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    random_streams.seed_all(seed)
    if device != "cpu":
        torch.cuda.empty_cache()


@contextmanager
def kept() -> Iterator[None]:
    """Leave the process as it was found, and no process that was begun in it, such as a loader's."""
    before, children = _values(), {*multiprocessing.active_children()}
    with random_streams.kept():
        try:
            yield
        finally:
            for child in {*multiprocessing.active_children()} - children:  # an error keeps its loader alive
                with suppress(RuntimeError):  # torch's, that a worker was killed
                    child.kill()
                    child.join()
            _put(_changed(_values(), before))


def imported(name: str, make: Callable[[], T]) -> T:
    """`make()`, which may import module `name`; what that import sets holds, however long ago it was."""
    before, known = _values(), _set_by_import.get(name)
    made = make()
    if known is not None and sys.modules.get(name) is known[0]:
        again = dict(known[1])
        if (key := "search path") in again:  # of it what the import added alone
            again[key] = [*before[key], *(path for path in again[key] if path not in before[key])]
        _put(again)
    else:
        _set_by_import[name] = sys.modules.get(name), _changed(before, _values())
    return made


def _values() -> Values:
    """key -> value, of all that can be read and put back."""
    values: Values = {}
    for name, (read, _) in _SETTINGS.items():
        with suppress(RuntimeError):  # torch refuses to read an old flag where the new one was set
            values[name] = read()
    values |= {f"variable {name}": value for name, value in os.environ.items()}
    known = logging.root.manager.loggerDict.items()
    loggers = {"": logging.root, **{name: one for name, one in known if isinstance(one, logging.Logger)}}
    values |= {
        f"logger {name}": (one.level, one.propagate, one.disabled, tuple(one.handlers), tuple(one.filters))
        for name, one in loggers.items()
    }
    values |= {f"hooks {name}": dict(hooks) for name, hooks in _global_hooks().items()}
    if threading.current_thread() is threading.main_thread():  # elsewhere nobody can set one
        values |= {f"signal {int(number)}": signal.getsignal(number) for number in signal.valid_signals()}
    return values


def _changed(now: Values, wanted: Values) -> Values:
    """What to put so that `now` becomes `wanted`; None where there was nothing."""
    began = {key: None for key in now if key not in wanted and _is_left(key, now[key])}
    return began | {key: value for key, value in wanted.items() if key not in now or not _same(now[key], value)}


def _is_left(key: str, value: Any) -> bool:
    """Whether something that was not there before is something: a logger by itself is nothing."""
    if key.startswith("logger "):
        return not key.startswith("logger torch.") and value != _NEW_LOGGER  # torch sets its own up as it imports them
    return key.startswith("variable ")


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # an object of a user's that compares in its own way
        return one is other


def _put(values: Values) -> None:
    for key, value in values.items():
        with suppress(OSError, ValueError, RuntimeError):  # such as a folder that is gone
            kind, _, name = key.partition(" ")
            if key in _SETTINGS:
                _SETTINGS[key][1](value)
            elif kind == "variable" and value is None:
                os.environ.pop(name, None)
            elif kind == "variable":
                os.environ[name] = value
            elif kind == "logger":
                _set_logger(logging.getLogger(name or None), value or _NEW_LOGGER)
            elif kind == "hooks":
                hooks = _global_hooks()[name]
                hooks.clear()
                hooks.update(value)
            elif kind == "signal" and value is not None:
                signal.signal(int(name), value)


_NEW_LOGGER = (logging.NOTSET, True, False, (), ())


def _set_logger(logger: logging.Logger, state: tuple[Any, ...]) -> None:
    level, logger.propagate, logger.disabled, handlers, filters = state
    logger.setLevel(level)
    logger.handlers[:] = handlers
    logger.filters[:] = filters


def _global_hooks() -> dict[str, dict[Any, Any]]:
    """Hooks on every module and every optimizer, which torch keeps in dicts of these two modules."""
    return {
        f"{module.__name__}.{name}": value
        for module in (torch.nn.modules.module, sys.modules["torch.optim.optimizer"])
        for name, value in vars(module).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }


def _umask() -> int:
    now = os.umask(0o077)  # it can only be read by setting it
    os.umask(now)
    return now


def _folder() -> str | None:
    with suppress(OSError):  # it was removed
        return os.getcwd()
    return None


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # which also makes modules forget what they have warned of
    warnings.filters.extend(filters)  # type: ignore[attr-defined]


def _autocast() -> tuple[Any, ...]:
    each = [f(device) for device in ("cpu", "cuda") for f in (torch.is_autocast_enabled, torch.get_autocast_dtype)]
    return *each, torch.is_autocast_cache_enabled()


def _set_autocast(state: tuple[Any, ...]) -> None:
    for device, enabled, dtype in (("cpu", *state[:2]), ("cuda", *state[2:4])):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.set_autocast_cache_enabled(state[4])


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _flags() -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    """The switches of torch's backends, as far as this release has them."""
    flags = (
        *("enabled", "benchmark", "deterministic", "allow_tf32"),
        *("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"),
        "fp32_precision",  # last: putting back an old flag sets it
    )
    found = {}
    places = "cudnn cudnn.conv cudnn.rnn cuda.matmul mkldnn mkldnn.conv mkldnn.matmul mkldnn.rnn"
    for place in ("", *places.split()):
        owner: Any = torch.backends
        for part in filter(None, place.split(".")):
            owner = getattr(owner, part, None)
        for name in flags:
            with suppress(RuntimeError):
                if getattr(owner, name, None) is None:
                    continue
            found[f"{place}.{name}"] = _attribute(owner, name)
    return found


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "current folder": (_folder, lambda folder: None if folder is None else os.chdir(folder)),
    "umask": (_umask, os.umask),
    "processors": (lambda: os.sched_getaffinity(0), lambda cpus: os.sched_setaffinity(0, cpus)),
    "search path": (lambda: list(sys.path), lambda paths: sys.path.__setitem__(slice(None), paths)),
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    **{name: _attribute(sys, name) for name in ("stdout", "stderr", "excepthook")},
    "garbage collection": (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    "socket timeout": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "start method": (
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda method: multiprocessing.set_start_method(method, force=True),
    ),
    "warnings": (lambda: list(warnings.filters), _set_filters),
    "warning display": _attribute(warnings, "showwarning"),
    "disabled logging": _attribute(logging.root.manager, "disable"),
    "numpy errors": (np.geterr, lambda errors: np.seterr(**errors)),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "anomaly": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda state: torch.autograd.set_detect_anomaly(*state),
    ),
    "autocast": (_autocast, _set_autocast),
    "deterministic": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1]),
    ),
    "filled memory": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    "denormals flushed": (lambda: bool(torch.tensor(5e-324, dtype=torch.float64) * 1.0 == 0), torch.set_flush_denormal),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    **_flags(),
    **{
        f"{name} attention": (
            getattr(torch.backends.cuda, f"{name}_sdp_enabled"),
            getattr(torch.backends.cuda, f"enable_{name}_sdp"),
        )
        for name in ("flash", "mem_efficient", "math", "cudnn")
    },
}
