"""What the model did, asked of the model again: activations, the sweep, and the tables of edited models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ot_lens.activations import CaptureSettings, capture_shard, plan_shards
from ot_lens.activations.index import read_index
from ot_lens.activations.key import differences
from ot_lens.activations.stored import TENSOR, shard_path
from ot_lens.behaviour import filter_by_behaviour
from ot_lens.errors import EvidenceError, OtLensError
from ot_lens.execution import LocalExecutor, Runner
from ot_lens.models import load_model
from ot_lens.prompts import ContrastSet
from ot_lens.study.diagnostics import FEWEST_SEEN, MAKERS, Study
from ot_lens.study.preparation import Prepared, filter_options, prepare
from ot_lens.study.verifying.check import DIFFERS, MISSING, OK, UNCHECKED, Check, Checks, exact, listed
from ot_lens.study.verifying.comparing import compare
from ot_lens.study.verifying.evidence import Evidence
from ot_lens.study.verifying.swept import swept

# Relative, by the dtype that the model computes in: on the same machine the numbers are equal to the bit; on
# another one the logits move by a few units in the last place of that dtype, and scores and KL with them.
TOLERANCES = {"torch.float64": 1e-9, "torch.float32": 1e-4, "torch.bfloat16": 5e-2, "torch.float16": 1e-2}
MODEL_TABLES = ("visibility", "ground_truth")


def remeasured(run: Evidence, checks: Checks, *, trust_remote_code: bool) -> None:
    """The model's record and everything that is read off the model, on a sample.

    Args:
        run: The run folder.
        checks: Where the checks go.
        trust_remote_code: Run code that comes with the model; a manifest cannot ask for that by itself.
    """
    config = run.config.model_copy(update={"keep_completions": False, "trust_remote_code": trust_remote_code})
    try:
        executor = LocalExecutor(load_model(**config.loading()))
        ready = executor.call(prepare, config, run.prompts, run.folder.path)
        prompts = run.prompts
        if config.filter != "off":
            prompts = filter_by_behaviour(Runner(executor), prompts, **filter_options(config))
    except OtLensError as error:
        unmeasured(run, checks, str(error))
        return
    tolerance = TOLERANCES.get(ready.record["dtype"], max(TOLERANCES.values()))
    checks.add(_model(run.folder.manifest, ready), _prompts(run.folder.manifest, prompts))
    for split in ("train", "test"):
        with checks.of(f"activations/{split}", "captured again"):
            checks.add(_activations(run, executor, prompts, split, ready, tolerance))
    with checks.of("localization", "measured again"):
        checks.add(*swept(run, executor, prompts, ready, tolerance))
    for name in MODEL_TABLES:
        with checks.of(name, "measured again"):
            checks.add(*_table(run, executor, prompts, name, tolerance))


def unmeasured(run: Evidence, checks: Checks, reason: str) -> None:
    """Say what is left unchecked without the model, and why."""
    items = ["model", "activations/train", "activations/test", "localization"]
    items += [name for name in MODEL_TABLES if run.folder.has_table(name)]
    how = "measured again"
    checks.add(*(Check(item, how, verdict=UNCHECKED, note=reason) for item in items))


def _model(manifest: Mapping[str, Any], ready: Prepared) -> Check:
    """The model's record; where it ran is no part of what it is."""
    ours = {**ready.record, **_told_by(ready.measuring)}
    theirs = {**manifest.get("model", {}), **_told_by(manifest.get("measuring", {}))}
    known = {name: value for name, value in theirs.items() if name != "device_map"}
    wrong = [f"{name} differs" for name in differences({n: ours.get(n) for n in known}, known)]
    return exact("model", "model loaded now", wrong, len(known))


def _told_by(measuring: Mapping[str, Any]) -> dict[str, Any]:
    return {name: measuring[name] for name in ("phrases", "refusal_tokens") if name in measuring}


def _prompts(manifest: Mapping[str, Any], prompts: ContrastSet) -> Check:
    ours, theirs = prompts.manifest(), manifest.get("prompts", {})
    wrong = [f"{name} prompts differ" for name in differences(ours["sha256"], theirs.get("sha256", {}))]
    return exact("prompts", "prompts read now", wrong, len(ours["sha256"]))


def _activations(
    run: Evidence,
    executor: LocalExecutor,
    prompts: ContrastSet,
    split: str,
    ready: Prepared,
    tolerance: float,
) -> Check:
    """Some shards captured again; the tolerance is relative to the largest value of a layer."""
    config, contrast = run.config, getattr(prompts, split)
    folder = run.folder.path / "activations" / split
    plan = executor.call(
        plan_shards,
        contrast,
        CaptureSettings(
            layers=ready.settings.layers,
            hook=config.hook,
            positions=[config.position],
            batch_size=config.batch_size,
            dtype=config.activation_dtype,
        ),
    )
    index = read_index(folder)
    wrong = [f"{name} differs" for name in differences(dict(plan.key), index.key)]
    item, how = f"activations/{split}", "captured again"
    if wrong or {s.name for s in plan.shards} != set(index.shards):
        return exact(item, how, wrong or ["other shards"], 0, len(index.shards))
    chosen = run.choice(split, plan.shards)
    if run.sample is not None:
        chosen = chosen[: max(1, run.sample // config.batch_size)]
    worst = 0.0
    for shard in chosen:
        values = executor.call(capture_shard, contrast, plan, shard).double()
        stored = _stored(folder, shard.name).double()
        size = values.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        worst = max(worst, float(((stored - values).abs() / size).nan_to_num(nan=float("inf")).max()))
    note = "" if worst <= tolerance else f"shards {listed([shard.name for shard in chosen])}"
    verdict = OK if worst <= tolerance else DIFFERS
    return Check(item, how, len(chosen), len(plan.shards), worst, tolerance, verdict, note)


def _stored(folder: Path, name: str) -> torch.Tensor:
    try:
        return load_file(shard_path(folder, name))[TENSOR]
    except (SafetensorError, OSError, KeyError) as error:
        raise EvidenceError(f"shard {name} cannot be read") from error


def _table(
    run: Evidence, executor: LocalExecutor, prompts: ContrastSet, name: str, tolerance: float
) -> Sequence[Check]:
    """A table of the edited model, made again as a whole."""
    acts = {split: run.acts(split) for split in ("train", "test")}
    test = acts["test"]
    if name == "visibility" and min(test.n_harmful, test.n_harmless) < FEWEST_SEEN:
        return []
    study = Study(acts, run.maps, run.config, run.sweep, executor, prompts)
    how = "measured again"
    expected = MAKERS[name](study).get(name)
    if expected is None:
        return []
    if not run.folder.has_table(name):
        return [Check(name, how, 0, len(expected), verdict=MISSING, note="no such table")]
    stored = run.folder.read_table(name)
    return [compare(stored, expected, tolerance).check(name, how, len(stored), tolerance)]
