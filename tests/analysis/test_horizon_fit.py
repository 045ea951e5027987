"""The horizon's parabola against closed forms, against numpy's polyfit and against dummy-variable least squares."""

import numpy as np
import pandas as pd
import pytest

from analysis.core import core
from analysis.run_folder.study import read
from analysis.sections.horizon import CUBIC, NEITHER, PARABOLA, horizon_fit, lowest, polynomials
from analysis.statistics.resampling import bootstrap_columns, multisets, small_sample_factor

HORIZONS = np.array([0.0025, 0.005, 0.01, 0.02, 0.04, 0.08])
BEST, RATIO, BEND = 0.013, 0.87, 0.05  # ratio(h) = RATIO · exp(BEND · ln²(h / BEST))


def true(horizon, best=BEST):
    return RATIO * np.exp(BEND * np.log(horizon / best) ** 2)


def frames(ratio, seeds=(0, 1, 2), schemes=("ema",), horizons=HORIZONS):
    """by_seed and cells for ratio(horizon, seed); a NaN is a pair whose runs both miss."""
    settings = [(scheme, h) for scheme in schemes for h in horizons]
    cells = pd.DataFrame(settings, columns=["scheme", "horizon_fraction"]).assign(setting=range(len(settings)))
    rows = [(n, s, ratio(h, s)) for n, (_, h) in enumerate(settings) for s in seeds]
    by_seed = pd.DataFrame(rows, columns=["setting", "seed", "ratio"]).assign(
        versus="same schedule", workload="lm", training=0
    )
    by_seed["bound"] = np.where(by_seed["ratio"].isna(), "both missed", "exact")
    return by_seed, cells


def test_a_parabola_is_found_exactly_and_without_noise_only_its_optimum_is_flat():
    fits, curves = horizon_fit(*frames(lambda h, s: true(h) * np.exp(1e-8 * s)))
    fit = fits.iloc[0]
    assert fit["optimum"] == pytest.approx(BEST)
    assert fit["ratio"] == pytest.approx(RATIO)
    assert fit["curvature"] == pytest.approx(BEND)
    assert fit["slope"] == pytest.approx(0, abs=1e-9)
    assert fit["r2"] == pytest.approx(1)
    assert fit["flat_from"] == fit["flat_to"] == pytest.approx(BEST)
    assert np.isnan(fit["optimum_low"])  # the same for all seeds: how far others would lie is not known
    assert not fit["edge"]
    assert (fit["num_seeds"], fit["num_horizons"], fit["num_pairs"], fit["num_left_out"]) == (3, 6, 18, 0)
    np.testing.assert_allclose(curves["ratio"], true(curves["horizon_fraction"]))
    np.testing.assert_allclose(curves["high"], curves["ratio"], rtol=1e-6)
    equal, curve = horizon_fit(*frames(lambda h, s: true(h)))
    assert curve[["low", "high", "flat"]].isna().all(axis=None)
    assert equal[["ratio_low", "optimum_low", "flat_from"]].isna().all(axis=None)


def test_seeds_that_differ_in_level_alone_widen_the_band_and_the_flat_region_by_a_known_amount():
    shift = {0: -0.02, 1: 0.0, 2: 0.02}
    fits, curves = horizon_fit(*frames(lambda h, s: true(h) * np.exp(shift[s])))
    fit = fits.iloc[0]
    # Of 27 resamples of three seeds one holds the extreme seed alone, more than a tail: the bounds are ± .02.
    width = 0.02 * small_sample_factor(3, 2)
    np.testing.assert_allclose(np.log(curves["high"] / curves["ratio"]), width)
    np.testing.assert_allclose(np.log(curves["low"] / curves["ratio"]), -width)
    reach = np.exp(np.sqrt(width / BEND))  # BEND · ln² (h / BEST) = width
    cell = (HORIZONS[-1] / HORIZONS[0]) ** (1 / 80)
    assert fit["flat_from"] == pytest.approx(max(BEST / reach, HORIZONS[0]), rel=cell - 1)
    assert fit["flat_to"] == pytest.approx(min(BEST * reach, HORIZONS[-1]), rel=cell - 1)
    assert np.isnan(fit["optimum_low"])  # the optimum does not depend on the level: it is the same for all seeds


def test_the_optimums_interval_is_that_of_the_seeds_optima():
    best = {0: BEST / 1.2, 1: BEST, 2: BEST * 1.2}
    fit = horizon_fit(*frames(lambda h, s: true(h, best[s])))[0].iloc[0]
    stretch = 1.2 ** small_sample_factor(3, 2)
    assert fit["optimum"] == pytest.approx(BEST)
    assert fit["optimum_low"] == pytest.approx(BEST / stretch)
    assert fit["optimum_high"] == pytest.approx(BEST * stretch)


