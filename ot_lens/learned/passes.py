"""The activations of some prompts under edits upstream, differentiable in the maps of these edits.

Where each edit acts on the last token only, what comes before is read once: a pass then carries the last
tokens from the lowest edited layer to the highest. Other models and hook points run whole, with plain hooks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.activations.positions import columns
from ot_lens.errors import SinglePassError
from ot_lens.interventions import intervene
from ot_lens.linalg import float64
from ot_lens.models import Backend, Reversible, TokenBatch, backend, batches, evaluating, frozen
from ot_lens.prompts import Prompt
from ot_lens.single_pass.engine import recorded_rows, why_not
from ot_lens.single_pass.walk import Record
from ot_lens.transport import AffineMap

Maps = Mapping[int, AffineMap]
# The activations of a batch at each edited layer, as the edit there leaves them.
Pass = Callable[[Maps], Float[Tensor, "L batch d"]]


class EditedPasses:
    """Passes of some prompts, batch by batch; the model is left as it is."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        layers: Sequence[int],
        *,
        hook: str = "resid_pre",
        position: int = -1,
        batch_size: int = 64,
    ) -> None:
        self._served, self._layers = backend(model), tuple(layers)
        self.batches: list[tuple[tuple[int, ...], Pass]] = []
        if position != -1 or why_not(model, dict.fromkeys(layers, _NONE), hook) is not None:
            self._by_hooks(prompts, hook, position, batch_size)
            return
        try:
            recorded_rows(self._served, prompts, self._keep(hook), last=True, batch_size=batch_size)
        except SinglePassError:
            self.batches.clear()
            self._by_hooks(prompts, hook, position, batch_size)

    def _keep(self, hook: str) -> Callable[[TokenBatch, Record], Sequence[int]]:
        above = int(hook == "resid_post")

        def keep(batch: TokenBatch, record: Record) -> Sequence[int]:
            def run(maps: Maps) -> Float[Tensor, "L batch d"]:
                return _walk(record, {layer + above: maps[layer] for layer in self._layers})

            self.batches.append((batch.indices, run))
            return batch.indices

        return keep

    def _by_hooks(self, prompts: Sequence[Prompt], hook: str, position: int, batch_size: int) -> None:
        for batch in batches(self._served, prompts, batch_size):

            def run(maps: Maps, batch: TokenBatch = batch) -> Float[Tensor, "L batch d"]:
                return _hooked(self._served, batch, maps, hook, position)

            self.batches.append((batch.indices, run))

    def all(self, maps: Maps) -> Float64[Tensor, "L n d"]:
        """The activations of all prompts in their order, without gradients."""
        with evaluating(self._served.model):
            parts = [(indices, float64(run(maps)).cpu()) for indices, run in self.batches]
        order = torch.tensor([index for indices, _ in parts for index in indices]).argsort()
        return torch.cat([values for _, values in parts], dim=1)[:, order]

    def gradient(
        self,
        maps: Callable[[Float64[Tensor, "L two d"]], Maps],
        at: Float64[Tensor, "L two d"],
        loss: Callable[[Float64[Tensor, "L batch d"], Sequence[int]], Float64[Tensor, ""]],
    ) -> Float64[Tensor, "L two d"]:
        """Of a loss that adds up over prompts, in the parameters of the maps; no weight gets a gradient."""
        total = torch.zeros_like(at)
        with frozen(self._served.model):
            for indices, run in self.batches:
                parameters = at.clone().requires_grad_()
                value = loss(float64(run(maps(parameters))).cpu(), indices)
                (found,) = torch.autograd.grad(value, [parameters])
                total += found
        return total


_NONE = AffineMap.identity(1)


def _walk(record: Record, maps: Mapping[int, AffineMap]) -> Float[Tensor, "L batch d"]:
    """From the lowest edited site to the highest, at the last position of each prompt."""
    lowest, highest, left = min(maps), max(maps), []
    rows = record.streams[lowest][None]
    for site in range(lowest, highest + 1):
        rows = rows.to(record.streams[site].device)
        if site in maps:
            rows = maps[site].to(device=rows.device, dtype=_working(rows))(rows)
            left.append(rows[0, :, 0])
        if site < highest:
            rows = record.block(site, rows)
    return torch.stack([x.to(left[0].device) for x in left])


def _working(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _hooked(
    served: Backend, batch: TokenBatch, maps: Maps, hook: str, position: int
) -> Float[Tensor, "L batch d"]:
    """A whole forward pass, edited where a sweep edits by default."""
    rows, width = batch.mask.shape
    at = columns(rows, width, batch.mask.cpu(), [position])[:, 0]
    left: dict[int, Tensor] = {}

    def listen(changes: Reversible[None]) -> None:
        for layer in maps:

            def read(x: Tensor, hook: Any, layer: int = layer) -> None:  # noqa: ARG001  passed by name
                left[layer] = x[torch.arange(len(x), device=x.device), at.to(x.device)]

            changes.edit(served.hook_point(layer, hook), read)

    with intervene(served.model, maps, "last" if position == -1 else "all", hook=hook), Reversible(listen):
        served.logits(batch.tokens, batch.mask, keep=1)
    return torch.stack([left[layer].to(left[min(maps)].device) for layer in sorted(maps)])
