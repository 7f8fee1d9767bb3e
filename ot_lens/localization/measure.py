"""Measuring the candidates: next tokens and answers in one walk where possible, else one by one."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float64
from torch import Tensor

from ot_lens.behaviour import save_completions, text_loss
from ot_lens.behaviour.panel import NextToken, Panel, PanelSettings, measure, read_next_token, with_nll
from ot_lens.errors import SinglePassError
from ot_lens.execution import RunCache, Runner, as_runner
from ot_lens.generation import Completion
from ot_lens.interventions import intervene
from ot_lens.localization.answering import Given, answered_by_walk
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.outcomes import outcome_rows
from ot_lens.localization.outside import counted, out_of_domain, warn_of_domains
from ot_lens.localization.rows import candidate_rows, identity
from ot_lens.localization.settings import SweepSettings
from ot_lens.localization.walking import CandidateBatch, Walked, candidate_batches, walk_batch
from ot_lens.models import HFBackend, backend, encode
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass import why_not
from ot_lens.single_pass.packed import packing
from ot_lens.tables import OUTCOMES, REMOVE, UNEDITED, UNEDITED_COLUMNS

# Name in the cache of the outcomes of the candidate of a key.
OUTCOMES_OF = "outcomes|"


@dataclass(frozen=True, eq=False)
class Measured:
    """A candidate, or the unedited model, by its key: its rows, and what the settings ask for besides."""

    key: str
    rows: pd.DataFrame
    outcomes: pd.DataFrame | None  # one row per prompt
    answers: Mapping[str, Sequence[Completion]]


@dataclass(frozen=True, eq=False)
class Baseline:
    """The unedited model, which every candidate is compared with."""

    panels: Mapping[str, Panel]  # without the next token, which is read with each batch of candidates
    answers: Mapping[str, Sequence[tuple[int, ...]]]  # as tokens, where a measure needs them


def measure_sweep(
    model: Any,
    prompts: Contrast,
    candidates: Sequence[Candidate],
    settings: SweepSettings,
    *,
    keys: Collection[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """Rows of the unedited model (key UNEDITED) and of each candidate, in the order of `candidates`.

    Those in the runner's cache are not measured again. Given `keys`, only these candidates are measured, with
    the same values as in the whole sweep. Answers are written where the settings say, and nowhere else.
    With `settings.outcomes`, the runner's cache also holds each prompt's outcome: see `outcomes_in`.

    Warns:
        OutOfDomainWarning: If maps that move a distribution act where they were not fitted.
    """
    runner = as_runner(model)
    wanted = [UNEDITED, *(c.key for c in candidates if keys is None or c.key in keys)]
    missing = frozenset(key for key in wanted if key not in runner.cache)
    report = progress or (lambda _: None)
    for key in wanted:
        if key not in missing:
            report(key)
    for measured in _measured(runner, prompts, candidates, settings, missing):
        if settings.panel.completions is not None:
            _save_answers(settings.panel.completions, measured.key, measured.answers, prompts)
        if measured.outcomes is not None:  # before the rows, which say that the candidate is done
            runner.cache[OUTCOMES_OF + measured.key] = measured.outcomes
        runner.cache[measured.key] = measured.rows
        report(measured.key)
    tables = {key: runner.cache[key] for key in wanted}
    warn_of_domains(pd.concat(tables.values()))
    return tables


def outcomes_in(cache: RunCache, keys: Iterable[str]) -> pd.DataFrame:
    """Each prompt's outcome under the unedited model and the candidates of some keys, measured before.

    Columns: see `ot_lens.tables.OUTCOMES`. The sweep that measured them had `outcomes` in its settings.
    """
    tables = [cache[OUTCOMES_OF + key] for key in keys]
    return pd.concat(tables, ignore_index=True).astype(OUTCOMES)


def _measured(
    runner: Runner,
    prompts: Contrast,
    candidates: Sequence[Candidate],
    settings: SweepSettings,
    missing: Collection[str],
) -> Iterator[Measured]:
    if not missing:
        return
    baseline = runner.call(measure_baseline, prompts, settings)
    batches = [
        batch
        for batch in candidate_batches(candidates, settings.panel)
        if (batch.unedited and UNEDITED in missing) or any(c.key in missing for c in batch.candidates)
    ]
    yield from runner.stream(measure_batches, batches, prompts, baseline, settings, missing)


def measure_baseline(model: Any, prompts: Contrast, settings: SweepSettings) -> Baseline:
    """The unedited model's answers and losses."""
    panels, answers = {}, {}
    for label, group in prompts:
        measured = measure(model, group, settings.panel, None, label)
        answers[label] = [answer.tokens for answer in measured.completions]
        panels[label] = with_nll(model, group, measured, settings.panel)
    return Baseline(panels | _on_text(model, settings.panel), answers)


