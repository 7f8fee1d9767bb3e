"""A candidate's panels as rows of the sweep's table."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from ot_lens.behaviour import NEXT_TOKEN_MEASURES, UNITS, Panel, PanelSettings, estimates
from ot_lens.localization.candidates import Candidate
from ot_lens.statistics import Estimate, mcnemar, paired_bootstrap
from ot_lens.tables import COLUMNS, SINGLE, TYPES, layers_label

CONTROL_MEASURES = ("refusal_score",)


def place(candidate: Candidate) -> dict[str, Any]:
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
    where: Mapping[str, Any],
    chosen_at: float | None = None,
) -> pd.DataFrame:
    """One measured quantity a row, for one candidate or for the unedited model."""
    rows = []
    for label, panel in panels.items():
        before = baseline.get(label)
        chosen = replace(settings, measures=CONTROL_MEASURES) if where["control"] else settings
        found = estimates(panel, chosen, before)
        if chosen_at is not None and label == "harmful" and "refusal_score" in found:
            found["choice_price"] = _price(found["refusal_score"], chosen_at)
        for name, estimate in found.items():
            judged = panel.judgement if name == "judged_success_rate" else None
            next_token = name.removesuffix("_shift") in NEXT_TOKEN_MEASURES or name == "choice_price"
            test, p = ("", float("nan")) if where["control"] else _p_value(name, panel, before, settings.seed)
            rows.append(
                {
                    **where,
                    "engine": where["engine"] if next_token else "hooks",
                    "measure": name,
                    "prompts": label,
                    "unit": UNITS[name],
                    "value": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "n": estimate.n,
                    "interval": estimate.interval,
                    "test": test,
                    "note": where["note"] if judged is None else judged.note,
                    "p_value": p,
                    "p_holm": float("nan"),
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(TYPES)


def _price(test: Estimate, chosen_at: float) -> Estimate:
    """What choosing on the validation prompts flattered: the test score less the one it was chosen by."""
    return replace(test, value=test.value - chosen_at, low=test.low - chosen_at, high=test.high - chosen_at)


def _p_value(name: str, panel: Panel, before: Panel | None, seed: int) -> tuple[str, float]:
    """Test and two-sided p-value of a measure against the unedited model; ("", NaN) where none is made.

    Rates are compared by McNemar's exact test, scores by a paired bootstrap of the mean difference.
    """
    if before is None:
        return "", float("nan")
    if name == "refusal_rate" and panel.refused is not None and before.refused is not None:
        return "mcnemar", mcnemar(before.refused, panel.refused)
    if name == "exact_answer_rate" and panel.correct is not None and before.correct is not None:
        return "mcnemar", mcnemar(before.correct, panel.correct)
    if name == "judged_success_rate" and panel.judgement is not None and before.judgement is not None:
        pairs = zip(before.judgement.succeeded, panel.judgement.succeeded, strict=True)
        decided = [(b, a) for b, a in pairs if b is not None and a is not None]
        if decided:
            return "mcnemar", mcnemar([b for b, _ in decided], [a for _, a in decided])
    if name == "refusal_score_shift" and panel.next_token is not None and before.next_token is not None:
        shift = (panel.next_token.score - before.next_token.score).numpy()
        return "paired_bootstrap", paired_bootstrap(shift, seed=seed)
    return "", float("nan")
