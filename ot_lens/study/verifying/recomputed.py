"""Maps and tables made again from stored activations, stored maps and the stored sweep, without a model.

Maps of a sample of layers are fitted again and compared by how they move samples. Every value of every table
is recomputed; nulls and intervals, which cost hundreds of times as much, only for a sample of layers. All
layers share their resamples, so that a layer by itself gives the same numbers.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import cache

import pandas as pd
import torch
from jaxtyping import Float64
from scipy import stats
from torch import Tensor

from ot_lens.activations import restricted
from ot_lens.errors import PoorFitWarning, RunFolderError
from ot_lens.localization import MethodSpec, fit_maps
from ot_lens.prompts import CLASSES
from ot_lens.study.diagnostics import MAKERS
from ot_lens.study.subject import Study, Tables
from ot_lens.study.sweeping import map_folder, map_path, measured_tables
from ot_lens.study.verifying.comparing import EXACT, Check, Checks, compare, listed
from ot_lens.study.verifying.evidence import MODEL_TABLES, Evidence
from ot_lens.tables import COLUMNS, add_holm
from ot_lens.transport import ActivationMap, load_map

# Relative to the largest displacement: another order of summation changes the 12th digit of a displacement,
# times the condition number of the fit, whose regularized covariances stay below 1e4.
MAPS = 1e-8
RESAMPLED = ("null_mean", "null_low", "null_high", "low", "high")
# arccos of a cosine near 1 loses half of the digits.
ANGLES = 1e-5
TOLERANCES = {"class_angles": ANGLES, "layer_angles": ANGLES}
# Tables whose numbers do not depend on resamples.
NOT_RESAMPLED = ("controls", "plane", "plane_ellipses", "paper", "claims")
LAYERS = ("layer", "layer_a", "layer_b")
OF_THE_MODEL = ("localization", *MODEL_TABLES)
ARITHMETIC = "own arithmetic"
TRAINED = "trained through the model: the activations alone cannot repeat it"


def fitted(run: Evidence, checks: Checks) -> None:
    """One check per method: every map exists, and those of the sampled layers move samples the same way.

    Maps that were trained through the model cannot be refitted: it is only checked that they exist.
    """
    checks.make("maps", "refitted", _check_maps, run)


def _check_maps(run: Evidence) -> Iterator[Check]:
    layers = few = run.train.layers
    if run.sample is not None:
        few = tuple(sorted(run.choice("maps", layers)[: max(2, run.sample // len(run.methods))]))
    acts = restricted(run.train, few, run.config.position)
    methods = [method for method in run.methods if not method.learned]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorFitWarning)
        with run.stage("maps, fitted again", len(methods)) as step:
            refitted = fit_maps(acts, methods, layers=few, position=run.config.position, progress=step)
    for method in run.methods:
        yield _check_method(run, method, refitted.get(method))
    known = {map_path(run.folder.path, method, layer) for method in run.methods for layer in layers}
    extra = sorted(set((run.folder.path / "maps").rglob("*.safetensors")) - known)
    if extra:
        note = f"not of this run: {listed([str(path.relative_to(run.folder.path)) for path in extra])}"
        yield Check.exact("maps", "configuration", [note], 0, len(extra))


def _check_method(run: Evidence, method: MethodSpec, refitted: dict[int, ActivationMap] | None) -> Check:
    item, layers = f"maps/{map_folder(method)}", run.train.layers
    lacking = [f"layer {layer}" for layer in layers if not map_path(run.folder.path, method, layer).is_file()]
    if lacking:
        return Check.missing(item, "refitted", f"no map of {listed(lacking)}", len(layers))
    if refitted is None:
        return Check.unchecked(item, "refitted", TRAINED)
    worst, wrong = 0.0, []
    for layer in layers:
        try:
            stored = load_map(map_path(run.folder.path, method, layer))
        except RunFolderError as error:
            wrong.append(str(error))
            continue
        if layer in refitted:
            off = relative_distance(stored, refitted[layer], _samples(run, layer))
            worst = max(worst, off)
            wrong += [f"layer {layer}: {fact}" for fact in _different_facts(stored, refitted[layer])]
            if off > MAPS:
                wrong.append(f"layer {layer} moves samples differently")
    check = Check.exact(item, "refitted", wrong, len(refitted), len(layers))
    return replace(check, deviation=worst, tolerance=MAPS)


def _samples(run: Evidence, layer: int) -> Float64[Tensor, "n d"]:
    return torch.cat([getattr(run.train, label)(layer, run.config.position) for label in CLASSES])


def relative_distance(
    stored: ActivationMap, refitted: ActivationMap, samples: Float64[Tensor, "n d"]
) -> float:
    """Largest distance between the images of a sample, over the largest displacement by `refitted`."""
    if stored.d_model != refitted.d_model:
        return float("inf")
    ours, theirs = refitted(samples), stored(samples)
    distance, displacement = (x.norm(dim=1).max() for x in (theirs - ours, ours - samples))
    ratio = (distance / displacement).nan_to_num(nan=float("inf"), posinf=float("inf"))
    return float(ratio) if distance else 0.0


def _different_facts(stored: ActivationMap, refitted: ActivationMap) -> list[str]:
    """Facts of the fit that are not equal; measured numbers are left to the comparison of the samples."""
    names = [entry.name for entry in fields(refitted.info) if entry.name not in ("problems", "notes")]
    pairs = [(name, getattr(stored.info, name), getattr(refitted.info, name)) for name in names]
    return [f"its {name} is {old!r}" for name, old, new in pairs if not isinstance(new, float) and old != new]


def recomputed(run: Evidence, checks: Checks) -> None:
    """Every table that needs no model, the sweep's own arithmetic, and whether any table is missing."""
    if run.folder.has_table("localization"):
        checks.make("localization", ARITHMETIC, _check_arithmetic, run)
    else:
        checks.append(Check.missing("localization", "present"))
    expected = {*OF_THE_MODEL, *MAKERS, "class_angles", "plane", "run_cosines"}
    if not run.config.paper_table:
        expected.remove("paper")
    if not run.config.claims:
        expected -= {"claims", "capability"}
    expected |= {*measured_tables(run.config)}
    makers = [maker for maker in MAKERS if maker not in OF_THE_MODEL]
    with run.stage("tables, recomputed", len(makers)) as step:
        for maker in makers:
            checks.make(maker, "recomputed", _check_maker, run, maker)
            step(1)
    if run.folder.has_table("run_cosines"):
        note = "compared with another run: 'ot-lens figures RUN --against OTHER' makes it again"
        checks.append(Check.unchecked("run_cosines", "recomputed", note))
    extra = sorted(set(run.folder.table_names) - expected)
    if extra:
        checks.append(
            Check.exact("tables", "configuration", [f"not of this run: {listed(extra)}"], 0, len(extra))
        )


