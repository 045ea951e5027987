"""Which of AlgoPerf's leaderboards a set of logs belongs to: its scoring code and its budgets differ by version."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.algoperf_score import HELD_OUT, LM, base_workload
from sweeps.importers.algoperf_trials import Trial

# workload -> step hint, longest submission time in seconds, as the published logs' metadata have them
BUDGETS: dict[str, dict[str, tuple[int, int]]] = {
    "v0.5": {
        "criteo1tb": (10_666, 7_703),
        "fastmri": (36_189, 8_859),
        "imagenet_resnet": (186_666, 63_008),
        "imagenet_vit": (186_666, 77_520),
        "librispeech_conformer": (80_000, 61_068),
        "librispeech_deepspeech": (48_000, 55_506),
        "ogbg": (80_000, 18_477),
        "wmt": (133_333, 48_151),
    },
    "v0.6": {
        "criteo1tb": (10_666, 7_703),
        "fastmri": (18_094, 4_430),
        "imagenet_resnet": (195_999, 66_159),
        "imagenet_vit": (167_999, 69_768),
        "librispeech_conformer": (76_000, 58_015),
        "librispeech_deepspeech": (38_400, 44_405),
        "ogbg": (52_000, 12_011),
        "wmt": (120_000, 43_336),
    },
    "v1.0": {
        "criteo1tb": (10_666, 8_915),
        "fastmri": (18_094, 2_745),
        "finewebedu_lm": (72_000, 31_967),
        "imagenet_resnet": (195_999, 49_918),
        "imagenet_vit": (167_999, 64_292),
        "librispeech_conformer": (76_000, 43_680),
        "librispeech_deepspeech": (38_400, 36_949),
        "ogbg": (52_000, 11_303),
        "wmt": (120_000, 16_114),
    },
}


def leaderboard(trials: Iterable[Trial]) -> str:
    """The one whose budgets most workloads have; without any, the one whose workloads they are."""
    seen = {trial.workload: (trial.facts.step_hint, trial.facts.max_seconds) for trial in trials}
    by_workloads = "v0.5" if seen.keys() & {*HELD_OUT} else "v1.0" if LM in seen else "v0.6"
    votes = {
        name: sum(budgets.get(base_workload(workload) or workload) == of for workload, of in seen.items())
        for name, budgets in BUDGETS.items()
    }
    return max(votes, key=lambda name: (votes[name], name == by_workloads))
