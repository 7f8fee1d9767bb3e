"""The stage of a study that measures geometry, controls and what a monitor sees: tables of a run folder."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from ot_lens.activations import Activations, capture
from ot_lens.errors import FitError
from ot_lens.execution import Executor
from ot_lens.geometry import (
    class_angles,
    diagnose,
    direction_cosines,
    layer_angles,
    map_quality,
    principal_plane,
    spectra,
    visibility,
)
from ot_lens.localization import MethodSpec
from ot_lens.prompts import CLASSES, ContrastSet
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder
from ot_lens.study.folder_cache import FolderCache
from ot_lens.study.ground_truth import ground_truth, variant_of
from ot_lens.study.stage import Stage
from ot_lens.tables import UNEDITED, control_bands, most_effective_layer, reported
from ot_lens.transport import AffineMap

# Tables of quantities that cost an eigendecomposition a draw: a 95 % band is read off this many draws.
FEW_DRAWS = 60
# A monitor is cross-fitted over four folds.
FEWEST_SEEN = 8
# Layers of small multiples, and of edits that are captured again for a monitor.
LOOKED_AT = ("directional_ablation", "mean_shift")
MOST_PLANES, MOST_EDITED, MOST_MEASURED = 6, 5, 8
# Folder of the tables that are kept part by part.
PARTS = "edited"
Maps = Mapping[MethodSpec, Mapping[int, AffineMap]]


@dataclass(frozen=True)
class Study:
    """What the tables are made from; without `executor` and `prompts` those of an edited model are left out.

    In a `folder` what takes many forward passes is kept part by part, so that a stopped run repeats one part.
    """

    acts: Mapping[str, Activations]
    maps: Maps
    config: StudyConfig
    sweep: pd.DataFrame
    executor: Executor | None = None
    prompts: ContrastSet | None = None
    folder: RunFolder | None = None

    def kept(self, part: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A part of a table, made once."""
        if self.folder is None:
            return make()
        cache = FolderCache(self.folder, PARTS)
        if not cache.has(part):
            cache.write(part, make())
        table: pd.DataFrame = cache.read(part)
        return table

    @property
    def draws(self) -> dict[str, Any]:
        """Draws and seed of cheap nulls and intervals."""
        config = self.config
        return {"permutations": config.permutations, "bootstrap": config.bootstrap, "seed": config.seed}

    @property
    def few_draws(self) -> dict[str, Any]:
        """The same, for dear ones."""
        return {
            name: min(count, FEW_DRAWS) if name != "seed" else count for name, count in self.draws.items()
        }

    @property
    def compared(self) -> dict[str, Mapping[int, AffineMap]]:
        """The edits that are looked at closely: projection, mean shift and the transport of the highest rank.

        The first three of the study where it has none of them.
        """
        found = {method.label: maps for method, maps in self.maps.items() if method.name in LOOKED_AT}
        ranks = [method for method in self.maps if method.name == "pca_ot"]
        if ranks:
            highest = max(ranks, key=lambda method: int(method.params.get("k", 0)))
            found[highest.label] = self.maps[highest]
        return found or {method.label: maps for method, maps in list(self.maps.items())[:3]}


def geometry_tables(
    folder: RunFolder,
    acts: Mapping[str, Activations],
    maps: Maps,
    config: StudyConfig,
    stage: Stage,
    *,
    executor: Executor | None = None,
    prompts: ContrastSet | None = None,
) -> None:
    """Write the tables of geometry that are not there yet; those of an edited model only with an executor."""
    study = Study(acts, maps, config, folder.read_table("localization"), executor, prompts, folder)
    with stage("geometry", len(MAKERS)) as step:
        for name, make in MAKERS.items():
            if not folder.has_table(name):
                for table_name, table in make(study).items():
                    folder.write_table(table_name, table)
            step(1)
    folder.drop(PARTS)


Tables = dict[str, pd.DataFrame]


def _of_training(name: str, measure: Callable[..., pd.DataFrame], *draws: str) -> Callable[[Study], Tables]:
    """A table of the training activations alone."""

    def make(study: Study) -> Tables:
        options = {key: value for key, value in study.draws.items() if key in draws}
        return {name: measure(study.acts["train"], position=study.config.position, **options)}

    return make


def _class_angles(study: Study) -> Tables:
    k = _dimensions(study)
    if k < 1:
        return {}
    found = class_angles(study.acts["train"], k=k, position=study.config.position, **study.few_draws)
    return {"class_angles": found}


def _layer_angles(study: Study) -> Tables:
    k = _dimensions(study)
    if k < 1:
        return {}
    options = study.draws | {"bootstrap": min(study.config.bootstrap, 50), "k": k}
    parts = [
        layer_angles(study.acts["train"], label=label, position=study.config.position, **options)
        for label in CLASSES
    ]
    return {"layer_angles": pd.concat(parts, ignore_index=True)}


