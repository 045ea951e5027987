"""Thousands of broken specs, overrides and command lines: each is a valid study or one short line, in no time.

Seeded, so that a case that fails here fails everywhere; nothing is launched.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import sweeps.spec
from sweeps import border
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.cli import main
from sweeps.spec import load_spec, parse_spec, set_path
from sweeps.yaml_file import dump_yaml, parse_value
from workloads.protocol import load

MOST_CHARACTERS, MOST_SECONDS = 300, 2.0
STUDIES = sorted(Path(sweeps.spec.__file__).parent.glob("*.yaml"))
EVERY_KEY = """
study: every_key
question: Which?
report: steps
primary: {scheme: lawa, horizon: 0.02}
workloads: [lm, ogbg]
preset: mini
seeds: [0, 1]
step_budget: [1.0, 500]
optimizer: {name: adamw, lr: [0.1, 0.2], beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0}
schedule: {shape: linear, length: 0.5, warmup: 0.1, lr_decay: 0.2, final_lr: 0.0}
training: {batch_size: [2.0, 8], precision: bf16, compile: false, accumulate: 2}
averaging:
  - {scheme: none}
  - {scheme: lawa, k: 5, every: 2, burn_in: 0.1, until_full: partial, buffers: average}
  - {scheme: ema, decay: 0.9, every: 3, init: zero, buffers: recompute}
  - {scheme: ema, horizon: [0.1, 0.2], every: 0.01}
  - {scheme: tail, start: 0.5, every: 2}
  - {scheme: wsm, lr_decay: 0.1, every: 0.01, curve: sqrt}
evaluate: {every: 0.1, test: false}
overrides: {ogbg: {optimizer: {name: shampoo, lr: 0.01, precondition_every: 3, block_size: 64, matrix_eps: 1e-6}}}
data_dir: /nowhere
resources: {cpu: 1, gpu: 0, processes: 1}
tracking: {wandb: disabled, project: p, entity: e}
fuse: true
"""
WORDS = """none 010 1:30 1_000 yes 20x .. a: :x os:system sys:exit a.b: ../../etc / =1+1 -x lm 2024-01-01 <<""".split()  # noqa: SIM905
HOSTILE = [
    *(None, True, False, 0, -1, 1, 2, 1.0, 1e3, 100.0, 0.5, -0.0, 1e308, 5e-324, float("inf"), float("nan")),
    *(10**39, 10**400, "", " ", "x" * 5000, "\x00", "\u202e", "a\nb", [], {}, [[]], {"a": {}}, [None]),
    *(["lm", "lm"], {"": 1}, {"scheme": "ema"}, [[[[1]]]], list(range(300))),
    *WORDS,
]
SCALARS = r"""
010 0o10 0x1F 1e3 1:30 1_000 .5 5. .inf -.inf .nan yes off null !!float_1 !!bool_abc !!int_x !!timestamp_x !!binary_a
!!python/object/apply:os.system_[ls] !foo_{} &a_[*a] *a &a_x {<<:_{a:_1}} ?_[a] ' " [ { -_ | > % @ --- ... = << 1e999
""".split()  # noqa: SIM905
SCALARS = [scalar.replace("_", " ") for scalar in SCALARS]
SCALARS += ["~", "1_000", "\t", "9" * 5000, "[" * 60 + "]" * 60, "\ufeff", "\x00", "\x85", "\ud800"]


def base_specs() -> list[dict[str, Any]]:
    return [parse_value(EVERY_KEY), *(parse_value(path.read_text()) for path in STUDIES)]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(spec: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One to three changes of values, keys and shape."""
    spec = copy.deepcopy(spec)
    for _ in range(rng.randint(1, 3)):
        found = list(places(spec))
        if not found:
            break
        *way, key = rng.choice(found)
        here: Any = spec
        for step in way:
            here = here[step]
        match rng.randrange(7):
            case 0 | 1:
                here[key] = copy.deepcopy(rng.choice(HOSTILE))
            case 2:
                del here[key]
            case 3:
                here[key] = [here[key], copy.deepcopy(rng.choice(HOSTILE))]
            case 4:
                here[key] = {rng.choice(["scheme", "k", "x", "name", ""]): here[key]}
            case 5 if isinstance(here, dict):
                here[rng.choice([f"{key}x", "k", "lr", "every", "horizon", 1, None, "k" * 5000])] = here[key]
            case _:
                other: Any = spec
                for step in rng.choice(found):
                    other = other[step] if isinstance(other, dict | list) and step in places_of(other) else other
                here[key] = copy.deepcopy(other)
    return spec


