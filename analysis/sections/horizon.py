"""How much does the averaging horizon matter?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import Look
from analysis.run_folder.study import SCHEME_NAMES, percent
from analysis.statistics.pairs import leading, overall_bound, same_schedule
from analysis.statistics.resampling import Interval, bootstrap_columns, interval, multisets, widening

TITLE = "Averaging horizon"
RULE = (
    "Flat region: the horizons next to a scheme's best one whose 95 % interval covers the best ratio. Curve: a "
    "least-squares parabola in the log horizon; a cubic where its term's interval leaves out 0; none where a fourth "
    "power's does, and the optimum is only bounded."
)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
KEYS = ["workload", "training", "scheme"]
FIXED = ("ema", "lawa")  # schemes whose horizon does not grow with the run: they share one fit
GRID = 81  # horizons a curve, evenly spread in the logarithm
PARABOLA, CUBIC, NEITHER = "parabola", "cubic", "neither"
CURVE = [*KEYS, "horizon_fraction", "ratio", "low", "high", "best", "flat"]
FIT = [*KEYS, "shape", "optimum", "optimum_low", "optimum_high", "edge", "ratio"]
FIT += ["ratio_low", "ratio_high", "slope", "curvature", "cubic", "cubic_low", "cubic_high", "r2", "flat_from"]
FIT += ["flat_to", "num_horizons", "num_seeds", "num_pairs", "num_left_out", "bound"]
_ENDS = ("", "_low", "_high")
HEIGHT = 240  # of a panel, whose strips lie along the bottom
FEW = 3  # workloads whose flat regions are told one by one


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """flat_region, horizon_fit: one row a training and scheme · horizon_curve: the fits with their bands."""
    fits, curves = horizon_fit(core.by_seed, core.cells)
    return {"flat_region": flat_region(core.horizons), "horizon_fit": fits, "horizon_curve": curves}


def chart(
    horizon_map: pd.DataFrame, flat_region: pd.DataFrame, horizon_curve: pd.DataFrame, look: Look
) -> alt.ConcatChart | None:
    """Ratio against the averaging horizon, LAWA and EMA on one logarithmic axis, the flat region as a strip."""
    table = horizon_map[horizon_map["training"].isin(look.shown["training"]) & horizon_map["ratio"].notna()]
    if table["horizon_fraction"].nunique() < 2:
        return None
    ends = [float(table["horizon_fraction"].min() / 1.3), float(table["horizon_fraction"].max() * 1.3)]
    parts = []
    for workload, mine in _named(table).groupby("workload", sort=True):
        curve, flat = (_named(one[one["training"].isin(mine["training"])]) for one in (horizon_curve, flat_region))
        panel = _panel(mine, curve[curve["scheme"].isin(mine["scheme"])], flat, look, ends)
        parts.append(charts.titled(panel, str(workload), height=HEIGHT))
    return charts.grid(parts)


def caption(horizon_map: pd.DataFrame, flat_region: pd.DataFrame, horizon_curve: pd.DataFrame, look: Look) -> str:
    """Of the marks that are there."""
    mine = set(horizon_map.loc[horizon_map["training"].isin(look.shown["training"]), "training"])
    text = "A dot is a horizon's ratio of steps, its bar the 95 % interval; below 1: fewer than the baseline."
    if len(horizon_curve[horizon_curve["training"].isin(mine)]):
        text += " The curve is the smooth fit with its band."
    if len(flat_region[flat_region["training"].isin(mine)]):
        text += " A strip spans the horizons not told from the best."
    return text


def sentences(
    flat_region: pd.DataFrame, horizon_fit: pd.DataFrame, chosen: pd.DataFrame, look: Look, primary: tuple[str, float]
) -> list[str]:
    """How far the flat region reaches and whether the pre-specified horizon lies inside; where the optimum lies."""
    flat, fits = (one[one["training"].isin(look.shown["training"])] for one in (flat_region, horizon_fit))
    return [*_flat(flat, leading(chosen, primary[0])), *_optima(fits)]


def _flat(regions: pd.DataFrame, picked: pd.DataFrame) -> Iterator[str]:
    """Nothing is tested against the best horizon: it was selected on the same seeds, and so looks better than it is."""
    mine = picked.merge(regions, on=["workload", "scheme"]).sort_values("workload", kind="stable")
    if mine.empty:
        return
    scheme = SCHEME_NAMES[str(mine["scheme"].iloc[0])]
    ends = list(zip(mine["flat_from"], mine["flat_to"], strict=True))
    if len(mine) > 1 and len(set(ends)) == 1:
        told = f"The flat region of {scheme} is {_region(*ends[0])} on all {len(mine)} workloads"
    elif len(mine) <= FEW:
        each = (f"{_region(*one)} on {name}" for one, name in zip(ends, mine["workload"], strict=True))
        told = f"The flat region of {scheme} is {', '.join(each)}"
    else:
        low, high = mine["flat_from"].max(), mine["flat_to"].min()
        common = f"{_region(low, high)} lies in all of them" if low <= high else "no horizon lies in all of them"
        told = f"Of the flat regions of {scheme} on {len(mine)} workloads: {common}"
    yield f"{told}; {_inside(mine)}."


def _region(low: float, high: float) -> str:
    return f"{percent(low)} alone" if low == high else f"{percent(low)} to {percent(high)}"


def _inside(mine: pd.DataFrame) -> str:
    """'the pre-specified 1 % lies inside on 3 of 4 workloads, outside on lm'."""
    horizon = percent(float(mine["horizon_fraction"].median()))
    inside = mine["horizon_fraction"].between(mine["flat_from"], mine["flat_to"])
    if len(mine) == 1:
        return f"the pre-specified {horizon} lies {'inside' if inside.all() else 'outside'}"
    outside = ", ".join(mine.loc[~inside, "workload"])
    number = f"all {len(mine)}" if inside.all() else f"{inside.sum()} of {len(mine)}"
    return f"the pre-specified {horizon} lies inside on {number}" + (f", outside on {outside}" if outside else "")


def _optima(fits: pd.DataFrame) -> Iterator[str]:
    """Of the fit with the most schemes of each workload."""
    order = fits.assign(num=fits["scheme"].str.count(r"\+")).sort_values(["workload", "num"], kind="stable")
    widest = order.groupby("workload", sort=True).tail(1)
    if widest.empty:
        return
    inside, edge = (widest[widest["edge"].astype(bool) == one] for one in (False, True))
    bound = f"on {_listed(edge, widest)} the shortest or longest horizon run is the best, so a bound"
    bound = bound if len(edge) else ""
    if len(inside) == 1:
        row = inside.iloc[0].map(lambda value: percent(value) if isinstance(value, float) else value)
        ends = "" if inside["optimum_low"].isna().all() else f" [{row['optimum_low']}, {row['optimum_high']}]"
        yield f"The optimum on {row['workload']} is {row['optimum']}{ends} of the step budget{bound and '; ' + bound}."
    elif len(inside):
        low, middle, high = (percent(float(value)) for value in inside["optimum"].quantile([0, 0.5, 1]))
        where = f"are all {middle}" if low == high else f"lie from {low} to {high}, in the middle at {middle},"
        of = " and ".join(SCHEME_NAMES[one] for one in str(widest["scheme"].mode()[0]).split(" + "))
        yield f"The optima of {of} {where} of the step budget on {_listed(inside, widest)}{bound and '; ' + bound}."
    else:
        yield f"{bound[0].upper()}{bound[1:]}."
    cubic, neither = (widest[widest["shape"] == shape] for shape in (CUBIC, NEITHER))
    parts = [f"a cubic is drawn on {_listed(cubic, widest)}"] if len(cubic) else []
    parts += [f"no smooth curve fits on {_listed(neither, widest)}, so read the dots"] if len(neither) else []
    if parts:
        yield f"A parabola, the same on both sides, does not fit everywhere: {'; '.join(parts)}."


def _listed(fits: pd.DataFrame, every: pd.DataFrame) -> str:
    names = sorted(set(fits["workload"]))
    return f"all {len(names)} workloads" if len(names) == len(every) > 1 else ", ".join(names)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(scheme_name=table["scheme"].map(SCHEME_NAMES))


def _panel(mine: pd.DataFrame, curve: pd.DataFrame, flat: pd.DataFrame, look: Look, ends: list[float]) -> Any:
    colour = charts.scheme_colour(look.averages)
    x = charts.horizon_x("horizon_fraction", ends)
    low, high = charts.span(mine, ["low", "high", "ratio"], include=1.0)
    y = alt.Y("ratio:Q", title="steps-to-target ÷ baseline's").scale(domain=[low, high], zero=False)
    base = alt.Chart(mine).encode(x=x, color=colour)
    line = base.mark_line(strokeWidth=1, opacity=0.35).encode(y=y, detail="every_steps:N")
    drawn = alt.Chart(curve).encode(x=x, color=colour)
    band = drawn.mark_area(opacity=0.1, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q")
    fit = drawn.mark_line(strokeWidth=2, clip=True).encode(y=y)
    whisker = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q")
    hover = charts.tooltips(
        *("scheme_label:N:setting", "ratio:Q:ratio:.3f", "low:Q:from:.3f", "high:Q:to:.3f"),
        *("bound:N:the ratio is", "num_pairs:Q:seeds:d", "flat:N:in flat region"),
    )
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, tooltip=hover)
    dots = dots.encode(shape=charts.scheme_shape(look.averages))
    under = [band, fit] if len(curve) else []
    rules = [charts.level_rule(1.0), *charts.marked_at(0.01, "1 %")]
    return alt.layer(*_strips(flat, look, colour, ends), *under, *rules, line, whisker, dots)


def _strips(flat: pd.DataFrame, look: Look, colour: alt.Color, ends: list[float]) -> list[alt.Chart]:
    """The flat region of each scheme: a thick strip along the bottom."""
    flat = flat.assign(start=flat["flat_from"] / 1.08, end=flat["flat_to"] * 1.08)
    x = alt.X("start:Q", scale=charts.horizon_scale(ends))
    hover = charts.tooltips("scheme_name:N:flat region of", "flat_from:Q:from:.2~p", "flat_to:Q:to:.2~p")
    strips = []
    for place, name in enumerate(look.averages):
        if (flat["scheme_name"] == name).any():
            strip = alt.Chart(flat[flat["scheme_name"] == name]).mark_rule(strokeWidth=7, opacity=0.55)
            y = alt.value(HEIGHT - 6 - 10 * place)
            strips.append(strip.encode(x=x, x2="end:Q", y=y, color=colour, tooltip=hover))
    return strips


def horizon_fit(by_seed: pd.DataFrame, cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One fit a (workload, training, scheme), and one of LAWA and EMA together (scheme ``ema + lawa``).

    log ratio = a seed's own level + b·x + c·x² (+ d·x³), x the log horizon. The cubic takes the parabola's place where
    the interval of d leaves out 0, over seeds resampled as a whole. Where a fourth power's does, neither fits: there is
    no curve, and the optimum lies between the neighbours of the horizons that are not told from the best one.

    Args: by_seed: of `pairs.ratios_by_seed`. cells: of `study.describe`.
    Returns fits and curves; three horizons and a ratio at each are the least for a fit.
      fits: shape (``parabola``, ``cubic``, ``neither``) · optimum (horizon fraction with the smallest fitted ratio,
      within the horizons run), optimum_low, optimum_high · edge: it is the shortest or the longest horizon run ·
      ratio at the optimum, ratio_low, ratio_high · slope, curvature: of log ratio in ln horizon at the optimum ·
      cubic: d, cubic_low, cubic_high · r2: share of the variance within seeds that the fit explains · flat_from,
      flat_to (NaN for one seed, or without a curve) · num_horizons, num_seeds, num_pairs, num_left_out (pairs without
      a ratio) · bound (see `pairs.ratios`).
      curves: the fitted ratio at GRID horizons and the optimum, low, high, best (the optimum), flat (covers it).
    """
    columns = cells.drop_duplicates("setting")[["setting", "scheme", "horizon_fraction"]]
    table = same_schedule(by_seed).merge(columns, on="setting")
    table = table[table["horizon_fraction"].notna() & (table["horizon_fraction"] > 0)]
    together = table[table["scheme"].isin(FIXED)]
    several = together.groupby(["workload", "training"])["scheme"].transform("nunique") > 1
    table = pd.concat([table, together[several].assign(scheme=" + ".join(FIXED))])
    fits: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for key, part in table.groupby(KEYS, sort=True):
        made = _one(part)
        if made is not None:
            name: dict[str, Any] = dict(zip(KEYS, key, strict=True))
            fits.append(name | made[0])
            curves += [made[1].assign(**name)] if len(made[1]) else []
    found = pd.DataFrame(fits, columns=[name for name in FIT if not name.startswith("flat_")])
    whole = pd.concat(curves, ignore_index=True)[CURVE] if curves else pd.DataFrame(columns=CURVE)
    regions = flat_region(whole)[[*KEYS, "flat_from", "flat_to"]]
    return found.merge(regions, on=KEYS, how="left")[FIT], whole


