"""The answer at the top of a report: one sentence with its interval, to what the study asks (`report:` in its YAML)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis import paired
from analysis.baselines import CHOSEN_HORIZON
from analysis.findings import conclusions, training_answers
from analysis.findings.finding import counted
from analysis.findings.predictions import Prediction
from analysis.intervals import with_interval
from analysis.robustness import reaches
from analysis.study import SCHEME_NAMES, Study, percent
from analysis.tables import Tables


def answer(study: Study, tables: Tables, predicted: Sequence[Prediction] = ()) -> str:
    """What the study asks is answered: ``steps`` to target, ``final_metric``, ``horizon`` or ``predictions``.

    One that does not say is answered by what its trainings vary, or by steps where they vary in nothing.
    Args: predicted: of `analysis.findings.predictions.of_study`.
    """
    if study.records.empty:
        return "Nothing has been recorded yet."
    known = {"steps": conclusions.answer, "final_metric": final_metric, "horizon": horizon}
    averaged = conclusions.answer_schemes(tables)
    if predicted and averaged:
        return predictions(predicted)
    asked = known.get(str(study.plan.get("report")))
    said = asked(study, tables) if asked and averaged else None
    return said or training_answers.answer(study, tables)


def predictions(predicted: Sequence[Prediction]) -> str:
    """Each prediction's verdict with what was measured."""
    said = [f"{one.short} ({one.finding.verdict})" for one in predicted]
    return f"Of what the field predicts: {'; '.join(said)}."


def final_metric(study: Study, tables: Tables) -> str | None:
    """The final metric of the scheme in front ÷ that of the raw weights of the same run, over workloads."""
    scheme = conclusions.answer_schemes(tables)[0]
    chosen = tables.chosen[(tables.chosen["scheme"] == scheme) & tables.chosen["near"]]
    rows = tables.generalization_by_cell.rename(columns={"final_metric": "value"})
    top = rows[rows["setting"].isin(chosen["setting"])]
    none = study.cells.loc[study.cells["scheme"] == "none", "cell_id"]
    raw = rows[rows["cell_id"].isin(none) & rows["training"].isin(top["training"])]
    higher = study.cells.groupby("workload")["higher_is_better"].first().astype(bool)
    # Of a metric that may be 0 or below no factor can be told: its workload stays out, and is named.
    below = study.records.loc[study.records["metric"] <= 0, "cell_id"]
    signed = sorted(set(study.cells.loc[study.cells["cell_id"].isin(below), "workload"]))
    pairs = paired.metric_changes(top, raw, higher.to_dict())
    pairs = pairs[~pairs["workload"].isin(signed)]
    found = paired.over_workloads(pairs)
    if np.isnan(found.value):
        return None
    covers = np.isnan(found.low) or found.low <= 1 <= found.high
    level = "no effect is shown" if covers else "an effect is shown"
    left_out = f" Left out, since their metric is 0 or below at times: {', '.join(signed)}." if signed else ""
    return (
        f"At the end of training {SCHEME_NAMES.get(scheme, scheme)} at a horizon of {percent(CHOSEN_HORIZON)}, fixed "
        f"beforehand, changes the metric by a factor of {with_interval(found, '.4f')} over workloads (below 1 is "
        f"better): {level}; workload by workload: {counted(pairs, 'better', 'worse')}."
        f"{left_out}"
    )


def horizon(study: Study, tables: Tables) -> str | None:
    """Where the smooth fits are best, whether the horizon fixed beforehand is as good, and what it saves."""
    scheme = conclusions.answer_schemes(tables)[0]
    fits = tables.horizon_fit
    most = fits.loc[fits["scheme"].str.count(r"\+") == fits["scheme"].str.count(r"\+").max(), "optimum"]
    regions = tables.flat_region[tables.flat_region["scheme"] == scheme]
    if most.empty or regions.empty:
        return None
    inside = reaches(regions["flat_from"], regions["flat_to"], CHOSEN_HORIZON)
    told = (
        f"The smooth fits are best at a horizon of {percent(float(most.median()))} of the step budget (median over "
        f"{len(most)} workloads; from {percent(float(most.min()))} to {percent(float(most.max()))}), and "
        f"{percent(CHOSEN_HORIZON)} cannot be told from the best on {int(inside.sum())} of {len(regions)}."
    )
    return f"{told} {conclusions.overall(study, tables, scheme)}"
