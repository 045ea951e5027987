"""What one check of `wa doctor` says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One finding: `ok` True good, False to be mended by `remedy`, None a fact that is neither."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""
