"""The page about `wa` does what it says."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "averages.md"


def test_the_example_runs_as_it_is_printed():
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    found: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), found)
    assert found["answer"] == ([repr(found["EMA"](0.99))], [])
    assert found["model"].training
    assert found["bank"].step == 20