def _check_maker(run: Evidence, maker: str) -> Iterator[Check]:
    """Check the tables of one maker: all values, then resamples of some layers."""
    bare = run.config.model_copy(update={"permutations": 0, "bootstrap": 0})
    for name, made in MAKERS[maker](Study(run.folder, run.acts, run.maps, bare, run.sweep)).items():
        if not run.folder.has_table(name):
            yield Check.missing(name, "recomputed", of=len(made))
            continue
        stored, tolerance = run.folder.read_table(name), TOLERANCES.get(name, EXACT)
        resampled = () if name in NOT_RESAMPLED else tuple(column for column in RESAMPLED if column in made)
        how = "recomputed values" if resampled else "recomputed"
        check = compare(name, how, stored, made, tolerance, without=resampled)
        yield check
        if resampled and not check.note:
            layers = sampled_layers(run, name, made)
            few, again = stored[of_layers(made, layers).to_numpy()], _with_resamples(run, maker, layers)[name]
            yield compare(name, "recomputed resamples", few, again, tolerance, of=len(stored))


def _with_resamples(run: Evidence, maker: str, layers: Sequence[int]) -> Tables:
    acts = {split: restricted(stored, layers, run.config.position) for split, stored in run.acts.items()}
    maps = {method: {layer: by[layer] for layer in layers} for method, by in run.maps.items()}
    return MAKERS[maker](Study(run.folder, acts, maps, run.config, run.sweep))


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


def _check_arithmetic(run: Evidence) -> Check:
    """What follows from the sweep's own rows: intervals of rates, corrected p-values, the seed."""
    table = run.folder.read_table("localization")
    different = sorted({*table.columns} ^ {*COLUMNS})
    if different:
        wrong = [f"column {name} differs" for name in different]
        return Check.exact("localization", ARITHMETIC, wrong, 0, len(table))
    expected = add_holm(table).assign(seed=run.config.seed).astype(table.dtypes.to_dict())
    rates = table[(table["interval"] == "wilson") & (table["n"] > 0)]
    counts = (rates["value"] * rates["n"]).round().clip(lower=0).clip(upper=rates["n"])
    intervals = [_wilson(int(count), int(n)) for count, n in zip(counts, rates["n"], strict=True)]
    expected.loc[rates.index, ["value", "low", "high"]] = intervals
    tested = rates.index.union(table.index[table["p_holm"].notna()])
    return replace(compare("localization", ARITHMETIC, table, expected), compared=len(tested))


@cache
def _wilson(count: int, n: int) -> tuple[float, float, float]:
    interval = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    return count / n, float(interval.low), float(interval.high)
