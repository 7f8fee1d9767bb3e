"""What happened to each prompt under a candidate: scores and flags, never text."""

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from ot_lens.behaviour.panel import Panel
from ot_lens.localization.rows import limit_of
from ot_lens.tables import OUTCOMES


def outcome_rows(key: str, panels: Mapping[str, Panel], unedited: Mapping[str, Panel]) -> pd.DataFrame:
    """One row per prompt of every panel; missing where something was not measured."""
    limit = limit_of(unedited)
    return pd.concat(
        [_of_panel(key, label, panel, limit) for label, panel in panels.items()], ignore_index=True
    ).astype(OUTCOMES)


def _of_panel(key: str, label: str, panel: Panel, limit: float | None) -> pd.DataFrame:
    reading, loss = panel.next_token, panel.loss
    columns = {
        "refused": panel.refused,
        "coherent": panel.coherent(limit) if limit is not None else None,
        "degenerate": panel.degenerate,
        "judged": None if panel.judgement is None else panel.judgement.succeeded,
        "correct": panel.correct,
        "refusal_score": None if reading is None else reading.score,
        "kl": None if reading is None else reading.kl,
        "nll": None if loss is None else loss.nll,
        "n_tokens": None if loss is None else loss.n_tokens,
    }
    named = {"key": key, "prompts": label, "prompt": range(panel.n)}
    return pd.DataFrame(named | {name: _column(name, found, panel.n) for name, found in columns.items()})


def _column(name: str, found: Sequence[bool | None] | Tensor | None, n: int) -> pd.Series:
    values = found.tolist() if isinstance(found, Tensor) else found or [None] * n
    return pd.Series(list(values), dtype=OUTCOMES[name])
