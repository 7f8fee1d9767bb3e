"""The stages of a study that run the model: filter, capture, fit, sweep."""

from collections.abc import Iterator, Mapping, Sequence

from ot_lens.activations import Activations, ActivationStore, CaptureSettings, captured, plan_shards
from ot_lens.behaviour import PanelSettings, plan_filter, treated_as_labelled
from ot_lens.execution import Executor
from ot_lens.localization import (
    Candidate,
    Measured,
    Measuring,
    Method,
    fit_maps,
    measure_units,
    measured_unedited,
    plan_by_pieces,
    read_baseline,
    swept,
    unfinished,
)
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.study.checks import sweep_plan
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder
from ot_lens.study.kept import KeptPieces, part_table
from ot_lens.study.preparation import Prepared, filter_options
from ot_lens.study.stage import Stage
from ot_lens.tables import UNEDITED, join
from ot_lens.transport import AffineMap

# Folder of which prompts a filter keeps, which is asked again as long as the model is needed.
FILTERED = "filtered"
# Folder of what is kept until the sweep is joined, and therein of what its plan asked of the model.
PARTS = "parts"
PLANNED = f"{PARTS}/planned"
Maps = Mapping[Method, Mapping[int, AffineMap]]


def filter_into(
    folder: RunFolder, executor: Executor, prompts: ContrastSet, config: StudyConfig
) -> ContrastSet:
    """Training and validation prompts that the unedited model treats as of their class, as configured.

    Raises:
        PromptError: If none is left of a class.
    """
    plan = executor.call(plan_filter, prompts, **filter_options(config))
    kept = KeptPieces(folder, executor, FILTERED)
    return plan.keep(prompts, kept(treated_as_labelled, plan.batches(prompts), plan))


def capture_split(
    folder: RunFolder,
    executor: Executor,
    contrast: Contrast,
    split: str,
    config: StudyConfig,
    layers: tuple[int, ...],
    stage: Stage,
) -> Activations:
    """Activations of one split, kept in the run folder; this process alone writes there."""
    plan = executor.call(
        plan_shards,
        contrast,
        CaptureSettings(
            layers=layers,
            hook=config.hook,
            positions=[config.position],
            batch_size=config.batch_size,
            dtype=config.activation_dtype,
        ),
    )
    prompts = len(contrast.harmful) + len(contrast.harmless)
    with (
        stage(f"activations, {split} prompts", prompts) as step,
        ActivationStore(folder.path / "activations" / split, plan) as store,
    ):
        left = store.missing()
        step(prompts - sum(len(shard.indices) for shard in left))
        for shard, values in executor.stream(captured, left, contrast, plan):
            store.write(shard, values)
            step(len(shard.indices))
        return store.finish()


def plan_into(
    folder: RunFolder,
    executor: Executor,
    prompts: ContrastSet,
    acts: Activations,
    methods: Sequence[Method],
    ready: Prepared,
    config: StudyConfig,
    stage: Stage,
) -> tuple[list[Candidate], Maps]:
    """Fit the maps and write them; returns what is to be measured, nothing once it was, and the maps."""
    plan = sweep_plan(config)
    with stage("maps and candidates", 1) as step:
        maps = fit_maps(acts, swept(methods, plan), layers=ready.layers, position=config.position)
        save_maps(folder, maps)
        found = []
        if not folder.has_table("localization"):
            found = plan_by_pieces(
                KeptPieces(folder, executor, PLANNED),
                ready.n_layers,
                prompts,
                acts,
                maps,
                methods,
                ready.settings,
                plan,
                position=config.position,
                hook=config.hook,
                tokens=config.tokens,
            )
        step(1)
    return found, maps


def save_maps(folder: RunFolder, maps: Maps) -> None:
    """Write every fitted map."""
    for method, by_layer in maps.items():
        for layer, edit in by_layer.items():
            edit.save(folder.path / "maps" / map_folder(method) / f"layer-{layer:03d}.safetensors")


def map_folder(method: Method) -> str:
    """The folder under maps/ that a method's maps are in."""
    return "-".join([method.name, *(f"{key}{value}" for key, value in sorted(method.params.items()))])


def sweep_into(
    folder: RunFolder,
    executor: Executor,
    prompts: Contrast,
    found: Sequence[Candidate],
    settings: PanelSettings,
    config: StudyConfig,
    stage: Stage,
) -> None:
    """Measure what was not measured before, and join the parts."""
    if folder.has_table("localization"):
        folder.drop(PARTS)
        return
    keys = [UNEDITED, *(candidate.key for candidate in found)]
    names = {key: part_table(PARTS, key) for key in keys}
    done = frozenset(key for key in keys if folder.has_table(names[key]))
    how = Measuring(settings, config.tokens, config.hook, config.engine)
    with stage("sweep over layers and methods", len(keys)) as step:
        step(len(done))
        for part in _measured(executor, prompts, found, how, done):
            if settings.completions is not None:
                part.save_answers(settings.completions, prompts)
            folder.write_table(names[part.key], part.table)
            step(1)
    # Parts are joined in the order of the candidates, so that a resumed run ends with the same bytes.
    folder.write_table("localization", join([folder.read_table(names[key]) for key in keys]))
    folder.drop(PARTS)


def _measured(
    executor: Executor, prompts: Contrast, found: Sequence[Candidate], how: Measuring, done: frozenset[str]
) -> Iterator[Measured]:
    groups = unfinished(found, how.settings, done)
    if UNEDITED in done and not groups:
        return
    baseline = executor.call(read_baseline, prompts, how)
    if UNEDITED not in done:
        yield measured_unedited(baseline, how)
    yield from executor.stream(measure_units, groups, prompts, baseline, how, done)
