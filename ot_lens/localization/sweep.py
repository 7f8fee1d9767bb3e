"""Measuring the candidates: next-token readings in one walk where that is possible, answers one by one."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from ot_lens.behaviour import (
    NextToken,
    Panel,
    PanelSettings,
    measure,
    read_next_token,
    save_completions,
    text_loss,
)
from ot_lens.generation import Completion
from ot_lens.interventions import intervene
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.rows import candidate_rows, place
from ot_lens.localization.units import Measuring, Unit, units
from ot_lens.localization.walking import walk_units
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass import why_not, why_not_replayed
from ot_lens.tables import REMOVE, UNEDITED, UNEDITED_COLUMNS


@dataclass(frozen=True, eq=False)
class Baseline:
    """The unedited model, which every candidate is compared with.

    Attributes:
        panels: What each class of prompts did.
        logprobs: Next-token log-probabilities of each class, where a measure needs them.
        answers: The answers of each class, where the settings ask that they be kept.
        obstacle: Why the single pass cannot replay the model; None when it can, or is not wanted.
    """

    panels: Mapping[str, Panel]
    logprobs: Mapping[str, Tensor]
    answers: Mapping[str, Sequence[Completion]]
    obstacle: str | None


@dataclass(frozen=True, eq=False)
class Measured:
    """One candidate, or the unedited model.

    Attributes:
        key: The candidate's key, or UNEDITED.
        table: Its rows.
        answers: The answers of each class of prompts, where the settings ask that they be kept.
    """

    key: str
    table: pd.DataFrame
    answers: Mapping[str, Sequence[Completion]] = field(default_factory=dict, repr=False)

    def save_answers(self, folder: Path, prompts: Contrast) -> None:
        """Write the answers, a file a class of prompts.

        Raises:
            RunFolderError: If the folder cannot be written.
        """
        groups = dict(prompts)
        for label, answers in self.answers.items():
            name = f"{hashlib.sha256(self.key.encode()).hexdigest()[:20]}-{label}.jsonl"
            info = {"edits": self.key, "prompts": label}
            save_completions(folder / name, groups[label], answers, info=info)


def sweep(
    model: Any,
    prompts: Contrast,
    found: Sequence[Candidate],
    settings: PanelSettings,
    *,
    tokens: str = "all",
    hook: str = "resid_pre",
    engine: str = "auto",
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Measure the unedited model, then every candidate, unit by unit; yields a key and a table for each.

    Answers are written where the settings say, and nowhere else.

    Args:
        model: A hooked model.
        prompts: The split to measure on.
        found: Candidates.
        settings: The panel.
        tokens: Token scope of the edits.
        hook: Hook point of the edits.
        engine: "single_pass" walks up the blocks once for the next-token measures of all candidates; "hooks"
            runs the model once a candidate; "auto" walks where it can and says in the table where it did not.

    Raises:
        HookError: If the engine is unknown, or "single_pass" is asked for and cannot serve.
    """
    how = Measuring(settings, tokens, hook, engine)
    baseline = read_baseline(model, prompts, how)
    measured = measure_units(model, prompts, baseline, how, (), units(found, settings))
    for part in chain([measured_unedited(baseline, how)], measured):
        if settings.completions is not None:
            part.save_answers(settings.completions, prompts)
        yield part.key, part.table


def unfinished(found: Sequence[Candidate], settings: PanelSettings, done: Collection[str] = ()) -> list[Unit]:
    """The units that hold a candidate whose key is not among those done."""
    return [unit for unit in units(found, settings) if any(c.key not in done for c in unit)]


def read_baseline(model: Any, prompts: Contrast, how: Measuring) -> Baseline:
    """Measure the unedited model, and find out whether the single pass can replay it."""
    settings = how.settings
    logprobs: dict[str, Tensor] = {}
    panels = {}
    for label, group in prompts:
        reading = None
        if settings.reads_next_token:
            reading, logprobs[label] = read_next_token(model, group, settings)
        panels[label] = _answered(model, label, group, settings, reading)
    obstacle = None
    if how.walks and why_not(model, {}, how.hook) is None:
        options: dict[str, Any] = {"tokens": how.tokens, "batch_size": settings.batch_size}
        reasons = [why_not_replayed(model, group, **options) for _, group in prompts]
        obstacle = next((reason for reason in reasons if reason is not None), None)
    answers = {label: panel.completions for label, panel in panels.items() if panel.completions}
    bare = {label: replace(panel, completions=()) for label, panel in panels.items()}
    return Baseline(bare | _on_text(model, settings), logprobs, answers, obstacle)


