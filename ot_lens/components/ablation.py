"""What is lost without some heads: their outputs replaced, against as many random heads."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from ot_lens.behaviour import refusal_token_ids
from ot_lens.behaviour.panel import values_of_logits, without_nan
from ot_lens.errors import HookError, OtLensError, SinglePassError, one_of
from ot_lens.linalg import float64
from ot_lens.models import Backend, HFBackend, Reversible, TokenBatch, backend, batches, by_row
from ot_lens.models.architectures import Heads, decoder_layers, heads_of
from ot_lens.prompts import CLASSES, ContrastSet, Prompt
from ot_lens.single_pass.engine import Reduce, recorded_rows
from ot_lens.single_pass.walk import Record, replayed
from ot_lens.statistics import Estimate, mean
from ot_lens.statistics.intervals import null_band

MODES = ("mean", "resample")
UNEDITED, CHOSEN, RANDOM = "unedited", "chosen", "random"
SINGLE_PASS, HOOKS = "single_pass", "hooks"
# Each with its unit and its least value.
MEASURES = (("refusal_score", "nats", -np.inf), ("kl", "nats", 0.0))
# A set of heads is necessary if without it harmful prompts are refused less.
TESTED = ("refusal_score", "harmful")
# Sets of heads that walk up the blocks together.
ROWS = 32
COLUMNS = (
    "set", "heads", "n_heads", "mode", "measure", "prompts", "value", "unit", "low", "high", "change",
    "change_low", "change_high", "null_mean", "null_low", "null_high", "p_value", "n", "random_sets",
    "engine",
)  # fmt: skip

Head = tuple[int, int]
# What enters the output projections of some prompts at the last token, by layer.
Entering = dict[int, Float[Tensor, "prompt columns"]]


def ablate_heads(
    model: Any,
    prompts: ContrastSet,
    heads: Sequence[tuple[int, int]],
    *,
    mode: str = "mean",
    random_sets: int = 99,
    batch_size: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether heads are necessary: the next token without them, against as many random heads.

    What each head hands to the output projection at the last token of a test prompt is replaced by what it
    is on harmless training prompts: their mean (Wang et al. 2023, arXiv 2211.00593, section 3), or that of
    one of them, drawn for each prompt (Chan et al. 2022, "Causal Scrubbing"). Later layers see the change.
    The sets walk up the blocks together, each as one more row of the last token; where a model cannot be
    replayed block by block, each set is a forward pass with hooks.

    Args:
        model: A hooked model of Hugging Face.
        prompts: `train` gives the replacements, `test` measures. Choose the heads on `train`.
        heads: (layer, head) pairs, such as those of `top_heads`.
        mode: "mean" or "resample".
        random_sets: Sets of as many heads, drawn from all heads of the model, that the change is compared
            with.
        batch_size: Prompts per batch.
        seed: Seed of the random sets, of resampled prompts and of intervals.

    Returns:
        Rows by set ("unedited", "chosen", "random": the mean over the random sets), measure and prompts: the
        refusal score of both classes, and the KL divergence from the unedited model. value with low and high
        (95 % over prompts); change from the unedited model, paired, with change_low and change_high. The
        chosen set also has null_mean, null_low and null_high of the change over random sets, and, for the
        refusal score of harmful prompts, p_value: the share of sets that lower it as much. heads ("12.3" is
        head 3 of layer 12), n_heads, mode, unit, n, random_sets, and engine ("single_pass" or "hooks").

    Raises:
        HookError: If a head does not exist or is named twice, or the model has no heads that are known.
        OtLensError: If the mode is unknown, or a number is not positive.
        PromptError: If prompts cannot be rendered.
        ActivationError: If logits are NaN.
    """
    one_of("mode", mode, MODES, OtLensError)
    if random_sets < 1:
        raise OtLensError(f"random_sets must be at least 1, got {random_sets}.")
    served = backend(model)
    layouts = _layouts(served)
    entering = _read_entering(served, layouts, prompts.train.harmless, batch_size)
    every = [(layer, head) for layer in entering for head in range(_count(entering, layouts, layer))]
    chosen = _checked(heads, every)
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(len(every), len(chosen), replace=False) for _ in range(random_sets)]
    sets = [frozenset(chosen), *(frozenset(every[i] for i in own) for own in drawn)]
    # A set that is drawn again has the same values, however rows round: it ties with itself.
    different = list(dict.fromkeys(sets))
    rows = [*map(different.index, sets), -1]
    reduce: Reduce = partial(values_of_logits, tokens=refusal_token_ids(model))
    found: dict[str, Float64[Tensor, "set prompt value"]] = {}
    engines = set()
    for label, group in prompts.test:
        partners = None if mode == "mean" else rng.integers(len(prompts.train.harmless), size=len(group))
        ablation = _Ablation(layouts, different, entering, partners)
        values, engine = _measured(served, group, ablation, reduce, batch_size)
        found[label] = values[rows]
        engines.add(engine)
    engine = HOOKS if HOOKS in engines else SINGLE_PASS
    about = {"mode": mode, "random_sets": random_sets, "engine": engine}
    return pd.DataFrame(list(_rows(found, chosen, about, seed)), columns=list(COLUMNS))


