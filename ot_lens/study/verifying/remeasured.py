"""Activations, the sweep and the tables of edited models, measured again with the model."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ot_lens.activations import CaptureSettings, capture_shard, plan_shards
from ot_lens.activations.index import read_index
from ot_lens.activations.plan import differences
from ot_lens.activations.stored import TENSOR, shard_path
from ot_lens.errors import EvidenceError, OtLensError
from ot_lens.execution import LocalExecutor, Runner
from ot_lens.localization import (
    Candidate,
    SweepSettings,
    as_methods,
    fit_sweep,
    measure_sweep,
    plan_sweep,
)
from ot_lens.localization.measure import outcomes_in
from ot_lens.localization.rows import identity
from ot_lens.localization.variants import Variant, to_measure
from ot_lens.models import load_model
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.study.diagnostics import MAKERS
from ot_lens.study.measuring import chosen_variants, tried_on_validation, validation_settings
from ot_lens.study.preparation import Prepared, prepare, sweep_plan
from ot_lens.study.subject import Study
from ot_lens.study.sweeping import capture_options, filter_prompts
from ot_lens.study.verifying.comparing import Check, Checks, compare, different_rows, key_rows, listed
from ot_lens.study.verifying.evidence import MODEL_TABLES, Evidence
from ot_lens.tables import COLUMNS, IDENTITY, TYPES, UNEDITED, UNEDITED_COLUMNS, VARIANT_COLUMNS

# Relative, by the dtype that the model computes in. On the same machine the numbers are equal to the bit; on
# another the logits move by a few units in the last place of that dtype, and scores and KL with them.
TOLERANCES = {"torch.float64": 1e-9, "torch.float32": 1e-4, "torch.bfloat16": 5e-2, "torch.float16": 1e-2}
AGAIN = "measured again"
# Variants that are measured again, of a sample; they are many and alike.
FEW_VARIED = 4


@dataclass(frozen=True)
class _Again:
    """The study of a run, ready to be measured again with an empty cache."""

    run: Evidence
    executor: LocalExecutor
    ready: Prepared
    prompts: ContrastSet
    languages: Mapping[str, ContrastSet]
    tolerance: float


def remeasured(run: Evidence, checks: Checks, *, trust_remote_code: bool) -> None:
    """The model's record, the prompts, and a sample of everything that the model measured."""
    config = run.config.model_copy(update={"keep_completions": False, "trust_remote_code": trust_remote_code})
    try:
        with run.stage("loading the model", None):
            executor = LocalExecutor(load_model(**config.loading()))
            ready = executor.call(prepare, config, run.prompts, run.folder.path)
        prompts = filter_prompts(Runner(executor), run.prompts, config, run.stage)
        languages = run.languages
    except OtLensError as error:
        unmeasured(run, checks, str(error))
        return
    again = _Again(run, executor, ready, prompts, languages, TOLERANCES.get(ready.record["dtype"], 5e-2))
    checks.append(_check_model(run.folder.manifest, ready))
    checks += _check_prompts(again)
    for split in ("train", "test"):
        checks.make(f"activations/{split}", "captured again", _check_activations, again, split)
    checks.make("localization", AGAIN, _check_sweep, again)
    with run.stage("tables, measured again", len(MODEL_TABLES)) as step:
        for name in MODEL_TABLES:
            checks.make(name, AGAIN, _check_table, again, name)
            step(1)


def _check_prompts(again: _Again) -> Iterator[Check]:
    """Whether the prompts read now, those of other languages too, are those that the run has read."""
    manifest = again.run.folder.manifest
    sets = [("prompts", again.prompts, manifest.get("prompts", {}))]
    languages = manifest.get("languages", {})
    sets += [(f"prompts/{name}", own, languages.get(name, {})) for name, own in again.languages.items()]
    for item, own, stored in sets:
        yield Check.entries(item, "prompts read now", own.manifest()["sha256"], stored.get("sha256", {}))


def unmeasured(run: Evidence, checks: Checks, reason: str) -> None:
    """Report what is not checked without the model, and why."""
    items = ["model", "activations/train", "activations/test", "localization"]
    items += [name for name in MODEL_TABLES if run.folder.has_table(name)]
    checks += [Check.unchecked(item, AGAIN, reason) for item in items]


def _check_model(manifest: Mapping[str, Any], ready: Prepared) -> Check:
    """The model's record, except for the devices it was on."""
    ours = {**ready.record, **_refusals(ready.measuring)}
    theirs = {**manifest.get("model", {}), **_refusals(manifest.get("measuring", {}))}
    theirs.pop("device_map", None)
    return Check.entries("model", "model loaded now", theirs, ours)


