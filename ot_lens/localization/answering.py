"""Answers of a batch of candidates from the single pass, and what the unedited model thinks of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.behaviour.coherence import per_token
from ot_lens.behaviour.losses import TokenLoss, ended_tokens, reference_answers
from ot_lens.behaviour.panel import Panel
from ot_lens.generation import Completion
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.settings import SweepSettings
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass import Answered, answer_sweep, why_not_answered

# Some answers are generated and verified, which measures the margin: too much for a few candidates.
LEAST = 4

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Given:
    """Answers to one class of prompts, their likelihood without edits; `verified` is a share of tokens."""

    completions: tuple[Completion, ...]
    verified: float
    nll: Float64[Tensor, " prompt"]
    later_nll: Float64[Tensor, " prompt"]
    loss: TokenLoss | None  # of the reference answers


def answered_by_walk(
    model: Any,
    prompts: Contrast,
    candidates: Sequence[Candidate],
    unedited: Mapping[str, Panel],
    answers: Mapping[str, Sequence[Tokens]],
    settings: SweepSettings,
) -> Iterator[tuple[Candidate, dict[str, Given]]]:
    """Answers of the candidates that the single pass serves, by class of prompts; the others are left out.

    All candidates share a token scope; `answers` are those of the unedited model. What it yields depends on
    the whole batch. Raises a SinglePassError if the model cannot be replayed block by block.
    """
    wanted = [c for c in candidates if _is_served(model, c, settings)]
    if len(wanted) < LEAST:
        return
    book = _Book(model, prompts, unedited, answers)
    waves = answer_sweep(
        model,
        book.prompts,
        [candidate.edits for candidate in wanted],
        [book.asked(candidate.prompts) for candidate in wanted],
        book.known(),
        references=book.references,
        tokens=wanted[0].tokens,
        hook=settings.hook,
        max_new_tokens=settings.panel.max_new_tokens,
        batch_size=settings.panel.batch_size,
    )
    yield from ((wanted[answered.candidate], book.given(answered)) for wave in waves for answered in wave)


def _is_served(model: Any, candidate: Candidate, settings: SweepSettings) -> bool:
    return (
        settings.engine != "hooks"
        and settings.panel.needs_answers
        and candidate.generates
        and not candidate.unedited
        and why_not_answered(model, candidate.edits, candidate.tokens, settings.hook) is None
    )


class _Book:
    """The prompts of all classes in one list, and what is known of answers to them."""

    def __init__(
        self,
        model: Any,
        prompts: Contrast,
        unedited: Mapping[str, Panel],
        answers: Mapping[str, Sequence[Tokens]],
    ) -> None:
        self._model = model
        self._classes: dict[str, range] = {}
        self.prompts: list[Prompt] = []
        self._unedited: list[Tokens] = []
        self.references: dict[int, Tokens] = {}
        for label, group in prompts:
            numbers = range(len(self.prompts), len(self.prompts) + len(group))
            self._classes[label] = numbers
            self.prompts += group
            self._unedited += answers[label]
            if unedited[label].loss is not None:
                self.references |= zip(numbers, map(tuple, reference_answers(model, group)), strict=True)

    def asked(self, labels: Sequence[str]) -> list[int]:
        """Numbers of the prompts of some classes."""
        return [number for label, numbers in self._classes.items() if label in labels for number in numbers]

    def known(self) -> list[list[Tokens]]:
        """Answers each prompt may be given: the unedited model's, and those that count as correct."""
        correct = iter(ended_tokens(self._model, [text for p in self.prompts for text in p.answers]))
        return [
            [given, *(tuple(next(correct)) for _ in prompt.answers)]
            for given, prompt in zip(self._unedited, self.prompts, strict=True)
        ]

    def given(self, answered: Answered) -> dict[str, Given]:
        """A candidate's answers by class."""
        return {
            label: self._given(answered, numbers)
            for label, numbers in self._classes.items()
            if numbers[0] in answered.completions
        }

    def _given(self, answered: Answered, numbers: Sequence[int]) -> Given:
        completions = tuple(answered.completions[number] for number in numbers)
        nll, later = per_token([answered.unedited[number] for number in numbers])
        losses = [answered.nll[number] for number in numbers if number in answered.nll]
        verified = sum(answered.verified[number] for number in numbers)
        return Given(
            completions,
            verified / sum(len(c.tokens) for c in completions),
            nll,
            later,
            TokenLoss(torch.stack([x.sum() for x in losses]), torch.tensor([len(x) for x in losses]))
            if losses
            else None,
        )
