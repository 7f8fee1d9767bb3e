"""What the tables of a study are made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.activations import Activations
from ot_lens.execution import Executor, LocalExecutor, RunCache
from ot_lens.progress import Stage, silent
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.study.config import StudyConfig
from ot_lens.study.folder import RunFolder
from ot_lens.study.sweeping import Maps
from ot_lens.transport import ActivationMap, Method, method_named

# Resamples of quantities that need an eigendecomposition each; enough for a 95 % band.
FEW_RESAMPLES = 60
# Edits that are compared in detail, next to the transport of the highest rank and the user's own methods.
COMPARED = ("directional_ablation", "mean_shift")
Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Study:
    """What the tables are made from; tables of edited models also need `executor` and `prompts`.

    `languages` are the prompt sets of the languages that the study compares.

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
    languages: Mapping[str, ContrastSet] = field(default_factory=dict[str, ContrastSet])
    cache: RunCache = field(default_factory=dict[str, Any])
    stage: Stage = silent

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: its model, cache and progress are its own."""
        return {**vars(self), "executor": None, "cache": {}, "stage": silent}

    def on(self, model: Any) -> "Study":
        """The study where a model is: in this process itself, or in another."""
        return self if self.executor is not None else replace(self, executor=LocalExecutor(model))

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


Maker = Callable[[Study], Tables]


def drawn(contrast: Contrast, most: int, rng: np.random.Generator) -> Contrast:
    """At most so many prompts of each class."""
    chosen = [sorted(rng.permutation(len(group))[:most]) for _, group in contrast]
    return Contrast(*(tuple(group[i] for i in own) for own, (_, group) in zip(chosen, contrast, strict=True)))


def spread(layers: tuple[int, ...], most: int) -> list[int]:
    """At most `most` of the layers, evenly spaced over the depth, with both ends."""
    if len(layers) <= most:
        return list(layers)
    return sorted({layers[round(i * (len(layers) - 1) / (most - 1))] for i in range(most)})