def measure_batches(
    model: Any,
    prompts: Contrast,
    baseline: Baseline,
    settings: SweepSettings,
    keys: Collection[str],
    batches: Sequence[CandidateBatch],
) -> Iterator[Measured]:
    """Measure some batches; candidates not in `keys` only take part in what their batch does together."""
    for batch in batches:
        walked = walk_batch(model, prompts, batch, settings)
        unedited = _Unedited(model, prompts, baseline, walked, settings, batch.tokens)
        if batch.unedited and UNEDITED in keys:
            columns = {**settings.columns, **UNEDITED_COLUMNS}
            panels = unedited.panels()
            rows = candidate_rows(panels, {}, settings.panel, columns)
            outcomes = outcome_rows(UNEDITED, panels, panels) if settings.outcomes else None
            yield Measured(UNEDITED, rows, outcomes, _answers(baseline.panels))
        for candidate, given, note in _with_answers(model, prompts, batch, baseline, walked, settings):
            if candidate.key not in keys:
                continue
            before = unedited.panels(candidate)
            panels = _panels(model, prompts, candidate, walked, unedited, settings, given)
            columns = {**settings.columns, **identity(candidate), **walked.columns[candidate.key]}
            columns["note"] = columns["note"] or note
            outside = unedited.outside(candidate)
            rows = candidate_rows(panels, before, settings.panel, columns, candidate, outside)
            outcomes = outcome_rows(candidate.key, panels, before) if settings.outcomes else None
            yield Measured(candidate.key, rows, outcomes, _answers(panels))


class _Unedited:
    """The unedited model beside a batch. Where hooks read the next token, they read it without edits too."""

    def __init__(
        self,
        model: Any,
        prompts: Contrast,
        baseline: Baseline,
        walked: Walked,
        settings: SweepSettings,
        tokens: str | None,
    ) -> None:
        self._model, self._prompts, self._settings = model, dict(prompts), settings
        self._panels, self._walked, self._tokens = baseline.panels, walked, tokens
        self._hooked: dict[str, _Hooked] = {}
        self._outside: dict[str, Tensor] = {}

    def hooked(self, label: str) -> "_Hooked":
        """The next token after a class of prompts as hooks read it; to be called without interventions."""
        if label not in self._hooked:
            group, packs = self._prompts[label], self._packing(label)
            reading, logprobs = read_next_token(self._model, group, self._settings.panel, packs=packs)
            self._hooked[label] = _Hooked(reading, logprobs, packs)
        return self._hooked[label]

    def panels(self, candidate: Candidate | None = None) -> dict[str, Panel]:
        """The panels that a candidate is compared with, read as its own are."""
        return {
            label: panel
            if label not in self._prompts
            else replace(panel, next_token=self._next(label, candidate))
            for label, panel in self._panels.items()
        }

    def outside(self, candidate: Candidate) -> tuple[int, int] | None:
        """How many of the activations that a candidate touches lie outside, of how many."""
        if not candidate.domains:
            return None
        label = candidate.prompts[0]
        if candidate.key in self._walked.readings.get(label, {}) and candidate.tokens != "generated":
            return out_of_domain(candidate, self._walked.outside[label])
        if label not in self._outside:
            arguments = self._prompts[label], candidate.domains, candidate.tokens, self._settings
            self._outside[label] = counted(self._model, *arguments)
        return out_of_domain(candidate, self._outside[label])

    def _next(self, label: str, candidate: Candidate | None) -> NextToken | None:
        if not self._settings.panel.reads_next_token or (candidate and label not in candidate.prompts):
            return None
        walked = self._walked.readings.get(label, {})
        if walked and (candidate is None or candidate.key in walked):
            return self._walked.unedited[label]
        return self.hooked(label).reading

    def _packing(self, label: str) -> HFBackend | None:
        """The model if it reads prompts packed, which edits of all tokens alone allow."""
        if not self._settings.walks or self._tokens != "all" or why_not(self._model, {}):
            return None
        served = backend(self._model)
        return packing(served, encode(served, self._prompts[label]))


