"""What a run is checked against, read once: configuration, activations, maps, tables and prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TypeVar

import pandas as pd
import torch

from ot_lens.activations import Activations, load_activations
from ot_lens.errors import EvidenceError, OtLensError
from ot_lens.localization import MethodSpec, as_methods
from ot_lens.localization.controls import REFERENCES
from ot_lens.prompts import CLASSES, ContrastSet, load_prompts
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder
from ot_lens.study.sweeping import map_folder
from ot_lens.tables import COLUMNS
from ot_lens.transport import AffineMap

T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """A run folder, read only. Properties raise `EvidenceError` if another check reports that they are bad.

    Attributes:
        folder: The run.
        sample: Rows of each table that are recomputed with all their resamples; None for every row.
        seed: Seed for choosing them.
    """

    folder: RunFolder
    sample: int | None
    seed: int
    _acts: dict[str, Activations] = field(default_factory=dict, repr=False)

    @cached_property
    def config(self) -> StudyConfig:
        """The configuration in the manifest; raises `ConfigError` if it is not valid."""
        return self.folder.config

    @cached_property
    def configured_methods(self) -> list[MethodSpec]:
        """The methods of the configuration."""
        return as_methods(self.config.method_entries)

    @cached_property
    def methods(self) -> list[MethodSpec]:
        """The methods whose maps were fitted: those of the configuration, and the references of controls."""
        configured = self.configured_methods
        return [*configured, *(m for m in REFERENCES if self.config.controls and m not in configured)]

    def acts(self, split: str) -> Activations:
        """Stored activations of a split."""
        if split not in self._acts:
            with _needed(f"needs the activations of the {split} prompts"):
                self._acts[split] = load_activations(self.folder.path / "activations" / split)
        return self._acts[split]

    @property
    def both_splits(self) -> dict[str, Activations]:
        """Stored activations of the training and test prompts."""
        return {split: self.acts(split) for split in ("train", "test")}

    def table(self, name: str) -> pd.DataFrame:
        """A stored table that something else is computed from."""
        with _needed(f"needs the {name} table"):
            return self.folder.read_table(name)

    @cached_property
    def sweep(self) -> pd.DataFrame:
        """The stored sweep, with all its columns."""
        table = self.table("localization")
        if list(table.columns) != list(COLUMNS):
            raise EvidenceError("needs the localization table with its columns")
        return table

    def map_path(self, method: MethodSpec, layer: int) -> Path:
        """Where a map is stored."""
        return self.folder.path / "maps" / map_folder(method) / f"layer-{layer:03d}.safetensors"

    @cached_property
    def maps(self) -> dict[MethodSpec, dict[int, AffineMap]]:
        """Every stored map."""
        layers = self.acts("train").layers
        with _needed("needs every stored map"):
            return {
                method: {layer: AffineMap.load(self.map_path(method, layer)) for layer in layers}
                for method in self.methods
            }

    @cached_property
    def prompts(self) -> ContrastSet:
        """The prompts, read again from their sources; not yet filtered."""
        config = self.config
        with _needed("the prompts cannot be read again"):
            return load_prompts(
                config.prompts, seed=config.seed, sample=config.sample, root=config.prompts_root
            )

    def choice(self, purpose: str, among: Sequence[T]) -> list[T]:
        """All of them in random order, the same for the same seed and purpose."""
        return Random(f"{self.seed} {purpose}").sample(list(among), len(among))  # noqa: S311  no secret


@contextmanager
def _needed(what: str) -> Iterator[None]:
    try:
        yield
    except OtLensError as error:
        raise EvidenceError(f"{what}: {error}") from error


def restricted(acts: Activations, layers: Sequence[int], position: int) -> Activations:
    """Some layers of stored activations at one position, in memory."""
    chosen = tuple(layer for layer in acts.layers if layer in layers)
    data = {
        label: torch.stack([getattr(acts, label)(layer, position) for layer in chosen]).unsqueeze(2)
        for label in CLASSES
    }
    return Activations(data, chosen, (position,), acts.hook, acts.info)
