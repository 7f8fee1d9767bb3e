"""The sweep planned again, and some of its candidates measured again."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from ot_lens.execution import Runner
from ot_lens.localization import Candidate, fit_sweep, measure_sweep, plan_sweep
from ot_lens.localization.rows import identity
from ot_lens.prompts import ContrastSet
from ot_lens.study.checks import sweep_plan
from ot_lens.study.preparation import Prepared
from ot_lens.study.verifying.check import Check, exact, listed
from ot_lens.study.verifying.comparing import compare
from ot_lens.study.verifying.evidence import Evidence
from ot_lens.tables import IDENTITY, TYPES, UNEDITED_COLUMNS


def swept(
    run: Evidence, runner: Runner, prompts: ContrastSet, ready: Prepared, tolerance: float
) -> Iterator[Check]:
    """Whether the table has the planned candidates in order, and whether some of them measure the same."""
    acts, methods, plan = run.acts("train"), run.configured_methods, sweep_plan(run.config)
    maps = fit_sweep(acts, methods, ready.settings, plan)
    candidates = plan_sweep(runner, prompts, acts, methods, maps, ready.settings, plan)
    table = run.sweep
    rows = {str(key): group for key, group in table.groupby("key", sort=False)}
    yield _check_plan([UNEDITED_COLUMNS, *map(identity, candidates)], table)
    yield _check_measures(candidates, rows, len(table))
    keys = _sampled(run, candidates, {key: len(group) for key, group in rows.items()})
    again = measure_sweep(runner, prompts.test, candidates, ready.settings, keys=keys)
    stored = pd.concat([rows[key] for key in again if key in rows], ignore_index=True)
    expected = pd.concat(list(again.values()), ignore_index=True).astype(TYPES)
    result = compare(stored, expected, tolerance, without=("p_holm",))
    yield result.check("localization", "measured again", len(table), tolerance)


def _check_plan(candidates: Sequence[Mapping[str, Any]], table: pd.DataFrame) -> Check:
    """Whether the table has the rows of every planned candidate, in order, and no others."""
    planned = {columns["key"]: _identity(columns) for columns in candidates}
    stored = [_identity(row) for row in table[list(IDENTITY)].drop_duplicates().to_dict("records")]
    keys = [values[0] for values in stored]
    lacking = [key for key in planned if key not in set(keys)]
    unknown = [str(key) for key in dict.fromkeys(keys) if key not in planned]
    altered = [str(values[0]) for values in stored if planned.get(values[0], values) != values]
    starts = (table["key"] != table["key"].shift()).sum()
    moved = not (lacking or unknown or altered) and (keys != list(planned) or starts != len(keys))
    wrong = [
        *([f"no rows of {listed(lacking)}"] if lacking else []),
        *([f"rows of {listed(unknown)}, which was not planned"] if unknown else []),
        *([f"other columns than planned for {listed(altered)}"] if altered else []),
        *(["rows are in another order"] if moved else []),
    ]
    return exact("localization", "planned again", wrong, len(table))


def _identity(columns: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(columns[name]) else columns[name] for name in IDENTITY)


def _kind(candidate: Candidate) -> Hashable:
    """Candidates of one kind have rows of the same measures."""
    return (
        candidate.layer_set,
        candidate.transport,
        candidate.control,
        candidate.generates,
        candidate.prompts,
        candidate.chosen_at is None,
    )


def _check_measures(candidates: Sequence[Candidate], rows: Mapping[str, pd.DataFrame], count: int) -> Check:
    """Whether candidates of one kind have the same measures, which reveals lost and added rows."""
    kinds: dict[Hashable, Any] = {}
    wrong = []
    for candidate in candidates:
        if candidate.key in rows:
            measures = rows[candidate.key][["measure", "prompts", "unit"]].to_numpy().tolist()
            if kinds.setdefault(_kind(candidate), measures) != measures:
                wrong.append(f"{candidate.key} has other measures than others of its kind")
    return exact("localization", "measures alike", wrong, count)


def _sampled(run: Evidence, candidates: Sequence[Candidate], sizes: Mapping[str, int]) -> list[str]:
    """Keys of a random candidate of every kind, then of others, until they have enough rows."""
    if run.sample is None:
        return [candidate.key for candidate in candidates]
    order = run.choice("localization", candidates)
    first = {_kind(candidate): candidate for candidate in reversed(order)}
    chosen = {candidate.key for candidate in first.values()}
    count = sum(sizes.get(key, 0) for key in chosen)
    for candidate in order:
        if count >= run.sample:
            break
        if candidate.key not in chosen:
            chosen.add(candidate.key)
            count += sizes.get(candidate.key, 0)
    return [candidate.key for candidate in candidates if candidate.key in chosen]
