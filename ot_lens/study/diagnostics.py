"""The tables of a study besides the sweep: geometry, controls, and what a monitor sees."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd

from ot_lens import geometry
from ot_lens.activations import Activations, capture, restricted
from ot_lens.components import contributions
from ot_lens.directions import harm_and_refusal, readout_vectors, tokens_written
from ot_lens.errors import (
    ActivationError,
    FitError,
    HookError,
    NotMeasuredWarning,
    PromptError,
    SinglePassError,
)
from ot_lens.execution import Executor, RunCache, Runner
from ot_lens.geometry.quantities import BUILT_IN
from ot_lens.localization import restore_refusal
from ot_lens.localization.settings import scope_of
from ot_lens.localizers import located
from ot_lens.patching import interchange
from ot_lens.progress import Stage, silent
from ot_lens.prompts import CLASSES, Contrast, ContrastSet
from ot_lens.samples import FIRST
from ot_lens.study import likeness
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder
from ot_lens.study.ground_truth import ground_truth, variant_of
from ot_lens.study.sweeping import FolderCache, Maps, capture_options
from ot_lens.tables import UNEDITED, control_bands, most_effective_layer, reported
from ot_lens.transport import ActivationMap, Method, method_named

# Resamples of quantities that need an eigendecomposition each; enough for a 95 % band.
FEW_RESAMPLES = 60
# A monitor is cross-fitted over four folds, so that it needs this many prompts of each class.
FEWEST_SEEN = 8
# Prompts of each class whose first token is read, which is the same token in most models.
MOST_FIRST = 16
# Prompts of each class to which localizers fit edits, directions and probes.
MOST_FITTED = 64
# Edits that are compared in detail, next to the transport of the highest rank and the user's own methods.
COMPARED = ("directional_ablation", "mean_shift")
# Numbers of layers: of the plane figure, with edits for a monitor, and of map quality.
MAX_PLANES, MAX_EDITED, MAX_MEASURED = 6, 5, 8
# Layers above an attack at which it is defended against.
MAX_DEFENDED = 3
# Axes of each map whose tokens are read.
MAX_AXES = 2
# Prompts of each class that a similarity needs, and the number of layers that are compared.
FEWEST_ALIKE, MAX_ALIKE = 5, 32
# Folder of cached partial tables.
PARTS = "edited"
PAPER = "ot_lens.paper_study.table"
Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Study:
    """What the tables are made from; tables of edited models also need `executor` and `prompts`.

    Tables that need many forward passes are cached in parts: with a cache in the run folder, a stopped run
    repeats one part only.
    """

    folder: RunFolder
    acts: Mapping[str, Activations]
    maps: Maps
    config: StudyConfig
    sweep: pd.DataFrame
    executor: Executor | None = None
    prompts: ContrastSet | None = None
    cache: RunCache = field(default_factory=dict[str, Any])
    stage: Stage = silent

    @property
    def resamples(self) -> dict[str, Any]:
        """Position of the activations, resamples and seed of nulls and intervals."""
        names = ("position", "permutations", "bootstrap", "seed")
        return {name: getattr(self.config, name) for name in names}

    @property
    def few_resamples(self) -> dict[str, Any]:
        """The same for expensive quantities."""
        counts = {name: min(self.resamples[name], FEW_RESAMPLES) for name in ("permutations", "bootstrap")}
        return self.resamples | counts

    @property
    def compared(self) -> dict[str, Mapping[int, ActivationMap]]:
        """Maps of the methods that are compared in detail, by label; of the first three if there are none."""
        own = [method for method in self.maps if method_named(method.name).order >= Method.order]
        chosen = [method for method in self.maps if method.name in COMPARED]
        ranks = [method for method in self.maps if method.name == "pca_ot"]
        if ranks:
            chosen.append(max(ranks, key=lambda method: int(method.params.get("k", 0))))
        return {m.label: self.maps[m] for m in [*chosen, *own] or list(self.maps)[:3]}


def geometry_tables(study: Study, stage: Stage) -> None:
    """Write the tables that a run folder does not have yet."""
    folder = study.folder
    study = replace(study, cache=FolderCache(folder, PARTS), stage=stage)
    with stage("geometry", len(MAKERS)) as step:
        for name, make in MAKERS.items():
            if not folder.has_table(name):
                for table_name, table in make(study).items():
                    folder.write_table(table_name, table)
            step(1)
    folder.drop(PARTS)


def _geometry(study: Study) -> Tables:
    """Built-in diagnostics, and those that were registered when the study ran."""
    train = study.acts["train"]
    with study.stage("diagnostics by layer", len(train.layers)) as step:
        table = geometry.diagnose(train, **study.resamples, progress=step)
    names = {quantity.name for quantity in BUILT_IN} | set(study.folder.manifest.get("diagnostics", ()))
    return {"geometry": table[table["quantity"].isin(names)].reset_index(drop=True)}


def _spectra(study: Study) -> Tables:
    options = {name: value for name, value in study.resamples.items() if name != "permutations"}
    return {"spectra": geometry.spectra(study.acts["train"], **options)}


def _massive(study: Study) -> Tables:
    """Of the position of the study, and of the first token, which is captured here."""
    train, config = study.acts["train"], study.config
    parts = [geometry.massive_activations(train, **study.few_resamples)]
    if study.executor is not None and study.prompts is not None:
        few = Contrast(*(group[:MOST_FIRST] for _, group in study.prompts.train))
        options = capture_options(config, train.layers) | {"positions": [FIRST]}
        first = study.executor.call(capture, few, **options)
        parts.insert(0, geometry.massive_activations(first, **study.few_resamples | {"position": FIRST}))
    return {"massive": pd.concat(parts, ignore_index=True).astype({"position": str})}


def _cosines(study: Study) -> Tables:
    return {"cosines": geometry.direction_cosines(study.acts["train"], **study.resamples)}


def _angles(study: Study) -> Tables:
    """Between planes of the classes, or lines if the smaller class spans no plane."""
    train = study.acts["train"]
    k = min(2, train.n_harmful - 1, train.n_harmless - 1, train.d_model)
    if k < 1:
        return {}
    options = study.resamples | {"bootstrap": min(study.config.bootstrap, 50), "k": k}
    parts = [geometry.layer_angles(train, label=label, **options) for label in CLASSES]
    return {
        "class_angles": geometry.class_angles(train, k=k, **study.few_resamples),
        "layer_angles": pd.concat(parts, ignore_index=True),
    }


def _layer_similarity(study: Study) -> Tables:
    """Of every two layers, if each class has enough prompts."""
    train = study.acts["train"]
    if min(train.n_harmful, train.n_harmless) < FEWEST_ALIKE:
        return {}
    few = restricted(train, spread(train.layers, MAX_ALIKE), study.config.position)
    table = geometry.similarity(few, k=likeness.components_of(few), **study.few_resamples)
    return {"layer_similarity": table}


def _model_similarity(study: Study) -> Tables:
    """The test prompts before and after edits at the most effective layer, and in the base model."""
    config, test, executor, prompts = study.config, study.acts["test"], study.executor, study.prompts
    if executor is None or prompts is None or min(test.n_harmful, test.n_harmless) < FEWEST_ALIKE:
        return {}
    own = restricted(test, spread(test.layers, MAX_ALIKE), config.position)
    capturing, draws = capture_options(config, own.layers), study.few_resamples
    layer, parts = most_effective_layer(reported(study.sweep)), []
    for label, by_layer in study.compared.items():
        if layer is None:
            continue
        tokens = scope_of(_name(study, label), config.tokens, config.position)
        edit = by_layer[layer], (label, layer), tokens
        parts.append(likeness.against_edit(executor, prompts.test, own, *edit, capturing, draws))
    if config.base is not None:
        base = config.base, config.loading()
        parts.append(likeness.against_base(executor, prompts.test, own, *base, capturing, draws))
    table = pd.concat(parts, ignore_index=True) if parts else None
    return {} if table is None else {"model_similarity": table.astype({"edited_layer": "Int64"})}


def _map_quality(study: Study) -> Tables:
    layers, parts = spread(study.acts["test"].layers, MAX_MEASURED), []
    with study.stage("quality of the maps", len(study.compared)) as step:
        for label, by_layer in study.compared.items():
            maps = {layer: edit for layer, edit in by_layer.items() if layer in layers}
            acts = study.acts["test"], study.acts["train"]
            parts.append(geometry.map_quality(maps, *acts, method=label, **study.few_resamples))
            step(1)
    return {"map_quality": pd.concat(parts, ignore_index=True)}


def _controls(study: Study) -> Tables:
    return {"controls": control_bands(study.sweep)}


def _plane(study: Study) -> Tables:
    """Held-out prompts in the principal plane over the depth, before and after projection and transport."""
    config, test = study.config, study.acts["test"]
    main_layer = config.plane_layer
    if main_layer is None:
        main_layer = most_effective_layer(reported(study.sweep))
    points, clouds = [], []
    for layer in sorted({*spread(test.layers, MAX_PLANES), *([] if main_layer is None else [main_layer])}):
        edits = {
            method.label: by_layer[layer]
            for method, by_layer in study.maps.items()
            if method.name in ("directional_ablation", "pca_ot")
        }
        H, S = test.harmful(layer, config.position), test.harmless(layer, config.position)
        with suppress(FitError):  # activations of a first layer may span no plane
            plane, ellipses = geometry.principal_plane(H, S, edits, layer=layer, position=config.position)
            points.append(plane)
            clouds.append(ellipses)
    if not points:
        return {}
    return {
        "plane": pd.concat(points, ignore_index=True),
        "plane_ellipses": pd.concat(clouds, ignore_index=True),
    }


def _visibility(study: Study) -> Tables:
    """What a monitor at the edited layer and one at the last layer see of each edit, and without an edit."""
    test = study.acts["test"]
    if study.executor is None or min(test.n_harmful, test.n_harmless) < FEWEST_SEEN:
        return {}
    edits: list[tuple[str, int | None]] = [(UNEDITED, None)]
    edits += [(label, layer) for label in study.compared for layer in spread(test.layers, MAX_EDITED)]
    parts = []
    with study.stage("visibility of edits", len(edits)) as step:
        for label, layer in edits:
            name = f"{label}, {layer}"
            if name not in study.cache:
                study.cache[name] = _monitored(study, label, layer)
            parts.append(study.cache[name])
            step(1)
    return {"visibility": pd.concat(parts, ignore_index=True)}


def _monitored(study: Study, label: str, layer: int | None) -> pd.DataFrame:
    """Rows of one edit, compared with the model's own harmless activations."""
    test, config = study.acts["test"], study.config
    if layer is None or study.executor is None or study.prompts is None:
        edited = test
    else:
        harmful, harmless = study.prompts.test.harmful, study.prompts.test.harmless
        edited = study.executor.call(
            capture,
            Contrast(harmful, harmless[:1]),  # of the edited model, only the harmful class is read
            layers=sorted({layer, test.layers[-1]}),
            hook=config.hook,
            positions=[config.position],
            edits={(layer, config.hook): study.compared[label][layer]},
            tokens=scope_of(_name(study, label), config.tokens, config.position),
            batch_size=config.batch_size,
        )
    table = geometry.visibility(edited, test, method=label, **study.few_resamples)
    return table.assign(edited_layer=pd.array([layer] * len(table), dtype="Int64"))


