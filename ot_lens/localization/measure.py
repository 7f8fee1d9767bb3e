"""Measuring the candidates: next tokens and answers in one walk where possible, else one by one."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from ot_lens.behaviour import save_completions, text_loss
from ot_lens.behaviour.panel import NextToken, Panel, PanelSettings, measure, read_next_token, with_nll
from ot_lens.errors import SinglePassError
from ot_lens.execution import Runner, as_runner
from ot_lens.generation import Completion
from ot_lens.interventions import intervene
from ot_lens.localization.answering import Given, answered_by_walk
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.rows import candidate_rows, identity
from ot_lens.localization.settings import AUTO, SweepSettings
from ot_lens.localization.walking import CandidateBatch, candidate_batches, walk_batches
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass import why_not, why_not_replayed
from ot_lens.tables import REMOVE, UNEDITED, UNEDITED_COLUMNS

# Key of a candidate or of the unedited model, its rows, and its answers where the settings ask for them.
Measured = tuple[str, pd.DataFrame, Mapping[str, Sequence[Completion]]]


@dataclass(frozen=True, eq=False)
class Baseline:
    """The unedited model, which every candidate is compared with."""

    panels: Mapping[str, Panel]
    logprobs: Mapping[str, Tensor]  # of the next token, where a measure needs them
    answers: Mapping[str, Sequence[tuple[int, ...]]]  # as tokens, where a measure needs them
    obstacle: str | None  # why the single pass cannot replay the model; None if it can or is not used


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
    """
    runner = as_runner(model)
    wanted = [UNEDITED, *(c.key for c in candidates if keys is None or c.key in keys)]
    missing = frozenset(key for key in wanted if key not in runner.cache)
    report = progress or (lambda _: None)
    for key in wanted:
        if key not in missing:
            report(key)
    for key, table, answers in _measured(runner, prompts, candidates, settings, missing):
        if settings.panel.completions is not None:
            _save_answers(settings.panel.completions, key, answers, prompts)
        runner.cache[key] = table
        report(key)
    return {key: runner.cache[key] for key in wanted}


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
    if UNEDITED in missing:
        rows = candidate_rows(baseline.panels, {}, settings.panel, {**settings.columns, **UNEDITED_COLUMNS})
        yield UNEDITED, rows, _answers(baseline.panels)
    bare = {label: replace(panel, completions=()) for label, panel in baseline.panels.items()}
    batches = [
        batch
        for batch in candidate_batches(candidates, settings.panel)
        if any(candidate.key in missing for candidate in batch)
    ]
    arguments = prompts, replace(baseline, panels=bare), settings, missing
    yield from runner.stream(measure_batches, batches, *arguments)


def measure_baseline(model: Any, prompts: Contrast, settings: SweepSettings) -> Baseline:
    """Measure the unedited model, and find out whether the single pass can replay it."""
    panel = settings.panel
    logprobs: dict[str, Tensor] = {}
    panels, answers = {}, {}
    for label, group in prompts:
        reading = None
        if panel.reads_next_token:
            reading, logprobs[label] = read_next_token(model, group, panel)
        measured = measure(model, group, panel, reading, label)
        answers[label] = [answer.tokens for answer in measured.completions]
        panels[label] = with_nll(model, group, measured, panel)
    obstacle = None
    if settings.walks and why_not(model, {}, settings.hook) is None:
        scopes = ("all", "last") if settings.tokens == AUTO else (settings.tokens,)
        reasons = [
            why_not_replayed(model, group, tokens=scope, batch_size=panel.batch_size)
            for _, group in prompts
            for scope in scopes
        ]
        obstacle = next((reason for reason in reasons if reason is not None), None)
    return Baseline(panels | _on_text(model, panel), logprobs, answers, obstacle)


def measure_batches(
    model: Any,
    prompts: Contrast,
    baseline: Baseline,
    settings: SweepSettings,
    keys: Collection[str],
    batches: Sequence[CandidateBatch],
) -> Iterator[Measured]:
    """Measure some batches; candidates not in `keys` only take part in what their batch does together.

    What it yields for a batch does not depend on the other batches: their walks only share the forward pass
    that they start from.
    """
    readings, walked = walk_batches(model, prompts, batches, settings, baseline.obstacle)
    for batch in batches:
        for candidate, given, note in _with_answers(model, prompts, batch, baseline, settings):
            if candidate.key not in keys:
                continue
            panels = _panels(model, prompts, candidate, readings, baseline, settings, given)
            columns = {**settings.columns, **identity(candidate), **walked[candidate.key]}
            columns["note"] = columns["note"] or note
            rows = candidate_rows(panels, baseline.panels, settings.panel, columns, candidate)
            yield candidate.key, rows, _answers(panels)


def _with_answers(
    model: Any, prompts: Contrast, batch: CandidateBatch, baseline: Baseline, settings: SweepSettings
) -> Iterator[tuple[Candidate, Mapping[str, Given], str]]:
    """Each candidate with the answers that the single pass gives; with none, and a note, where it cannot."""
    answered, note = set(), ""
    if baseline.obstacle is None:
        panels, answers = baseline.panels, baseline.answers
        try:
            for candidate, given in answered_by_walk(model, prompts, batch, panels, answers, settings):
                answered.add(candidate.key)
                yield candidate, given, ""
        except SinglePassError as error:
            note = f"plain hooks for answers: {error}"
    yield from ((candidate, {}, note) for candidate in batch if candidate.key not in answered)


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
    readings: Mapping[str, Mapping[str, NextToken]],
    baseline: Baseline,
    settings: SweepSettings,
    given: Mapping[str, Given],
) -> dict[str, Panel]:
    if candidate.unedited:
        return _of_baseline(candidate, baseline)
    panels = {}
    with intervene(model, candidate.edits, candidate.tokens, hook=settings.hook):
        for label, group in prompts:
            if label not in candidate.prompts:
                continue
            reading = readings[label].get(candidate.key)
            if reading is None and settings.panel.reads_next_token:
                reading, _ = read_next_token(model, group, settings.panel, baseline.logprobs[label])
            if label in given:
                panels[label] = _of_given(model, group, label, given[label], reading, settings)
            elif candidate.generates:
                panels[label] = measure(model, group, settings.panel, reading, label)
            else:
                panels[label] = Panel(len(group), reading)
        if candidate.generates and candidate.transport == REMOVE:
            panels |= _on_text(model, settings.panel)
    for label, group in prompts:
        if label in panels:
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


def _of_baseline(candidate: Candidate, baseline: Baseline) -> dict[str, Panel]:
    """The panels of an edit that changes nothing."""
    panels = {label: panel for label, panel in baseline.panels.items() if label in candidate.prompts}
    if not candidate.generates:
        return {label: Panel(panel.n, panel.next_token) for label, panel in panels.items()}
    if candidate.transport == REMOVE and "text" in baseline.panels:
        panels["text"] = baseline.panels["text"]
    return panels


def _on_text(model: Any, panel: PanelSettings) -> dict[str, Panel]:
    """Loss of the text file, as if it were a class of prompts; its n is the number of windows."""
    if panel.text is None:
        return {}
    loss = text_loss(model, panel.text)
    return {"text": Panel(len(loss.nll), loss=loss)}
