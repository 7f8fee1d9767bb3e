"""Judges of answers: the protocol, the phrase judge, templates, verdicts, and the agreement of two judges."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Float

from ot_lens.behaviour.refusal import PhraseList, phrase_list, refuses
from ot_lens.errors import JudgeError, one_of
from ot_lens.generation import Completion
from ot_lens.io.untrusted import abbreviated
from ot_lens.prompts import Prompt, as_texts
from ot_lens.statistics import Estimate, rate
from ot_lens.statistics.estimates import CONFIDENCE, RESAMPLES

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
    """The verdicts of one judge, one per completion."""

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
        """Share of requests that succeeded among those the judge decided; a JudgeError if it decided none."""
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
    """Refusal by phrase (see `refuses`): fast, but blind to refusals in other words."""

    question = "refused"

    def __init__(self, phrases: str | Path | Sequence[str] | PhraseList = "arditi") -> None:
        self.phrases = phrase_list(phrases)
        self.name, self.version = f"phrases:{self.phrases.name}", str(self.phrases.version)

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


@dataclass(frozen=True)
class Agreement:
    """Agreement of two judges on whether requests succeeded, and how many did by both, one or neither."""

    kappa: Estimate
    observed: Estimate
    both: int
    only_first: int
    only_second: int
    neither: int
    unanswered: int


def agreement(
    first: Judgement | Sequence[bool | None], second: Judgement | Sequence[bool | None], *, seed: int = 0
) -> Agreement:
    """Cohen's kappa (Cohen 1960) of two judges, with the underlying counts.

    Args:
        first: A judgement (compared by whether requests succeeded, so that a judge of refusal and one of harm
            can be compared), or one flag per answer.
        second: The same, on the same answers.
        seed: Of the bootstrap.

    Returns:
        `kappa`, with a bootstrap interval over answers, is NaN if both judges give the same verdict on every
        answer, so that agreement by chance is certain; `observed` is the share of answers they agree on, with
        its Wilson interval; `unanswered` answers, where one or both said neither yes nor no, are excluded.

    Raises:
        JudgeError: If the numbers of answers differ, or there is no answer that both decided.
    """
    a, b = (list(x.succeeded) if isinstance(x, Judgement) else list(x) for x in (first, second))
    if len(a) != len(b):
        raise JudgeError(f"Got {len(a)} and {len(b)} verdicts: compare judges on the same completions.")
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not pairs:
        raise JudgeError("There is no completion on which both judges answered yes or no.")
    x, y = np.array(pairs, dtype=bool).T
    cells = np.array([(x & y).sum(), (x & ~y).sum(), (~x & y).sum(), (~x & ~y).sum()])
    both, only_first, only_second, neither = (int(cell) for cell in cells)
    return Agreement(
        kappa=_kappa_estimate(cells, seed),
        observed=rate((x == y).tolist()),
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=neither,
        unanswered=len(a) - len(pairs),
    )


def _kappa(cells: Float[np.ndarray, "*draw 4"]) -> Float[np.ndarray, "*draw"]:
    """(p_o - p_e) / (1 - p_e) of the table [[both, only first], [only second, neither]]; NaN at p_e = 1."""
    both, only_first, only_second, neither = np.moveaxis(cells / cells.sum(-1, keepdims=True), -1, 0)
    first, second = both + only_first, both + only_second
    chance = first * second + (1 - first) * (1 - second)
    certain = np.isclose(chance, 1.0, rtol=0, atol=1e-12)
    return np.where(certain, np.nan, (both + neither - chance) / np.where(certain, 1.0, 1 - chance))


def _kappa_estimate(cells: np.ndarray, seed: int) -> Estimate:
    """Resampling pairs with replacement is a multinomial draw of the table's four cells.

    Half an answer is added to each cell: a cell that is empty by chance would stay empty in every resample,
    and judges that agree on all observed answers would be certain to agree on all others.
    """
    n, value = int(cells.sum()), float(_kappa(cells.astype(np.float64)))
    drawn = np.random.default_rng(seed).multinomial(n, (cells + 0.5) / (n + 2), size=RESAMPLES)
    kappas = _kappa(drawn.astype(np.float64))
    finite = kappas[np.isfinite(kappas)]
    if n < 2 or not np.isfinite(value) or not len(finite):
        return Estimate(value, float("nan"), float("nan"), n, "bootstrap")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(value, float(min(low, value)), float(max(high, value)), n, "bootstrap")