def _refusals(measuring: Mapping[str, Any]) -> dict[str, Any]:
    return {name: measuring[name] for name in ("phrases", "refusal_tokens") if name in measuring}


def _check_activations(again: _Again, split: str) -> Check:
    """Some shards captured again; the tolerance is relative to the largest value of a layer."""
    run, contrast = again.run, getattr(again.prompts, split)
    item, how = f"activations/{split}", "captured again"
    folder, layers = run.folder.path / item, again.ready.settings.layers
    plan = again.executor.call(plan_shards, contrast, CaptureSettings(**capture_options(run.config, layers)))
    index = read_index(folder)
    wrong = [f"{name} differs" for name in differences(dict(plan.key), index.key)]
    if wrong or {s.name for s in plan.shards} != set(index.shards):
        return Check.exact(item, how, wrong or ["other shards"], 0, len(index.shards))
    chosen = run.choice(split, plan.shards)
    if run.sample is not None:
        chosen = chosen[: max(1, run.sample // run.config.batch_size)]
    worst = 0.0
    with run.stage(f"activations, {split} prompts", len(chosen)) as step:
        for shard in chosen:
            values = again.executor.call(capture_shard, contrast, plan, shard).double()
            size = values.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
            off = (_stored(folder, shard.name) - values).abs() / size
            worst = max(worst, float(off.nan_to_num(nan=float("inf")).max()))
            step(1)
    check = Check(item, how, len(chosen), len(plan.shards), worst, again.tolerance)
    names = [shard.name for shard in chosen]
    return check if worst <= again.tolerance else check.differing(f"shards {listed(names)}")


def _stored(folder: Path, name: str) -> torch.Tensor:
    try:
        return load_file(shard_path(folder, name))[TENSOR].double()
    except (SafetensorError, OSError, KeyError) as error:
        raise EvidenceError(f"shard {name} cannot be read") from error


def _check_table(again: _Again, name: str) -> list[Check]:
    """A table of edited models, made again as a whole; none if the study has no such table."""
    run = again.run
    parts = run.folder, run.acts, run.maps, run.config, run.sweep
    study = Study(*parts, again.executor, again.prompts, again.languages)
    expected = MAKERS[name](study).get(name)
    if expected is None:
        return []
    if not run.folder.has_table(name):
        return [Check.missing(name, AGAIN, of=len(expected))]
    return [compare(name, AGAIN, run.folder.read_table(name), expected, again.tolerance, again=True)]


KEYS = list(IDENTITY)


def _check_sweep(again: _Again) -> Iterator[Check]:
    """Whether the table has the planned candidates in order, and whether some of them measure the same."""
    run, ready, prompts, runner = again.run, again.ready, again.prompts, Runner(again.executor)
    methods, plan = as_methods(run.config.method_entries), sweep_plan(run.config)
    refittable = [method for method in methods if not method.learned]
    refitted = fit_sweep(run.train, refittable, ready.settings, plan, run.stage)
    maps = {method: run.maps[method] if method.learned else refitted[method] for method in run.methods}
    candidates = plan_sweep(runner, prompts, run.train, methods, maps, ready.settings, plan, run.stage)
    rows = _by_key(run.sweep)
    yield _check_planned("localization", run.sweep, candidates)
    yield _check_measures(candidates, rows, len(run.sweep))
    keys = _sampled(run, candidates, {key: len(group) for key, group in rows.items()})
    yield _check_measured(again, runner, "localization", run.sweep, prompts.test, candidates, keys)
    keys = [UNEDITED, *keys]
    if run.config.claims:
        yield from _check_choice(again, candidates)
        made, table = _variants(again, candidates), run.measured("variants", (*COLUMNS, *VARIANT_COLUMNS))
        yield _check_variants(table, made)
        varied = to_measure(made, rows)
        few = run.choice("variants", varied)[: None if run.sample is None else FEW_VARIED]
        keys += [candidate.key for candidate in few]
        table = table.drop(columns=list(VARIANT_COLUMNS))
        yield _check_measured(again, runner, "variants", table, prompts.test, varied, [c.key for c in few])
    if run.config.outcomes:
        yield _check_outcomes(again, outcomes_in(runner.cache, keys))


def _by_key(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(key): group for key, group in table.groupby("key", sort=False)}


def _check_planned(item: str, table: pd.DataFrame, candidates: Sequence[Candidate]) -> Check:
    planned = pd.DataFrame([UNEDITED_COLUMNS, *map(identity, candidates)])[KEYS]
    stored = [row for row, _ in groupby(key_rows(table[KEYS]))]
    trouble = different_rows(stored, key_rows(planned), KEYS)
    return Check.exact(item, "planned again", [trouble] if trouble else [], len(table))


def _check_choice(again: _Again, candidates: Sequence[Candidate]) -> Iterator[Check]:
    """The same of the table that edits are chosen by, on the validation prompts."""
    run, tried = again.run, tried_on_validation(candidates)
    table = run.measured("validation")
    yield _check_planned("validation", table, tried)
    keys = _sampled(run, tried, {key: len(group) for key, group in _by_key(table).items()})
    settings = validation_settings(again.ready.settings)
    runner, prompts = Runner(again.executor), again.prompts.val
    yield _check_measured(again, runner, "validation", table, prompts, tried, keys, settings)


def _variants(again: _Again, candidates: Sequence[Candidate]) -> list[Variant]:
    run = again.run
    return chosen_variants(
        run.config, run.measured("validation"), candidates, run.train, again.ready.settings
    )


def _check_variants(table: pd.DataFrame, made: Sequence[Variant]) -> Check:
    """Whether the variants are those of the edits that the stored validation table chooses."""
    columns = ["key", *VARIANT_COLUMNS]
    stored = [row for row, _ in groupby(key_rows(table[columns]))]
    planned = [(one.candidate.key, one.of, one.axis, one.level) for one in made]
    trouble = different_rows(stored, planned, columns)
    return Check.exact("variants", "planned again", [trouble] if trouble else [], len(table))


def _check_measured(
    again: _Again,
    runner: Runner,
    item: str,
    table: pd.DataFrame,
    prompts: Contrast,
    candidates: Sequence[Candidate],
    keys: Sequence[str],
    settings: SweepSettings | None = None,
) -> Check:
    """Some candidates measured again; the unedited model too, where the table has it."""
    with again.run.stage(f"{item}, measured again", 1 + len(keys)) as step:
        measured = measure_sweep(
            runner,
            prompts,
            candidates,
            settings or again.ready.settings,
            keys=keys,
            progress=lambda _key: step(1),
        )
    rows = _by_key(table)
    known = {key: found for key, found in measured.items() if key in rows}
    stored = [rows[key].drop_duplicates(["measure", "prompts"]) for key in known]
    if not known:
        return Check.exact(item, AGAIN, [], 0, len(table))
    few = pd.concat(stored, ignore_index=True)
    expected = pd.concat(list(known.values()), ignore_index=True).astype(TYPES)
    return compare(
        item, AGAIN, few, expected, again.tolerance, of=len(table), without=("p_holm",), again=True
    )


def _check_outcomes(again: _Again, expected: pd.DataFrame) -> Check:
    """The outcomes of the candidates that were measured again, prompt by prompt."""
    table = again.run.table("outcomes")
    few = table[table["key"].isin(expected["key"].unique())]
    order = {key: number for number, key in enumerate(expected["key"].unique())}
    few = few.iloc[few["key"].map(order).argsort(kind="stable")]
    return compare("outcomes", AGAIN, few, expected, again.tolerance, of=len(table), again=True)


def _kind(candidate: Candidate) -> Hashable:
    """Candidates of one kind have rows of the same measures."""
    return (
        candidate.layer_set,
        candidate.transport,
        candidate.control,
        candidate.generates,
        candidate.prompts,
        candidate.chosen_at is None,
    )


def _check_measures(candidates: Sequence[Candidate], rows: Mapping[str, pd.DataFrame], count: int) -> Check:
    """Whether candidates of one kind have the same measures, which reveals lost and added rows."""
    kinds: dict[Hashable, Any] = {}
    wrong = []
    for candidate in candidates:
        if candidate.key in rows:
            measures = rows[candidate.key][["measure", "prompts", "unit"]].to_numpy().tolist()
            if kinds.setdefault(_kind(candidate), measures) != measures:
                wrong.append(f"{candidate.key} has other measures than others of its kind")
    return Check.exact("localization", "measures alike", wrong, count)


def _sampled(run: Evidence, candidates: Sequence[Candidate], sizes: Mapping[str, int]) -> list[str]:
    """Keys of a random candidate of every kind, then of others, until they have enough rows."""
    order = run.choice("localization", candidates)
    first = {_kind(candidate): candidate.key for candidate in reversed(order)}
    chosen = set(first.values())
    for candidate in order:
        if run.sample is None or sum(sizes.get(key, 0) for key in chosen) < run.sample:
            chosen.add(candidate.key)
    return [candidate.key for candidate in candidates if candidate.key in chosen]
