"""A candidate's panels as rows of the sweep's table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ot_lens.behaviour.panel import NEXT_TOKEN_MEASURES, UNITS, Panel, PanelSettings, estimates
from ot_lens.localization.candidates import Candidate
from ot_lens.statistics import Estimate, mcnemar, paired_bootstrap
from ot_lens.tables import COLUMNS, SINGLE, TYPES, layers_label

CONTROL_MEASURES = ("refusal_score",)
NO_TEST = ("", float("nan"))


def identity(candidate: Candidate) -> dict[str, Any]:
    """What a candidate is, in the columns of the table."""
    return {
        "key": candidate.key,
        "set": candidate.layer_set,
        "layers": layers_label(candidate.layers),
        "layer": candidate.layers[0] if candidate.layer_set == SINGLE else None,
        "method": candidate.method.name,
        "k": candidate.k,
        "strength": candidate.strength,
        "transport": candidate.transport,
        "control": candidate.control,
        "draw": candidate.draw,
        "fitting": candidate.fitting,
    }


def candidate_rows(
    panels: Mapping[str, Panel],
    baseline: Mapping[str, Panel],
    settings: PanelSettings,
    columns: Mapping[str, Any],
    chosen_at: float | None = None,
) -> pd.DataFrame:
    """One row per measured quantity of a candidate or the unedited model; all rows have `columns`."""
    if columns["control"]:
        settings = replace(settings, measures=CONTROL_MEASURES)
    rows = []
    for prompts, panel in panels.items():
        before = baseline.get(prompts)
        quantities = estimates(panel, settings, before)
        if chosen_at is not None and prompts == "harmful" and "refusal_score" in quantities:
            quantities["choice_price"] = _price(quantities["refusal_score"], chosen_at)
        for measure, estimate in quantities.items():
            row = {
                **columns,
                "prompts": prompts,
                "measure": measure,
                "unit": UNITS[measure],
                **vars(estimate),
            }
            if measure.removesuffix("_shift") not in (*NEXT_TOKEN_MEASURES, "choice_price"):
                row["engine"] = "hooks"
            if measure == "judged_success_rate" and panel.judgement is not None:
                row["note"] = panel.judgement.note
            test = NO_TEST
            if before is not None and not columns["control"]:
                test = _paired_test(measure, panel, before, settings.seed)
            row["test"], row["p_value"] = test
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(TYPES)


def _price(test: Estimate, chosen_at: float) -> Estimate:
    """How much choosing on the validation prompts flattered the set: its test score minus that score."""
    return replace(test, value=test.value - chosen_at, low=test.low - chosen_at, high=test.high - chosen_at)


def _paired_test(measure: str, panel: Panel, before: Panel, seed: int) -> tuple[str, float]:
    """Test and two-sided p-value against the unedited model: McNemar for rates, bootstrap for the score."""
    if measure == "refusal_score_shift" and panel.next_token is not None and before.next_token is not None:
        shift = (panel.next_token.score - before.next_token.score).numpy()
        return "paired_bootstrap", paired_bootstrap(shift, seed=seed)
    flags = _flags(measure, before), _flags(measure, panel)
    pairs = [(b, a) for b, a in zip(*flags, strict=all(flags)) if b is not None and a is not None]
    return ("mcnemar", mcnemar(*zip(*pairs, strict=True))) if pairs else NO_TEST


def _flags(measure: str, panel: Panel) -> Sequence[bool | None]:
    """The flag of each prompt behind a rate, None where a judge is undecided; empty for other measures."""
    flags = {
        "refusal_rate": panel.refused,
        "exact_answer_rate": panel.correct,
        "judged_success_rate": panel.judgement and panel.judgement.succeeded,
    }
    return flags.get(measure) or ()
