"""The panel: every measure of a sweep's candidate, prompt by prompt, and its estimates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.behaviour.coherence import degenerate, lengths_below, likelihoods, within
from ot_lens.behaviour.judge_registry import LazyJudge
from ot_lens.behaviour.judges import Judgement, judge_completions
from ot_lens.behaviour.losses import TokenLoss, answer_loss
from ot_lens.behaviour.next_token import (
    kl_divergence,
    next_token_logprobs,
    packed_logprobs,
    score_from_logprobs,
)
from ot_lens.behaviour.refusal import PhraseList, refuses
from ot_lens.errors import PromptError, nan_logits, one_of
from ot_lens.generation import Completion, complete
from ot_lens.models import HFBackend, backend
from ot_lens.prompts import Prompt
from ot_lens.statistics import Estimate, mean, rate

NEXT_TOKEN_MEASURES = ("refusal_score", "kl")
MEASURES = ("refusal_rate", "exact_answer_rate", *NEXT_TOKEN_MEASURES, "perplexity")
# What comes with "refusal_rate", from the same answers.
WITHIN = "refusal_rate_within_"
UNITS = {
    "refusal_rate": "share",
    "coherent_success_rate": "share",
    "degenerate_rate": "share",
    "answer_nll": "nats",
    "attack_success_rate": "share",
    "judged_success_rate": "share",
    "exact_answer_rate": "share",
    "refusal_score": "nats",
    "refusal_score_shift": "nats",
    "choice_price": "nats",
    "out_of_domain_share": "share",
    "kl": "nats",
    "perplexity": "",
}


def unit_of(measure: str) -> str:
    """Unit of a measure in the sweep's table."""
    return "share" if measure.startswith(WITHIN) else UNITS[measure]


@dataclass(frozen=True)
class PanelSettings:
    """What a panel measures, and how."""

    measures: tuple[str, ...]
    phrases: PhraseList
    refusal_tokens: tuple[int, ...]
    max_new_tokens: int = 32
    batch_size: int = 64
    seed: int = 0
    judge: LazyJudge | None = None  # of the answers to harmful prompts, in addition to the phrases
    swap: bool = False  # the judge takes the model's place on its device (`LazyJudge.in_place_of`)
    text: Path | None = None  # a text file to measure perplexity on as well
    completions: Path | None = None  # folder to save answers in; None: answers are not saved

    def __post_init__(self) -> None:
        """Raise a PromptError if there is no measure, or one is unknown."""
        if not self.measures:
            raise PromptError(f"There are no measures: choose among {', '.join(MEASURES)}.")
        for name in self.measures:
            one_of("measure", name, MEASURES, PromptError)

    @property
    def reads_next_token(self) -> bool:
        """Whether a measure of the next-token distribution is requested."""
        return bool(set(self.measures) & set(NEXT_TOKEN_MEASURES))

    @property
    def needs_answers(self) -> bool:
        """Whether answers are generated at all."""
        return self.judge is not None or bool(set(self.measures) & {"refusal_rate", "exact_answer_rate"})


@dataclass(frozen=True, eq=False)
class NextToken:
    """Refusal score and KL(unedited || edited) of each prompt, in nats."""

    score: Float64[Tensor, " prompt"]
    kl: Float64[Tensor, " prompt"]


@dataclass(frozen=True, eq=False)
class Panel:
    """Measures of one class of prompts under one intervention, prompt by prompt; None if not measured."""

    n: int
    next_token: NextToken | None = None
    refused: tuple[bool, ...] | None = None
    refused_within: Mapping[int, tuple[bool, ...]] = field(default_factory=dict)  # by number of tokens
    degenerate: tuple[bool, ...] | None = None
    nll: Float64[Tensor, " prompt"] | None = None  # `answer_nll` under the unedited model
    later_nll: Float64[Tensor, " prompt"] | None = None  # the same after the first token
    correct: tuple[bool, ...] | None = None
    loss: TokenLoss | None = None
    judgement: Judgement | None = None
    completions: tuple[Completion, ...] = field(default=(), repr=False)
    verified: float | None = None  # share of the answers' tokens, where known answers were verified

    def coherent(self, limit: float) -> tuple[bool, ...]:
        """Whether each answer is neither refused nor degenerate, and likely enough after its first token."""
        if self.refused is None or self.degenerate is None or self.later_nll is None:
            return ()
        rows = zip(self.refused, self.degenerate, self.later_nll.tolist(), strict=True)
        return tuple(not refused and not rubbish and nll <= limit for refused, rubbish, nll in rows)


def next_token_values(
    logprobs: Float64[Tensor, "prompt d_vocab"],
    original: Float64[Tensor, "prompt d_vocab"],
    tokens: Sequence[int],
) -> Float64[Tensor, "prompt two"]:
    """Refusal score and KL(original || edited) of next-token log-probabilities, as two columns."""
    return torch.stack([score_from_logprobs(logprobs, tokens), kl_divergence(original, logprobs)], dim=-1)


def values_of_logits(
    rows: Float[Tensor, "row batch d_vocab"], own: Float[Tensor, "batch d_vocab"], tokens: Sequence[int]
) -> Float64[Tensor, "row batch two"]:
    """The same of edited and unedited logits, as a walk reduces them: a row at a time, in little memory."""
    original = own.log_softmax(-1)
    return torch.stack([next_token_values(row.log_softmax(-1), original, tokens) for row in rows])


def without_nan(values: Float64[Tensor, "*row prompt two"]) -> Float64[Tensor, "*row prompt two"]:
    """Values of next-token logits, checked: NaN anywhere is an ActivationError."""
    bad = int(values.isnan().any(dim=-1).reshape(-1, values.shape[-2]).any(dim=0).sum())
    if bad:
        raise nan_logits(bad, values.shape[-2])
    return values


