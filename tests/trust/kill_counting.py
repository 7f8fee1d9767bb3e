"""Notes of what a run really computes, here or on a worker of Ray: one line each, appended to one file."""

import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from ot_lens.activations import shards
from ot_lens.execution import runner
from ot_lens.localization import measure, walking

named, measure_batches = runner.run_named, measure.measure_batches


def note(log: str, line: str) -> None:
    """Append a line in one write, so that lines of several processes do not mix."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def captured(log: str, model: Any, prompts: Any, plan: Any, found: Any) -> Iterator[Any]:
    """In place of `ot_lens.activations.captured`: notes each shard as its forward pass begins."""
    whole = len(plan.layers) > 1 and not plan.settings.edits  # what a study stores
    for shard in found:
        if whole:
            note(log, f"shard {plan.key['prompts'][:8]} {shard.name}")
        yield from shards.captured(model, prompts, plan, [shard])


def batches(log: str, *arguments: Any) -> Iterator[Any]:
    """In place of `ot_lens.localization.measure_batches`: notes each candidate and each walk."""
    panels, walk = measure._panels, walking.observed_sweep

    def noted_panels(model: Any, prompts: Any, candidate: Any, *rest: Any) -> Any:
        note(log, f"candidate {candidate.key}")
        return panels(model, prompts, candidate, *rest)

    def noted_walk(model: Any, prompts: Any, edits: Any, *given: Any, **options: Any) -> Any:
        note(log, f"walk {len(edits)}")
        return walk(model, prompts, edits, *given, **options)

    with (
        patch.object(measure, "_panels", noted_panels),
        patch.object(walking, "observed_sweep", noted_walk),
    ):
        yield from measure_batches(*arguments)


def tasks(log: str, model: Any, function: Any, arguments: Any, found: Any) -> Iterator[Any]:
    """In place of `ot_lens.execution.runner.run_named`: notes each task."""
    for task in found:
        note(log, f"{task[0].partition('|')[0]} {task[0]}")
        yield from named(model, function, arguments, [task])


def called(log: str, name: str, function: Any, *arguments: Any, **options: Any) -> Any:
    """function(...), noted by a name."""
    note(log, name)
    return function(*arguments, **options)
