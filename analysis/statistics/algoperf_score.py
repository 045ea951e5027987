"""AlgoPerf's score and performance profiles: seconds to target, their ratio to the best, the share within τ.

Two rules. The **clean** one, the default, follows the definition; ``exact`` follows AlgoPerf's own scoring code, of one
of its `LEADERBOARDS`, with its quirks, so that its published numbers come out to the last digit. `RULES` says where
they part, `differences` what that changes. Source: Dahl et al. 2023, arXiv 2306.07179, section 4;
mlcommons/submissions_algorithms, scoring/.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from analysis.run_folder.output import write_csv
from analysis.run_folder.records import BadRun, read_table

EVALUATIONS_FILE = "algoperf.parquet"  # in an imported run folder, beside its records

# One row: one evaluation of one trial, as logged. Trials whose counter does not count optimizer steps are here too,
# and only here. A trial that was never evaluated has one row with evaluation −1.
EVALUATIONS = pa.schema(
    [
        ("submission", pa.string()),
        ("workload", pa.string()),
        ("study", pa.int64()),
        ("trial", pa.int64()),
        ("cell_id", pa.string()),
        ("evaluation", pa.int64()),  # its place in the log, from 0
        ("global_step", pa.int64()),
        ("seconds", pa.float64()),  # accumulated submission time: updates alone, no evaluation
        ("metric", pa.float64()),  # the target metric on the validation split
        ("target", pa.float64()),
        ("higher_is_better", pa.bool_()),
        ("counts_steps", pa.bool_()),  # global_step counts optimizer steps, as far as the log can tell
        ("num_devices", pa.float64()),
        ("leaderboard", pa.string()),  # of LEADERBOARDS, as far as the logs tell
    ]
)
TRIAL = ["submission", "workload", "study", "trial", "cell_id"]

VARIANTS = {  # of each base workload, every one that AlgoPerf ever defined
    "criteo1tb": ("embed_init", "layernorm", "resnet", "test"),
    "fastmri": ("layernorm", "model_size", "tanh"),
    "imagenet_resnet": ("gelu", "large_bn_init", "silu"),
    "imagenet_vit": ("glu", "map", "post_ln"),
    "librispeech_conformer": ("attention_temperature", "gelu", "layernorm"),
    "librispeech_deepspeech": ("no_resnet", "norm_and_spec_aug", "tanh"),
    "ogbg": ("gelu", "model_size", "silu"),
    "wmt": ("attention_temp", "glu_tanh", "post_ln"),
}
BASE = tuple(VARIANTS)
HELD_OUT = (  # the variants that v0.5 drew
    *("criteo1tb_embed_init", "fastmri_tanh", "imagenet_resnet_large_bn_init"),
    *("librispeech_conformer_layernorm", "ogbg_model_size", "wmt_glu_tanh"),
)
LM = "finewebedu_lm"  # joined the base workloads with v1.0
ALL_BASE = (*BASE, LM)
WORKLOADS = {*ALL_BASE, *(f"{base}_{variant}" for base, variants in VARIANTS.items() for variant in variants)}


# By the version of AlgoPerf's scoring code: the base workloads, of which ρ is a share, and the held-out variants, each
# of which voids its base workload where it is missed.
_Names = tuple[str, ...]
LEADERBOARDS: dict[str, tuple[_Names, _Names]] = {"v0.5": (BASE, HELD_OUT), "v0.6": (BASE, ()), "v1.0": (ALL_BASE, ())}
TAU: NDArray[np.float64] = np.linspace(1.0, 4.0, 100)

RULES = pd.DataFrame(
    [
        ("best trial of a study", "the fewest seconds", "the lowest evaluation index; among equals the last trial"),
        ("a metric that is not finite", "never meets a target", "NaN never does, an infinity can"),
        ("seconds beyond 4 × the best", "stay: ρ ends at τ = 4", "become ∞, on held-out variants too"),
        ("held-out variant missed", "shown beside, voids nothing",
         "v0.5: its base workload becomes ∞, and vice versa; v0.6 and later have no variants"),
        ("study without an evaluated trial", "counts as missed", "is not seen"),
        ("share ρ is of", "the base workloads in the logs", "the 8 base workloads, from v1.0 on 9, in the logs or not"),
    ],
    columns=["where", "clean", "exact"],
)  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """The tables of one rule, named as their CSV files are after ``algoperf_``."""

    scores: pd.DataFrame
    seconds: pd.DataFrame
    studies: pd.DataFrame
    profile: pd.DataFrame
    differences: pd.DataFrame

    def write(self, folder: Path) -> None:
        """One CSV a table, and the rules; floats to 10 significant digits."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {field.name: getattr(self, field.name) for field in fields(self)} | {"rules": RULES}
        for name, table in tables.items():
            write_csv(folder / f"algoperf_{name}.csv", table)


