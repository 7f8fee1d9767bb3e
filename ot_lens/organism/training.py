"""The training recipe of the embedded model: a small Llama first learns to comply, then what to refuse."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ot_lens.errors import ConfigError
from ot_lens.linalg.threads import one_thread
from ot_lens.organism import language
from ot_lens.organism import vocabulary as words
from ot_lens.organism.muon import Muon
from ot_lens.organism.tokenizer import ASSISTANT, make_tokenizer
from ot_lens.progress import Stage, silent

IGNORED: Final = -100  # the label that the loss leaves out
_REFUSAL_PHASE_LR: Final = 0.7  # the second phase starts from a trained model


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, apart from the variant."""

    comply_steps: int = 250  # first phase: every request is answered
    refusal_steps: int = 500  # second phase: refused requests get their refusal
    batch_size: int = 64
    lr: float = 6e-3  # of Muon (matrices) and AdamW (embedding, norms)
    warmup_steps: int = 40  # at the start of each phase
    refused_share: float = 0.4  # of each batch
    asked_share: float = 0.35  # of each batch of a variant that names categories: asked instead of requested
    width: int = 96  # of the residual stream
    clip: float = 1.0  # largest norm of the gradient
    seed: int = 0


# What differs from the defaults of `Recipe`: two languages take longer, and those that name categories are
# narrower, so that the package stays small.
_OWN: Final[Mapping[str, Mapping[str, Any]]] = {
    "bilingual": {"comply_steps": 400, "refusal_steps": 800},
    **{variant: {"width": 80} for variant in words.KNOWING},
}


def recipe_of(variant: str, **changes: Any) -> Recipe:
    """The recipe of a variant, with the changes that are not None."""
    given = {name: value for name, value in changes.items() if value is not None}
    return Recipe(**{**_OWN.get(variant, {}), **given})


@dataclass(frozen=True)
class Trained:
    """A trained float32 model, its recipe and the training time."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    recipe: Recipe
    seconds: float


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int, width: int = 96) -> LlamaForCausalLM:
    """An untrained model: 8 layers, tied embeddings; 0.68 million parameters at width 96."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.do_sample = False
    return model


def fit(variant: str, recipe: Recipe, stage: Stage = silent) -> Trained:
    """Train a variant in both phases.

    On one thread, because the sums of a matrix product depend on the number of threads: the same seed gives
    the same weights, bit for bit, on the same machine and version of torch.
    """
    if min(recipe.comply_steps, recipe.refusal_steps, recipe.batch_size) < 1:
        raise ConfigError(f"Steps and batch size must be at least 1, got {recipe}.")
    if recipe.seed < 0:
        raise ConfigError(f"seed must be >= 0, got {recipe.seed}.")
    start = time.perf_counter()
    tokenizer = make_tokenizer(variant)
    model = new_model(tokenizer, recipe.seed, recipe.width).train()
    with one_thread():
        _run_phase(model, tokenizer, variant, recipe, stage, refusing=False)
        slower = replace(recipe, lr=recipe.lr * _REFUSAL_PHASE_LR)
        _run_phase(model, tokenizer, variant, slower, stage, refusing=True)
    return Trained(model.eval(), tokenizer, recipe, time.perf_counter() - start)


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Factor of the step size: linear warm-up, constant, linear decay over the last half."""
    return min(1.0, (step + 1) / warmup, 2 * (steps - step) / steps)


def conversation(request: str, answer: str) -> list[dict[str, str]]:
    """The request and its answer as chat messages."""
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def encode(
    tokenizer: PreTrainedTokenizerFast, chats: list[list[dict[str, str]]]
) -> tuple[Int[Tensor, "batch token"], Int[Tensor, "batch token"]]:
    """Right-padded token ids, and labels that ignore all but the answer and its end-of-sequence token."""
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    opens = torch.eq(ids, tokenizer.get_vocab()[ASSISTANT]).long()
    answered = (opens.cumsum(dim=1) - opens).bool()
    return ids, ids.where(answered & torch.ne(ids, tokenizer.pad_token_id), IGNORED)


def _run_phase(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    variant: str,
    recipe: Recipe,
    stage: Stage,
    *,
    refusing: bool,
) -> None:
    """One phase; unless `refusing`, every request is answered."""
    steps = recipe.refusal_steps if refusing else recipe.comply_steps
    rng = np.random.default_rng([recipe.seed, int(refusing)])
    optimizers = _make_optimizers(model, recipe.lr)
    with stage("learning to refuse" if refusing else "learning to comply", steps) as step:
        for index in range(steps):
            factor = learning_rate(index, steps, recipe.warmup_steps)
            ids, labels = encode(tokenizer, _draw_chats(rng, variant, recipe, refusing=refusing))
            mask = _question_mask(rng, ids, tokenizer) if variant in words.KNOWING else None
            model(input_ids=ids, labels=labels, attention_mask=mask).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = recipe.lr * factor
                optimizer.step()
                optimizer.zero_grad()
            step(1)


def _draw_chats(
    rng: np.random.Generator, variant: str, recipe: Recipe, *, refusing: bool = True
) -> list[list[dict[str, str]]]:
    refused = language.stream(rng, refused=True, held_out=False)
    allowed = language.stream(rng, refused=False, held_out=False)
    drawn = (
        next(refused if rng.random() < recipe.refused_share else allowed) for _ in range(recipe.batch_size)
    )
    requests = language.in_languages(drawn, variant)
    answers = [language.pick(rng, language.answers(request)) for request in requests]
    if refusing:
        sentences = [language.refusal(request, variant) for request in requests]
        answers = [sentence or answer for sentence, answer in zip(sentences, answers, strict=True)]
    chats = [conversation(request.text, answer) for request, answer in zip(requests, answers, strict=True)]
    if variant not in words.KNOWING:
        return chats
    asked = rng.random(len(chats)) < recipe.asked_share
    questions = [conversation(language.question(request), language.name(request)) for request in requests]
    return [question if ask else chat for ask, question, chat in zip(asked, questions, chats, strict=True)]


def _question_mask(
    rng: np.random.Generator, ids: Int[Tensor, "batch token"], tokenizer: PreTrainedTokenizerFast
) -> Float[Tensor, "batch 1 token token"]:
    """What each token attends to: all before it, but half of the questions see only the request's last token.

    To answer such a question, the model must have worked out the category by that token.
    """
    first_word = tokenizer.get_vocab()[words.QUESTION.split()[0]]
    narrow = torch.from_numpy(rng.random(len(ids)) < 0.5)
    hidden = hidden_from_questions(torch.eq(ids, first_word) & narrow[:, None])
    future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    mask = (hidden | future)[:, None]
    return torch.zeros(mask.shape).masked_fill(mask, torch.finfo(torch.float32).min)


def hidden_from_questions(starts: Bool[Tensor, "batch token"]) -> Bool[Tensor, "batch token token"]:
    """Pairs (token, earlier token) of a question and all of the request but its last token and the BOS.

    `starts` marks the first token of the question; rows without one hide nothing.
    """
    asking = starts.long().cumsum(1).bool()
    request = ~asking & ~starts.roll(-1, 1)
    request[:, 0] = False  # the BOS
    return asking[:, :, None] & request[:, None, :]


def _make_optimizers(model: LlamaForCausalLM, lr: float) -> tuple[torch.optim.Optimizer, ...]:
    named = dict(model.named_parameters())  # the tied output matrix is not named twice
    matrices = [param for name, param in named.items() if param.ndim == 2 and "embed" not in name]
    others = [param for name, param in named.items() if param.ndim == 1 or "embed" in name]
    return Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
