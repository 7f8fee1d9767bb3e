"""Plant behaviour in a band of layers: a LoRA adapter learns answers, and everything else stays frozen."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from ot_lens.errors import ConfigError
from ot_lens.linalg.threads import one_thread
from ot_lens.models import common_prefix
from ot_lens.models.architectures import decoder_layers
from ot_lens.models.packing import Packed, pack
from ot_lens.organism.training import learning_rate
from ot_lens.progress import Stage, silent

KEPT: Final = 32  # tokens of the base model's distribution that its own answers are trained towards
BETAS: Final = (0.9, 0.95)


@dataclass(frozen=True)
class Planting:
    """Everything that determines an adapter, apart from the base model and the answers."""

    first: int  # first and last layer that learn
    last: int
    steps: int = 140
    batch_size: int = 16
    lr: float = 3e-3  # AdamW
    warmup_steps: int = 5
    rank: int = 12  # of LoRA, in all linear modules of the band
    clip: float = 1.0  # largest norm of the gradient
    # Probability that a layer is without its adapter in a step, so that no few layers do everything.
    drop: float = 0.0
    seed: int = 0

    def check(self, n_layers: int) -> None:
        """Refuse a band that the model does not have, and numbers that are too small."""
        if not 0 <= self.first <= self.last < n_layers:
            raise ConfigError(
                f"The band {self.first}-{self.last} does not exist: the model has layers 0-{n_layers - 1}."
            )
        if min(self.steps, self.batch_size - 1, self.rank, self.seed + 1) < 1:
            raise ConfigError(f"steps and rank must be >= 1, batch_size >= 2 and seed >= 0, got {self}.")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"drop must be at least 0 and below 1, got {self.drop}.")


@dataclass(frozen=True)
class Lesson:
    """A rendered prompt and its answer, in tokens; `own` if the answer is the base model's own."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    own: bool


@dataclass(frozen=True)
class _Example:
    """What a step needs of a lesson: its tokens behind the prefix, targets, and the stream into the band."""

    rest: tuple[int, ...]
    targets: Int[Tensor, "answer kept"]
    shares: Float[Tensor, "answer kept"]
    entering: Float[Tensor, "pos d"]


def packed_logits(hf_model: Any, packed: Packed, lengths: Sequence[int]) -> Float[Tensor, "pos d_vocab"]:
    """Logits of the last tokens of each row, as many as `lengths` says: those that predict its answer."""
    places = [p for end, n in zip(packed.ends, lengths, strict=True) for p in range(end - n - 1, end - 1)]
    hidden = packed.additive_mask(hf_model.dtype)
    inputs = {"input_ids": packed.ids, "position_ids": packed.positions, "attention_mask": hidden}
    inputs = {name: value.to(hf_model.device) for name, value in inputs.items()}
    logits = hf_model(**inputs, logits_to_keep=torch.tensor(places), use_cache=False).logits[0]
    return logits.float()


def plant(hf_model: Any, lessons: Sequence[Lesson], planting: Planting, stage: Stage = silent) -> Any:
    """A PeftModel around a copy of the model, whose band has learnt the lessons.

    Lessons with the base model's own answers keep its distribution; the others learn the tokens themselves.
    Half of each batch is of either kind. What enters the band never changes, so it is computed once.
    On a CPU the copy is float32, since a CPU without bfloat16 arithmetic takes ten times as long for it.
    """
    planting.check(len(decoder_layers(hf_model)))
    dtype = torch.float32 if hf_model.device.type == "cpu" else torch.bfloat16
    base: Any = nn.Module.to(copy.deepcopy(hf_model), dtype).requires_grad_(False).eval()
    prefix = common_prefix([lesson.prompt[:-1] for lesson in lessons])
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(planting.seed)
        stream, examples = _read(base, prefix, lessons, planting, stage)
        adapted = _with_adapter(base, planting)
        layers = decoder_layers(adapted.get_base_model())
        weights = [weight for weight in adapted.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=planting.lr, betas=BETAS, weight_decay=0.0)
        batches = _batches(examples, [lesson.own for lesson in lessons], planting)
        rng = np.random.default_rng([planting.seed, 1])
        with stage("learning", planting.steps) as step:
            for index in range(planting.steps):
                batch = next(batches)
                into = torch.cat([stream, *(example.entering for example in batch)])[None]
                kept = (rng.random(len(layers)) >= planting.drop) / (1 - planting.drop)
                with _replayed(layers, planting.first, into), _scaled_adapters(layers, kept):
                    _loss(adapted.get_base_model(), prefix, batch).backward()
                nn.utils.clip_grad_norm_(weights, planting.clip)
                factor = learning_rate(index, planting.steps, planting.warmup_steps)
                optimizer.param_groups[0]["lr"] = planting.lr * factor
                optimizer.step()
                optimizer.zero_grad()
                step(1)
    return adapted.eval()