def read_evaluations(run: str | Path) -> pd.DataFrame:
    """The evaluations of an imported run folder. Raises: analysis.run_folder.records.BadRun where there are none."""
    path = Path(run) / EVALUATIONS_FILE
    if not path.is_file():
        raise BadRun(f"{run}: no {EVALUATIONS_FILE}; `wa import algoperf LOGDIR -o {run}` makes one")
    frame: pd.DataFrame = read_table(path, EVALUATIONS).to_pandas()
    return frame


def code_of(evaluations: pd.DataFrame, exact: bool | str = True) -> str | None:
    """Whose code the exact rule follows: the leaderboard asked for, else that of the logs, else v0.5; None: clean.

    Raises: ValueError where `exact` names no leaderboard.
    """
    if exact is False:
        return None
    if exact is True:
        if "leaderboard" not in evaluations or evaluations["leaderboard"].isna().all():
            return "v0.5"
        return str(evaluations["leaderboard"].dropna().iloc[0])
    if exact not in LEADERBOARDS:
        raise ValueError(f"exact is {exact!r}; allowed: {', '.join(LEADERBOARDS)}, True, False")
    return exact


def score(evaluations: pd.DataFrame, exact: bool | str = False) -> Scores:
    """Every table of one rule, from evaluations with the columns of EVALUATIONS.

    exact: AlgoPerf's own code, of the leaderboard named or, if True, of the one the logs belong to.
    scores: submission, score, integral (the same area in closed form), num_workloads.
    seconds: of `seconds_to_target`. studies: of `best_trials`. profile: of `performance_profile`.
    """
    code = code_of(evaluations, exact)
    return Scores(**_by_rule(evaluations, code), differences=differences(evaluations, code or True))


def _by_rule(evaluations: pd.DataFrame, code: str | None) -> dict[str, pd.DataFrame]:
    studies = best_trials(trials_to_target(evaluations, bool(code)), bool(code))
    seconds = seconds_to_target(studies)
    times = scored_times(seconds, code)
    profile = performance_profile(times)
    return {"scores": areas(times, profile), "seconds": seconds, "studies": studies, "profile": profile}


