"""Tables recomputed from stored activations, stored maps and the stored sweep; no model is needed.

Every value of every row is recomputed; nulls and intervals, which cost hundreds of times as much, only for a
sample of layers. All layers share their resamples, so that a layer by itself gives the same numbers.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pandas as pd
from scipy import stats

from ot_lens.geometry.quantities import BUILT_IN
from ot_lens.study.added_tables import AddedTable, added_tables
from ot_lens.study.diagnostics import MAKERS, Study, Tables
from ot_lens.study.verifying.check import Check, Checks, exact, listed, missing, unchecked
from ot_lens.study.verifying.comparing import EXACT, compare
from ot_lens.study.verifying.evidence import Evidence, restricted
from ot_lens.tables import COLUMNS, add_holm

RESAMPLED = ("null_mean", "null_low", "null_high", "low", "high")
# arccos of a cosine near 1 loses half of the digits.
ANGLES = 1e-5
TOLERANCES = {"class_angles": ANGLES, "layer_angles": ANGLES}
# Tables whose numbers do not depend on resamples.
NOT_RESAMPLED = ("controls", "plane", "plane_ellipses")
LAYERS = ("layer", "layer_a", "layer_b")
# Tables that need a model.
OF_THE_MODEL = ("localization", "visibility", "ground_truth")
ARITHMETIC = "own arithmetic"


def recomputed(run: Evidence, checks: Checks) -> None:
    """Every table that needs no model, the sweep's own arithmetic, and whether any table is missing."""
    if run.folder.has_table("localization"):
        with checks.of("localization", ARITHMETIC):
            checks.add(_check_arithmetic(run.folder.read_table("localization"), run.config.seed))
    else:
        checks.add(missing("localization", "present", "no such table"))
    expected: list[str] = []
    for name in MAKERS:
        if name not in OF_THE_MODEL:
            with checks.of(name, "recomputed"):
                expected += _check_maker(run, name, checks)
    for added in added_tables(run.config):
        expected.append(added.name)
        with checks.of(added.name, "recomputed"):
            checks.add(_check_added(run, added))
    _check_others(run, expected, checks)


def _check_maker(run: Evidence, maker: str, checks: Checks) -> list[str]:
    """Check the tables of one maker; returns their names."""
    bare = run.config.model_copy(update={"permutations": 0, "bootstrap": 0})
    tables = MAKERS[maker](Study(run.both_splits, run.maps, bare, run.sweep))
    for name, made in tables.items():
        if not run.folder.has_table(name):
            checks.add(missing(name, "recomputed", "no such table", len(made)))
            continue
        stored, tolerance = run.folder.read_table(name), TOLERANCES.get(name, EXACT)
        table = _of_the_run(made, stored)
        resampled = () if name in NOT_RESAMPLED else tuple(column for column in RESAMPLED if column in table)
        how = "recomputed values" if resampled else "recomputed"
        result = compare(stored, table, tolerance, without=resampled)
        checks.add(result.check(name, how, len(stored), tolerance))
        if resampled and not result.trouble:
            layers = sampled_layers(run, name, table)
            few = stored[of_layers(table, layers).to_numpy()]
            again = _of_the_run(_with_resamples(run, maker, layers)[name], stored)
            result = compare(few, again, tolerance)
            checks.add(result.check(name, "recomputed resamples", len(stored), tolerance))
    return list(tables)


def _of_the_run(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """Without diagnostics that were registered in this process and not in the run's."""
    if "quantity" not in table or "quantity" not in stored:
        return table
    known = {*stored["quantity"], *(quantity.name for quantity in BUILT_IN)}
    return table[table["quantity"].isin(known)].reset_index(drop=True)


def _with_resamples(run: Evidence, maker: str, layers: Sequence[int]) -> Tables:
    acts = {split: restricted(a, layers, run.config.position) for split, a in run.both_splits.items()}
    maps = {method: {layer: by[layer] for layer in layers} for method, by in run.maps.items()}
    return MAKERS[maker](Study(acts, maps, run.config, run.sweep))


def sampled_layers(run: Evidence, name: str, table: pd.DataFrame) -> list[int]:
    """Random layers until they have the sampled number of rows; at least two, since pairs need them."""
    column = next(column for column in LAYERS if column in table)
    order = run.choice(name, sorted(table[column].unique().tolist()))
    if run.sample is None:
        return sorted(order)
    for count in range(2, len(order)):
        if int(of_layers(table, order[:count]).sum()) >= run.sample:
            return sorted(order[:count])
    return sorted(order)


def of_layers(table: pd.DataFrame, layers: Sequence[int]) -> pd.Series:
    """Rows all of whose layers are among the given ones."""
    return table[[column for column in LAYERS if column in table]].isin(list(layers)).all(axis=1)


def _check_arithmetic(table: pd.DataFrame, seed: int) -> Check:
    """What follows from the sweep's own rows: intervals of rates, corrected p-values, the seed."""
    different = sorted({*table.columns} ^ {*COLUMNS})
    if different:
        wrong = [f"column {name} differs" for name in different]
        return exact("localization", ARITHMETIC, wrong, 0, len(table))
    expected = add_holm(table).assign(seed=seed).astype(table.dtypes.to_dict())
    rates = table[(table["interval"] == "wilson") & (table["n"] > 0)]
    counts = (rates["value"] * rates["n"]).round().clip(lower=0).clip(upper=rates["n"])
    intervals = [_wilson(int(count), int(n)) for count, n in zip(counts, rates["n"], strict=True)]
    expected.loc[rates.index, ["value", "low", "high"]] = intervals
    check = compare(table, expected, EXACT).check("localization", ARITHMETIC, len(table), EXACT)
    tested = rates.index.union(table.index[table["p_holm"].notna()])
    return replace(check, compared=len(tested))


@cache
def _wilson(count: int, n: int) -> tuple[float, float, float]:
    interval = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    return count / n, float(interval.low), float(interval.high)


def _check_added(run: Evidence, added: AddedTable) -> Check:
    if not run.folder.has_table(added.name):
        return missing(added.name, "recomputed", "no such table")
    _ = run.sweep
    stored = run.folder.read_table(added.name)
    return compare(stored, added.make(run.folder), EXACT).check(added.name, "recomputed", len(stored), EXACT)


def _check_others(run: Evidence, expected: Sequence[str], checks: Checks) -> None:
    """Tables that this run would not have written, and one that depends on another run."""
    names = set(run.folder.table_names)
    if "run_cosines" in names:
        note = "compared with another run: 'ot-lens figures RUN --against OTHER' makes it again"
        checks.add(unchecked("run_cosines", "recomputed", note))
    extra = sorted(names - {*expected, *OF_THE_MODEL, *MAKERS, "plane", "paper", "run_cosines"})
    if extra:
        checks.add(exact("tables", "configuration", [f"not of this run: {listed(extra)}"], 0, len(extra)))
