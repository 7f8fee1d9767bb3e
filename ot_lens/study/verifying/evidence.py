"""What a run is checked against, read once: configuration, activations, maps, tables and prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import TypeVar

import pandas as pd

from ot_lens.activations import Activations, load_activations
from ot_lens.errors import EvidenceError, OtLensError
from ot_lens.localization import MethodSpec, as_methods
from ot_lens.localization.controls import with_references
from ot_lens.progress import Stage, silent
from ot_lens.prompts import ContrastSet
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder
from ot_lens.study.sweeping import map_path, read_languages, read_prompts
from ot_lens.tables import COLUMNS
from ot_lens.transport import ActivationMap, load_map

T = TypeVar("T")
# Tables that need a model.
MODEL_TABLES = (
    "massive",
    "model_similarity",
    "visibility",
    "localizers",
    "interchange",
    "contributions",
    "ablated_heads",
    "languages",
    "readout",
    "harm",
    "defence",
    "ground_truth",
    "capability",
)


@contextmanager
def _needed(what: str) -> Iterator[None]:
    try:
        yield
    except OtLensError as error:
        raise EvidenceError(f"{what}: {error}") from error


@dataclass(frozen=True)
class Evidence:
    """A run folder, read only. What cannot be read raises `EvidenceError`; another check reports it.

    `sample` rows of each table, or all if it is None, are recomputed with all their resamples.
    """

    folder: RunFolder
    sample: int | None
    seed: int
    stage: Stage = silent

    @cached_property
    def config(self) -> StudyConfig:
        """The configuration in the manifest; raises `ConfigError` if it is not valid."""
        return self.folder.config

    @cached_property
    def methods(self) -> list[MethodSpec]:
        """The methods whose maps were fitted: those of the configuration, and the references of controls."""
        return with_references(as_methods(self.config.method_entries), self.config.controls)

    @cached_property
    @_needed("needs the activations of the training prompts")
    def train(self) -> Activations:
        """Stored activations of the training prompts."""
        return load_activations(self.folder.path / "activations" / "train")

    @cached_property
    @_needed("needs the activations of the test prompts")
    def acts(self) -> dict[str, Activations]:
        """Stored activations of the training and the test prompts."""
        test = load_activations(self.folder.path / "activations" / "test")
        return {"train": self.train, "test": test}

    @cached_property
    def sweep(self) -> pd.DataFrame:
        """The stored sweep, with all its columns."""
        return self.measured("localization")

    def measured(self, name: str, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
        """A stored table of measured edits, with all its columns."""
        table = self.table(name)
        if list(table.columns) != list(columns):
            raise EvidenceError(f"needs the {name} table with its columns")
        return table

    @cached_property
    @_needed("needs every stored map")
    def maps(self) -> dict[MethodSpec, dict[int, ActivationMap]]:
        """Every stored map."""
        return {
            method: {
                layer: load_map(map_path(self.folder.path, method, layer)) for layer in self.train.layers
            }
            for method in self.methods
        }

    @cached_property
    @_needed("the prompts cannot be read again")
    def prompts(self) -> ContrastSet:
        """The prompts, read again from their sources; not yet filtered."""
        return read_prompts(self.config)

    @cached_property
    @_needed("the prompts of the languages cannot be read again")
    def languages(self) -> dict[str, ContrastSet]:
        """The prompts of every language that the run compares, read again."""
        return read_languages(self.config)

    def table(self, name: str) -> pd.DataFrame:
        """A stored table that something else is computed from."""
        with _needed(f"needs the {name} table"):
            return self.folder.read_table(name)

    def choice(self, purpose: str, among: Sequence[T]) -> list[T]:
        """All of them in random order, the same for the same seed and purpose."""
        return Random(f"{self.seed} {purpose}").sample(list(among), len(among))  # noqa: S311  no secret