def read_next_token(
    model: Any,
    prompts: Sequence[Prompt | str],
    settings: PanelSettings,
    original: Tensor | None = None,
    packs: HFBackend | None = None,
) -> tuple[NextToken, Float64[Tensor, "prompt d_vocab"]]:
    """Next-token measures under the active interventions, and the log-probabilities they come from.

    `original` are log-probabilities of the unedited model; None if this is the unedited model. Prompts are
    read packed by a model that `packs` them; see `packed_logprobs`.
    """
    if packs is None:
        logprobs = next_token_logprobs(model, prompts, batch_size=settings.batch_size)
    else:
        logprobs = packed_logprobs(packs, prompts, settings.batch_size)
    values = next_token_values(logprobs, logprobs if original is None else original, settings.refusal_tokens)
    return NextToken(values[..., 0], values[..., 1]), logprobs


def measure(
    model: Any,
    prompts: Sequence[Prompt],
    settings: PanelSettings,
    reading: NextToken | None = None,
    label: str = "",
    answers: Sequence[Completion] | None = None,
    loss: TokenLoss | None = None,
) -> Panel:
    """Measure one class of prompts under the active interventions; what is given is not measured again.

    The judge reads answers to harmful prompts; perplexity needs known answers, of harmless ones.
    """
    size, panel = settings.batch_size, Panel(len(prompts), reading)
    if settings.needs_answers:
        if answers is None:
            answers = complete(model, prompts, max_new_tokens=settings.max_new_tokens, batch_size=size)
        lengths = lengths_below(settings.max_new_tokens)
        panel = replace(
            panel,
            refused=tuple(refuses(answers, settings.phrases)),
            refused_within={
                length: tuple(refuses(within(model, answers, length), settings.phrases)) for length in lengths
            },
            degenerate=tuple(degenerate(answers)),
            judgement=None if label == "harmless" else _judged(model, prompts, answers, settings),
            completions=tuple(answers),
        )
        if all(p.answers for p in prompts):
            correct = tuple(a.text in p.answers for a, p in zip(answers, prompts, strict=True))
            panel = replace(panel, correct=correct)
    if "perplexity" in settings.measures and label != "harmful" and all(p.answer for p in prompts):
        panel = replace(panel, loss=loss or answer_loss(model, prompts, batch_size=size))
    return panel


def with_nll(model: Any, prompts: Sequence[Prompt], panel: Panel, settings: PanelSettings) -> Panel:
    """The panel with the likelihood of its answers, which are dropped unless they are to be stored.

    To be called without interventions: only the unedited model knows what an answer looks like.
    """
    if "refusal_rate" in settings.measures and panel.completions and panel.nll is None:
        nll, later = likelihoods(model, prompts, panel.completions, settings.batch_size)
        panel = replace(panel, nll=nll, later_nll=later)
    return panel if settings.completions is not None else replace(panel, completions=())


def _judged(
    model: Any, prompts: Sequence[Prompt], answers: Sequence[Completion], settings: PanelSettings
) -> Judgement | None:
    if settings.judge is None:
        return None
    with settings.judge.in_place_of(backend(model).model, swap=settings.swap) as judge:
        return judge_completions(judge, prompts, answers)


def estimates(
    panel: Panel, settings: PanelSettings, baseline: Panel | None = None, limit: float | None = None
) -> dict[str, Estimate]:
    """Every measure of a panel with its interval, except those that were not or cannot be taken.

    In addition to the requested measures: with the refusal rate, the attack success rate, 1 - refusal rate,
    the rate within fewer tokens, and whether the answers are answers (`limit` is that of `Panel.coherent`);
    with a baseline the shift of the refusal score, prompt by prompt, from the unedited model.
    """
    seed = settings.seed
    results: dict[str, Estimate] = {}
    if "refusal_rate" in settings.measures:
        results |= _of_answers(panel, seed, limit)
    if panel.judgement is not None:
        results["judged_success_rate"] = _judged_rate(panel.judgement)
    if panel.correct is not None and "exact_answer_rate" in settings.measures:
        results["exact_answer_rate"] = rate(panel.correct)
    reading = panel.next_token
    if reading is not None and "refusal_score" in settings.measures:
        results["refusal_score"] = mean(reading.score.numpy(), seed=seed)
        if baseline is not None and baseline.next_token is not None:
            shift = reading.score - baseline.next_token.score
            results["refusal_score_shift"] = mean(shift.numpy(), seed=seed)
    if reading is not None and "kl" in settings.measures:
        results["kl"] = mean(reading.kl.numpy(), seed=seed, least=0.0)
    if panel.loss is not None:
        results["perplexity"] = panel.loss.estimate(seed=seed)
    return results


def _of_answers(panel: Panel, seed: int, limit: float | None) -> dict[str, Estimate]:
    if panel.refused is None or panel.degenerate is None:
        return {}
    results = {"refusal_rate": rate(panel.refused)}
    results["attack_success_rate"] = rate([not flag for flag in panel.refused])
    if limit is not None and panel.coherent(limit):
        results["coherent_success_rate"] = rate(panel.coherent(limit))
    results["degenerate_rate"] = rate(panel.degenerate)
    if panel.nll is not None:
        results["answer_nll"] = mean(panel.nll.numpy(), seed=seed, least=0.0)
    return results | {f"{WITHIN}{length}": rate(flags) for length, flags in panel.refused_within.items()}


def _judged_rate(judgement: Judgement) -> Estimate:
    """The judge's attack success rate; NaN on no prompts if it decided none."""
    if judgement.n_unanswered == len(judgement.verdicts):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "wilson")
    return judgement.attack_success_rate
