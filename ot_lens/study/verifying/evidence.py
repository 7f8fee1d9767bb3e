"""What a run is checked against: its configuration, stored activations, stored maps, prompts; read once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TypeVar

import pandas as pd
import torch

from ot_lens.activations import Activations, load_activations
from ot_lens.errors import ConfigError, EvidenceError, OtLensError, RunFolderError
from ot_lens.localization import Method, as_methods
from ot_lens.localization.controls import REFERENCES
from ot_lens.prompts import CLASSES, ContrastSet, load_prompts
from ot_lens.study.config import StudyConfig, parse_config
from ot_lens.study.folder import RunFolder
from ot_lens.study.sweeping import map_folder
from ot_lens.tables import COLUMNS
from ot_lens.transport import AffineMap

T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """A run folder, read only.

    Attributes:
        folder: The run.
        sample: Rows of each table that are computed again with all their draws; None for every row.
        seed: Seed of the choice.
    """

    folder: RunFolder
    sample: int | None
    seed: int
    _acts: dict[str, Activations] = field(default_factory=dict, repr=False)

    @cached_property
    def config(self) -> StudyConfig:
        """The configuration that the manifest holds.

        Raises:
            ConfigError: If it is none.
        """
        found = self.folder.manifest.get("config")
        if not isinstance(found, dict):
            raise ConfigError(f"{self.folder.path}/manifest.json holds no configuration.")
        return parse_config(found, f"{self.folder.path}/manifest.json")

    @cached_property
    def asked(self) -> list[Method]:
        """The methods of the configuration."""
        return as_methods(self.config.method_entries)

    @cached_property
    def methods(self) -> list[Method]:
        """The methods whose maps were fitted: those asked for, and the references of controls."""
        return [*self.asked, *(m for m in REFERENCES if self.config.controls and m not in self.asked)]

    def acts(self, split: str) -> Activations:
        """Stored activations of a split.

        Raises:
            EvidenceError: If they cannot be read, which a check of their own reports.
        """
        if split not in self._acts:
            try:
                self._acts[split] = load_activations(self.folder.path / "activations" / split)
            except OtLensError as error:
                raise EvidenceError(f"needs the activations of the {split} prompts") from error
        return self._acts[split]

    def table(self, name: str) -> pd.DataFrame:
        """A stored table that something else is computed from.

        Raises:
            EvidenceError: If it cannot be read, which a check of its own reports.
        """
        try:
            return self.folder.read_table(name)
        except RunFolderError as error:
            raise EvidenceError(f"needs the {name} table") from error

    @cached_property
    def sweep(self) -> pd.DataFrame:
        """The stored sweep, whose columns everything read off it relies on.

        Raises:
            EvidenceError: If it cannot be read, or has other columns, which a check of its own reports.
        """
        table = self.table("localization")
        if list(table.columns) != list(COLUMNS):
            raise EvidenceError("needs the localization table with its columns")
        return table

    def map_path(self, method: Method, layer: int) -> Path:
        """Where a map is stored."""
        return self.folder.path / "maps" / map_folder(method) / f"layer-{layer:03d}.safetensors"

    @cached_property
    def maps(self) -> dict[Method, dict[int, AffineMap]]:
        """Every stored map.

        Raises:
            EvidenceError: If one cannot be read, which a check of its own reports.
        """
        try:
            return {
                method: {
                    layer: AffineMap.load(self.map_path(method, layer)) for layer in self.acts("train").layers
                }
                for method in self.methods
            }
        except RunFolderError as error:
            raise EvidenceError("needs every stored map") from error

    @cached_property
    def prompts(self) -> ContrastSet:
        """The prompts, read again from where the configuration says; not yet filtered.

        Raises:
            EvidenceError: If they cannot be read.
        """
        config = self.config
        try:
            return load_prompts(
                config.prompts, seed=config.seed, sample=config.sample, root=config.prompts_root
            )
        except OtLensError as error:
            raise EvidenceError(f"the prompts cannot be read again: {error}") from error

    def choice(self, what: str, among: Sequence[T]) -> list[T]:
        """All of them in a random order of their own, the same for the same seed."""
        return Random(f"{self.seed} {what}").sample(list(among), len(among))  # noqa: S311  no secret


def restricted(acts: Activations, layers: Sequence[int], position: int) -> Activations:
    """Some layers of stored activations, in memory, as the samples that a fit sees."""
    chosen = tuple(layer for layer in acts.layers if layer in layers)
    data = {
        label: torch.stack([getattr(acts, label)(layer, position) for layer in chosen]).unsqueeze(2)
        for label in CLASSES
    }
    return Activations(data, chosen, (position,), acts.hook, acts.info)
