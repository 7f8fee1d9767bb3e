"""Rows of the sweep measured again: the sweep is planned anew, and some of its candidates are measured."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ot_lens.execution import LocalExecutor, Runner
from ot_lens.localization import Candidate, fit_sweep, measure_sweep, plan_sweep
from ot_lens.localization.rows import identity
from ot_lens.prompts import ContrastSet
from ot_lens.study.checks import sweep_plan
from ot_lens.study.preparation import Prepared
from ot_lens.study.verifying.check import Check, exact, listed
from ot_lens.study.verifying.comparing import compare
from ot_lens.study.verifying.evidence import Evidence
from ot_lens.tables import IDENTITY, TYPES, UNEDITED_COLUMNS

HOW = "measured again"


def swept(
    run: Evidence, executor: LocalExecutor, prompts: ContrastSet, ready: Prepared, tolerance: float
) -> Iterator[Check]:
    """Whether the table holds the planned candidates in their order, and whether some measure the same."""
    runner, acts, plan = Runner(executor), run.acts("train"), sweep_plan(run.config)
    maps = fit_sweep(acts, run.configured_methods, ready.settings, plan)
    found = plan_sweep(runner, prompts, acts, run.configured_methods, maps, ready.settings, plan)
    table = run.sweep
    rows = {str(key): part for key, part in table.groupby("key", sort=False)}
    yield _planned([UNEDITED_COLUMNS, *map(identity, found)], table)
    yield _alike(found, rows, len(table))
    chosen = _chosen(run, found, {key: len(part) for key, part in rows.items()})
    again = measure_sweep(runner, prompts.test, found, ready.settings, keys=chosen)
    stored = [rows[key] for key in again if key in rows]
    expected = pd.concat(list(again.values()), ignore_index=True).astype(TYPES)
    seen = compare(pd.concat(stored, ignore_index=True), expected, tolerance, without=("p_holm",))
    yield seen.check("localization", HOW, len(table), tolerance)


def _planned(candidates: Sequence[Mapping[str, Any]], table: pd.DataFrame) -> Check:
    """Whether the table has the rows of every planned candidate, in order, and no others."""
    planned = {where["key"]: _identity(where) for where in candidates}
    columns = table[list(IDENTITY)].drop_duplicates().to_dict("records")
    stored = [_identity(where) for where in columns]
    keys = [where[0] for where in stored]
    missing = [key for key in planned if key not in set(keys)]
    unknown = [str(key) for key in dict.fromkeys(keys) if key not in planned]
    altered = [str(where[0]) for where in stored if where[0] in planned and planned[where[0]] != where]
    starts = (table["key"] != table["key"].shift()).sum()
    moved = not (missing or unknown or altered) and (keys != list(planned) or starts != len(keys))
    wrong = [
        *([f"no rows of {listed(missing)}"] if missing else []),
        *([f"rows of {listed(unknown)}, which was not planned"] if unknown else []),
        *([f"other columns than planned for {listed(altered)}"] if altered else []),
        *(["rows are in another order"] if moved else []),
    ]
    return exact("localization", "planned again", wrong, len(table))


def _identity(where: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(where[name]) else where[name] for name in IDENTITY)


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


def _alike(found: Sequence[Candidate], rows: Mapping[str, pd.DataFrame], count: int) -> Check:
    """Candidates of one kind have the same measures, so that one that lost or gained a row shows."""
    kinds: dict[tuple[Any, ...], Any] = {}
    wrong = []
    for candidate in found:
        if candidate.key in rows:
            measures = rows[candidate.key][["measure", "prompts", "unit"]].to_numpy().tolist()
            if kinds.setdefault(_kind(candidate), measures) != measures:
                wrong.append(f"{candidate.key} has other measures than others of its kind")
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
        count += sizes.get(candidate.key, 0)
    return [candidate.key for candidate in found if candidate.key in chosen]
