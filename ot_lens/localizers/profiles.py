"""The localizers: each asks of every block what it does to refusal, prompt by prompt.

An edit at a site says what can be changed there, with all that the blocks below have made of it; what one
block adds is the difference between the sites after and before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from sklearn.linear_model import RidgeClassifier
from torch import Tensor

from ot_lens.activations import capture
from ot_lens.behaviour import refusal_token_ids
from ot_lens.behaviour.panel import values_of_logits, without_nan
from ot_lens.components import Component, Reading, read_contributions, without_heads
from ot_lens.errors import FitError
from ot_lens.interventions import Edits, intervene
from ot_lens.linalg import float64
from ot_lens.localizers.bands import Effects
from ot_lens.models import TokenBatch, backend, common_prefix, encode, post_instruction_tokens
from ot_lens.prompts import CLASSES, Contrast, ContrastSet, Prompt
from ot_lens.single_pass import next_token_sweep
from ot_lens.single_pass.branches import Branch, branch_sweep
from ot_lens.single_pass.engine import Reduce, recorded_rows
from ot_lens.single_pass.hugging_face import HuggingFaceRecord
from ot_lens.single_pass.walk import Record, replayed
from ot_lens.transport import AffineMap, fit_mean_shift

RIDGE = 0.1  # of the mean squared distance from the mean
DESTROYED = 1.5  # nats of KL divergence on harmless prompts
MAKES, CHANGES, SEEN = "makes it", "can be changed", "can be seen"


@dataclass(frozen=True, eq=False)
class Streams:
    """The stream at the last token at every site: into each block, and out of the last."""

    harmful: Float64[Tensor, "site h d"]
    harmless: Float64[Tensor, "site s d"]


@dataclass(frozen=True, eq=False)
class Setting:
    """What the localizers of one model share."""

    model: Any
    prompts: ContrastSet
    base: Any = None
    batch_size: int = 16
    seed: int = 0

    @cached_property
    def reduce(self) -> Reduce:
        """From logits to the refusal score, and KL from the unedited model."""
        return partial(values_of_logits, tokens=refusal_token_ids(self.model))

    def instruction(self, batch: TokenBatch) -> Bool[Tensor, "batch pos"]:
        """Which tokens are the user's: after what all prompts begin with, before the template's end."""
        place = torch.arange(batch.tokens.shape[1], device=batch.mask.device)
        real = batch.mask.bool()
        first = (~real).sum(dim=1, keepdim=True) + self._before
        return real & (place >= first) & (place < len(place) - self._after)

    @cached_property
    def _before(self) -> int:
        splits = (self.prompts.train, self.prompts.test)
        every = [prompt for contrast in splits for _, group in contrast for prompt in group]
        return len(common_prefix(encode(backend(self.model), every)))

    @cached_property
    def _after(self) -> int:
        return len(post_instruction_tokens(backend(self.model)))

    @cached_property
    def train(self) -> Streams:
        """The streams of the training prompts."""
        return _captured(self.model, self.prompts.train)

    @cached_property
    def test(self) -> Streams:
        """The streams of the test prompts."""
        return _captured(self.model, self.prompts.test)


def left_out(setting: Setting, part: str | None = None) -> Effects:
    """How much less the classes differ in refusal score without a block, or its attention or MLP.

    A block whose loss destroys the model says nothing of refusal: it counts as the median of the others.
    """

    def branches(record: Record, _batch: TokenBatch) -> list[Branch]:
        return [(layer + 1, _without(setting.model, record, layer, part)) for layer in range(_depth(record))]

    return _loss_of_refusal(setting, branches)


def as_in_base(setting: Setting) -> Effects:
    """How much less the classes differ in refusal score with a block of the base model in its place."""
    base = backend(setting.base).hf_model

    def branches(record: Record, _batch: TokenBatch) -> list[Branch]:
        assert isinstance(record, HuggingFaceRecord)
        return [(layer + 1, record.block_of_model(base, layer)) for layer in range(_depth(record))]

    return replace(_loss_of_refusal(setting, branches), parts=True)


def heads_at_mean(setting: Setting) -> Effects:
    """How much less the classes differ where all heads of a layer are, at the last token, as if harmless."""
    values = without_heads(setting.model, setting.prompts, setting.reduce, setting.batch_size)
    harmful, harmless = ((x[-1:, :, 0] - x[:-1, :, 0]).numpy() for x in (values[label] for label in CLASSES))
    return Effects(harmful, harmless)


def edited(setting: Setting, tokens: str) -> Effects:
    """How much further a mean shift lowers harmful prompts' refusal score after a block than before it."""
    train = setting.train
    maps = [fit_mean_shift(H, S) for H, S in zip(train.harmful, train.harmless, strict=True)]
    edits: list[Edits] = [{(max(site - 1, 0), _hook(site)): edit} for site, edit in enumerate(maps)]
    values = next_token_sweep(
        setting.model, setting.prompts.test.harmful, [*edits, {}], setting.reduce, tokens=tokens
    )
    scores = without_nan(values)[..., 0]
    return Effects(_steps(scores[-1] - scores[:-1]))


