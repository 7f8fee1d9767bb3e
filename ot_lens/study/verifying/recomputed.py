"""Tables computed again from stored activations, stored maps and the stored sweep; no model is needed.

Every value of every row is computed again; nulls and intervals, which cost hundreds of times as much, for a
sample of layers. All layers share their draws, so that a layer by itself gives the numbers it gave then.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pandas as pd
from scipy import stats

from ot_lens.study.added_tables import AddedTable, added_tables
from ot_lens.study.diagnostics import MAKERS, Study, Tables
from ot_lens.study.verifying.check import DIFFERS, MISSING, UNCHECKED, Check, Checks, exact, listed
from ot_lens.study.verifying.comparing import EXACT, Compared, compare
from ot_lens.study.verifying.evidence import Evidence, restricted
from ot_lens.tables import COLUMNS, add_holm

DRAWN = ("null_mean", "null_low", "null_high", "low", "high")
# arccos of a cosine near 1 keeps half of its digits.
ANGLES = 1e-5
TOLERANCES = {"class_angles": ANGLES, "layer_angles": ANGLES}
# With draws or without, these hold the same numbers.
UNDRAWN = ("controls", "plane", "plane_ellipses")
LAYERS = ("layer", "layer_a", "layer_b")
# These read an edited model.
OF_THE_MODEL = ("localization", "visibility", "ground_truth")
ARITHMETIC = "own arithmetic"


def recomputed(run: Evidence, checks: Checks) -> None:
    """Every table that needs no model, the sweep's own arithmetic, and whether any table is missing."""
    if run.folder.has_table("localization"):
        with checks.of("localization", ARITHMETIC):
            checks.add(_arithmetic(run.folder.read_table("localization"), run.config.seed))
    expected: list[str] = ["localization"]
    for name in MAKERS:
        if name not in OF_THE_MODEL:
            with checks.of(name, "recomputed"):
                expected += _maker(run, name, checks)
    for added in added_tables(run.config):
        expected.append(added.name)
        with checks.of(added.name, "recomputed"):
            checks.add(_added(run, added))
    _strangers(run, expected, checks)


def _maker(run: Evidence, name: str, checks: Checks) -> list[str]:
    """The tables of one maker; returns their names."""
    bare = run.config.model_copy(update={"permutations": 0, "bootstrap": 0})
    acts = {split: run.acts(split) for split in ("train", "test")}
    study = Study(acts, run.maps, bare, run.sweep)
    tables = MAKERS[name](study)
    for table_name, table in tables.items():
        if not run.folder.has_table(table_name):
            checks.add(Check(table_name, "recomputed", 0, len(table), verdict=MISSING, note="no such table"))
            continue
        stored, tolerance = run.folder.read_table(table_name), TOLERANCES.get(table_name, EXACT)
        undrawn = table_name in UNDRAWN
        found = compare(stored, table, tolerance, without=() if undrawn else _drawn(table))
        how = "recomputed" if undrawn else "recomputed values"
        checks.add(found.check(table_name, how, len(stored), tolerance))
        if not undrawn and not found.trouble:
            drawn = _with_draws(run, name, table_name, table, stored, tolerance)
            checks.add(drawn.check(table_name, "recomputed draws", len(stored), tolerance))
    return list(tables)


def _drawn(table: pd.DataFrame) -> tuple[str, ...]:
    return tuple(name for name in DRAWN if name in table)


def _with_draws(
    run: Evidence, maker: str, name: str, table: pd.DataFrame, stored: pd.DataFrame, tolerance: float
) -> Compared:
    layers = sampled_layers(run, name, table)
    position = run.config.position
    acts = {split: restricted(run.acts(split), layers, position) for split in ("train", "test")}
    maps = {m: {layer: by[layer] for layer in layers} for m, by in run.maps.items()}
    again: Tables = MAKERS[maker](Study(acts, maps, run.config, run.sweep))
    return compare(stored[of_layers(table, layers).to_numpy()], again[name], tolerance)


def sampled_layers(run: Evidence, name: str, table: pd.DataFrame) -> list[int]:
    """Layers in random order until they hold the rows asked for; two at least, since pairs need them."""
    columns = [column for column in LAYERS if column in table]
    order = run.choice(name, sorted(table[columns[0]].unique().tolist()))
    if run.sample is None:
        return sorted(order)
    for count in range(2, len(order)):
        if int(of_layers(table, order[:count]).sum()) >= run.sample:
            return sorted(order[:count])
    return sorted(order)


def of_layers(table: pd.DataFrame, layers: Sequence[int]) -> pd.Series:
    """Rows all of whose layers are among some."""
    return table[[column for column in LAYERS if column in table]].isin(list(layers)).all(axis=1)


def _arithmetic(table: pd.DataFrame, seed: int) -> Check:
    """What the rows of a sweep say of each other: intervals of rates, corrected p-values, the seed."""
    different = sorted({*table.columns} ^ {*COLUMNS})
    if different:
        return exact(
            "localization", ARITHMETIC, [f"column {name} differs" for name in different], 0, len(table)
        )
    expected = add_holm(table).assign(seed=seed).astype(table.dtypes.to_dict())
    rates = table[(table["interval"] == "wilson") & (table["n"] > 0)]
    counts = (rates["value"] * rates["n"]).round().clip(lower=0).clip(upper=rates["n"])
    found = [_wilson(int(count), int(n)) for count, n in zip(counts, rates["n"], strict=True)]
    expected.loc[rates.index, ["value", "low", "high"]] = found
    check = compare(table, expected, EXACT).check("localization", ARITHMETIC, len(table), EXACT)
    tested = rates.index.union(table.index[table["p_holm"].notna()])
    return replace(check, compared=len(tested))


@cache
def _wilson(count: int, n: int) -> tuple[float, float, float]:
    interval = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    return count / n, float(interval.low), float(interval.high)


def _added(run: Evidence, added: AddedTable) -> Check:
    if not run.folder.has_table(added.name):
        return Check(added.name, "recomputed", verdict=MISSING, note="no such table")
    _ = run.sweep
    stored = run.folder.read_table(added.name)
    return compare(stored, added.make(run.folder), EXACT).check(added.name, "recomputed", len(stored), EXACT)


def _strangers(run: Evidence, expected: Sequence[str], checks: Checks) -> None:
    """Tables that are not there, and tables that this run would not have written."""
    there = {path.stem for path in (run.folder.path / "tables").glob("*.parquet")}
    known = {*expected, *OF_THE_MODEL, *MAKERS, "plane", "paper"}
    if "localization" not in there:
        checks.add(Check("localization", "present", 0, 1, verdict=MISSING, note="no such table"))
    if "run_cosines" in there:
        note = "of another run beside this one: 'ot-lens figures RUN --against OTHER' makes it again"
        checks.add(Check("run_cosines", "recomputed", verdict=UNCHECKED, note=note))
    extra = sorted(there - known - {"run_cosines"})
    if extra:
        note = f"not of this run: {listed(extra)}"
        checks.add(Check("tables", "configuration", 0, len(extra), verdict=DIFFERS, note=note))
