"""The prompts of both classes, read once, and everything that takes the place of their activations."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ot_lens.behaviour import refusal_token_ids
from ot_lens.behaviour.next_token import kl_divergence, score_from_logprobs
from ot_lens.errors import nan_logits
from ot_lens.linalg import float64
from ot_lens.models import backend, encode
from ot_lens.patching.positions import Place, Positions, Regions, places, tail
from ot_lens.patching.sweep import Progress, Replacement, Sweep, sweep
from ot_lens.patching.tails import BLOCK, HOOK_OF, STREAM_IN, Tails, read_tails
from ot_lens.prompts import CLASSES, Contrast


@dataclass(frozen=True, eq=False)
class Effects:
    """Changes of each prompt's refusal score; NaN where there is nothing to replace."""

    score: Float64[Tensor, "replacement layer place prompt"]
    kl: Float64[Tensor, "replacement layer place prompt"] | None
    replaced: Float64[Tensor, "replacement place prompt"]  # share of the place's tokens
    engine: str


@dataclass(frozen=True, eq=False)
class Patching:
    """Prompts are numbered through both classes, harmful ones first."""

    model: Any
    rows: tuple[tuple[int, ...], ...]
    sizes: tuple[int, int]
    regions: Int[Tensor, "prompt pos"]  # of the last tokens that are read
    places: tuple[Place, ...]
    tails: Tails
    batch_size: int

    @classmethod
    def read(
        cls, model: Any, contrast: Contrast, positions: Positions, hooks: Sequence[str], batch_size: int
    ) -> "Patching":
        """Run the prompts once."""
        served, prompts = backend(model), [*contrast.harmful, *contrast.harmless]
        rows = encode(served, prompts)
        regions = Regions.read(served, prompts, rows)
        found = places(regions, positions)
        count = tail(found)
        score = partial(_scores, tokens=refusal_token_ids(model))
        tails = read_tails(served, rows, hooks, count, score, batch_size)
        bad = int(tails.scores.isnan().sum())
        if bad:
            raise nan_logits(bad, len(rows))
        return cls(
            model,
            tuple(map(tuple, rows)),
            (len(contrast.harmful), len(contrast.harmless)),
            regions.of[:, -count:],
            tuple(Place(place.name, place.token, place.mask[:, -count:]) for place in found),
            tails,
            batch_size,
        )

    def numbers(self, label: str) -> range:
        """The prompts of a class."""
        n_harmful, n_harmless = self.sizes
        return range(n_harmful) if label == CLASSES[0] else range(n_harmful, n_harmful + n_harmless)

    @cached_property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Tokens of the prompts of each class."""
        harmful, harmless = ([len(self.rows[i]) for i in self.numbers(label)] for label in CLASSES)
        return harmful, harmless

    @cached_property
    def gap(self) -> float:
        """How much higher the harmful prompts' mean refusal score is."""
        harmful, harmless = (float(self.tails.scores[list(self.numbers(x))].mean()) for x in CLASSES)
        return harmful - harmless

    def interchanged(
        self, module: str, label: str, partners: Int[np.ndarray, " own"], of: str
    ) -> Replacement:
        """A module's output at the same token of each prompt's partner, where that has such a token."""
        chosen = torch.arange(len(self.rows))
        chosen[list(self.numbers(label))] = torch.from_numpy(partners) + self.numbers(of).start
        exists = (self.regions[chosen] == self.regions) & (self.regions > 0)

        def values(layer: int, prompts: Int[Tensor, " batch"]) -> Float[Tensor, "batch pos d"]:
            return self.tails.of(HOOK_OF[module], layer, chosen[prompts])

        return Replacement(module, values, exists)

    def left_out(self, module: str) -> Replacement:
        """Nothing in the place of what a module adds."""

        def values(layer: int, prompts: Int[Tensor, " batch"]) -> Float[Tensor, "batch pos d"]:
            if module == BLOCK:
                return self.tails.of(STREAM_IN, layer, prompts)
            return torch.zeros_like(self.tails.of(HOOK_OF[module], layer, prompts))

        return Replacement(module, values, self.regions > 0)

    def at_its_mean(self, module: str) -> Replacement:
        """The mean over all prompts at the same token in the place of what a module adds."""
        weights = (self.regions > 0).double()

        def values(layer: int, prompts: Int[Tensor, " batch"]) -> Float[Tensor, "batch pos d"]:
            own = self.tails.of(HOOK_OF[module], layer, prompts)
            added = self.tails.mean(HOOK_OF[module], layer, weights)
            if module == BLOCK:
                added = added - self.tails.mean(STREAM_IN, layer, weights)
                added = added + float64(self.tails.of(STREAM_IN, layer, prompts))
            return added.to(own.dtype).expand(own.shape)

        return Replacement(module, values, self.regions > 0)

    def effects(
        self,
        label: str,
        replacements: Sequence[Replacement],
        *,
        kl: bool,
        engine: str,
        progress: Progress | None = None,
    ) -> Effects:
        """What the replacements do to the prompts of a class.

        Raises:
            ActivationError: If logits are NaN.
        """
        reduce = partial(_reduced, tokens=refusal_token_ids(self.model), kl=kl)
        setting = Sweep(self.model, self.rows, self.tails, self.places, reduce, self.batch_size)
        numbers = list(self.numbers(label))
        swept = sweep(setting, numbers, replacements, engine, progress)
        masks = torch.stack([place.mask[numbers] for place in self.places])
        exist = torch.stack([one.exists[numbers] for one in replacements])
        replaced = (masks & exist[:, None]).sum(dim=-1).double() / masks.sum(dim=-1).clamp_min(1)
        bad = int(
            (swept.values[..., 0].isnan() & (replaced > 0)[:, None]).any(dim=0).any(dim=0).any(dim=0).sum()
        )
        if bad:
            raise nan_logits(bad, len(numbers))
        return Effects(
            swept.values[..., 0] - swept.own[:, 0],
            swept.values[..., 1] if kl else None,
            replaced,
            swept.engine,
        )


def _scores(logits: Float[Tensor, "*row d_vocab"], tokens: Sequence[int]) -> Float64[Tensor, " *row"]:
    """Refusal scores; exponentials in the logits' own precision, summed in float64."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    most = wide.amax(dim=-1, keepdim=True)
    total = float64(most) + float64((wide - most).exp()).sum(dim=-1, keepdim=True).log()
    chosen = float64(wide[..., list(tokens)]) - total
    flat = score_from_logprobs(chosen.reshape(-1, len(tokens)), range(len(tokens)))
    return flat.reshape(logits.shape[:-1])


def _reduced(
    rows: Float[Tensor, "batch row d_vocab"],
    own: Float[Tensor, "batch d_vocab"],
    tokens: Sequence[int],
    kl: bool,
) -> Float64[Tensor, "batch row value"]:
    """The refusal score, and KL(own || row) if asked for."""
    values = [_scores(rows, tokens)]
    if kl:
        original, edited = (float64(x).log_softmax(dim=-1) for x in (own, rows))
        values.append(kl_divergence(original[:, None].expand(edited.shape), edited))
    return torch.stack(values, dim=-1)
