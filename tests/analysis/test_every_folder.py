"""Whatever a folder holds: every command ends well and says what is so."""

from __future__ import annotations

import html
import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import odd_runs
import pytest
from click.testing import CliRunner
from odd_runs import EMAS, GRID, LAWA, NONE, TAIL, WSM, Odd

from analysis import load
from sweeps.cli import main

MISSED, RAW_MISSED, AVERAGE_MISSED = (
    {("*",): "missed"},
    {("*", "*", "none"): "missed"},
    {("*", "*", "ema"): "missed"},
)
LRS = {"optimizer": {"lr": [0.1, 0.01, 0.001]}}
SCHEDULES = {"schedule": [{"shape": "cosine"}, {"shape": "constant"}, {"shape": "linear", "lr_decay": 0.2}]}
LENGTHS = {"schedule": {"length": [0.5, 1.0]}}
OPTIMIZERS = {"optimizer": [{"name": "adamw", "lr": 0.1}, {"lr": 0.01}]}
ALL = (NONE, EMAS, GRID, LAWA, WSM, TAIL)

# Each with what its report must say, and what its answer must not.
FOLDERS: dict[str, tuple[Odd, list[str], list[str]]] = {
    "a k × every grid that never meets its target": (
        Odd(averaging=(NONE, GRID), fates=MISSED),
        ["both miss the target in all 12 ended pairs", "the closest came to 0.55"],
        ["excluded"],
    ),
    "only the baseline misses": (
        Odd(fates=RAW_MISSED),
        ["takes ≤ 0.50 [", "the average missed the target in 0, the baseline in 3"],
        ["undecided", "slower"],
    ),
    "only the average misses": (
        Odd(fates=AVERAGE_MISSED),
        ["takes ≥ 1.67", "a loss is shown", "the average missed the target in 6, the baseline in 0"],
        ["excluded", "a saving"],
    ),
    "none finished": (
        Odd(ends={("*",): "unfinished"}),
        ["No pair of runs is far enough yet", "3 of 3 trajectories are not finished"],
        ["0.83"],
    ),
    "planned only": (Odd(ends={("*",): "waiting"}), ["Nothing has been recorded yet"], ["0.83", "No run has met"]),
    "failed": (Odd(ends={("*",): "failed"}), ["3 failed at their last attempt"], []),
    "one cell": (Odd(seeds=(0,), averaging=(NONE,)), ["holds non-averaged runs only", "One seed"], []),
    "one seed": (
        Odd(seeds=(0,)),
        ["one seed with a ratio cannot both select and measure", "undecided; there is no interval"],
        ["is shown", "excluded", "95 %"],
    ),
    "one evaluation": (Odd(evaluate=1.0), ["takes 1.00 [0.06, 15.99]"], ["excluded"]),
    "NaN": (Odd(fates={("*",): "nan"}), ["none has a finite value"], []),
    "infinite": (Odd(fates={("*",): "inf"}), ["of the last iterate's steps"], ["∞"]),
    "diverged": (Odd(ends={("*",): "diverged"}), ["3 trajectories diverged"], ["1 trajectories"]),
    "one of two diverged": (
        Odd(seeds=(0, 1), ends={("*", 1): "diverged"}),
        ["1 trajectory diverged", "one seed with a ratio cannot", "there is no interval"],
        ["1 trajectories"],
    ),
    "met, then diverged": (Odd(ends={("*",): "late diverged"}), ["takes 0.83"], ["misses the"]),
    "no target": (Odd(target=False), ["No workload of this study has a target"], []),
    "no baseline": (Odd(averaging=(EMAS,)), ["holds no non-averaged runs"], []),
    "constant": (Odd(fates={("*",): "constant"}), ["both miss the target", "closest came to 0.8"], []),
    "met at once": (Odd(fates={("*",): "at once"}), ["takes 1.00 ["], ["is slower", "is shown"]),
    "a metric of either sign": (
        Odd(workloads=("Signed",), averaging=ALL, report="final_metric"),
        ["EMA at"],
        ["by a factor of"],
    ),
    "one workload of several misses": (
        Odd(workloads=("Accuracy", "Error", "Signed", "LONG"), fates={("Error",): "missed"}),
        ["No run has met the target of oddwork:Error"],
        ["No run has met the target of oddwork:Accuracy"],
    ),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("undrawn")


def call(*arguments: object) -> str:
    """The output of a command that ends with exit code 0."""
    done = CliRunner().invoke(main, [str(one) for one in arguments], env={"COLUMNS": "150"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == 0, done.output
    return done.output


def prose(run: Path) -> str:
    """The words of a folder's pages, without charts."""
    pages = [run / "report.html", *(run / "reports").glob("*/report.html")]
    return " ".join(_words(page.read_text(encoding="utf-8")) for page in pages)


def answer(run: Path) -> str:
    """What stands at the top of the report."""
    text = (run / "report.html").read_text(encoding="utf-8")
    return _words(text.partition('<div class="answer">')[2].partition("</div>")[0])


def _words(page: str) -> str:
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    text = re.sub(r"</(p|t[hd]|d[td]|h\d|caption|summary|figcaption)>", " | ", text)  # no sentence reaches beyond
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).replace("\u00a0", " ").split())


def check_everything(run: Path, other: Path | None = None) -> dict[str, str]:
    """Every command on the folder; what each says."""
    said = {
        "summary": call("report", run),
        "recommend": " ".join(call("recommend", run).split()),
        "compare": call("compare", run, run),
        "watch": call("watch", run, "--once"),
        "dashboard": call("dashboard", run),
    }
    if other is not None:
        call("compare", run, other)
        call("compare", other, run)
    said["report"] = prose(run)
    for what, text in said.items():
        for word in re.findall(r"(?<![\w./])(?:nan|None|inf|NaT)(?![\w.])|Traceback|−?nan %|\binf\b", text):
            raise AssertionError(f"{what} says {word!r}: …{text[max(0, text.index(word) - 120) :][:240]}…")
        assert not re.search(r"\b1 (seeds|cells|trajectories|workloads|pairs|settings)\b", text), what
    assert not re.findall(r"\[(−?[\d.]*[1-9][\d.]*), \1\]", said["report"] + said["recommend"]), (
        "an interval of no width"
    )
    load(run)
    return said


@pytest.mark.parametrize("name", FOLDERS)
def test_every_kind_of_folder_is_told_of_truly(name: str, tmp_path: Path) -> None:
    odd, told, untold = FOLDERS[name]
    said = check_everything(odd_runs.write(tmp_path / "run", odd))
    for words in told:
        assert words in said["report"] + said["recommend"], words
    for words in untold:
        assert words not in answer(tmp_path / "run"), words


def test_a_verdict_counts_the_seeds_that_it_rests_on(tmp_path: Path) -> None:
    odd = Odd(ends={("*", 1): "waiting", ("*", 2): "waiting"})
    said = " ".join(call("recommend", odd_runs.write(tmp_path / "run", odd)).split())
    assert "one seed with a ratio cannot both select and measure" in said


FEATURES: list[dict[str, object]] = [
    {"fates": fates}
    for fates in (
        MISSED,
        RAW_MISSED,
        AVERAGE_MISSED,
        {("*",): "nan"},
        {("*", 1): "missed"},
        {("*", "*", "lawa"): "nan"},
        {("*",): "perfect"},
        {("*", 0): "at once", ("*", 1): "constant"},
    )
]
FEATURES += [
    {"ends": {("*",): "unfinished"}},
    {"ends": {("*", 0): "waiting"}},
    {"ends": {("*", 1): "diverged"}},
    {"ends": {("*", 1): "failed", ("*", 0): "late diverged"}},
    *({"training": of} for of in (LRS, SCHEDULES, LENGTHS, OPTIMIZERS)),
    *({"averaging": of} for of in (ALL, (NONE, GRID), (GRID,), (NONE,), (NONE, WSM, TAIL))),
    *({"seeds": of} for of in ((7,), (0, 1))),
    *({"evaluate": of} for of in (1.0, 0.34)),
    *({"report": of} for of in ("final_metric", "horizon", "steps")),
    {"workloads": ("Signed", "LONG")},
    {"workloads": ("Accuracy", "Error", "Signed")},
    {"target": False},
    {"fuse": False},
    {"compacted": False},
    {"studies": ("one", "two")},
    {"spread": 0.0},
    {"question": "Is <b>a</b> & 'b' enough?"},
]


def combined(seed: int) -> Odd:
    """Three features of a folder that do not set the same thing, drawn by a seed."""
    rng = random.Random(seed)
    told: dict[str, object] = {}
    for feature in rng.sample(FEATURES, len(FEATURES)):
        if len(told) < 3:
            told = {**feature, **told}
    return replace(Odd(), **told)  # type: ignore[arg-type]


@pytest.mark.usefixtures("uncharted")
@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_what_is_odd_are_told_of_as_well(seed: int, tmp_path: Path) -> None:
    run = odd_runs.write(tmp_path / "run", combined(seed))
    other = odd_runs.write(tmp_path / "other", Odd(seeds=(0, 1, 5), averaging=(NONE, EMAS, LAWA)))
    check_everything(run, other)


@pytest.mark.usefixtures("uncharted")
def test_an_imported_folder_whose_submissions_all_miss_or_never_begin(tmp_path: Path) -> None:
    trials = {"a": [0.1, 0.2, 0.3], "b": [0.1], "c": []}
    for (submission, metric), study in itertools.product(trials.items(), range(2)):
        folder = tmp_path / "logs" / submission / f"study_{study}" / "fastmri_jax" / "trial_1"
        folder.mkdir(parents=True)
        meta = {"target_metric_name": "ssim", "validation_target_value": 0.7, "step_hint": 1000}
        meta |= {"max_allowed_runtime_sec": 1000, "eval_period_time_sec": 100}
        told = {f"workload.{key}": value for key, value in meta.items()} | {"gpu_count": 8}
        (folder / "meta_data_0.json").write_text(json.dumps(told))
        (folder / "hparams.json").write_text("{}")
        rows = [f"{100 * i},{100.0 * i},{value}" for i, value in enumerate(metric, start=1)]
        text = "\n".join(["global_step,accumulated_submission_time,validation/ssim", *rows])
        (folder / "eval_measurements.csv").write_text(text + "\n")
    call("import", "algoperf", tmp_path / "logs", "-o", tmp_path / "run")
    said = check_everything(tmp_path / "run")
    for name in ("report", "recommend"):  # never a second opinion
        assert "No submission of 3 meets a target" in said[name]