def places_of(value: Any) -> Any:
    return value if isinstance(value, dict) else range(len(value))


def mutated_text(text: str, rng: random.Random) -> bytes:
    """A file with a few bytes, scalars or lines changed."""
    if rng.random() < 0.5:
        lines = text.splitlines()
        i = rng.randrange(len(lines))
        match rng.randrange(4):
            case 0:
                lines.insert(i, lines[rng.randrange(len(lines))])
            case 1:
                head, colon, _ = lines[i].partition(":")
                lines[i] = f"{head}{colon} {rng.choice(SCALARS)}"
            case 2:
                lines[i] = " " * rng.randrange(5) + lines[i]
            case 3:
                lines[i] = lines[i].replace(rng.choice("[]{},: "), rng.choice(SCALARS), 1)
        text = "\n".join(lines)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.6:
        for _ in range(rng.randint(1, 4)):
            i = rng.randrange(len(data))
            data[i : i + rng.randrange(3)] = bytes(rng.randrange(256) for _ in range(rng.randrange(3)))
    return bytes(data)


def held(case: object, attempt: Callable[[], object]) -> bool:
    """Whether the case is valid; anything but a valid study or one short line, in time, fails."""
    began = time.process_time()
    try:
        attempt()
        valid = True
    except SpecError as error:
        line = str(error)
        assert len(line) <= MOST_CHARACTERS, (case, line)
        assert line.isprintable(), (case, line)
        valid = False
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} {error} of {case!r:.2000}") from error
    assert time.process_time() - began < MOST_SECONDS, case
    return valid


def test_a_mutated_spec_is_valid_or_one_line() -> None:
    rng = random.Random(16)
    specs = base_specs()
    valid = 0
    for _ in range(3600):
        spec = mutated(rng.choice(specs), rng)
        if held(spec, lambda spec=spec: cells(parse_spec(spec))):  # type: ignore[misc]
            valid += 1
            raw = dict(parse_spec(spec).raw)
            assert valid % 8 or parse_value(dump_yaml(raw)) == raw  # what spec.yaml holds means the same
    assert 100 < valid < 3300  # both kinds are tried


def test_a_mutated_file_is_valid_or_one_line(tmp_path: Path) -> None:
    rng = random.Random(17)
    texts = [EVERY_KEY, EVERY_KEY, *(path.read_text() for path in STUDIES)]
    path = tmp_path / "s.yaml"
    valid = 0
    for _ in range(1400):
        data = mutated_text(rng.choice(texts), rng)
        path.write_bytes(data)
        valid += held(data, lambda: cells(load_spec(path)))
    assert 50 < valid < 1300


def test_a_hostile_override_is_valid_or_one_line() -> None:
    rng = random.Random(18)
    specs = base_specs()
    paths = [
        "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)[1:]
        for spec in specs
        for place in places(spec)
    ]
    odd = [
        "",
        "=",
        ".",
        "a..b",
        "[0]",
        "seeds[99]",
        f"seeds[{'9' * 5000}]",
        "a" * 5000,
        "a." * 90 + "a",
        "\n",
        "\udcff",
    ]
    for _ in range(1500):
        spec = copy.deepcopy(rng.choice(specs))
        path = rng.choice(paths) if rng.random() < 0.85 else rng.choice(odd)
        value = rng.choice(SCALARS) if rng.random() < 0.6 else dump_yaml(rng.choice(HOSTILE[:-1]))
        assignment = path + rng.choice(["=", "=", "=", "=", "", "=="]) + value

        def attempt(spec: dict[str, Any] = spec, assignment: str = assignment) -> None:
            set_path(spec, assignment)
            cells(parse_spec(spec))

        held(assignment, attempt)


