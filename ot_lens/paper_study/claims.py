"""What arXiv 2603.04355 claims, tested on a run: one row per comparison, with its interval and verdict."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import RunFolderError
from ot_lens.io.files import write_text
from ot_lens.paper_study import comparisons
from ot_lens.paper_study.comparisons import Comparison
from ot_lens.paper_study.depth import LATE, depth_band
from ot_lens.paper_study.evidence import Measured
from ot_lens.paper_study.published import published
from ot_lens.paper_study.verdicts import margin_of, verdict
from ot_lens.statistics import holm
from ot_lens.study.folder import RunFolder

TYPES = {
    "claim": "string", "statement": "string", "comparison": "string", "quantity": "string", "edit": "string",
    "reference": "string", "edit_key": "string", "reference_key": "string", "method": "string", "k": "Int64",
    "value": "float64", "low": "float64", "high": "float64", "n": "Int64", "interval": "string",
    "p_value": "float64", "p_holm": "float64", "test": "string", "margin": "float64", "verdict": "string",
    "published": "string", "source": "string",
}  # fmt: skip
CAPTION = (
    "The claims of arXiv 2603.04355, tested on this run: paired differences over the same prompts with 95 % "
    "intervals; p-values corrected within each claim (Holm). What the paper says has its own column: "
    "P was read there, S is known from others, and neither enters a verdict."
)


def claims(
    localization: pd.DataFrame,
    validation: pd.DataFrame,
    variants: pd.DataFrame,
    outcomes: pd.DataFrame,
    capability: pd.DataFrame | None = None,
    *,
    model: str,
    n_layers: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Test what the paper claims on the tables of a run with `claims: true`.

    Source: arXiv 2603.04355. Which edits are compared is chosen on the validation prompts; the numbers are
    those of the test prompts. The claims are "layers" (one or two layers against all), "depth" (40-60 % of
    the depth against the rest), "collapse" (beyond 80 %), "gain" (over RFA and Linear-AcT at equal
    perplexity), "sensitivity" (rank, lift, token scope), "capability", "success" and "agreement" (what counts
    as success).

    Args:
        localization: The sweep on the test prompts.
        validation: The same edits on the validation prompts.
        variants: Variants of the chosen edits.
        outcomes: Each prompt's outcome under all of these edits.
        capability: Scores of the items of tasks, or None.
        model: Name of the model, by which published numbers are found.
        n_layers: How many layers it has.
        seed: Seed of the resamples.

    Returns:
        One row per comparison: claim, statement, comparison, quantity, edit and reference (the two sides,
        with their keys), method and k, value (the difference; of "agreement" Cohen's kappa), low, high
        (95 %), n, interval, p_value, p_holm (Holm within a claim), test, margin, verdict ("supported",
        "not supported" or "cannot tell"), published and source ("P" read in the paper, "S" known from
        others).

    Raises:
        ConfigError: If the model has too few layers to speak of a depth.
    """
    run = Measured(localization, validation, variants, outcomes)
    made = list(_compared(run, capability, depth_band(n_layers), n_layers, seed))
    corrected = _holm(made)
    rows = [_row(one, p, model) for one, p in zip(made, corrected, strict=True)]
    return pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES)


def paper_claims(run: str | Path) -> pd.DataFrame:
    """Test what arXiv 2603.04355 claims on a run of its study, from the stored tables alone.

    Args:
        run: A run folder, made with `claims: true` as `paper_study` sets it.

    Returns:
        The table of `ot_lens.paper_study.claims.claims`, one row per comparison.

    Raises:
        RunFolderError: If the folder contains no run, or one that did not measure what the claims need.
    """
    return claims_of(RunFolder.open(Path(run)))


def claims_of(folder: RunFolder) -> pd.DataFrame:
    """The claims of an open run."""
    config, model = folder.config, folder.manifest.get("model", {})
    if not config.claims or "n_layers" not in model:
        raise RunFolderError(
            f"{folder.path} did not measure what the claims need: run the study with claims: true."
        )
    return claims(
        folder.read_table("localization"),
        folder.read_table("validation"),
        folder.read_table("variants"),
        folder.read_table("outcomes"),
        folder.read_table("capability") if config.capability else None,
        model=str(model.get("name")),
        n_layers=int(model["n_layers"]),
        seed=config.seed,
    )


def _compared(
    run: Measured, capability: pd.DataFrame | None, band: Sequence[int], n_layers: int, seed: int
) -> Iterator[Comparison]:
    yield from comparisons.few_layers(run)
    yield from comparisons.by_depth(run, band, n_layers, LATE, seed)
    yield from comparisons.at_equal_cost(run, seed)
    yield from comparisons.sensitivity(run)
    yield from comparisons.kept_capability(run, capability, seed)
    yield from comparisons.success_measures(run, seed)


def _holm(made: Sequence[Comparison]) -> list[float]:
    """Corrected p-values, within each claim."""
    corrected = pd.Series([one.p_value for one in made], dtype="float64")
    for _, values in corrected.groupby([one.question.claim for one in made], sort=False):
        corrected[values.index] = holm(values.to_numpy(np.float64))
    return [float(p) for p in corrected]


def _row(one: Comparison, p_holm: float, model: str) -> dict[str, Any]:
    asked = one.question
    text, source = published(model, asked.claim, asked.about)
    return {
        "claim": asked.claim,
        "statement": asked.statement,
        "comparison": asked.comparison,
        "quantity": asked.quantity,
        "edit": one.edit.name,
        "reference": one.reference.name,
        "edit_key": one.edit.key,
        "reference_key": one.reference.key,
        "method": one.edit.method,
        "k": one.edit.k,
        **vars(one.estimate),
        "p_value": one.p_value,
        "p_holm": p_holm,
        "test": one.test,
        "margin": margin_of(asked.kind),
        "verdict": verdict(asked.kind, one.estimate.low, one.estimate.high, p_holm),
        "published": text,
        "source": source,
    }


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people: sides, difference in percentage points, verdict; kappa as it is."""
    share = table["claim"] != "agreement"
    return pd.DataFrame(
        {
            "claim": table["claim"],
            "edit": table["edit"],
            "against": table["reference"].where(table["edit"] != table["reference"], ""),
            "comparison": table["comparison"],
            "quantity": table["quantity"],
            "difference (points)": [
                _numbers(row, 100.0 if of_rates else 1.0, 1 if of_rates else 2)
                for of_rates, row in zip(share, table.to_dict("records"), strict=True)
            ],
            "n": table["n"].astype(str),
            "p (Holm)": ["" if np.isnan(p) else f"{p:.3g}" for p in table["p_holm"]],
            "verdict": table["verdict"],
            "paper": [
                f"{text} ({source})" if source else ""
                for text, source in zip(table["published"], table["source"], strict=True)
            ],
        }
    )


def _numbers(row: dict[Any, Any], factor: float, digits: int) -> str:
    value, low, high = (factor * row[name] for name in ("value", "low", "high"))
    if np.isnan(value):
        return "unknown"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def export(table: pd.DataFrame, folder: Path) -> None:
    """Write claims.tex and claims.md."""
    rows = printable(table)
    write_text(
        folder / "claims.tex", rows.to_latex(index=False, escape=True, caption=CAPTION, longtable=True)
    )
    markdown = rows.to_markdown(index=False, disable_numparse=True)
    write_text(folder / "claims.md", f"{markdown}\n\n{CAPTION}\n")