def _name(study: Study, label: str) -> str:
    return next(method.name for method in study.maps if method.label == label)


def _localizers(study: Study) -> Tables:
    """Which blocks make refusal; none where the model cannot be replayed block by block, which is said."""
    config = study.config
    if study.executor is None or study.prompts is None or not config.localizers:
        return {}
    rng = np.random.default_rng(config.seed)
    train = _drawn(study.prompts.train, MOST_FITTED, rng)
    test = _drawn(study.prompts.test, config.localizers, rng)
    prompts = replace(study.prompts, train=train, test=test)
    try:
        with study.stage("localizers", None):
            table = study.executor.call(located, prompts, config.base, config.loading(), config.seed)
    except (FitError, SinglePassError) as error:
        warnings.warn(
            f"Which blocks make refusal was not measured: {error}", NotMeasuredWarning, stacklevel=2
        )
        return {}
    return {"localizers": table}


def _defence(study: Study) -> Tables:
    """What restores refusal that a mean shift has removed below the highest layer, where edits do most."""
    config, (*lower, highest) = study.config, study.acts["test"].layers
    if study.executor is None or study.prompts is None or not config.defence:
        return {}
    sweep = reported(study.sweep)
    attacked = most_effective_layer(sweep[sweep["layer"].isin(lower)])
    if attacked is None:
        warnings.warn(
            f"No defence was measured: no edit below layer {highest} removes refusal. Add lower layers.",
            NotMeasuredWarning,
            stacklevel=2,
        )
        return {}
    above = tuple(layer for layer in (*lower, highest) if layer > attacked)
    names = ("phrases", "refusal_tokens", "max_new_tokens", "batch_size", "seed")
    with study.stage("defence", None):
        table = restore_refusal(
            Runner(study.executor),
            study.prompts,
            attack_layer=attacked,
            layers=spread(above, MAX_DEFENDED),
            **{name: getattr(config, name) for name in names},
        )
    return {"defence": table}


