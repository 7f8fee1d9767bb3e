"""What each component of a model adds to the residual stream along a direction, in one forward pass.

Only the projections are kept: one number per component and prompt, whatever the width of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ot_lens.errors import ActivationError, HookError
from ot_lens.linalg import float64
from ot_lens.models import Backend, HFBackend, Reversible, TokenBatch, batches, by_row
from ot_lens.models.architectures import Heads, decoder_layers, heads_of
from ot_lens.models.stream import addends, allowed_error
from ot_lens.prompts import Prompt

LAST, ALL = "last", "all"
EMBEDDING, ATTENTION, HEAD, BIAS, MLP, BLOCK, STREAM = (
    "embedding", "attention", "head", "bias", "mlp", "block", "stream",
)  # fmt: skip
KINDS = (EMBEDDING, ATTENTION, HEAD, BIAS, MLP, BLOCK, STREAM)
OF_HOOK = {"attn_out": ATTENTION, "mlp_out": MLP}


@dataclass(frozen=True)
class Component:
    """What adds to the stream; heads and the bias are the parts of an attention."""

    kind: str
    layer: int | None = None
    head: int | None = None

    @property
    def order(self) -> tuple[bool, int, int, int]:
        """In the order of the forward pass, the whole stream last."""
        layer = -1 if self.layer is None else self.layer
        return self.kind == STREAM, layer, KINDS.index(self.kind), self.head or 0


@dataclass(frozen=True, eq=False)
class Reading:
    """What is read: a unit direction, the layer whose input is the whole, and at which tokens."""

    direction: Float64[Tensor, " d"]
    stop: int
    heads: bool = True
    tokens: str = LAST


def read_contributions(
    served: Backend, prompts: Sequence[Prompt | str], reading: Reading, batch_size: int
) -> dict[Component, Float64[Tensor, " prompt"]]:
    """The contribution of each component to the projection of the stream, prompt by prompt."""
    layout = _layouts(served, reading.stop) if reading.heads else {}

    def read(batch: TokenBatch) -> list[dict[Component, Tensor]]:
        step = _Pass(served, batch, reading, layout)
        with Reversible(step.listen):
            served.logits(batch.tokens, batch.mask, keep=1)
        step.check_whole()
        return step.rows()

    rows = by_row(served, batches(served, prompts, batch_size), read)
    ordered = sorted(rows[0], key=lambda component: component.order)
    values = {component: torch.stack([row[component] for row in rows]) for component in ordered}
    bad = int((~torch.stack(list(values.values())).isfinite()).any(dim=0).sum())
    if bad:
        raise ActivationError(
            f"{bad} of {len(rows)} prompts have contributions that are NaN or infinite: load the model with "
            "dtype='float32' or 'bfloat16', whose range is larger than that of float16."
        )
    return values


def _layouts(served: Backend, stop: int) -> dict[int, Heads]:
    """Where the heads of each layer meet, by layer; those of a HookedTransformer are not read."""
    if not isinstance(served, HFBackend):
        return {}
    layouts = {layer: heads_of(block) for layer, block in enumerate(decoder_layers(served.hf_model)[:stop])}
    return {layer: layout for layer, layout in layouts.items() if layout is not None}


class _Pass:
    """One forward pass: hooks that project what they see, and the checks of the sums."""

    def __init__(
        self, served: Backend, batch: TokenBatch, reading: Reading, layouts: dict[int, Heads]
    ) -> None:
        self._served, self._reading, self._layouts = served, reading, layouts
        self._mask, self._count = batch.mask.bool(), len(batch.indices)
        self._of_prompt: Int[Tensor, " token"] = self._mask.nonzero()[:, 0].cpu()
        self._found: dict[Component, Float64[Tensor, " batch"]] = {}
        self._entering: dict[nn.Module, Tensor] = {}  # of the projections, and of the norms behind them
        self._norms = torch.zeros(self._count, dtype=torch.float64)  # of all addends, summed
        self._dtype = torch.float32

    def listen(self, changes: Reversible[None]) -> None:
        served, stop = self._served, self._reading.stop
        last = served.n_layers - 1
        top = served.hook_point(stop, "resid_pre") if stop <= last else served.hook_point(last, "resid_post")
        changes.edit(top, partial(self._add, Component(STREAM)))
        changes.edit(served.hook_point(0, "resid_pre"), partial(self._add, Component(EMBEDDING)))
        for layer in range(stop):
            hooks = addends(served, layer)
            for hook in hooks:
                # The norm of a branch is read before what it adds.
                if hook == "attn_out" and layer in self._layouts:
                    self._listen_to_heads(self._layouts[layer], changes)
                component = Component(OF_HOOK[hook], layer)
                changes.edit(served.hook_point(layer, hook), partial(self._add, component))
            if not hooks:
                block = Component(BLOCK, layer)
                changes.edit(served.hook_point(layer, "resid_pre"), partial(self._add, block, sign=-1.0))
                changes.edit(served.hook_point(layer, "resid_post"), partial(self._add, block))

    def _listen_to_heads(self, heads: Heads, changes: Reversible[None]) -> None:
        for module in (heads.projection, *([] if heads.norm is None else [heads.norm])):
            changes.before(module, self._enter)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._entering[module] = self._chosen(args[0]).detach()

    def _add(
        self,
        component: Component,
        x: Float[Tensor, "batch pos d"],
        hook: Any,  # noqa: ARG002  TransformerLens passes it by name
        sign: float = 1.0,
    ) -> None:
        """Project what a component adds."""
        added = float64(self._chosen(x.detach()))
        self._dtype = x.dtype
        values = self._by_prompt(added @ self._reading.direction.to(added.device))
        self._found[component] = self._found.get(component, torch.zeros_like(values)) + sign * values
        if component.kind != STREAM:
            self._norms += self._by_prompt(added.norm(dim=-1))
        if component.kind == ATTENTION and component.layer in self._layouts:
            self._add_heads(component.layer, self._layouts[component.layer], added)

    def _add_heads(self, layer: int, heads: Heads, added: Float64[Tensor, "token d"]) -> None:
        """Split an attention output: each head's columns of the projection's input, pulled back to it."""
        entering = self._entering.pop(heads.projection)
        if entering.shape[-1] % heads.width:
            return
        weights = heads.scale * self._reading.direction.to(added.device).expand(1, -1)
        if heads.norm is not None:
            # A norm multiplies each coordinate of a token by a factor, which is taken as it is.
            before = float64(self._entering.pop(heads.norm))
            weights = weights / heads.scale * torch.where(before == 0, 0.0, added / before)
        back, bias = _pulled_back(heads.weights, entering, weights)
        parts = (float64(entering) * back).unflatten(-1, (-1, heads.width)).sum(dim=-1)
        own = {Component(HEAD, layer, head): part for head, part in enumerate(parts.unbind(-1))}
        if bool(bias.any()):
            own[Component(BIAS, layer)] = bias.expand(len(parts))
        self._found |= {component: self._by_prompt(values) for component, values in own.items()}
        whole = self._found[Component(ATTENTION, layer)]
        self._check(
            [self._found[part] for part in own], whole, f"the heads of layer {layer}", "its attention"
        )

    def check_whole(self) -> None:
        """Check that the addends sum to the stream."""
        parts = [x for c, x in self._found.items() if c.kind not in (STREAM, HEAD, BIAS)]
        self._check(parts, self._found[Component(STREAM)], "all components", "the residual stream")

    def _check(self, parts: list[Tensor], whole: Tensor, of: str, to: str) -> None:
        terms = torch.stack(parts)
        error = (terms.sum(dim=0) - whole).abs()
        if bool((error > allowed_error(self._dtype, terms.abs().sum(dim=0), self._norms)).any()):
            raise HookError(
                f"The contributions of {of} miss that of {to} by {float(error.max()):.2g}: this model adds "
                "something to the stream that ot_lens does not know. Use heads=False, or, if the model was "
                "loaded with hooks='full', hooks='residual'."
            )

    def rows(self) -> list[dict[Component, Tensor]]:
        """What was found of each prompt."""
        return [{name: values[row] for name, values in self._found.items()} for row in range(self._count)]

    def _chosen(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "token width"]:
        return x[:, -1] if self._reading.tokens == LAST else x[self._mask.to(x.device)]

    def _by_prompt(self, values: Float64[Tensor, " token"]) -> Float64[Tensor, " batch"]:
        """The sum over the tokens of each prompt."""
        values = values.cpu()
        if self._reading.tokens == LAST:
            return values
        return values.new_zeros(self._count).index_add(0, self._of_prompt, values)


def _pulled_back(
    projection: nn.Module, like: Float[Tensor, "token columns"], weights: Float64[Tensor, "rows d"]
) -> tuple[Float64[Tensor, "rows columns"], Float64[Tensor, " rows"]]:
    """W_O^T w, and w . b of its bias: through the module, whatever holds its weights, such as an adapter."""
    with torch.enable_grad():
        nothing = like.new_zeros(len(weights), like.shape[-1]).requires_grad_()
        bias = projection.forward(nothing)
        (back,) = torch.autograd.grad(bias, nothing, weights.to(bias))
    return float64(back), (float64(bias.detach()) * weights.to(back.device)).sum(dim=-1)
