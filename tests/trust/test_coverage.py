"""Geometric intervals and nulls on Gaussians with known answers: do they hold what they say they hold?

The interval of a geometric quantity is about the expectation of the estimate at this n, which is known here
by simulation; the null band about the value under its null hypothesis. Replicates are few in the suite.
"""

import pytest
import torch

from ot_lens.geometry.resampled_moments import DrawnShapes, PooledGram
from ot_lens.geometry.visibility import _distances, visibility
from ot_lens.statistics.intervals import null_band
from ot_lens.statistics.resampling import Resamples, observed, relabellings
from tests.trust import coverage_tables as tables
from tests.trust.coverage_tables import Cell, Counted, coverage, outside, simulate

# What an interval may lack of 95 %. Resamples of few prompts know too little of the spread of a spread.
SLACK = 0.05
SLACK_OF = {"participation_ratio": 0.1, "refusal_directions": 0.08, "effective_rank": 0.08}
SHAPES = ("w2_bures", "effective_rank", "participation_ratio", "condition_number")
# Recorded, not promised: a ratio to a bound that is nearly zero (see `map_quality`).
UNCOVERED = ("cost_over_bound",)
NORMALITY = ("mardia", "henze")
# name: table, keys, column of the value, quantities whose null holds under "means" and under "all"
TABLES = {
    "diagnose": (tables.distances, ["quantity"], "value"),
    "massive_activations": (tables.coordinates, ["robust", "class", "quantity"], "value"),
    "spectra": (tables.eigenvalues, ["class", "component"], "eigenvalue"),
    "class_angles": (tables.angles, ["component"], "angle"),
    "layer_angles": (tables.angles_of_layers, ["component"], "angle"),
    "run_cosines": (tables.cosines, ["quantity"], "cosine"),
    "category_directions": (tables.directions, ["quantity"], "value"),
    "visibility": (tables.monitors, ["quantity"], "value"),
    "map_quality": (None, ["quantity"], "value"),
}
SMALL = [
    ("diagnose", Cell("all", 16, 16, 32)),
    *((name, Cell("means", 16, 16, 32)) for name in TABLES if name != "diagnose"),
]
FULL = [
    *(("diagnose", Cell(regime, 16, 16, d)) for regime in ("same", "all") for d in (4, 32, 96)),
    ("diagnose", Cell("means", 16, 48, 32)),
    ("diagnose", Cell("slightly", 64, 64, 32)),
    ("diagnose", Cell("all", 64, 64, 96)),
    *(
        (name, Cell(regime, 16, 16, 32))
        for name in TABLES
        if name != "diagnose"
        for regime in ("same", "means")
    ),
    *((name, Cell("means", 64, 32, 96)) for name in TABLES if name != "diagnose"),
    *(("run_cosines", Cell("slightly", 256, 256, d)) for d in (4, 96)),
]


def simulated(name: str, cell: Cell, replicates: int):
    table, keys, value = TABLES[name]
    return simulate(table or tables.qualities(cell), cell, replicates, keys, value)


def nominal(found: dict[str, Counted]) -> dict[str, float]:
    return {
        name: 0.95 - next((s for part, s in SLACK_OF.items() if name.startswith(part)), SLACK)
        for name in found
    }


def known_null(name: str, quantity: str, cell: Cell) -> bool:
    """Whether the null hypothesis of a quantity is true in a cell."""
    if name in ("spectra", "category_directions"):
        return name == "category_directions"
    if name == "diagnose" and quantity.startswith(NORMALITY):
        return True
    if name == "layer_angles":
        return cell.regime == "same"
    if name in ("class_angles", "map_quality") or quantity.startswith(SHAPES):
        # The map of "slightly" is not the one that joins the classes.
        return cell.regime in ("same", "means")
    return cell.regime == "same"


