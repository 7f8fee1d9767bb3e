"""The loss of a direction: refusal under its ablation and when it is added, and what ablation changes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.behaviour import kl_divergence, next_token_logprobs, refusal_token_ids
from ot_lens.behaviour.next_token import score_from_logprobs
from ot_lens.errors import nan_logits
from ot_lens.interventions import Edits, everywhere, intervene
from ot_lens.linalg import float64
from ot_lens.models import TokenBatch, backend, batches_of_rows, encode, frozen, in_memory
from ot_lens.prompts import CLASSES, Contrast
from ot_lens.single_pass.packed import packed_logits, packing, parts
from ot_lens.transport import AffineMap, FitInfo
from ot_lens.transport.projection import ablation_of

ABLATION, ADDITION, RETENTION = 1.0, 0.2, 1.0

# Indices of the prompts of each class that a loss is averaged over.
Chosen = Mapping[str, Sequence[int]]
Value = Callable[[Float64[Tensor, "row vocab"], Sequence[int]], Float64[Tensor, " row"]]


@dataclass(frozen=True)
class Loss:
    """Means over prompts, in nats, of the three parts of the loss."""

    ablation: float  # refusal score of harmful prompts under ablation
    addition: float  # refusal score of harmless prompts when the direction is added
    retention: float  # KL of harmless prompts under ablation

    @property
    def total(self) -> float:
        """The weighted sum that is minimized."""
        return ABLATION * self.ablation - ADDITION * self.addition + RETENTION * self.retention

    @classmethod
    def mean(cls, losses: Sequence["Loss"]) -> "Loss":
        """The mean of several."""
        return cls(
            *(sum(part) / len(losses) for part in zip(*(vars(x).values() for x in losses), strict=True))
        )


@dataclass(frozen=True, eq=False)
class _Term:
    """One part: which prompts, under which edits of a unit direction, and what is averaged."""

    label: str
    edits: Callable[[Float64[Tensor, " d"]], Edits]
    value: Value
    weight: float


class Objective:
    """The loss of unit directions on training prompts (arXiv 2502.17420, with scores for target texts)."""

    def __init__(
        self,
        model: Any,
        prompts: Contrast,
        site: tuple[int, str],
        size: float,
        *,
        refusal_tokens: Sequence[str | int] | None = None,
        batch_size: int = 64,
    ) -> None:
        """`site` is where a direction is added, times `size`; it is ablated everywhere."""
        self._served, self._batch_size = backend(model), batch_size
        tokens = refusal_token_ids(model, refusal_tokens)
        self._rows = {label: encode(self._served, group) for label, group in prompts}
        self._packing = packing(self._served, [row for rows in self._rows.values() for row in rows])
        original = next_token_logprobs(model, prompts.harmless, batch_size=batch_size)

        def score(logprobs: Tensor, _chosen: Sequence[int]) -> Tensor:
            return score_from_logprobs(logprobs, tokens)

        def kl(logprobs: Tensor, chosen: Sequence[int]) -> Tensor:
            return kl_divergence(original[list(chosen)], logprobs)

        self._terms = (
            _Term("harmful", self._ablated, score, ABLATION),
            _Term("harmless", lambda u: {site: added(u, size)}, score, -ADDITION),
            _Term("harmless", self._ablated, kl, RETENTION),
        )

    @property
    def everything(self) -> Chosen:
        """All training prompts."""
        return {label: range(len(self._rows[label])) for label in CLASSES}

    def _ablated(self, u: Float64[Tensor, " d"]) -> Edits:
        return everywhere(ablation_of(u[:, None], FitInfo(k=1)), range(self._served.n_layers))

    def loss(self, direction: Float64[Tensor, " d"], chosen: Chosen) -> Loss:
        """Of a direction, without gradient."""
        return self._measured(direction, chosen, gradient=False)[0]

    def gradient(
        self, direction: Float64[Tensor, " d"], chosen: Chosen
    ) -> tuple[Loss, Float64[Tensor, " d"]]:
        """The loss of a direction, and the gradient of its total, which is tangent to the sphere."""
        return self._measured(direction, chosen, gradient=True)

    def _measured(
        self, direction: Float64[Tensor, " d"], chosen: Chosen, *, gradient: bool
    ) -> tuple[Loss, Float64[Tensor, " d"]]:
        parts, total = [], torch.zeros_like(direction)
        with frozen(self._served.model):
            for term in self._terms:
                value, slope = self._term(term, direction, chosen[term.label], gradient)
                parts.append(value)
                total += term.weight * slope
        return Loss(*parts), total

    def _term(
        self, term: _Term, direction: Float64[Tensor, " d"], chosen: Sequence[int], gradient: bool
    ) -> tuple[float, Float64[Tensor, " d"]]:
        """The mean of one part over its prompts, and the gradient of that mean."""

        def run(batch: TokenBatch) -> tuple[float, Tensor]:
            leaf = direction.detach().clone().requires_grad_(gradient)
            numbers = [chosen[index] for index in batch.indices]
            with (
                torch.set_grad_enabled(gradient),
                intervene(self._served.model, term.edits(leaf / leaf.norm())),
            ):
                values = term.value(_logprobs(self._logits(batch)), numbers)
            summed = values.sum()
            slope = torch.autograd.grad(summed, leaf)[0] if gradient else torch.zeros_like(leaf)
            return summed.item(), slope

        rows = [self._rows[term.label][index] for index in chosen]
        total, slope = 0.0, torch.zeros_like(direction)
        for whole in batches_of_rows(self._served, rows, self._batch_size):
            for part in self._parts(whole):
                for _, (summed, own) in in_memory(run, part):
                    total, slope = total + summed, slope + own
        return total / len(rows), slope / len(rows)

    def _parts(self, batch: TokenBatch) -> Iterable[TokenBatch]:
        return [batch] if self._packing is None else parts(self._packing, batch)

    def _logits(self, batch: TokenBatch) -> Float[Tensor, "batch d_vocab"]:
        """Of the next token."""
        if self._packing is None:
            return self._served.logits(batch.tokens, batch.mask, keep=1)[:, -1]
        return packed_logits(self._packing, batch)


def added(direction: Float64[Tensor, " d"], size: float) -> AffineMap:
    """The shift by a multiple of a unit direction."""
    none = direction.new_zeros(len(direction), 0)
    return AffineMap(none, none, size * direction)


def _logprobs(logits: Tensor) -> Float64[Tensor, "row vocab"]:
    logprobs = float64(logits).log_softmax(dim=-1).cpu()
    bad = int(logprobs.isnan().any(dim=-1).sum())
    if bad:
        raise nan_logits(bad, len(logprobs))
    return logprobs
