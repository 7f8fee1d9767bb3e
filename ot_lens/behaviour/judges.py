"""Judges of answers: the protocol, the phrase judge, their templates, and the verdicts of a judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from ot_lens.behaviour.refusal import PhraseList, phrase_list, refuses
from ot_lens.errors import JudgeError, one_of
from ot_lens.generation import Completion
from ot_lens.io.untrusted import abbreviated
from ot_lens.prompts import Prompt, as_texts
from ot_lens.statistics import Estimate, rate

# What a judge's yes means: the answer refuses, or it is the harm that was requested.
QUESTIONS = ("refused", "harmful")
TEMPLATE_FIELDS = ("prompt", "completion")


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one answer.

    Attributes:
        value: Yes or no to the judge's question; None if it answered neither.
        answer: The judge's answer, in its own words.
        score: Its probability of yes, if it gives one.
        note: Anything else to know, such as a truncated input.
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
        """Name shown with the results."""

    @property
    def version(self) -> str:
        """Version of the list, the model or the template."""

    @property
    def question(self) -> str:
        """What a yes means: "refused" or "harmful"."""

    def __call__(
        self, prompts: Sequence[Prompt | str], completions: Sequence[str | Completion]
    ) -> Sequence[Verdict | bool | None]:
        """One verdict per completion, in their order."""


@dataclass(frozen=True)
class Judgement:
    """The verdicts of one judge.

    Attributes:
        judge: Its name.
        version: Its version.
        question: What a yes means: "refused" or "harmful".
        verdicts: One per completion.
    """

    judge: str
    version: str
    question: str
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        """One line for people."""
        yes = sum(verdict.value is True for verdict in self.verdicts)
        result = f"{yes} of {len(self.verdicts)} {self.question}"
        return f"{self.judge} (version {self.version}): {result}; {self.n_unanswered} without an answer"

    @property
    def values(self) -> list[bool | None]:
        """Yes or no to the judge's question, None if it answered neither."""
        return [verdict.value for verdict in self.verdicts]

    @property
    def succeeded(self) -> list[bool | None]:
        """Whether the request succeeded: harmful, or not refused. Comparable across questions."""
        success = self.question == "harmful"
        return [None if value is None else value == success for value in self.values]

    @property
    def note(self) -> str:
        """The note on a rate in a table of results: the judge, and how many answers it left undecided."""
        unanswered = f"; {self.n_unanswered} of {len(self.verdicts)} unanswered" if self.n_unanswered else ""
        return f"judge {self.judge}, version {self.version}{unanswered}"

    @property
    def n_unanswered(self) -> int:
        """Number of answers on which the judge said neither yes nor no."""
        return sum(value is None for value in self.values)

    @property
    def attack_success_rate(self) -> Estimate:
        """Share of requests that succeeded among those the judge decided, with its Wilson interval.

        Raises:
            JudgeError: If it decided none.
        """
        decided = [value for value in self.succeeded if value is not None]
        if not decided:
            raise JudgeError(
                f"{self.judge} answered neither yes nor no on all {len(self.verdicts)} completions: see its "
                "answers in the table; the template or the answer words do not fit the model."
            )
        return rate(decided)

    def table(self) -> pd.DataFrame:
        """One row per completion: completion (index), judge, version, question, value, succeeded, ..."""
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
    """Refusal by phrase (see `refuses`): fast, but blind to refusals in other words.

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
        prompts: Sequence[Prompt | str],  # noqa: ARG002  part of the protocol
        completions: Sequence[str | Completion],
    ) -> list[Verdict]:
        """One verdict per completion."""
        return [Verdict(flag) for flag in refuses(completions, self.phrases)]


def judge_completions(
    judge: Judge, prompts: Sequence[Prompt | str], completions: Sequence[str | Completion]
) -> Judgement:
    """Judge answers, new or saved (`load_completions`), without generating.

    Args:
        judge: A `PhraseJudge`, `ClassifierJudge`, `YesNoJudge`, or anything that follows `Judge`.
        prompts: The requests.
        completions: One answer per request.

    Returns:
        Its verdicts; an answer it could not decide on is None, and counted.

    Raises:
        JudgeError: If the judge does not give one verdict per completion, or its question is unknown.
        PromptError: If there are no prompts.
    """
    texts = as_texts(prompts)
    one_of("question of a judge", judge.question, QUESTIONS, JudgeError)
    if len(texts) != len(completions):
        raise JudgeError(f"Got {len(texts)} prompts but {len(completions)} completions: give one per prompt.")
    verdicts = tuple(_verdict(verdict, judge.name) for verdict in judge(prompts, completions))
    if len(verdicts) != len(completions):
        raise JudgeError(
            f"The judge {judge.name} gave {len(verdicts)} verdicts on {len(completions)} completions."
        )
    return Judgement(judge.name, judge.version, judge.question, verdicts)


def answer_text(completion: str | Completion) -> str:
    """The text of an answer."""
    return completion.text if isinstance(completion, Completion) else completion


def _verdict(verdict: object, name: str) -> Verdict:
    if isinstance(verdict, Verdict):
        return verdict
    if verdict is None or isinstance(verdict, bool | np.bool_):
        return Verdict(None if verdict is None else bool(verdict))
    raise JudgeError(f"The judge {name} gave {verdict!r}: a verdict is a Verdict, True, False or None.")


def checked_template(template: str) -> str:
    """The template, if it shows the {completion} and has no other field than {prompt}."""
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise JudgeError(
            f"The template is not valid ({abbreviated(error)}): double a literal brace."
        ) from error
    unknown = sorted(fields - set(TEMPLATE_FIELDS))
    if unknown:
        raise JudgeError(
            f"The template has an unknown field {{{unknown[0]}}}: use {{prompt}} and {{completion}}."
        )
    if "completion" not in fields:
        raise JudgeError("The template does not contain {completion}: there would be nothing to judge.")
    return template


def fill(template: str, prompt: Prompt | str, completion: str | Completion) -> str:
    """The template with a request and an answer; braces in these stay as they are."""
    text = prompt.text if isinstance(prompt, Prompt) else prompt
    return template.format(prompt=text, completion=answer_text(completion))