def flat_region(horizons: pd.DataFrame) -> pd.DataFrame:
    """The widest run of neighbouring flat horizons around the best one, per scheme.

    Returns: workload, training, scheme, flat_from, flat_to (horizon fractions), best_horizon, best_ratio; a row
    only where intervals exist and the scheme was run at several horizons.
    """
    rows = []
    known = horizons[horizons["flat"].notna()]
    for key, part in known.groupby(KEYS, sort=True):
        flat = part.groupby("horizon_fraction", sort=True)["flat"].any()
        if len(flat) > 1 and part["best"].any():  # one horizon has no neighbours to be flat with
            best = part[part["best"]].iloc[0]
            run = (~flat.astype(bool)).cumsum()  # equal within a run of flat horizons
            mine = flat.index[(run == run[best["horizon_fraction"]]) & flat.astype(bool)]
            rows.append((*key, mine.min(), mine.max(), best["horizon_fraction"], best["ratio"]))
    return pd.DataFrame(rows, columns=[*KEYS, "flat_from", "flat_to", "best_horizon", "best_ratio"])


def polynomials(x: Floats, y: Floats, seed: Ints, weights: Floats, degree: int) -> Floats:
    """y = level + c₁·x + … + c_p·x^p with a level a seed, by least squares: one row of weights, one fit.

    Within seeds: c solves Σ_s w_s Z_sᵀZ_s c = Σ_s w_s Z_sᵀy_s, Z = (x, …, x^p) less its seed's mean;
    level = Σ_s w_s (ȳ_s − c·z̄_s) / Σ_s w_s. A seed that lacks horizons moves the level only by what it has.
    Args: x, y: shape (n,). seed: shape (n,), 0 … m−1. weights: shape (u, m), rows summing to 1.
    Returns: level, c₁, …, c_p, shape (u, p + 1); NaN where too few horizons carry weight.
    """
    powers = x[:, None] ** np.arange(1, degree + 1)
    normal, moment, means = [], [], []
    for one in range(weights.shape[1]):
        mine = seed == one
        z_mean, y_mean = powers[mine].mean(axis=0), y[mine].mean()
        z = powers[mine] - z_mean
        normal.append(z.T @ z)
        moment.append(z.T @ (y[mine] - y_mean))
        means.append(np.append(z_mean, y_mean))
    a = np.tensordot(weights, np.stack(normal), axes=1)
    b = weights @ np.stack(moment)
    centre = weights @ np.stack(means)
    size = np.diagonal(a, axis1=1, axis2=2).prod(axis=1)
    solved = np.full(b.shape, np.nan)
    known = np.linalg.det(a) > 1e-10 * size
    solved[known] = np.linalg.solve(a[known], b[known][:, :, None])[:, :, 0]
    return np.column_stack([centre[:, -1] - (solved * centre[:, :-1]).sum(axis=1), solved])