def trials_to_target(evaluations: pd.DataFrame, exact: bool = False) -> pd.DataFrame:
    """When each trial first meets its target: at an evaluation, as AlgoPerf counts, not between two.

    Returns one row a trial: the columns of TRIAL, num_evaluations, met, evaluation, step (NaN where the counter
    does not count steps), seconds (∞ where missed), seconds_before (the evaluation before: the target was met
    between the two; 0 before the first), lost_again (a later evaluation does not meet it), num_devices.
    """
    table = evaluations.sort_values([*TRIAL, "evaluation"], kind="stable").reset_index(drop=True)
    sign = np.where(table["higher_is_better"].astype(bool), 1.0, -1.0)
    metric = table["metric"].to_numpy(dtype=float)
    seen = table["evaluation"].to_numpy() >= 0
    with np.errstate(invalid="ignore"):
        meets = seen & (metric * sign >= table["target"].to_numpy(dtype=float) * sign)
    if not exact:
        meets &= np.isfinite(metric)
    trial = table.groupby(TRIAL, sort=True).ngroup()
    before = table["seconds"].groupby(trial).shift(fill_value=0.0)
    step = table["global_step"].astype(float).where(table["counts_steps"].astype(bool))
    lost = pd.Series(meets).groupby(trial).cummax() & ~meets
    table = table.assign(meets=meets, seen=seen, lost=lost, seconds_before=before, step=step)
    every = table.groupby(TRIAL, sort=True).agg(
        num_evaluations=("seen", "sum"),
        met=("meets", "any"),
        lost_again=("lost", "any"),
        num_devices=("num_devices", "first"),
    )
    keep = [*TRIAL, "evaluation", "step", "seconds", "seconds_before"]
    first = table.loc[meets, keep].drop_duplicates(TRIAL, keep="first").set_index(TRIAL)
    found = every.join(first)
    found["seconds"] = found["seconds"].where(found["met"], np.inf)
    return found.reset_index()


def best_trials(trials: pd.DataFrame, exact: bool = False) -> pd.DataFrame:
    """The trial that stands for each (submission, workload, study): the fewest seconds, or AlgoPerf's choice.

    Exact: the lowest evaluation index, whatever the seconds; among equals AlgoPerf's code takes the first folder as
    the file system lists them, which for its published numbers was the last trial.
    Returns the chosen rows of `trials_to_target` with gpu_hours = seconds × num_devices / 3600.
    """
    if exact:
        trials = trials[trials["num_evaluations"] > 0]
    order = (["evaluation", "trial"], [True, False]) if exact else (["seconds", "trial"], [True, True])
    ranked = trials.sort_values(order[0], ascending=order[1], kind="stable", na_position="last")
    best = ranked.drop_duplicates(["submission", "workload", "study"], keep="first")
    best = best.sort_values(["submission", "workload", "study"], kind="stable").reset_index(drop=True)
    return best.assign(gpu_hours=best["seconds"] * best["num_devices"] / 3600)


def seconds_to_target(studies: pd.DataFrame) -> pd.DataFrame:
    """t(s, w) = median over studies of the best trial's seconds to target; a miss is ∞ and no study is dropped.

    Returns one row a (submission, workload): variant_of (its base workload, None for a base one), seconds,
    seconds_before (the same median at the evaluations before: what the evaluation grid leaves open), gpu_hours,
    steps (median of the counted ones; a miss is ∞, NaN where no step is counted), num_studies, num_missed.
    """
    met = studies["met"].astype(bool)
    before = studies["seconds_before"].where(met, np.inf)
    table = studies.assign(steps=studies["step"].where(met, np.inf), seconds_before=before, missed=~met)
    by = table.groupby(["submission", "workload"], as_index=False, sort=True)
    found = by.agg(
        seconds=("seconds", "median"),
        seconds_before=("seconds_before", "median"),
        gpu_hours=("gpu_hours", "median"),
        steps=("steps", lambda steps: float(np.median(steps))),  # one uncounted step leaves the median unknown
        num_studies=("study", "nunique"),
        num_missed=("missed", "sum"),
    )
    found.insert(2, "variant_of", [base_workload(workload) for workload in found["workload"]])
    return found


def base_workload(workload: str) -> str | None:
    """The base workload that a variant is named after (wmt of wmt_glu_tanh), None for any other workload."""
    return max((base for base in ALL_BASE if workload.startswith(f"{base}_")), key=len, default=None)