# command -> how many arguments it takes, its options with a value, its flags
COMMANDS: dict[str, tuple[int, list[str], list[str]]] = {
    "plan": (1, ["--out", "--set"], []),
    "run": (1, ["--out", "--address", "--checkpoint-seconds", "--set"], []),
    "report": (1, [], []),
    "recommend": (1, ["--every", "--study"], []),
    "compare": (2, [], []),
    "watch": (1, ["--every"], ["--once"]),
    "dashboard": (1, ["--out"], []),
    "check-workload": (1, ["--preset", "--steps"], []),
    "calibrate": (1, ["--preset", "--out", "--address"], ["--all"]),
    "import algoperf": (1, ["-o", "--counts-calls"], ["--algoperf-exact"]),
    "submit": (1, ["--address", "--out", "--working-dir", "--set"], ["--no-wait"]),
    "doctor": (1, ["--address"], []),
    "workloads": (0, [], []),
    "optimizers": (0, [], []),
    "nosuch": (1, ["--nope"], ["-z"]),
}
ARGUMENTS = """
quickstart quickstrt sweeps/quickstart.yaml missing.yaml here.yaml . folder - -- -1 0 1e999 nan lm lmm sys:exit ..:x a:
seeds=3 seeds=x s3://bucket/run /dev/null http://127.0.0.1:1 1e3 @x *
""".split()  # noqa: SIM905
ARGUMENTS += ["", " ", "x" * 5000, "a/" * 3000, "a\x00b", "\udcff", "\n", "\u202e"]


class Launched(Exception):
    """Here the command would have begun its work."""


def test_a_hostile_command_line_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(*_: object, **__: object) -> None:
        raise Launched

    for place in ("sweeps.run.run_studies", "cluster.submit.submit", "cluster.doctor.examine"):
        monkeypatch.setattr(place, launch)
    monkeypatch.setattr("sweeps.conformance.check", lambda name, preset, steps: launch() if load(name, preset) else ())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "here.yaml").write_text("study: here\nworkloads: lm\naveraging: {scheme: none}\n")
    rng = random.Random(19)
    codes = []
    for _ in range(500):
        command = rng.choice(list(COMMANDS))
        count, options, flags = COMMANDS[command]
        line = [rng.choice(ARGUMENTS) for _ in range(rng.choice([count, count, count, rng.randrange(3)]))]
        for option in rng.sample(options, min(len(options), rng.choice([0, 0, 1, 2]))):
            line[rng.randrange(len(line) + 1) : 0] = [option, rng.choice(ARGUMENTS)]
        line += [flag for flag in flags if rng.random() < 0.2]
        if command == "watch":
            line.insert(0, "--once")  # after a "--" it would be the name of a folder to wait for
        began = time.process_time()
        done = CliRunner().invoke(main, [*command.split(), *line])
        case = [command, *(one[:60] for one in line)]
        assert time.process_time() - began < 2 * MOST_SECONDS, case
        assert done.exception is None or isinstance(done.exception, SystemExit | Launched), (case, done.exc_info)
        codes.append(-1 if isinstance(done.exception, Launched) else done.exit_code)
        if codes[-1] == 2:
            assert len(done.stderr.splitlines()) == 1, (case, done.output)
            assert len(done.stderr) <= border.MAX_LINE + 1, (case, done.stderr)
            assert done.stdout == "", (case, done.stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "here.yaml"]
    assert {codes.count(code) > 10 for code in (-1, 0, 2)} == {True}
