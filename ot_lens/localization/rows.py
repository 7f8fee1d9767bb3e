"""A candidate's panels as rows of the sweep's table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from ot_lens.behaviour.coherence import coherence_limit
from ot_lens.behaviour.panel import NEXT_TOKEN_MEASURES, Panel, PanelSettings, estimates, unit_of
from ot_lens.localization.candidates import Candidate
from ot_lens.statistics import Estimate, mcnemar, paired_bootstrap, share
from ot_lens.tables import COLUMNS, TYPES, layers_label

# Quantities of an edit itself rather than of answers under it.
OF_THE_EDIT = ("choice_price", "out_of_domain_share")
CONTROL_MEASURES = ("refusal_score",)
NO_TEST = ("", float("nan"))


def identity(candidate: Candidate) -> dict[str, Any]:
    """What a candidate is, in the columns of the table."""
    return {
        "key": candidate.key,
        "set": candidate.layer_set,
        "layers": layers_label(candidate.layers),
        "layer": candidate.layers[0] if candidate.at_one_layer else None,
        "method": candidate.method.name,
        "k": candidate.k,
        "strength": candidate.strength,
        "tokens": candidate.tokens,
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
    candidate: Candidate | None = None,
    outside: tuple[int, int] | None = None,
) -> pd.DataFrame:
    """One row per measured quantity of a candidate or the unedited model (None); all have `columns`.

    `outside` is how many of the activations that the candidate touches lie outside, of how many.
    """
    if columns["control"]:
        settings = replace(settings, measures=CONTROL_MEASURES)
    limit = limit_of(baseline or panels)
    rows = []
    for prompts, panel in panels.items():
        before = baseline.get(prompts)
        quantities = estimates(panel, settings, before, limit)
        if candidate is not None:
            quantities |= _of_candidate(candidate, prompts, quantities, outside)
        for measure, estimate in quantities.items():
            row = {
                **columns,
                "prompts": prompts,
                "measure": measure,
                "unit": unit_of(measure),
                **vars(estimate),
            }
            if measure.removesuffix("_shift") not in (*NEXT_TOKEN_MEASURES, *OF_THE_EDIT):
                row["engine"] = "hooks" if panel.verified is None else "single_pass"
                row["verified"] = None if measure == "perplexity" else panel.verified
            if measure == "judged_success_rate" and panel.judgement is not None:
                row["note"] = panel.judgement.note
            if measure == "coherent_success_rate":
                row["note"] = f"at most {limit:.3f} nats per token after the first"
            test = NO_TEST
            if before is not None and not columns["control"]:
                test = _paired_test(measure, panel, before, settings.seed, limit)
            row["test"], row["p_value"] = test
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(TYPES)


def limit_of(unedited: Mapping[str, Panel]) -> float | None:
    """The largest NLL of a coherent answer, from the unedited model's answers; None if there are none."""
    reference = unedited.get("harmless")
    return None if reference is None or reference.later_nll is None else coherence_limit(reference.later_nll)


def _of_candidate(
    candidate: Candidate, prompts: str, quantities: Mapping[str, Estimate], outside: tuple[int, int] | None
) -> dict[str, Estimate]:
    """What is known of an edit itself, on the class of prompts that it moves."""
    more = {}
    if outside is not None and prompts == candidate.prompts[0]:
        more["out_of_domain_share"] = share(*outside)
    if candidate.chosen_at is not None and prompts == "harmful" and "refusal_score" in quantities:
        more["choice_price"] = _price(quantities["refusal_score"], candidate.chosen_at)
    return more


def _price(test: Estimate, chosen_at: float) -> Estimate:
    """How much choosing on the validation prompts flattered the set: its test score minus that score."""
    return replace(test, value=test.value - chosen_at, low=test.low - chosen_at, high=test.high - chosen_at)


def _paired_test(
    measure: str, panel: Panel, before: Panel, seed: int, limit: float | None
) -> tuple[str, float]:
    """Test and two-sided p-value against the unedited model: McNemar for rates, bootstrap for the score."""
    if measure == "refusal_score_shift" and panel.next_token is not None and before.next_token is not None:
        shift = (panel.next_token.score - before.next_token.score).numpy()
        return "paired_bootstrap", paired_bootstrap(shift, seed=seed)
    flags = _flags(measure, before, limit), _flags(measure, panel, limit)
    pairs = [(b, a) for b, a in zip(*flags, strict=all(flags)) if b is not None and a is not None]
    return ("mcnemar", mcnemar(*zip(*pairs, strict=True))) if pairs else NO_TEST


def _flags(measure: str, panel: Panel, limit: float | None) -> Sequence[bool | None]:
    """The flag of each prompt behind a rate, None where a judge is undecided; empty for other measures."""
    flags = {
        "refusal_rate": panel.refused,
        "degenerate_rate": panel.degenerate,
        "coherent_success_rate": () if limit is None else panel.coherent(limit),
        "exact_answer_rate": panel.correct,
        "judged_success_rate": panel.judgement and panel.judgement.succeeded,
    }
    return flags.get(measure) or ()