@dataclass(frozen=True, eq=False)
class _Hooked:
    """What hooks read of the unedited model's next token, and how they do."""

    reading: NextToken
    logprobs: Float64[Tensor, "prompt d_vocab"]
    packs: HFBackend | None


def _with_answers(
    model: Any,
    prompts: Contrast,
    batch: CandidateBatch,
    baseline: Baseline,
    walked: Walked,
    settings: SweepSettings,
) -> Iterator[tuple[Candidate, Mapping[str, Given], str]]:
    """Each candidate with the answers that the single pass gives; with none, and a note, where it cannot."""
    answered, note = set(), ""
    if walked.obstacle is None:
        arguments = batch.candidates, baseline.panels, baseline.answers, settings
        try:
            for candidate, given in answered_by_walk(model, prompts, *arguments):
                answered.add(candidate.key)
                yield candidate, given, ""
        except SinglePassError as error:
            note = f"plain hooks for answers: {error}"
    yield from ((candidate, {}, note) for candidate in batch.candidates if candidate.key not in answered)


def _answers(panels: Mapping[str, Panel]) -> dict[str, Sequence[Completion]]:
    return {label: panel.completions for label, panel in panels.items() if panel.completions}


def _save_answers(
    folder: Path, key: str, answers: Mapping[str, Sequence[Completion]], prompts: Contrast
) -> None:
    """Write answers, one file per class of prompts."""
    for label, given in answers.items():
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:20]}-{label}.jsonl"
        save_completions(folder / name, dict(prompts)[label], given, info={"edits": key, "prompts": label})


def _panels(
    model: Any,
    prompts: Contrast,
    candidate: Candidate,
    walked: Walked,
    unedited: _Unedited,
    settings: SweepSettings,
    given: Mapping[str, Given],
) -> dict[str, Panel]:
    if candidate.unedited:
        return _of_baseline(candidate, unedited.panels(candidate))
    groups = {label: group for label, group in prompts if label in candidate.prompts}
    readings = {label: walked.readings.get(label, {}).get(candidate.key) for label in groups}
    hooked = [label for label in groups if readings[label] is None and settings.panel.reads_next_token]
    before = {label: unedited.hooked(label) for label in hooked}
    panels = {}
    with intervene(model, candidate.edits, candidate.tokens, hook=settings.hook):
        for label, group in groups.items():
            reading = readings[label]
            if label in before:
                own = before[label]
                reading, _ = read_next_token(model, group, settings.panel, own.logprobs, own.packs)
            if label in given:
                panels[label] = _of_given(model, group, label, given[label], reading, settings)
            elif candidate.generates:
                panels[label] = measure(model, group, settings.panel, reading, label)
            else:
                panels[label] = Panel(len(group), reading)
        if candidate.generates and candidate.transport == REMOVE:
            panels |= _on_text(model, settings.panel)
    for label, group in groups.items():
        panels[label] = with_nll(model, group, panels[label], settings.panel)
    return panels


def _of_given(
    model: Any,
    group: Sequence[Prompt],
    label: str,
    given: Given,
    reading: NextToken | None,
    settings: SweepSettings,
) -> Panel:
    """The panel of answers that the single pass gave."""
    panel = measure(model, group, settings.panel, reading, label, given.completions, given.loss)
    return replace(panel, nll=given.nll, later_nll=given.later_nll, verified=given.verified)


def _of_baseline(candidate: Candidate, unedited: Mapping[str, Panel]) -> dict[str, Panel]:
    """The panels of an edit that changes nothing."""
    panels = {label: panel for label, panel in unedited.items() if label in candidate.prompts}
    if not candidate.generates:
        return {label: Panel(panel.n, panel.next_token) for label, panel in panels.items()}
    if candidate.transport == REMOVE and "text" in unedited:
        panels["text"] = unedited["text"]
    return panels


def _on_text(model: Any, panel: PanelSettings) -> dict[str, Panel]:
    """Loss of the text file, as if it were a class of prompts; its n is the number of windows."""
    if panel.text is None:
        return {}
    loss = text_loss(model, panel.text)
    return {"text": Panel(len(loss.nll), loss=loss)}