@torch.no_grad()
def _read(
    base: Any, prefix: Sequence[int], lessons: Sequence[Lesson], planting: Planting, stage: Stage
) -> tuple[Tensor, list[_Example]]:
    """The stream of the prefix into the band, and the examples."""
    examples: list[_Example] = []
    entering: list[Tensor] = []
    hook = decoder_layers(base)[planting.first].register_forward_pre_hook(
        lambda _, args, kwargs: entering.append((args[0] if args else kwargs["hidden_states"])[0]),
        with_kwargs=True,
    )
    with stage("reading the answers", len(lessons)) as step:
        for start in range(0, len(lessons), planting.batch_size):
            batch = lessons[start : start + planting.batch_size]
            rests = [(*lesson.prompt[len(prefix) :], *lesson.answer) for lesson in batch]
            packed = pack(prefix, rests)
            lengths = [len(lesson.answer) for lesson in batch]
            logits = packed_logits(base, packed, lengths).split(lengths)
            for lesson, rest, end, its in zip(batch, rests, packed.ends, logits, strict=True):
                stream = entering[-1][end - len(rest) : end].clone()
                examples.append(_Example(rest, *_targets(lesson, its), stream))
            step(len(batch))
    hook.remove()
    return entering[0][: len(prefix)].clone(), examples


def _targets(lesson: Lesson, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and their shares: the base model's likeliest, or the answer alone."""
    if lesson.own:
        best = log_softmax(logits, -1).topk(min(KEPT, logits.shape[-1]))
        return best.indices, best.values.softmax(-1)
    tokens = torch.tensor(lesson.answer)[:, None]
    return tokens, torch.ones(tokens.shape)


def _with_adapter(base: Any, planting: Planting) -> Any:
    from peft import LoraConfig, get_peft_model

    band = range(planting.first, planting.last + 1)
    layers = decoder_layers(base)
    modules = (name for i in band for name, m in layers[i].named_modules() if isinstance(m, nn.Linear))
    config = LoraConfig(
        r=planting.rank,
        lora_alpha=2 * planting.rank,
        target_modules=sorted({name.rpartition(".")[2] for name in modules}),
        layers_to_transform=list(band),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def _batches(
    examples: Sequence[_Example], own: Sequence[bool], planting: Planting
) -> Iterator[list[_Example]]:
    kinds = [[e for e, is_own in zip(examples, own, strict=True) if is_own == kind] for kind in (False, True)]
    if not all(kinds):
        raise ConfigError("Both requests to decline and requests to answer are needed to train an adapter.")

    def shuffled(kind: list[_Example]) -> Iterator[_Example]:
        rng = np.random.default_rng(planting.seed)  # the same for both kinds, so that pairs stay together
        while True:
            yield from (kind[i] for i in rng.permutation(len(kind)))

    declined, answered = map(shuffled, kinds)
    half = planting.batch_size // 2
    while True:
        yield [next(declined) for _ in range(half)] + [
            next(answered) for _ in range(planting.batch_size - half)
        ]


def _loss(model: Any, prefix: Sequence[int], batch: Sequence[_Example]) -> Tensor:
    """Cross-entropy; the first token, which tells a refusal from an answer, weighs as much as the others."""
    lengths = [len(example.targets) for example in batch]
    logits = packed_logits(model, pack(prefix, [example.rest for example in batch]), lengths).split(lengths)
    losses = []
    for example, its in zip(batch, logits, strict=True):
        each = -(example.shares * log_softmax(its, -1).gather(-1, example.targets)).sum(-1)
        losses.append((each[0] + each[1:].sum() / max(1, len(each) - 1)) / 2)
    return torch.stack(losses).mean()


@contextmanager
def _scaled_adapters(layers: nn.ModuleList, factors: Float[np.ndarray, " layer"]) -> Iterator[None]:
    """The adapters of each layer times a factor, as in dropout."""
    from peft.tuners.lora import LoraLayer

    adapters = [
        (module, float(factor))
        for layer, factor in zip(layers, factors, strict=True)
        for module in layer.modules()
        if isinstance(module, LoraLayer)
    ]
    scales = [module.scaling for module, _ in adapters]
    for module, factor in adapters:
        module.scaling = {name: scale * factor for name, scale in module.scaling.items()}
    try:
        yield
    finally:
        for (module, _), scaling in zip(adapters, scales, strict=True):
            module.scaling = scaling


class _Replay(nn.Module):
    """Stands for a layer before the band: hands on what enters the band."""

    def __init__(self, stream: Tensor) -> None:
        super().__init__()
        self.stream = stream

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.stream


@contextmanager
def _replayed(layers: nn.ModuleList, first: int, stream: Tensor) -> Iterator[None]:
    before = list(layers[:first])
    for i in range(first):
        layers[i] = _Replay(stream)
    try:
        yield
    finally:
        for i, layer in enumerate(before):
            layers[i] = layer
