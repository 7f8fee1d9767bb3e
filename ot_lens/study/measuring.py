"""What edits do: measured on test prompts, those that are chosen from on validation prompts, and variants."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache as once

import pandas as pd

from ot_lens.activations import Activations
from ot_lens.execution import RunCache, Runner
from ot_lens.localization import Candidate, SweepSettings, measure_sweep
from ot_lens.localization.measure import outcomes_in
from ot_lens.localization.variants import Variant, to_measure, variant_table, variants
from ot_lens.localization.walking import is_answered
from ot_lens.prompts import Contrast
from ot_lens.study.config import StudyConfig
from ot_lens.study.preparation import Work
from ot_lens.study.sweeping import PARTS, VALIDATED, VARIED, FolderCache, measured_tables
from ot_lens.tables import NOT_A_CONTROL, REMOVE, UNEDITED, chosen_edits, join

# Stages of the edits that answers are generated under, and of those under which the next token alone is read.
SWEEP = "sweep, answers", "sweep, next token"
CHOICE = "choice on validation prompts", "choice, next token"
VARIANTS = "variants of the chosen edits", "variants, next token"

Tables = dict[str, pd.DataFrame]


def sweep_into(work: Work, candidates: Sequence[Candidate], acts: Activations) -> None:
    """Measure what is missing, write the tables of it, and drop the parts."""
    folder, settings = work.folder, work.ready.settings
    if any(not folder.has_table(name) for name in measured_tables(work.config)):
        swept, test = FolderCache(folder, PARTS), work.prompts.test
        tables = _measured(work, swept, SWEEP, test, candidates, settings)
        _write(work, "localization", join(list(tables.values())))
        outcomes = [(swept, list(tables))]
        if work.config.claims:
            made = _validate_and_vary(work, acts, candidates)
            more, cache = to_measure(made, tables), FolderCache(folder, VARIED)
            varied = _measured(work, cache, VARIANTS, test, more, settings)
            _write(work, "variants", variant_table(made, varied | tables))
            outcomes.append((cache, [candidate.key for candidate in more]))
        if settings.outcomes:
            _write(work, "outcomes", joined_outcomes(outcomes))
    folder.drop(PARTS)


def joined_outcomes(measured: Iterable[tuple[RunCache, Sequence[str]]]) -> pd.DataFrame:
    """Each prompt's outcome under all edits, from the caches that hold them."""
    return pd.concat([outcomes_in(cache, keys) for cache, keys in measured if keys], ignore_index=True)


def _validate_and_vary(work: Work, acts: Activations, candidates: Sequence[Candidate]) -> list[Variant]:
    """Write what the candidates do on validation prompts; returns the variants of those chosen there."""
    settings = validation_settings(work.ready.settings)
    tried, cache = tried_on_validation(candidates), FolderCache(work.folder, VALIDATED)
    tables = _measured(work, cache, CHOICE, work.prompts.val, tried, settings)
    validation = join(list(tables.values()))
    _write(work, "validation", validation)
    return chosen_variants(work.config, validation, candidates, acts, work.ready.settings)


def validation_settings(settings: SweepSettings) -> SweepSettings:
    """As in the sweep, without what no choice depends on."""
    panel = replace(settings.panel, judge=None, text=None, completions=None)
    return replace(settings, panel=panel, outcomes=False)


def tried_on_validation(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates among which edits are chosen: those that answers are generated under."""
    return [c for c in candidates if c.generates and c.control == NOT_A_CONTROL and c.transport == REMOVE]


def chosen_variants(
    config: StudyConfig,
    validation: pd.DataFrame,
    candidates: Sequence[Candidate],
    acts: Activations,
    settings: SweepSettings,
) -> list[Variant]:
    """The variants of the edits that the validation prompts choose."""
    keys = set(chosen_edits(validation)["key"])
    return variants([c for c in candidates if c.key in keys], acts, settings, config.variants)


def _measured(
    work: Work,
    cache: RunCache,
    names: tuple[str, str],
    prompts: Contrast,
    candidates: Sequence[Candidate],
    settings: SweepSettings,
) -> Tables:
    """The rows of the unedited model and of each candidate; those in the cache are not measured again.

    Two stages, of candidates with answers and without: neither's time left is judged by the other's pace.
    """
    stages = {c.key: names[not is_answered(c, settings.panel)] for c in candidates}
    first = stages[UNEDITED] = min(stages.values(), key=names.index, default=names[0])
    totals = Counter(stages.values())
    with ExitStack() as opened:
        step = once(lambda name: opened.enter_context(work.stage(name, totals[name])))
        step(first)
        runner, progress = Runner(work.executor, cache), lambda key: step(stages[key])(1)
        return measure_sweep(runner, prompts, candidates, settings, progress=progress)


def _write(work: Work, name: str, table: pd.DataFrame) -> None:
    if not work.folder.has_table(name):
        work.folder.write_table(name, table)
