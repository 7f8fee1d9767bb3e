"""Rows of the sweep measured again: the sweep is planned anew, and some of its candidates are measured."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ot_lens.execution import LocalExecutor
from ot_lens.localization import (
    UNEDITED,
    Candidate,
    Measuring,
    measure_units,
    measured_unedited,
    plan_sweep,
    read_baseline,
    unfinished,
)
from ot_lens.localization.rows import NOWHERE, TYPES, place
from ot_lens.prompts import ContrastSet
from ot_lens.study.checks import sweep_plan
from ot_lens.study.config import StudyConfig
from ot_lens.study.preparation import Prepared
from ot_lens.study.verifying.check import Check, exact, listed
from ot_lens.study.verifying.comparing import compare
from ot_lens.study.verifying.evidence import Evidence

PLACE = (
    "set", "layers", "layer", "method", "k", "strength", "transport", "control", "draw", "fitting",
)  # fmt: skip
HOW = "measured again"
Place = tuple[Any, ...]


def swept(
    run: Evidence, executor: LocalExecutor, prompts: ContrastSet, ready: Prepared, tolerance: float
) -> Iterator[Check]:
    """Whether the table holds the planned candidates in their order, and whether some measure the same."""
    config = run.config
    found, _ = executor.call(
        plan_sweep,
        prompts,
        run.acts("train"),
        run.asked,
        ready.layers,
        ready.settings,
        sweep_plan(config),
        position=config.position,
        hook=config.hook,
        tokens=config.tokens,
    )
    table = run.sweep
    rows = rows_by_candidate(table)
    places = dict(
        zip([UNEDITED, *(c.key for c in found)], _numbered([NOWHERE, *map(place, found)]), strict=True)
    )
    yield _planned(list(places.values()), list(rows), len(table))
    yield _alike(found, places, rows, len(table))
    chosen = _chosen(run, found, {key: len(rows.get(where, ())) for key, where in places.items()})
    again = _measured(executor, prompts, found, chosen, ready, config)
    stored = [rows[places[key]] for key in again if places[key] in rows]
    expected = pd.concat(list(again.values()), ignore_index=True).astype(TYPES)
    seen = compare(pd.concat(stored, ignore_index=True), expected, tolerance, without=("p_holm",))
    yield seen.check("localization", HOW, len(table), tolerance)


def _measured(
    executor: LocalExecutor,
    prompts: ContrastSet,
    found: Sequence[Candidate],
    chosen: Sequence[str],
    ready: Prepared,
    config: StudyConfig,
) -> dict[str, pd.DataFrame]:
    """Rows of the unedited model and of chosen candidates, each measured beside the rest of its unit."""
    how = Measuring(ready.settings, config.tokens, config.hook, config.engine)
    baseline = executor.call(read_baseline, prompts.test, how)
    done = frozenset(c.key for c in found) - frozenset(chosen)
    groups = unfinished(found, ready.settings, done)
    again = {UNEDITED: measured_unedited(baseline, how).table}
    stream = executor.stream(measure_units, groups, prompts.test, baseline, how, done)
    again |= {part.key: part.table for part in stream}
    return {key: again[key] for key in (UNEDITED, *chosen)}


def rows_by_candidate(table: pd.DataFrame) -> dict[Place, pd.DataFrame]:
    """Rows of each candidate by its place in the table; a measure that comes again begins another one."""
    columns = [[None if pd.isna(v) else v for v in table[name].tolist()] for name in PLACE]
    measured = list(zip(table["measure"], table["prompts"], strict=True))
    starts: list[int] = []
    seen: set[tuple[str, str]] = set()
    wheres = list(zip(*columns, strict=True))
    for row, (where, measure) in enumerate(zip(wheres, measured, strict=True)):
        if not row or where != wheres[row - 1] or measure in seen:
            starts.append(row)
            seen = set()
        seen.add(measure)
    keys = _numbered([dict(zip(PLACE, wheres[start], strict=True)) for start in starts])
    ends = [*starts[1:], len(table)]
    return {k: table.iloc[a:b] for k, a, b in zip(keys, starts, ends, strict=True)}


def _numbered(places: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Places as tuples; methods that differ in a parameter which the table has no column for are counted."""
    counts: Counter[Place] = Counter()
    found = []
    for where in places:
        key = tuple(None if pd.isna(where[name]) else where[name] for name in PLACE)
        found.append((*key, counts[key]))
        counts[key] += 1
    return found


def _planned(planned: Sequence[Place], held: Sequence[Place], rows: int) -> Check:
    """Every candidate of the plan stands there, in its place, and no other does."""
    lacking = [_told(p) for p in planned if p not in set(held)]
    more = [_told(p) for p in held if p not in set(planned)]
    moved = not lacking and not more and list(planned) != list(held)
    wrong = [
        *([f"no rows of {listed(lacking)}"] if lacking else []),
        *([f"rows of {listed(more)}, which was not planned"] if more else []),
        *(["rows stand in another order"] if moved else []),
    ]
    return exact("localization", "planned again", wrong, rows)


def _told(key: Place) -> str:
    return " ".join(str(part) for part in key[:-1] if part not in (None, "", 1.0))


def _kind(candidate: Candidate) -> tuple[Any, ...]:
    """Candidates of one kind have rows of the same measures."""
    return (
        candidate.layer_set,
        candidate.transport,
        candidate.control,
        candidate.generates,
        candidate.prompts,
        candidate.chosen_at is None,
    )


def _alike(
    found: Sequence[Candidate], places: Mapping[str, Place], rows: Mapping[Place, pd.DataFrame], count: int
) -> Check:
    """Candidates of one kind have the same measures, so that one that lost or gained a row shows."""
    kinds: dict[tuple[Any, ...], Any] = {}
    wrong = []
    for candidate in found:
        where = places[candidate.key]
        if where in rows:
            held = rows[where][["measure", "prompts", "unit"]].to_numpy().tolist()
            if kinds.setdefault(_kind(candidate), held) != held:
                wrong.append(f"{_told(where)} has other measures than its like")
    return exact("localization", "measures alike", wrong, count)


def _chosen(run: Evidence, found: Sequence[Candidate], sizes: Mapping[str, int]) -> list[str]:
    """One candidate of every kind, then others, until they have the rows asked for; in their own order."""
    if run.sample is None:
        return [candidate.key for candidate in found]
    order = run.choice("localization", found)
    first = {_kind(candidate): candidate for candidate in reversed(order)}
    queue = [*first.values(), *(c for c in order if first[_kind(c)] is not c)]
    chosen: set[str] = set()
    count = 0
    for number, candidate in enumerate(queue):
        if number >= len(first) and count >= run.sample:
            break
        chosen.add(candidate.key)
        count += sizes[candidate.key]
    return [candidate.key for candidate in found if candidate.key in chosen]