def noisy(h, s):
    return true(h) * np.exp(0.03 * np.random.default_rng([int(1e5 * h), s]).normal())


def test_a_complete_grid_is_the_mean_of_numpys_fits_of_single_seeds_and_their_bootstrap():
    by_seed, cells = frames(noisy, seeds=range(5))
    _, curves = horizon_fit(by_seed, cells)
    at, x = np.log(curves["horizon_fraction"]), np.log(HORIZONS)
    logs = [np.log(by_seed[by_seed["seed"] == s]["ratio"].to_numpy()) for s in range(5)]
    alone = np.stack([np.polyval(np.polyfit(x, y, 2), at) for y in logs])
    mean, low, high = bootstrap_columns(alone)
    np.testing.assert_allclose(np.log(curves["ratio"]), mean, atol=1e-9)
    np.testing.assert_allclose(np.log(curves["low"]), low, atol=1e-9)
    np.testing.assert_allclose(np.log(curves["high"]), high, atol=1e-9)


def test_incomplete_seeds_stay_and_the_fit_is_that_of_a_level_a_seed():
    rng = np.random.default_rng(5)
    seed = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    x, y = rng.normal(size=10), rng.normal(size=10)
    dummies = (seed[:, None] == np.arange(4)).astype(float)
    solved = np.linalg.lstsq(np.column_stack([x, x**2, dummies]), y, rcond=None)[0]
    found = polynomials(x, y, seed, np.full((1, 4), 0.25), 2)[0]
    np.testing.assert_allclose(found, [solved[2:].mean(), *solved[:2]])
    # Weights are repetitions: seed 0 twice and seed 3 left out.
    twice = np.concatenate([np.flatnonzero(seed == 0), np.arange(7)])
    again = np.concatenate([np.full(4, 3), seed[:7]])
    dummies = (again[:, None] == np.array([0, 3, 1, 2])).astype(float)
    solved = np.linalg.lstsq(np.column_stack([x[twice], x[twice] ** 2, dummies]), y[twice], rcond=None)[0]
    found = polynomials(x, y, seed, np.array([[0.5, 0.25, 0.25, 0.0]]), 2)[0]
    np.testing.assert_allclose(found, [solved[2:].mean(), *solved[:2]])


def test_a_pair_without_a_ratio_is_counted_and_its_seed_stays():
    fits, _ = horizon_fit(*frames(lambda h, s: np.nan if s == 2 and h > 0.01 else true(h)))
    fit = fits.iloc[0]
    assert (fit["num_pairs"], fit["num_left_out"], fit["num_seeds"]) == (15, 3, 3)
    assert fit["optimum"] == pytest.approx(BEST)


def test_an_optimum_outside_of_what_was_run_is_an_edge():
    fit = horizon_fit(*frames(lambda h, s: true(h, best=0.5)))[0].iloc[0]
    assert fit["edge"]
    assert fit["optimum"] == pytest.approx(0.08)
    assert fit["slope"] == pytest.approx(2 * BEND * np.log(0.08 / 0.5))
    np.testing.assert_allclose(
        lowest(np.array([[0.0, -0.1, -1.0], [0.0, 0.1, -1.0], [np.nan] * 3, [0.0, -2.0, 1.0]]), -2, 3),
        [3, 3, np.nan, 1],
    )


def test_lawa_and_ema_share_one_fit_beside_their_own():
    by_seed, cells = frames(noisy, schemes=("ema", "lawa"))
    fits, curves = horizon_fit(by_seed, cells)
    assert fits["scheme"].tolist() == ["ema", "ema + lawa", "lawa"]
    both = fits[fits["scheme"] == "ema + lawa"].iloc[0]
    assert (both["num_pairs"], both["num_seeds"], both["num_horizons"]) == (36, 3, 6)
    assert set(curves["scheme"]) == set(fits["scheme"])


def test_one_seed_has_a_curve_without_band_and_two_horizons_have_none():
    fits, curves = horizon_fit(*frames(lambda h, s: true(h), seeds=[4]))
    assert fits["optimum"].iloc[0] == pytest.approx(BEST)
    assert fits[["optimum_low", "ratio_low", "flat_from"]].isna().all().all()
    assert curves["flat"].isna().all()
    fits, curves = horizon_fit(*frames(lambda h, s: true(h), horizons=HORIZONS[:2]))
    assert fits.empty
    assert curves.empty