def has_heads(model: Any) -> bool:
    """Whether any layer has heads that can be ablated."""
    served = backend(model)
    return isinstance(served, HFBackend) and bool(_known(served))


def without_heads(
    model: Any, prompts: ContrastSet, reduce: Reduce, batch_size: int
) -> dict[str, Float64[Tensor, "site prompt value"]]:
    """By class, values with all heads of each layer at their mean, and last those of the unedited model."""
    served = backend(model)
    layouts = _layouts(served)
    entering = _read_entering(served, layouts, prompts.train.harmless, batch_size)
    sets = [
        [(layer, head) for head in range(_count(entering, layouts, layer) if layer in layouts else 0)]
        for layer in range(served.n_layers)
    ]
    ablation = _Ablation(layouts, sets, entering, None)
    return {label: _measured(served, group, ablation, reduce, batch_size)[0] for label, group in prompts.test}


@dataclass(frozen=True, eq=False)
class _Ablation:
    """Sets of heads, and what takes the place of their outputs."""

    layouts: Mapping[int, Heads]
    sets: Sequence[Collection[Head]]
    entering: Entering
    partners: np.ndarray | None  # of each prompt, among those of `entering`; None for their mean
    _masks: dict[int, Bool[Tensor, "set columns"]] = field(default_factory=dict)

    def mask(self, layer: int) -> Bool[Tensor, "set columns"]:
        """The columns of each set's heads in the input of a layer's projection."""
        if layer not in self._masks:
            width, columns = self.layouts[layer].width, self.entering[layer].shape[1]
            mask = torch.zeros(len(self.sets), columns // width, dtype=torch.bool)
            for row, heads in enumerate(self.sets):
                for _, head in (head for head in heads if head[0] == layer):
                    mask[row, head] = True
            self._masks[layer] = mask.repeat_interleave(width, dim=1)
        return self._masks[layer]

    def instead(self, layer: int, indices: Sequence[int]) -> Float[Tensor, "batch columns"]:
        """What takes the place of the heads' outputs, for some prompts."""
        if self.partners is None:
            return float64(self.entering[layer]).mean(dim=0).expand(len(indices), -1)
        return self.entering[layer][self.partners[list(indices)]]

    def edit(
        self, layer: int, batch: TokenBatch, rows: slice, _module: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Replace heads at the last columns, [batch, row, columns], one for each of the sets `rows`."""
        x, *rest = args
        mask = self.mask(layer)[rows].to(x.device)
        instead = self.instead(layer, batch.indices).to(x)[:, None]
        last = torch.where(mask, instead, x[:, -len(mask) :])
        return torch.cat([x[:, : -len(mask)], last], dim=1), *rest

    def editing(self, layers: Iterable[int], batch: TokenBatch, rows: slice) -> Reversible[None]:
        """The edits of some layers, for the duration of a `with` block."""

        def put(changes: Reversible[None]) -> None:
            for layer in layers:
                if layer in self.entering and bool(self.mask(layer)[rows].any()):
                    changes.before(self.layouts[layer].projection, partial(self.edit, layer, batch, rows))

        return Reversible(put)


def _layouts(served: Backend) -> dict[int, Heads]:
    if not isinstance(served, HFBackend):
        raise HookError("Heads are ablated in Hugging Face models only: load this one by ot_lens.load_model.")
    layouts = _known(served)
    if not layouts:
        raise HookError(
            f"No layer of this {type(served.hf_model).__name__} has heads that are known: ablate its "
            "attention outputs by `intervene` at attn_out."
        )
    return layouts


def _known(served: HFBackend) -> dict[int, Heads]:
    found = {layer: heads_of(block) for layer, block in enumerate(decoder_layers(served.hf_model))}
    return {layer: heads for layer, heads in found.items() if heads is not None}


def _read_entering(
    served: Backend, layouts: Mapping[int, Heads], prompts: Sequence[Prompt], batch_size: int
) -> Entering:
    """What enters each output projection at the last token."""

    def read(batch: TokenBatch) -> Iterator[dict[int, Tensor]]:
        seen: dict[int, Tensor] = {}

        def listen(changes: Reversible[None]) -> None:
            for layer, heads in layouts.items():
                changes.before(heads.projection, partial(_keep, seen, layer))

        with Reversible(listen):
            served.logits(batch.tokens, batch.mask, keep=1)
        return ({layer: x[row] for layer, x in seen.items()} for row in range(len(batch.indices)))

    rows = by_row(served, batches(served, prompts, batch_size), read)
    return {layer: torch.stack([row[layer] for row in rows]) for layer in rows[0]}


def _keep(seen: dict[int, Tensor], layer: int, _module: nn.Module, args: tuple[Any, ...]) -> None:
    seen[layer] = args[0][:, -1].detach().cpu().clone()


def _count(entering: Entering, layouts: Mapping[int, Heads], layer: int) -> int:
    return entering[layer].shape[1] // layouts[layer].width


def _checked(heads: Sequence[Head], every: Sequence[Head]) -> list[Head]:
    chosen = [(int(layer), int(head)) for layer, head in heads]
    unknown = [head for head in chosen if head not in every]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise HookError(
            f"Heads {unknown or chosen} cannot be ablated: pass different (layer, head) pairs of this model, "
            f"of which there are {len(every)}, from {every[0]} to {every[-1]}."
        )
    return chosen


def _measured(
    served: Backend, prompts: Sequence[Prompt], ablation: _Ablation, reduce: Reduce, batch_size: int
) -> tuple[Float64[Tensor, "set prompt value"], str]:
    """Values of every set, the unedited model's last, and the engine that measured them."""
    try:
        read = partial(_walked, ablation, reduce)
        rows = recorded_rows(served, prompts, read, last=True, batch_size=batch_size)
        engine = SINGLE_PASS
    except SinglePassError:
        run = partial(_passed, served, ablation, reduce)
        rows = by_row(served, batches(served, prompts, batch_size), run)
        engine = HOOKS
    return without_nan(torch.stack(rows, dim=1)), engine


def _walked(ablation: _Ablation, reduce: Reduce, batch: TokenBatch, record: Record) -> Sequence[Tensor]:
    """All sets of a batch, in walks up the blocks of its recorded pass."""
    own = float64(record.own_logits)
    values = []
    for start in range(0, len(ablation.sets), ROWS):
        chosen = slice(start, start + ROWS)
        first = min((layer for heads in ablation.sets[chosen] for layer, _ in heads), default=0)
        rows = record.streams[first].expand(len(ablation.sets[chosen]), *record.streams[first].shape)
        for layer in range(first, len(record.streams) - 1):
            with ablation.editing([layer], batch, chosen):
                rows = replayed(record.block, layer, rows.to(record.streams[layer].device))
        values.append(reduce(float64(replayed(record.logits, rows)).to(own.device), own).cpu())
    return torch.cat([*values, reduce(own[None], own).cpu()]).unbind(1)


def _passed(served: Backend, ablation: _Ablation, reduce: Reduce, batch: TokenBatch) -> Sequence[Tensor]:
    """The same with a forward pass for each set."""
    own = float64(served.logits(batch.tokens, batch.mask, keep=1)[:, -1])
    values = []
    for number in range(len(ablation.sets)):
        with ablation.editing(ablation.entering, batch, slice(number, number + 1)):
            logits = float64(served.logits(batch.tokens, batch.mask, keep=1)[:, -1])
        values.append(reduce(logits[None], own).cpu())
    return torch.cat([*values, reduce(own[None], own).cpu()]).unbind(1)


def _rows(
    found: Mapping[str, Float64[Tensor, "set prompt value"]],
    chosen: Sequence[Head],
    about: Mapping[str, Any],
    seed: int,
) -> Iterator[dict[str, Any]]:
    names = ", ".join(f"{layer}.{head}" for layer, head in chosen)
    for number, (measure, unit, least) in enumerate(MEASURES):
        for label in CLASSES:
            values = found[label][..., number].numpy()
            random, unedited = values[1:-1], values[-1]
            lowered, null = np.split((values[:-1] - unedited).mean(axis=1), [1])
            for name, own in ((UNEDITED, unedited), (CHOSEN, values[0]), (RANDOM, random.mean(axis=0))):
                change = mean(own - unedited, seed=seed, least=least)
                row = {**about, "set": name, "measure": measure, "prompts": label, "unit": unit}
                row |= {"heads": names if name == CHOSEN else "", "n_heads": len(chosen) * (name != UNEDITED)}
                row |= _ends(mean(own, seed=seed, least=least), "value", "low", "high") | {"n": len(own)}
                row |= _ends(change, "change", "change_low", "change_high")
                if name == CHOSEN:
                    row |= null_band(torch.from_numpy(null))
                if name == CHOSEN and (measure, label) == TESTED:
                    row["p_value"] = (1 + int((null <= lowered).sum())) / (1 + len(null))
                yield row


def _ends(estimate: Estimate, *names: str) -> dict[str, float]:
    return dict(zip(names, (estimate.value, estimate.low, estimate.high), strict=True))