def _contributions(study: Study) -> Tables:
    """Who writes the refusal direction: the class means' difference where edits have the largest effect."""
    config, train = study.config, study.acts.get("train")
    if study.executor is None or study.prompts is None or train is None or not config.contributions:
        return {}
    most = most_effective_layer(reported(study.sweep))
    layer = train.layers[-1] if most is None else most
    harmful, harmless = (getattr(train, label)(layer, config.position) for label in CLASSES)
    direction = harmful.mean(dim=0) - harmless.mean(dim=0)
    # The stream that is taken apart enters a layer; all other hook points are part of what enters the next.
    at = layer if config.hook == "resid_pre" else layer + 1
    options = {"layer": at, "batch_size": config.batch_size, "seed": config.seed}
    prompts = _drawn(study.prompts.test, config.contributions, np.random.default_rng(config.seed))
    try:
        with study.stage("contributions", None):
            table = study.executor.call(contributions, prompts, direction, **options)
    except (ActivationError, HookError) as error:
        warnings.warn(
            f"Who writes the refusal direction was not measured: {error}", NotMeasuredWarning, stacklevel=2
        )
        return {}
    return {"contributions": table}


def _readout(study: Study) -> Tables:
    """What the direction and the compared maps write; displacements are those of held-out prompts."""
    config = study.config
    if study.executor is None or not config.readout:
        return {}
    train, test = study.acts["train"], study.acts["test"]
    vectors = readout_vectors(train, study.compared, moved=test, position=config.position, axes=MAX_AXES)
    with study.stage("readout", None):
        table = study.executor.call(tokens_written, vectors, k=config.readout, seed=config.seed)
    return {"readout": table}