def one_sided(name: str, quantity: str) -> bool:
    """Whether the null is only a bound: training samples stretch the very axes they are compared along."""
    return quantity == "w2_before" or quantity.startswith(("outside", "transport_cost", "cost_over_bound"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        chosen = FULL if metafunc.config.getoption("--full") else SMALL
        metafunc.parametrize(("name", "cell"), chosen, ids=[f"{name}: {cell}" for name, cell in chosen])


def test_intervals_and_nulls_hold_what_they_say(name, cell, full_size, record_property):
    keys, value = TABLES[name][1:]
    found = simulated(name, cell, 300 if full_size else 20)
    if name == "visibility":
        found["expected"] = found["expected"].where(found["quantity"] != "mahalanobis", found["value"])
    held, beyond = coverage(found, keys, value=value), {}
    if "null_low" in found:
        beyond = {q: c for q, c in outside(found, keys, value=value).items() if known_null(name, q, cell)}
    beyond = {q: c for q, c in beyond.items() if not one_sided(name, q)}
    record_property("coverage", {q: c.record for q, c in held.items()})
    record_property("outside_null", {q: c.record for q, c in beyond.items()})
    levels = nominal(held)
    short = {q: c.record for q, c in held.items() if q not in UNCOVERED and not c.reaches(levels[q])}
    assert not short
    lax = {q: c.record for q, c in beyond.items() if c.exceeds(0.05)}
    assert not lax


def test_an_interval_of_one_standard_error_fails_the_same_check():
    found = simulated("class_angles", Cell("means", 16, 16, 32), 60)
    held = coverage(found, ["component"], shrink=1 / 1.96, value="angle")["1"]
    assert not held.reaches(0.95 - SLACK)


def test_labels_of_samples_about_one_mean_fail_the_same_check(monkeypatch):
    """What `class_angles` did before: classes of one covariance looked turned against each other."""

    def mixed(pooled, sizes, count, seed):
        return DrawnShapes(pooled.gram, relabellings(observed(*sizes, seed), count, seed), pooled.rounding)

    monkeypatch.setattr(PooledGram, "relabelled_shapes", mixed)
    found = simulated("class_angles", Cell("means", 16, 16, 32), 60)
    assert any(c.exceeds(0.05) for c in outside(found, ["component"], value="angle").values())


def test_the_interval_of_a_distance_to_a_monitor_is_about_that_monitor(full_size, record_property):
    """Its truth is the mean distance of many other prompts to the Gaussians of these reference samples."""
    n, m, d = 24, 40, 12
    hits, replicates = 0, 400 if full_size else 60
    for seed in range(replicates):
        H, S = (x[0] for x in Cell("means", n, m, d).sample(1, seed))
        many = Cell("means", 4000, 2, d).sample(1, 50_000 + seed)[0][0]
        labels = observed(n, m, seed)
        folds = torch.arange(4000).unsqueeze(0) % labels.folds
        rows = torch.arange(4000).unsqueeze(0)
        wide = Resamples(rows, torch.arange(m).unsqueeze(0) + 4000, folds, labels.target_fold, labels.folds)
        truth = float(_distances(many, S, wide)[:4000].mean())
        acts = tables.layers(H.unsqueeze(0), S.unsqueeze(0))
        row = visibility(acts, acts, permutations=0, bootstrap=tables.DRAWS, seed=seed).iloc[0]
        hits += row["low"] <= truth <= row["high"]
    held = Counted(int(hits), replicates)
    record_property("coverage", {"mahalanobis, of this monitor": held.record})
    assert held.reaches(0.95 - SLACK)


# fewer than 39 draws cannot make 95 %; from there on the band is never too narrow
@pytest.mark.parametrize("draws", [39, 50, 79, 199, 200, 1000])
def test_a_null_band_leaves_out_at_most_one_in_twenty(draws):
    ranks = torch.arange(1, draws + 1, dtype=torch.float64)
    band = null_band(ranks)
    # The value is one more draw: it falls into each of the draws + 1 gaps with the same probability.
    gaps = torch.arange(draws + 1) + 0.5
    beyond = ((gaps < band["null_low"]) | (gaps > band["null_high"])).sum()
    assert float(beyond) / (draws + 1) <= 0.05
    assert float(beyond) / (draws + 1) > 0.05 - 2 / (draws + 1)