def _dimensions(study: Study) -> int:
    """Two, or what the smaller class can span."""
    train = study.acts["train"]
    return min(2, train.n_harmful - 1, train.n_harmless - 1, train.d_model)


def _map_quality(study: Study) -> Tables:
    layers = spread(study.acts["test"].layers, MOST_MEASURED)
    parts = [
        map_quality(
            {layer: edit for layer, edit in by_layer.items() if layer in layers},
            study.acts["test"],
            study.acts["train"],
            method=label,
            position=study.config.position,
            **study.few_draws,
        )
        for label, by_layer in study.compared.items()
    ]
    return {"map_quality": pd.concat(parts, ignore_index=True)}


def _controls(study: Study) -> Tables:
    return {"controls": control_bands(study.sweep)}


def _plane(study: Study) -> Tables:
    """Held-out prompts in the principal plane over the depth, before and after projection and transport."""
    config, test = study.config, study.acts["test"]
    chosen_layer = config.plane_layer
    if chosen_layer is None:
        chosen_layer = most_effective_layer(reported(study.sweep))
    points, clouds = [], []
    for layer in sorted(
        {*spread(test.layers, MOST_PLANES), *([] if chosen_layer is None else [chosen_layer])}
    ):
        chosen = {
            method.label: by_layer[layer]
            for method, by_layer in study.maps.items()
            if method.name in ("directional_ablation", "pca_ot")
        }
        H, S = test.harmful(layer, config.position), test.harmless(layer, config.position)
        with suppress(FitError):  # activations that span no plane, as those of a first layer may
            plane, ellipses = principal_plane(H, S, chosen, layer=layer, position=config.position)
            points.append(plane)
            clouds.append(ellipses)
    if not points:
        return {}
    return {
        "plane": pd.concat(points, ignore_index=True),
        "plane_ellipses": pd.concat(clouds, ignore_index=True),
    }


def _visibility(study: Study) -> Tables:
    """What a monitor at the edited layer and one at the last layer see of each edit, and of none."""
    test, last = study.acts["test"], study.acts["test"].layers[-1]
    if study.executor is None or study.prompts is None or min(test.n_harmful, test.n_harmless) < FEWEST_SEEN:
        return {}
    executor, prompts, config = study.executor, study.prompts.test, study.config

    def seen(label: str, layer: int) -> pd.DataFrame:
        edited = executor.call(
            capture,
            prompts,
            layers=sorted({layer, last}),
            hook=config.hook,
            positions=[config.position],
            edits={(layer, config.hook): study.compared[label][layer]},
            tokens=config.tokens,
            batch_size=config.batch_size,
        )
        return _seen(study, edited, label, layer)

    parts = [study.kept(UNEDITED, lambda: _seen(study, test, UNEDITED, None))]
    parts += [
        study.kept(f"{label}, {layer}", partial(seen, label, layer))
        for label in study.compared
        for layer in spread(test.layers, MOST_EDITED)
    ]
    return {"visibility": pd.concat(parts, ignore_index=True)}


def _seen(study: Study, edited: Activations, label: str, edited_layer: int | None) -> pd.DataFrame:
    """Rows of one edit against the model's own harmless activations."""
    config = study.config
    found = visibility(edited, study.acts["test"], method=label, position=config.position, **study.few_draws)
    return found.assign(edited_layer=pd.array([edited_layer] * len(found), dtype="Int64"))


def _ground_truth(study: Study) -> Tables:
    variant = None if study.executor is None else study.executor.call(variant_of)
    if variant is None or study.prompts is None:
        return {}
    table = ground_truth(variant, study.prompts, study.acts["test"], study.sweep, study.draws)
    return {"ground_truth": table}


def spread(layers: tuple[int, ...], most: int) -> list[int]:
    """At most `most` of the layers, evenly over the depth, both ends among them."""
    if len(layers) <= most:
        return list(layers)
    return sorted({layers[round(i * (len(layers) - 1) / (most - 1))] for i in range(most)})


# In the order in which they are made; a table that a maker writes last stands for all of its.
MAKERS: Mapping[str, Callable[[Study], Tables]] = {
    "geometry": _of_training("geometry", diagnose, "permutations", "bootstrap", "seed"),
    "spectra": _of_training("spectra", spectra, "bootstrap", "seed"),
    "cosines": _of_training("cosines", direction_cosines, "permutations", "bootstrap", "seed"),
    "class_angles": _class_angles,
    "layer_angles": _layer_angles,
    "map_quality": _map_quality,
    "controls": _controls,
    "plane_ellipses": _plane,
    "visibility": _visibility,
    "ground_truth": _ground_truth,
}