def _harm(study: Study) -> Tables:
    """Harm apart from refusal; none where the model refuses nothing or everything, which is said."""
    config, prompts = study.config, study.prompts
    if study.executor is None or prompts is None or not config.harm:
        return {}
    options: dict[str, Any] = {"refusal_tokens": config.refusal_tokens, "phrases": config.phrases}
    options |= {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
    options |= study.few_resamples
    del options["position"]
    methods = [method for method in study.maps if not (method.learned or method.joint)]
    try:
        with study.stage("harm apart from refusal", None):
            table = study.executor.call(
                harm_and_refusal, prompts, methods, layers=study.acts["train"].layers, **options
            )
    except (FitError, HookError) as error:
        warnings.warn(f"Harm apart from refusal was not measured: {error}", NotMeasuredWarning, stacklevel=2)
        return {}
    return {"harm": table}


def _interchange(study: Study) -> Tables:
    """Whose activations the answer follows; none where the single pass cannot measure it, as is said."""
    config = study.config
    if study.executor is None or study.prompts is None or not config.interchange:
        return {}
    few = _drawn(study.prompts.test, config.interchange, np.random.default_rng(config.seed))
    null_draws = int(min(len(group) for _, group in few) > 1)
    try:
        with study.stage("interchange", None):
            table = study.executor.call(
                interchange, few, null_draws=null_draws, seed=config.seed, engine="single_pass"
            )
    except (HookError, PromptError, SinglePassError) as error:
        warnings.warn(
            f"Which tokens' activations the answer follows was not measured: {error}",
            NotMeasuredWarning,
            stacklevel=2,
        )
        return {}
    return {"interchange": table}


def _drawn(contrast: Contrast, most: int, rng: np.random.Generator) -> Contrast:
    """At most so many prompts of each class."""
    chosen = [sorted(rng.permutation(len(group))[:most]) for _, group in contrast]
    return Contrast(*(tuple(group[i] for i in own) for own, (_, group) in zip(chosen, contrast, strict=True)))


def _ground_truth(study: Study) -> Tables:
    variant = None if study.executor is None else study.executor.call(variant_of)
    if variant is None or study.prompts is None:
        return {}
    table = ground_truth(variant, study.prompts, study.acts["test"], study.sweep, study.resamples)
    return {"ground_truth": table}


def _paper(study: Study) -> Tables:
    """The run next to the paper's numbers, which a package above this one has."""
    if not study.config.paper_table:
        return {}
    make = import_module(PAPER).paper_table
    manifest = study.folder.manifest
    names = manifest["model"]["name"], manifest["measuring"]["phrases"]["name"]
    return {"paper": make(study.sweep, *names)}


def spread(layers: tuple[int, ...], most: int) -> list[int]:
    """At most `most` of the layers, evenly spaced over the depth, with both ends."""
    if len(layers) <= most:
        return list(layers)
    return sorted({layers[round(i * (len(layers) - 1) / (most - 1))] for i in range(most)})


# In the order in which they are made; the key is the table that a maker writes last.
MAKERS: Mapping[str, Callable[[Study], Tables]] = {
    "geometry": _geometry,
    "spectra": _spectra,
    "massive": _massive,
    "cosines": _cosines,
    "layer_angles": _angles,
    "layer_similarity": _layer_similarity,
    "model_similarity": _model_similarity,
    "map_quality": _map_quality,
    "controls": _controls,
    "plane_ellipses": _plane,
    "visibility": _visibility,
    "localizers": _localizers,
    "defence": _defence,
    "interchange": _interchange,
    "contributions": _contributions,
    "readout": _readout,
    "harm": _harm,
    "ground_truth": _ground_truth,
    "paper": _paper,
}
