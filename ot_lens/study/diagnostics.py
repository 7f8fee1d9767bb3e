"""The tables of a study besides the sweep: geometry, controls, what a monitor sees; and their list."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from itertools import chain
from typing import Any

import pandas as pd

from ot_lens import geometry
from ot_lens.activations import capture, restricted
from ot_lens.errors import FitError
from ot_lens.execution import Executor
from ot_lens.geometry.quantities import BUILT_IN
from ot_lens.localization.settings import scope_of
from ot_lens.progress import Stage
from ot_lens.prompts import CLASSES, Contrast
from ot_lens.samples import FIRST
from ot_lens.study import likeness
from ot_lens.study.capability import capability_table
from ot_lens.study.ground_truth import ground_truth, variant_of
from ot_lens.study.mechanisms import MECHANISMS
from ot_lens.study.subject import Maker, Study, Tables, spread
from ot_lens.study.sweeping import FolderCache, capture_options
from ot_lens.tables import UNEDITED, control_bands, most_effective_layer, reported

# A monitor is cross-fitted over four folds, so that it needs this many prompts of each class.
FEWEST_SEEN = 8
# Prompts of each class whose first token is read, which is the same token in most models.
MOST_FIRST = 16
# Numbers of layers: of the plane figure, with edits for a monitor, and of map quality.
MAX_PLANES, MAX_EDITED, MAX_MEASURED = 6, 5, 8
# Prompts of each class that a similarity needs, and the number of layers that are compared.
FEWEST_ALIKE, MAX_ALIKE = 5, 32
# Folder of cached partial tables.
PARTS = "edited"
PAPER, CLAIMS = "ot_lens.paper_study.table", "ot_lens.paper_study.claims"


def geometry_tables(study: Study, executor: Executor, stage: Stage) -> None:
    """Write the tables that a run folder does not have yet."""
    folder = study.folder
    study = replace(study, executor=executor, cache=FolderCache(folder, PARTS), stage=stage)
    missing = [name for name in MAKERS if not folder.has_table(name)]
    apart = [name for name in missing if name not in OF_OTHERS]
    last = (MAKERS[name](study) for name in missing if name in OF_OTHERS)
    with stage("geometry", len(missing)) as step:
        for tables in chain(executor.stream(_made, apart, study), last):
            for table_name, table in tables.items():
                folder.write_table(table_name, table)
            step(1)
    folder.drop(PARTS)


def _made(model: Any, study: Study, names: Sequence[str]) -> Iterator[Tables]:
    """The tables of some makers, in this process or in another that has the model."""
    for name in names:
        yield MAKERS[name](study.on(model))


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


def _claims(study: Study) -> Tables:
    """What the paper claims, tested on the tables of this run."""
    if not study.config.claims:
        return {}
    return {"claims": import_module(CLAIMS).claims_of(study.folder)}


# In the order in which they are begun, mechanisms of the model first; the key is the table written last.
MAKERS: Mapping[str, Maker] = {
    **MECHANISMS,
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
    "ground_truth": _ground_truth,
    "paper": _paper,
    "capability": capability_table,
    "claims": _claims,
}
# Made from tables of the run folder, which only this process has, when these are there.
OF_OTHERS = ("capability", "claims")
