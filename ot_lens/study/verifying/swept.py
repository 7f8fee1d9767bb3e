"""The sweep planned again, and some of its candidates measured again."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from ot_lens.execution import Runner
from ot_lens.localization import Candidate, as_methods, fit_sweep, measure_sweep, plan_sweep
from ot_lens.localization.rows import identity
from ot_lens.prompts import ContrastSet
from ot_lens.study.checks import sweep_plan
from ot_lens.study.preparation import Prepared
from ot_lens.study.verifying.check import Check, exact
from ot_lens.study.verifying.comparing import compare, different_rows, key_rows
from ot_lens.study.verifying.evidence import Evidence
from ot_lens.tables import IDENTITY, TYPES, UNEDITED_COLUMNS

KEYS = list(IDENTITY)


def swept(
    run: Evidence, runner: Runner, prompts: ContrastSet, ready: Prepared, tolerance: float
) -> Iterator[Check]:
    """Whether the table has the planned candidates in order, and whether some of them measure the same."""
    methods, plan = as_methods(run.config.method_entries), sweep_plan(run.config)
    maps = fit_sweep(run.train, methods, ready.settings, plan)
    candidates = plan_sweep(runner, prompts, run.train, methods, maps, ready.settings, plan)
    table = run.sweep
    rows = {str(key): group for key, group in table.groupby("key", sort=False)}
    planned = pd.DataFrame([UNEDITED_COLUMNS, *map(identity, candidates)])[KEYS]
    stored = [row for row, _ in groupby(key_rows(table[KEYS]))]
    trouble = different_rows(stored, key_rows(planned), KEYS)
    yield exact("localization", "planned again", [trouble] if trouble else [], len(table))
    yield _check_measures(candidates, rows, len(table))
    keys = _sampled(run, candidates, {key: len(group) for key, group in rows.items()})
    again = measure_sweep(runner, prompts.test, candidates, ready.settings, keys=keys)
    few = pd.concat([rows[key] for key in again if key in rows], ignore_index=True)
    expected = pd.concat(list(again.values()), ignore_index=True).astype(TYPES)
    yield compare(
        "localization", "measured again", few, expected, tolerance, of=len(table), without=("p_holm",)
    )


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
    order = run.choice("localization", candidates)
    first = {_kind(candidate): candidate.key for candidate in reversed(order)}
    chosen = set(first.values())
    for candidate in order:
        if run.sample is None or sum(sizes.get(key, 0) for key in chosen) < run.sample:
            chosen.add(candidate.key)
    return [candidate.key for candidate in candidates if candidate.key in chosen]