def lowest(coefficients: Floats, low: float, high: float) -> Floats:
    """Where each polynomial is smallest within [low, high]: a local minimum, or an edge. NaN stays NaN.

    The slope b + 2cx + 3dx² is 0 with a curvature above 0 at x = −b / (c + √(c² − 3bd)) alone.
    Args: coefficients: level, b, c and, of a cubic, d: shape (u, 3) or (u, 4). Returns: shape (u,).
    """
    b, c, d = np.column_stack([coefficients, np.zeros(len(coefficients))])[:, 1:4].T
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = -b / (c + np.sqrt(c**2 - 3 * b * d))
    inside = np.where((inside >= low) & (inside <= high), inside, low)
    places = np.stack([inside, np.full(len(b), low), np.full(len(b), high)])
    values = b * places + c * places**2 + d * places**3
    found = places[np.where(np.isnan(values), np.inf, values).argmin(axis=0), np.arange(len(b))]
    return np.where(np.isnan(coefficients[:, 0]), np.nan, found)


def _one(part: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame] | None:
    known = part[part["ratio"].notna()]
    num_horizons = known["horizon_fraction"].nunique()
    if num_horizons < 3:
        return None
    logs = np.log(known["horizon_fraction"].to_numpy(dtype=float))
    middle = float(logs.mean())  # the fit is solved around it, where powers are told apart best
    x, y = logs - middle, np.log(known["ratio"].to_numpy(dtype=float))
    seed, names = pd.factorize(known["seed"], sort=True)
    num = len(names)
    (weights, counts), factor = multisets(num), widening(num)
    alone = np.full((1, num), 1 / num)
    if np.isnan(polynomials(x, y, seed, alone, 2)).any():
        return None

    def last_term(degree: int) -> Interval:
        """The coefficient of the highest power with its interval, where there are horizons enough to test it."""
        if num_horizons < degree + 1:
            return Interval(np.nan, np.nan, np.nan)
        value, draws = (polynomials(x, y, seed, of, degree)[:, -1:] for of in (alone, weights))
        return Interval(*interval(value[0], draws, factor, counts, scale=1.0)[:, 0].tolist())

    cubic = last_term(3)
    bent, lacks = (low > 0 or high < 0 for _, low, high in (cubic, last_term(4)))
    counted: dict[str, Any] = {"num_horizons": num_horizons, "num_seeds": num, "num_pairs": len(known)}
    counted |= {"num_left_out": len(part) - len(known), "bound": overall_bound(known["bound"])}
    counted |= {f"cubic{end}": value for end, value in zip(_ENDS, cubic, strict=True)}
    if lacks:
        return {"shape": NEITHER, **_lowest_mean(known), **counted}, pd.DataFrame(columns=CURVE)
    degree = 3 if bent else 2
    fitted, draws = (polynomials(x, y, seed, of, degree) for of in (alone, weights))
    ends = float(x.min()), float(x.max())
    best = float(lowest(fitted, *ends)[0])
    at = np.unique(np.append(np.linspace(*ends, GRID), best))
    log_ratio, low, high = interval(_value(fitted, at)[0], _value(draws, at), factor, counts, scale=1.0)
    place = int(np.flatnonzero(at == best)[0])
    flat = pd.array((low <= log_ratio[place]) & (log_ratio[place] <= high), dtype="boolean")
    flat[np.isnan(low)] = pd.NA
    optimum = interval(best, lowest(draws, *ends)[:, None], factor, counts, scale=1.0)[:, 0]
    optimum = np.exp(np.clip(optimum, *ends) + middle)
    bands = {"ratio": log_ratio, "low": low, "high": high}
    curve = pd.DataFrame({"horizon_fraction": np.exp(at + middle)} | {name: np.exp(v) for name, v in bands.items()})
    _, b, c, d = np.append(fitted[0], [0.0])[:4]
    fit = {
        "shape": CUBIC if bent else PARABOLA,
        **{f"optimum{end}": float(v) for end, v in zip(_ENDS, optimum, strict=True)},
        "edge": best in ends,
        **{f"ratio{end}": float(np.exp(v[place])) for end, v in zip(_ENDS, bands.values(), strict=True)},
        "slope": float(b + 2 * c * best + 3 * d * best**2),
        "curvature": float(c + 3 * d * best),
        "r2": _explained(x, y, seed, fitted[0]),
        **counted,
    }
    return fit, curve.assign(best=at == best, flat=flat)


