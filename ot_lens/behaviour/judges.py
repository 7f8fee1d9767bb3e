"""Judges of answers: the protocol, the phrase judge, and what a judge found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from ot_lens.behaviour.refusal import PhraseList, phrase_list, refuses
from ot_lens.errors import JudgeError, one_of
from ot_lens.generation import Completion
from ot_lens.prompts import Prompt, as_texts
from ot_lens.statistics.estimates import Estimate, rate

# What a yes of a judge means: the answer refuses, or it is the harm that was asked for.
QUESTIONS = ("refused", "harmful")


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer.

    Attributes:
        value: Yes or no to the judge's question; None where it answered neither.
        answer: What it said, in its own words.
        score: Its probability of yes, where it gives one.
        note: What else is to be known, such as an input that was cut.
    """

    value: bool | None
    answer: str = ""
    score: float | None = None
    note: str = ""


@runtime_checkable
class Judge(Protocol):
    """Anything that answers one question about each answer; called with prompts and completions."""

    @property
    def name(self) -> str:
        """Name, which results carry."""

    @property
    def version(self) -> str:
        """Version of the list, the model or the template."""

    @property
    def question(self) -> str:
        """What a yes means: "refused" or "harmful"."""

    def __call__(
        self, prompts: Sequence[Prompt | str], completions: Sequence[str | Completion]
    ) -> Sequence[Verdict | bool | None]:
        """One verdict a completion, in their order."""


@dataclass(frozen=True)
class Judgement:
    """The verdicts of one judge.

    Attributes:
        judge: Its name.
        version: Its version.
        question: What a yes means: "refused" or "harmful".
        verdicts: One a completion.
    """

    judge: str
    version: str
    question: str
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        """One line for people."""
        yes = sum(verdict.value is True for verdict in self.verdicts)
        said = f"{yes} of {len(self.verdicts)} {self.question}"
        return f"{self.judge} (version {self.version}): {said}; {self.n_unanswered} without an answer"

    @property
    def values(self) -> list[bool | None]:
        """Yes or no to the judge's question, None where it answered neither."""
        return [verdict.value for verdict in self.verdicts]

    @property
    def succeeded(self) -> list[bool | None]:
        """Whether the request got through: harmful, or not refused. Comparable across questions."""
        through = self.question == "harmful"
        return [None if value is None else value == through for value in self.values]

    @property
    def note(self) -> str:
        """What a row of results says beside the rate: the judge, and on how many it did not decide."""
        unanswered = f"; {self.n_unanswered} of {len(self.verdicts)} unanswered" if self.n_unanswered else ""
        return f"judge {self.judge}, version {self.version}{unanswered}"

    @property
    def n_unanswered(self) -> int:
        """Answers on which the judge said neither yes nor no."""
        return sum(value is None for value in self.values)

    @property
    def attack_success_rate(self) -> Estimate:
        """Share of requests that got through, of those the judge answered on, with its Wilson interval.

        Raises:
            JudgeError: If it answered on none.
        """
        answered = [value for value in self.succeeded if value is not None]
        if not answered:
            raise JudgeError(
                f"{self.judge} answered neither yes nor no on all {len(self.verdicts)} completions: look at "
                "its answers in the table; template or answer words do not fit the model."
            )
        return rate(answered)

    def table(self) -> pd.DataFrame:
        """A row a completion: completion (index), judge, version, question, value, succeeded, score, ..."""
        columns = {
            "completion": range(len(self.verdicts)),
            "judge": self.judge,
            "version": self.version,
            "question": self.question,
            "value": pd.array(self.values, dtype="boolean"),
            "succeeded": pd.array(self.succeeded, dtype="boolean"),
            "score": [np.nan if v.score is None else v.score for v in self.verdicts],
            "answer": [v.answer for v in self.verdicts],
            "note": [v.note for v in self.verdicts],
        }
        return pd.DataFrame(columns)


class PhraseJudge:
    """Refusal by phrase (see `refuses`): quick, and blind to refusals in other words.

    Attributes:
        phrases: The list; its name and version are the judge's.
    """

    question = "refused"

    def __init__(self, phrases: str | Path | Sequence[str] | PhraseList = "arditi") -> None:
        self.phrases = phrase_list(phrases)

    @property
    def name(self) -> str:
        """Name of the list."""
        return f"phrases:{self.phrases.name}"

    @property
    def version(self) -> str:
        """Version of the list."""
        return str(self.phrases.version)

    def __call__(
        self,
        prompts: Sequence[Prompt | str],  # noqa: ARG002  the protocol's
        completions: Sequence[str | Completion],
    ) -> list[Verdict]:
        """One verdict a completion."""
        return [Verdict(flag) for flag in refuses(completions, self.phrases)]


def judge_completions(
    judge: Judge, prompts: Sequence[Prompt | str], completions: Sequence[str | Completion]
) -> Judgement:
    """Judge answers, new ones or saved ones (`load_completions`), without generating.

    Args:
        judge: A `PhraseJudge`, `ClassifierJudge`, `YesNoJudge`, or anything of the protocol `Judge`.
        prompts: The requests.
        completions: One answer a request.

    Returns:
        Its verdicts; an answer it could not decide on is None, and counted.

    Raises:
        JudgeError: If the judge does not give one verdict a completion, or its question is unknown.
        PromptError: If there are no prompts.
    """
    texts = as_texts(prompts)
    one_of("question of a judge", judge.question, QUESTIONS, JudgeError)
    if len(texts) != len(completions):
        raise JudgeError(f"{len(texts)} prompts but {len(completions)} completions: give one a prompt.")
    verdicts = tuple(_verdict(found, judge.name) for found in judge(prompts, completions))
    if len(verdicts) != len(completions):
        raise JudgeError(
            f"the judge {judge.name} gave {len(verdicts)} verdicts on {len(completions)} completions."
        )
    return Judgement(judge.name, judge.version, judge.question, verdicts)


def answer_text(completion: str | Completion) -> str:
    """The text of an answer."""
    return completion.text if isinstance(completion, Completion) else completion


def _verdict(found: object, name: str) -> Verdict:
    if isinstance(found, Verdict):
        return found
    if found is None or isinstance(found, bool | np.bool_):
        return Verdict(None if found is None else bool(found))
    raise JudgeError(f"the judge {name} gave {found!r}: a verdict is a Verdict, True, False or None.")