def scored_times(seconds: pd.DataFrame, code: str | None = None) -> pd.DataFrame:
    """t(s, w) as the score takes it: submissions × base workloads, ∞ where missed or never run.

    code: None for the clean rule, else one of LEADERBOARDS. Then a held-out variant of a missed base workload is ∞;
    then everything beyond 4 × its workload's best; then the base workload of every held-out variant at ∞.
    """
    wide = seconds.pivot(index="submission", columns="workload", values="seconds")
    if code is None:
        return wide[[name for name in wide.columns if base_workload(name) is None]].fillna(np.inf)
    base, held_out = LEADERBOARDS[code]
    base_of = {variant: str(base_workload(variant)) for variant in held_out}
    wide = wide.reindex(columns=[*base, *held_out]).fillna(np.inf)
    for variant in held_out:
        wide[variant] = wide[variant].where(np.isfinite(wide[base_of[variant]]), np.inf)
    wide = wide.where(wide <= TAU[-1] * wide.min(axis=0), np.inf)
    for variant in held_out:
        name = base_of[variant]
        wide[name] = wide[name].where(np.isfinite(wide[variant]), np.inf)
    return wide[list(base)]


def ratios_to_best(times: pd.DataFrame) -> pd.DataFrame:
    """r(s, w) = t(s, w) / min over submissions of t(·, w); ∞ where s misses. Shape of `times`."""
    with np.errstate(invalid="ignore"):
        return (times / times.min(axis=0)).where(np.isfinite(times), np.inf)


def performance_profile(times: pd.DataFrame, tau: NDArray[np.float64] = TAU) -> pd.DataFrame:
    """ρ(τ) = the share of workloads on which a submission is within τ times the best.

    Args: times: submissions × workloads, seconds, ∞ for a miss. tau: shape (m,).
    Returns one row a (submission, tau): share. Source: Dolan and Moré 2002.
    """
    ratio = ratios_to_best(times).to_numpy(dtype=float)
    share = (ratio[:, :, None] <= tau).sum(axis=1) / (times.shape[1] or np.nan)  # of no workload no share
    names = np.repeat(times.index.to_numpy(), len(tau))
    return pd.DataFrame({"submission": names, "tau": np.tile(tau, len(times)), "share": share.ravel()})


def areas(times: pd.DataFrame, profile: pd.DataFrame) -> pd.DataFrame:
    """score = ⅓ ∫₁⁴ ρ dτ by trapezoid on 100 points; integral = mean over workloads of max(0, (4 − r)/3)."""
    span = TAU[-1] - TAU[0]
    area = [np.trapezoid(of["share"], x=of["tau"]) / span for _, of in profile.groupby("submission", sort=False)]
    closed = ((TAU[-1] - ratios_to_best(times)) / span).clip(lower=0).mean(axis=1)
    found = {"submission": times.index, "score": area, "integral": closed.to_numpy()}
    return pd.DataFrame(found).assign(num_workloads=times.shape[1])


def differences(evaluations: pd.DataFrame, exact: bool | str = True) -> pd.DataFrame:
    """Where the clean rule and the exact one give different numbers, in full digits; what is not listed is equal.

    Returns: what (``score``, ``seconds``: t(s, w), ``scored seconds``: after cuts and voids), submission, workload
    (None for a score), clean, exact.
    """
    sides = []
    for code in (None, code_of(evaluations, exact)):
        made = _by_rule(evaluations, code)
        scores, seconds = made["scores"].set_index("submission"), made["seconds"].set_index(["submission", "workload"])
        times = scored_times(made["seconds"], code)
        found: dict[Any, float] = {("score", name, None): value for name, value in scores["score"].items()}
        found |= {("seconds", *of): value for of, value in zip(seconds.index, seconds["seconds"], strict=True)}
        found |= {("scored seconds", name, of): value for of in times for name, value in times[of].items()}
        sides.append(found)
    clean, theirs = sides
    both = {key: (clean.get(key, np.nan), theirs.get(key, np.nan)) for key in dict.fromkeys([*clean, *theirs])}
    rows = [
        (*key, *values)
        for key, values in both.items()
        # Of a base workload neither cut nor voided, the scored seconds say nothing that the seconds do not.
        if values[0] != values[1] and (key[0] != "scored seconds" or values != both.get(("seconds", *key[1:])))
    ]
    return pd.DataFrame(rows, columns=["what", "submission", "workload", "clean", "exact"])
