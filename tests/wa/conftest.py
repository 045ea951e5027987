"""Makes tests/reference.py importable as `reference`, without putting tests/ (and its `wa`) on sys.path."""

import importlib.util
import sys
from pathlib import Path

import torch

if "reference" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("reference", Path(__file__).parents[1] / "reference.py")
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["reference"] = _module
    _spec.loader.exec_module(_module)

torch.set_num_threads(1)