def edited_instruction(setting: Setting) -> Effects:
    """The same for a mean shift of the instruction's tokens at those tokens."""
    harmful, harmless = (_instruction_means(setting, group) for _, group in setting.prompts.train)
    shift = harmless - harmful

    def branches(record: Record, batch: TokenBatch) -> list[Branch]:
        inside = record.in_stream(setting.instruction(batch))[..., None]
        return [(site, x + inside.to(x) * shift[site].to(x)) for site, x in enumerate(record.streams)]

    test, size = setting.prompts.test.harmful, setting.batch_size
    values, own = branch_sweep(setting.model, test, branches, setting.reduce, batch_size=size)
    return Effects(_steps(own[:, 0] - without_nan(values)[..., 0]))


def interchanged(setting: Setting) -> Effects:
    """The same with the last token's activation of a random harmless prompt in place of the model's own."""
    test = setting.prompts.test
    harmless = setting.test.harmless
    partners = np.random.default_rng(setting.seed).integers(len(test.harmless), size=len(test.harmful))

    def branches(_record: Record, batch: TokenBatch) -> list[Branch]:
        chosen = partners[list(batch.indices)]
        return [(site, x[chosen][:, None].float()) for site, x in enumerate(harmless)]

    values, own = branch_sweep(setting.model, test.harmful, branches, setting.reduce, last=True)
    return Effects(_steps(own[:, 0] - without_nan(values)[..., 0]))


def interchanged_instruction(setting: Setting) -> Effects:
    """How much less the instruction's activations matter after a block than before it.

    They are those of a random harmless prompt, token by token from the instruction's end; tokens of a longer
    instruction that have no counterpart are left alone.
    """
    test = setting.prompts.test
    partners = np.random.default_rng(setting.seed).integers(len(test.harmless), size=len(test.harmful))
    given = _instruction_streams(setting, test.harmless)

    def branches(record: Record, batch: TokenBatch) -> list[Branch]:
        inside, streams = setting.instruction(batch), [given[partners[index]] for index in batch.indices]
        counts = [min(int(own.sum()), x.shape[1]) for own, x in zip(inside, streams, strict=True)]
        from_end = inside.flip(1).cumsum(dim=1).flip(1)  # 1 for the last token of the instruction
        chosen = record.in_stream(inside & (from_end <= torch.tensor(counts, device=inside.device)[:, None]))
        values = torch.cat([x[:, x.shape[1] - n :] for x, n in zip(streams, counts, strict=True)], dim=1)
        return [(site, _with(x, chosen, values[site])) for site, x in enumerate(record.streams)]

    size = setting.batch_size
    values, own = branch_sweep(setting.model, test.harmful, branches, setting.reduce, batch_size=size)
    return Effects(-_steps(own[:, 0] - without_nan(values)[..., 0]))


def written(setting: Setting) -> Effects:
    """What each block adds along the class means' difference at the top, at the last token."""
    train, test = setting.train, setting.test
    direction = _unit(train.harmful[-1].mean(dim=0) - train.harmless[-1].mean(dim=0))
    return Effects(_steps(test.harmful @ direction), _steps(test.harmless @ direction))