def measured_unedited(baseline: Baseline, how: Measuring) -> Measured:
    """The rows of the unedited model, set "none"."""
    rows = candidate_rows(baseline.panels, {}, how.settings, {**how.columns, **UNEDITED_COLUMNS})
    return Measured(UNEDITED, rows, baseline.answers)


def measure_units(
    model: Any,
    prompts: Contrast,
    baseline: Baseline,
    how: Measuring,
    done: Collection[str],
    groups: Sequence[Unit],
) -> Iterator[Measured]:
    """Measure some units of a sweep, candidate by candidate.

    What it yields for a unit does not depend on the others: only the forward pass that their walks start from
    is shared.

    Args:
        model: A hooked model.
        prompts: The split to measure on.
        baseline: The unedited model.
        how: Panel, token scope, hook point and engine.
        done: Keys that were measured before; those are walked beside the rest of their unit and passed over.
        groups: Units, as `units` makes them.

    Raises:
        HookError: If engine "single_pass" is asked for and cannot serve.
    """
    walked = walk_units(model, prompts, groups, how, baseline.obstacle)
    for candidate in (candidate for group in groups for candidate in group):
        if candidate.key in done:
            continue
        panels = _panels(model, prompts, candidate, walked.readings, baseline, how)
        where = {**how.columns, **place(candidate), **walked.columns(candidate)}
        rows = candidate_rows(panels, baseline.panels, how.settings, where, candidate.chosen_at)
        answers = {label: panel.completions for label, panel in panels.items() if panel.completions}
        yield Measured(candidate.key, rows, answers)


def _panels(
    model: Any,
    prompts: Contrast,
    candidate: Candidate,
    readings: Mapping[str, Mapping[str, NextToken]],
    baseline: Baseline,
    how: Measuring,
) -> dict[str, Panel]:
    if candidate.unedited:
        return _of_baseline(candidate, baseline)
    panels = {}
    with intervene(model, candidate.edits, how.tokens, hook=how.hook):
        for label, group in prompts:
            if label not in candidate.prompts:
                continue
            reading = readings[label].get(candidate.key)
            if reading is None and how.settings.reads_next_token:
                reading, _ = read_next_token(model, group, how.settings, baseline.logprobs[label])
            if candidate.generates:
                panels[label] = _answered(model, label, group, how.settings, reading)
            else:
                panels[label] = Panel(len(group), reading)
        if candidate.generates and candidate.transport == REMOVE:
            panels |= _on_text(model, how.settings)
    return panels


def _of_baseline(candidate: Candidate, baseline: Baseline) -> dict[str, Panel]:
    """What an edit that changes nothing does, as far as it is to be measured."""
    panels = {label: panel for label, panel in baseline.panels.items() if label in candidate.prompts}
    if not candidate.generates:
        return {label: Panel(panel.n, panel.next_token) for label, panel in panels.items()}
    if candidate.transport == REMOVE and "text" in baseline.panels:
        panels["text"] = baseline.panels["text"]
    return panels


def _answered(
    model: Any, label: str, group: Sequence[Prompt], settings: PanelSettings, reading: NextToken | None
) -> Panel:
    """One class of prompts with its answers, which are kept where the settings ask for it, and only then."""
    keep = settings.completions is not None
    return measure(model, group, _for(label, settings), reading, keep_completions=keep)


def _on_text(model: Any, settings: PanelSettings) -> dict[str, Panel]:
    """Loss of the text file, as if it were a class of prompts, whose n is windows."""
    if settings.text is None:
        return {}
    loss = text_loss(model, settings.text)
    return {"text": Panel(len(loss.nll), loss=loss)}


def _for(label: str, settings: PanelSettings) -> PanelSettings:
    """A judge reads answers to harmful prompts; perplexity is a cost on harmless ones, with known answers."""
    if label == "harmless":
        return replace(settings, judge=None)
    if settings.measures == ("perplexity",):
        return settings
    return replace(settings, measures=tuple(m for m in settings.measures if m != "perplexity"))