def test_from_a_run_folder_with_known_crossings(make_run, average):
    averages = [average("ema", h, float(true(h))) for h in HORIZONS if true(h) < 1.2]
    run = make_run(lengths=[1.0], averages=averages)
    study = read(run)
    fits, _ = horizon_fit(core(study).by_seed, study.cells)
    assert fits["workload"].tolist() == ["imagenet_vit", "lm"]
    np.testing.assert_allclose(fits["optimum"], BEST, rtol=1e-6)
    np.testing.assert_allclose(fits["ratio"], RATIO, rtol=1e-6)


def test_multisets_give_the_same_band_as_drawing_one_by_one():
    by_seed, cells = frames(noisy)
    _, curves = horizon_fit(by_seed, cells)
    x = np.log(by_seed["setting"].map(cells["horizon_fraction"]).to_numpy())
    weights, counts = multisets(3)
    slow = []
    for weight in np.repeat(weights, counts, axis=0)[::50]:
        rows = [np.flatnonzero(by_seed["seed"] == s) for s in np.repeat([0, 1, 2], np.round(3 * weight).astype(int))]
        fit = np.mean([np.polyfit(x[r], np.log(by_seed["ratio"].to_numpy()[r]), 2) for r in rows], axis=0)
        slow.append(np.polyval(fit, np.log(curves["horizon_fraction"])))
    low, high = np.quantile(slow, [0.025, 0.975], axis=0)
    factor = small_sample_factor(3, 2)
    value = np.log(curves["ratio"])
    np.testing.assert_allclose(np.log(curves["low"]), value + factor * (low - value), atol=2e-3)
    np.testing.assert_allclose(np.log(curves["high"]), value + factor * (high - value), atol=2e-3)


def simulated(truth, reps, seeds=3):
    """Shapes, and how often the optimum's interval covers BEST: levels vary by seed, neighbouring horizons together."""
    rng = np.random.default_rng(5)
    near = np.linalg.cholesky(0.5 ** np.abs(np.subtract.outer(range(6), range(6))))
    shapes, covered = [], 0
    for _ in range(reps):
        logs = truth(np.log(HORIZONS / BEST)) + 0.02 * rng.normal(size=(seeds, 1))
        logs = logs + 0.01 * rng.normal(size=(seeds, 6)) @ near.T
        fit = horizon_fit(*frames(lambda h, s, y=logs: np.exp(y[s, list(HORIZONS).index(h)])))[0].iloc[0]
        shapes.append(fit["shape"])
        covered += fit["optimum_low"] <= BEST <= fit["optimum_high"]
    return shapes, covered / reps


def test_a_symmetric_truth_is_rarely_called_another_shape():
    shapes, covered = simulated(lambda u: np.log(RATIO) + BEND * u**2, 60)
    assert shapes.count(PARABOLA) >= 0.85 * len(shapes)
    assert covered >= 0.85


def test_a_truth_that_is_flat_on_the_left_and_steep_on_the_right_is_reported_and_its_optimum_covered():
    shapes, covered = simulated(lambda u: np.log(RATIO) + 0.004 * (np.exp(2.5 * u) - 2.5 * u - 1), 40)
    assert shapes.count(PARABOLA) <= 0.05 * len(shapes)
    assert shapes.count(NEITHER) >= 0.9 * len(shapes)
    assert covered >= 0.9


def test_a_cubic_takes_the_parabolas_place_where_its_term_is_shown():
    tilt = {0: 0.0195, 1: 0.02, 2: 0.0205}
    fits, curves = horizon_fit(*frames(lambda h, s: true(h) * np.exp(tilt[s] * np.log(h / BEST) ** 3)))
    fit = fits.iloc[0]
    assert fit["shape"] == CUBIC
    assert fit["cubic"] == pytest.approx(0.02)
    assert fit["cubic_low"] < 0.02 < fit["cubic_high"]
    assert fit["optimum"] == pytest.approx(BEST)
    assert fit["slope"] == pytest.approx(0, abs=1e-9)
    assert fit["curvature"] == pytest.approx(BEND)
    np.testing.assert_allclose(
        curves["ratio"], true(at := curves["horizon_fraction"]) * (at / BEST) ** (0.02 * np.log(at / BEST) ** 2)
    )
    cubics = np.random.default_rng(3).normal(size=(50, 4))
    grid = np.linspace(-1.5, 2, 20_001)
    for one, found in zip(cubics, lowest(cubics, -1.5, 2.0), strict=True):
        assert found == pytest.approx(grid[np.polyval(one[::-1], grid).argmin()], abs=2e-4)