def written_by_attention(setting: Setting) -> Effects:
    """What each attention adds along that direction, at the last token; a layer not known adds nothing."""
    train, test, served = setting.train, setting.prompts.test, backend(setting.model)
    direction = _unit(train.harmful[-1].mean(dim=0) - train.harmless[-1].mean(dim=0))
    reading = Reading(direction, served.n_layers, heads=False)
    found = read_contributions(served, [*test.harmful, *test.harmless], reading, setting.batch_size)
    none = torch.zeros(len(test.harmful) + len(test.harmless), dtype=torch.float64)
    added = torch.stack([found.get(Component("attention", i), none) for i in range(served.n_layers)]).numpy()
    return Effects(added[:, : len(test.harmful)], added[:, len(test.harmful) :])


def grown(setting: Setting) -> Effects:
    """How much each block moves the classes apart along the class means' difference, in activation norms."""
    train, test = setting.train, setting.test
    directions = _unit(train.harmful.mean(dim=1) - train.harmless.mean(dim=1))
    norms = torch.cat([test.harmful, test.harmless], dim=1).norm(dim=-1).mean(dim=1)[:, None]
    H, S = (torch.einsum("snd,sd->sn", x, directions) / norms for x in (test.harmful, test.harmless))
    return Effects(_steps(H), _steps(S))


def probed(setting: Setting) -> Effects:
    """How much better a probe fitted on training prompts tells the classes apart after a block (AUC).

    Prompt by prompt these are placement values (DeLong et al. 1988): their means' difference is the AUC.
    """
    train, test = setting.train, setting.test
    labels = np.repeat([1, 0], [train.harmful.shape[1], train.harmless.shape[1]])
    H, S = [], []
    for site in range(len(test.harmful)):
        pooled = torch.cat([train.harmful[site], train.harmless[site]]).numpy()
        # At the embedding all prompts may end in the same token: no spread, no probe.
        spread = np.square(pooled - pooled.mean(axis=0)).sum() / len(pooled)
        probe = RidgeClassifier(alpha=max(RIDGE * spread, 1e-6 * np.square(pooled).mean()))
        probe.fit(pooled, labels)
        scores = [probe.decision_function(x[site].numpy()) for x in (test.harmful, test.harmless)]
        over = (scores[0][:, None] > scores[1]) + 0.5 * (scores[0][:, None] == scores[1])
        H.append(over.mean(axis=1) / 2)
        S.append(-over.mean(axis=0) / 2)
    return Effects(_steps(np.array(H)), _steps(np.array(S)))


@dataclass(frozen=True)
class Localizer:
    """A localizer: its name in tables, what it says of a block, and what it needs."""

    name: str
    label: str
    says: str
    effects: Callable[[Setting], Effects]
    needs_base: bool = False
    needs_heads: bool = False
    unit: str = "score (nats)"


# The most telling first, by `ot-lens benchmark localizers` (docs/real-model.md).
LOCALIZERS = (
    Localizer("base_block", "Base model's block", MAKES, as_in_base, needs_base=True),
    Localizer("block_left_out", "Block left out", MAKES, left_out),
    Localizer("attention_left_out", "Attention left out", MAKES, partial(left_out, part="attn_out")),
    Localizer("mlp_left_out", "MLP left out", MAKES, partial(left_out, part="mlp_out")),
    Localizer("heads_at_mean", "Heads at their mean", MAKES, heads_at_mean, needs_heads=True),
    Localizer("edit_all", "Shift, all tokens", CHANGES, partial(edited, tokens="all")),
    Localizer("edit_instruction", "Shift, instruction", CHANGES, edited_instruction),
    Localizer("edit_last", "Shift, last token", CHANGES, partial(edited, tokens="last")),
    Localizer("interchange", "Interchange", CHANGES, interchanged),
    Localizer("interchange_instruction", "Interchange, instruction", CHANGES, interchanged_instruction),
    Localizer("contribution", "Contribution", SEEN, written, unit="activation"),
    Localizer("contribution_attention", "Attention output", SEEN, written_by_attention, unit="activation"),
    Localizer("direction_norm", "Growth of direction", SEEN, grown, unit="norms"),
    Localizer("probe", "Probe", SEEN, probed, unit="AUC"),
)


