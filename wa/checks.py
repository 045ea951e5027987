"""What a bank accepts: each thing it cannot average is refused in one line that says what to do instead."""

import operator
from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .options import Policy
from .schemes import Recursive, Scheme, Windowed

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_model(model: object) -> None:
    """Raises: ValueError when this is no module, or a module whose weights no average can be swapped into."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"a bank needs the model itself, Bank(model, schemes), not {_short(model)}: it finds the parameters"
        )
    for name, module in model.named_modules():
        if hasattr(module, "_packed_params") or type(module).__name__ == "PackedParameter":
            raise ValueError(
                f"cannot average module {name!r}, a quantised {type(module).__name__}: its weights are packed; "
                "average the float model, then quantise the average"
            )


def check_schemes(schemes: object) -> tuple[Scheme, ...]:
    """The schemes as a tuple.

    Raises: ValueError on what is no list of distinct, complete schemes.
    """
    if isinstance(schemes, Scheme):
        raise ValueError(f"a bank needs a list of schemes: Bank(model, [{schemes!r}])")
    if not isinstance(schemes, Iterable):
        raise ValueError(f"a bank needs a list of schemes, Bank(model, [EMA(0.99)]), not {_short(schemes)}")
    found = tuple(schemes)
    for scheme in found:
        _check_scheme(scheme)
    if len(set(found)) < len(found):
        twice = next(scheme for scheme in found if found.count(scheme) > 1)
        raise ValueError(f"{twice!r} is in the bank twice")
    return found


def _check_scheme(scheme: object) -> None:
    if not isinstance(scheme, Windowed | Recursive):
        kind = "a Windowed or a Recursive scheme" if isinstance(scheme, Scheme) else "a scheme"
        raise ValueError(f"{_short(scheme)} is not {kind}: give LAWA(…), EMA(…), Tail(…), WSM(…) or your own")
    wanted = {"every": 1, "burn_in": 0} | ({"k": 1} if isinstance(scheme, Windowed) else {})
    for name, least in wanted.items():
        value: Any = getattr(scheme, name, None)
        if type(value) is not int or value < least:
            raise ValueError(f"{scheme!r}: {name} must be an int >= {least}, not {value!r}")
    if getattr(scheme, "buffers", None) not in get_args(Policy):
        raise ValueError(f"{scheme!r}: buffers must be one of {', '.join(map(repr, get_args(Policy)))}")


def check_step(step: Any, what: str) -> int:
    """A step as an int, from a Python or numpy int or an integer tensor of one element.

    Raises: ValueError on anything else, booleans and whole floats among them.
    """
    if type(step) is int:
        return step
    if not isinstance(step, bool) and getattr(step, "dtype", None) is not torch.bool:
        try:
            return operator.index(step)
        except TypeError:
            pass
    raise ValueError(f"{what} needs the step as an int, not {_short(step)}")


def check_read_at(steps: object) -> frozenset[int]:
    """The steps at which averages will be read. Raises: ValueError on what are no steps."""
    if not isinstance(steps, Iterable) or isinstance(steps, str):
        raise ValueError(f"Bank(…, read_at) needs the steps at which averages are read, not {_short(steps)}")
    return frozenset(check_step(step, "Bank(…, read_at)") for step in steps)


def check_tensor(kind: str, name: str, tensor: Tensor) -> None:
    """Raises: ValueError when there is no averaging `tensor`, the model's parameter or buffer `name`."""
    if (
        type(tensor) in (nn.Parameter, Tensor)
        and tensor.layout is torch.strided
        and tensor.dtype in FLOATS
        and not (tensor.is_meta or tensor.is_inference())
    ):
        return  # every tensor of an ordinary model, at every update: so first, and fast
    if (reason := _obstacle(tensor)) is not None:
        raise ValueError(f"cannot average {kind} {name!r}: {reason}")


def _obstacle(tensor: Tensor) -> str | None:
    """Why a tensor cannot be averaged, and what to do."""
    if is_lazy(tensor):
        return "it is lazy and has no shape yet; run one batch through the model before making the bank"
    if hasattr(tensor, "_local_tensor"):
        return "DTensor weights are not supported; average a model that is not sharded, or its full_tensor()"
    if hasattr(tensor, "__tensor_flatten__"):
        return f"a {type(tensor).__name__} is not a plain tensor; average the model before it is converted"
    if tensor.is_quantized:
        return "it is quantised; average the float model, then quantise the average"
    if tensor.layout is not torch.strided:
        return f"its layout is {_word(tensor.layout)}; make it dense with .to_dense()"
    if tensor.is_complex():
        return "complex weights are not supported; keep torch.view_as_real(…) of it as the parameter"
    if tensor.is_meta:
        return "it is on the meta device and has no values; load the weights before making the bank"
    if tensor.is_floating_point() and tensor.dtype not in FLOATS:
        kinds = ", ".join(_word(dtype) for dtype in FLOATS)
        return f"{_word(tensor.dtype)} is none of {kinds}; average the weights it was rounded from"
    if tensor.is_inference():
        return "it was made under torch.inference_mode and cannot be written to; build the model outside"
    return None


def _word(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _short(value: object) -> str:
    """What something is, in at most some 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]}… (a {type(value).__name__})"