def _lowest_mean(known: pd.DataFrame) -> dict[str, Any]:
    """Without a curve: the optimum lies between the neighbours of the horizons that are not told from the best one."""
    logs = known.assign(log=np.log(known["ratio"].astype(float)))
    means = logs.pivot_table(index="seed", columns="horizon_fraction", values="log", aggfunc="mean")
    axis, matrix = means.columns.to_numpy(dtype=float), means.to_numpy(dtype=float)
    value, low, high = np.exp(bootstrap_columns(matrix, scale=1.0))
    best, last = int(value.argmin()), len(axis) - 1
    alike = np.flatnonzero(~(bootstrap_columns(matrix - matrix[:, [best]], scale=1.0)[1] > 0))
    names = ("optimum", "optimum_low", "optimum_high", "ratio", "ratio_low", "ratio_high")
    ends = axis[max(alike[0] - 1, 0)], axis[min(alike[-1] + 1, last)]
    found = dict(zip(names, (axis[best], *ends, value[best], low[best], high[best]), strict=True))
    return {name: float(one) for name, one in found.items()} | {"edge": best in (0, last)}


def _value(coefficients: Floats, at: Floats) -> Floats:
    return coefficients @ (at ** np.arange(coefficients.shape[1])[:, None])


def _explained(x: Floats, y: Floats, seed: Ints, fitted: Floats) -> float:
    num, within = np.bincount(seed), []
    for values in (y - _value(fitted[None, :], x)[0], y):
        means = np.bincount(seed, values) / num
        within.append(float(((values - means[seed]) ** 2).sum()))
    return 1 - within[0] / within[1] if within[1] > 0 else np.nan