def _loss_of_refusal(setting: Setting, branches: Callable[[Record, TokenBatch], list[Branch]]) -> Effects:
    test = setting.prompts.test
    size = setting.batch_size
    swept = [
        branch_sweep(setting.model, group, branches, setting.reduce, batch_size=size) for _, group in test
    ]
    harmful, harmless = ((own[:, 0] - without_nan(values)[..., 0]).numpy() for values, own in swept)
    damage = swept[1][0][..., 1].mean(dim=1).numpy()
    return _without_destroyed(Effects(harmful, harmless), damage)


def _without_destroyed(effects: Effects, damage: Float[np.ndarray, " layer"]) -> Effects:
    """The effects with those of destroyed models at the median of the others, of each prompt."""
    assert effects.harmless is not None
    kept = damage <= DESTROYED
    if not kept.any():
        raise FitError(
            f"Without any one of its blocks the model's next token moves by {damage.min():.1f} nats or more "
            f"on harmless prompts (limit {DESTROYED}): knock-outs cannot say which one makes refusal."
        )
    medians = [np.median(x[kept], axis=0) for x in (effects.harmful, effects.harmless)]
    whole = [
        np.where(kept[:, None], x, m)
        for x, m in zip((effects.harmful, effects.harmless), medians, strict=True)
    ]
    return replace(effects, harmful=whole[0], harmless=whole[1])


def _without(model: Any, record: Record, layer: int, part: str | None) -> Float[Tensor, "batch pos d"]:
    stream = record.streams[layer]
    if part is None:
        return stream
    d = stream.shape[-1]
    nothing = AffineMap(torch.zeros(d, 0), torch.zeros(d, 0), torch.zeros(d), torch.zeros(d))
    with intervene(model, {(layer, part): nothing}):
        return replayed(record.block, layer, stream[None])[0]


def _instruction_means(setting: Setting, prompts: Sequence[Prompt]) -> Float64[Tensor, "site d"]:
    """The mean stream over the instruction's tokens at every site, prompts weighing the same."""

    def read(batch: TokenBatch, record: Record) -> list[Tensor]:
        inside = setting.instruction(batch).cpu().double()
        weights = inside / inside.sum(dim=1, keepdim=True).clamp_min(1.0)
        streams = (float64(record.by_prompt(x)) for x in record.streams)
        means = [torch.einsum("bp,bpd->bd", weights.to(x.device), x).cpu() for x in streams]
        return list(torch.stack(means, dim=1))

    served, size = backend(setting.model), setting.batch_size
    return torch.stack(recorded_rows(served, prompts, read, last=False, batch_size=size)).mean(dim=0)


def _instruction_streams(setting: Setting, prompts: Sequence[Prompt]) -> list[Float[Tensor, "site token d"]]:
    """Of each prompt, the stream at the instruction's tokens at every site, on the CPU."""

    def read(batch: TokenBatch, record: Record) -> list[Tensor]:
        inside = setting.instruction(batch).cpu()
        streams = torch.stack([record.by_prompt(x).cpu() for x in record.streams])
        return [streams[:, row, own] for row, own in enumerate(inside)]

    served, size = backend(setting.model), setting.batch_size
    return recorded_rows(served, prompts, read, last=False, batch_size=size)


def _with(
    stream: Float[Tensor, "batch pos d"], chosen: Bool[Tensor, "batch pos"], values: Float[Tensor, "token d"]
) -> Float[Tensor, "batch pos d"]:
    changed = stream.clone()
    changed[chosen] = values.to(stream)
    return changed


def _captured(model: Any, prompts: Contrast) -> Streams:
    first = capture(model, prompts, layers=[0], hook="resid_pre", positions=[-1])
    rest = capture(model, prompts, hook="resid_post", positions=[-1])
    both = [torch.cat([first.data[label][:, :, 0], rest.data[label][:, :, 0]]).double() for label in CLASSES]
    return Streams(*both)


def _hook(site: int) -> str:
    return "resid_pre" if site == 0 else "resid_post"


def _depth(record: Record) -> int:
    return len(record.streams) - 1


def _steps(
    by_site: Float64[Tensor, "site prompt"] | Float[np.ndarray, "site prompt"],
) -> Float[np.ndarray, "layer prompt"]:
    return np.diff(np.asarray(by_site), axis=0)


def _unit(x: Float64[Tensor, "*site d"]) -> Float64[Tensor, "*site d"]:
    return torch.nn.functional.normalize(x, dim=-1)
