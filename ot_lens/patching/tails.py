"""What blocks, attention and MLPs hand on at the last tokens of prompts, read in plain forward passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ot_lens.linalg import float64
from ot_lens.models import Backend, Reversible, TokenBatch, batches_of_rows, by_row

BLOCK, ATTENTION, MLP = "block", "attention", "mlp"
HOOK_OF = {BLOCK: "resid_post", ATTENTION: "attn_out", MLP: "mlp_out"}
MODULES = tuple(HOOK_OF)
STREAM_IN = "resid_pre"


@dataclass(frozen=True, eq=False)
class Tails:
    """Values at the last tokens of every prompt by hook point, on the CPU; zeros before the first token."""

    values: dict[str, Float[Tensor, "prompt layer pos d"]]
    scores: Float64[Tensor, " prompt"]  # of the next token

    def of(self, hook: str, layer: int, prompts: Int[Tensor, " batch"]) -> Float[Tensor, "batch pos d"]:
        """Values of some prompts at one layer."""
        return self.values[hook][prompts, layer]

    def mean(self, hook: str, layer: int, weights: Float64[Tensor, "prompt pos"]) -> Float64[Tensor, "pos d"]:
        """The mean over prompts at each token, of those prompts that have weight there."""
        total = torch.einsum("np,npd->pd", weights, float64(self.values[hook][:, layer]))
        return total / weights.sum(dim=0).clamp_min(1.0)[:, None]


def read_tails(
    served: Backend,
    rows: Sequence[Sequence[int]],
    hooks: Sequence[str],
    count: int,
    score: Callable[[Float[Tensor, "batch d_vocab"]], Float64[Tensor, " batch"]],
    batch_size: int,
) -> Tails:
    """Run the prompts once."""

    def read(batch: TokenBatch) -> list[tuple[Tensor, dict[str, Tensor]]]:
        seen: dict[str, list[Tensor]] = {hook: [] for hook in hooks}

        def listen(changes: Reversible[None]) -> None:
            for hook in hooks:
                for layer in range(served.n_layers):
                    changes.edit(served.hook_point(layer, hook), partial(_note, seen[hook], count))

        with Reversible(listen):
            logits = served.logits(batch.tokens, batch.mask, keep=1)[:, -1]
        stacked = {hook: torch.stack(by_layer, dim=1) for hook, by_layer in seen.items()}
        scores = score(logits).cpu()
        return [(s, {hook: x[row] for hook, x in stacked.items()}) for row, s in enumerate(scores)]

    found = by_row(served, batches_of_rows(served, rows, batch_size), read)
    values = {hook: torch.stack([row[hook] for _, row in found]) for hook in hooks}
    return Tails(values, torch.stack([own for own, _ in found]))


def _note(seen: list[Tensor], count: int, x: Tensor, hook: Any) -> None:  # noqa: ARG001  passed by name
    last = x[:, -count:].detach().cpu()
    seen.append(torch.nn.functional.pad(last, (0, 0, count - last.shape[1], 0)))
