"""`--set path=value`: change one key of a raw spec before it is checked."""

from __future__ import annotations

import itertools
import re
from typing import Any

from sweeps.blocks import SpecError
from sweeps.wording import shown
from sweeps.yaml_file import BadYaml, parse_value

PATH = r"[^.\[\]]+(\[[0-9]{1,6}\])*(\.[^.\[\]]+(\[[0-9]{1,6}\])*)*"


def set_path(raw: dict[str, Any], assignment: str) -> None:
    """Apply one ``path=value`` (``optimizer.lr=0.1``, ``averaging[1].k=[5, 20]``) to a raw spec, in place.

    The value is YAML. Missing mappings on the way are made. Raises: SpecError.
    """
    path, equals, text = assignment.partition("=")
    steps = re.findall(r"[^.\[\]]+|\[[0-9]+\]", path)
    if not equals or re.fullmatch(PATH, path) is None or len(path) > 200:
        raise SpecError("--set", f"got {shown(assignment)}; allowed: path=value, as in optimizer.lr=0.1")
    try:
        value = parse_value(text)
    except BadYaml as error:
        raise SpecError(f"--set {path}", str(error)) from None
    here: Any = raw
    for step, following in itertools.pairwise([*steps, None]):
        key: Any = int(step[1:-1]) if step is not None and step.startswith("[") else step
        if isinstance(key, int) and (not isinstance(here, list) or key >= len(here)):
            raise SpecError(f"--set {path}", f"there is no {step} to set")
        if isinstance(key, str) and isinstance(here, list):
            raise SpecError(f"--set {path}", f"this is a list of {len(here)}: say which, as in [0].{key}")
        if not isinstance(here, (dict, list)):
            raise SpecError(f"--set {path}", f"{key!r} lies inside {shown(here)}, which is no mapping")
        if following is None:
            here[key] = value
        elif isinstance(here, dict):
            here = here.setdefault(key, {})
            if here is None:
                raise SpecError(f"--set {path}", f"{key!r} is empty")
        else:
            here = here[key]
