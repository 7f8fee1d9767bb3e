"""A run next to the numbers of arXiv 2603.04355: cells are empty where a number is unknown."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ot_lens.io.files import write_text
from ot_lens.models.sizes import published_models
from ot_lens.tables import LISTED, SEARCHED, UNEDITED, real_edits, select
from ot_lens.transport import method_label

# (attack success rate in per cent, perplexity); the one row of the paper's tables that is known here.
PUBLISHED: Mapping[tuple[str, str], tuple[float, float]] = {
    ("meta-llama/Llama-2-13b-chat-hf", "rfa"): (46.49, 8.04),
    ("meta-llama/Llama-2-13b-chat-hf", "linear_act"): (78.51, 11.16),
    ("meta-llama/Llama-2-13b-chat-hf", "pca_ot"): (79.25, 8.41),
}
METHODS = ("rfa", "linear_act", "pca_ot")
TYPES = {
    "model": "string", "method": "string", "k": "Int64", "layers": "string", "paper_asr": "float64",
    "paper_perplexity": "float64", "asr": "float64", "asr_low": "float64", "asr_high": "float64",
    "n": "Int64", "unanswered": "Int64", "judge": "string", "perplexity": "float64",
    "perplexity_low": "float64", "perplexity_high": "float64", "perplexity_n": "Int64",
    "perplexity_of": "string",
}  # fmt: skip
CAPTION = (
    "Attack success rate in per cent with its 95 % Wilson interval, and perplexity with its bootstrap "
    "interval, next to those of arXiv 2603.04355 where they are known here. A published number is repeated "
    "in every row of its method: which k and how many layers it belongs to is not known here."
)


def paper_table(localization: pd.DataFrame, model: str, phrases: str) -> pd.DataFrame:
    """This run's chosen sets of layers next to the paper's numbers, and empty rows for its other models.

    One row per model, method and set of layers. Rates in per cent; `n` prompts; `perplexity_of` "text" or
    "harmless answers"; `perplexity_n` windows of the text or prompts. `phrases` names the list that decides
    where no judge did.
    """
    rows = [{"model": model, **row} for row in _chosen_edits(localization, phrases)]
    swept, paper = {row["method"] for row in rows}, published_models()
    rows += [
        {"model": name, "method": method}
        for name in sorted(paper, key=lambda name: name != model)
        for method in METHODS
        if name != model or method not in swept
    ]
    for row in rows:
        row["paper_asr"], row["paper_perplexity"] = PUBLISHED.get((row["model"], row["method"]), (None, None))
    return pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES)


def _chosen_edits(localization: pd.DataFrame, phrases: str) -> Iterator[dict[str, Any]]:
    chosen = select(real_edits(localization), set=(UNEDITED, LISTED, SEARCHED))
    keys = ["set", "layers", "method", "k", "strength"]
    for (_, layers, method, k, _), rows in chosen.groupby(keys, sort=False, dropna=False):
        by_measure = {(row["measure"], row["prompts"]): row for row in rows.to_dict("records")}
        yield {
            "method": method,
            "k": k,
            "layers": layers,
            **_success(by_measure, phrases),
            **_perplexity(by_measure),
        }


def _success(by_measure: Mapping[tuple[str, str], Any], phrases: str) -> dict[str, Any]:
    judged = by_measure.get(("judged_success_rate", "harmful"))
    row = judged or by_measure.get(("attack_success_rate", "harmful"))
    if row is None:
        return {}
    name, unanswered = phrases, 0
    if judged:  # its note is "judge NAME, version V; U of N unanswered"
        name, _, rest = str(row["note"]).removeprefix("judge ").partition("; ")
        unanswered = int(rest.split()[0]) if rest else 0
    return {**_interval("asr", row, 100.0), "n": row["n"], "unanswered": unanswered, "judge": name}


def _perplexity(by_measure: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    for prompts, name in (("text", "text"), ("harmless", "harmless answers")):
        row = by_measure.get(("perplexity", prompts))
        if row is not None:
            return {**_interval("perplexity", row), "perplexity_n": row["n"], "perplexity_of": name}
    return {}


def _interval(name: str, row: Mapping[str, Any], factor: float = 1.0) -> dict[str, float]:
    ends = {name: "value", f"{name}_low": "low", f"{name}_high": "high"}
    return {column: factor * row[key] for column, key in ends.items()}


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people: names, numbers with their intervals, empty cells where nothing is known."""
    labels = pd.Series(map(method_label, table["method"], table["k"]), table.index)
    return pd.DataFrame(
        {
            "model": table["model"],
            "method": labels.where(table["method"] != UNEDITED, "unedited"),
            "layers": table["layers"].fillna(""),
            "ASR %, paper": [_number(v) for v in table["paper_asr"]],
            "ASR %": _with_interval(table, "asr", 1),
            "n": ["" if pd.isna(n) else str(n) for n in table["n"]],
            "judge": table["judge"].fillna(""),
            "perplexity, paper": [_number(v) for v in table["paper_perplexity"]],
            "perplexity": _with_interval(table, "perplexity", 2),
            "of": table["perplexity_of"].fillna(""),
        }
    )


def _number(value: float, digits: int = 2) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _with_interval(table: pd.DataFrame, name: str, digits: int) -> list[str]:
    rows = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
    texts = [tuple(_number(number, digits) for number in row) for row in rows]
    return [f"{value} ({low} to {high})" if low else value for value, low, high in texts]


def export(table: pd.DataFrame, folder: Path) -> None:
    """Write paper.tex and paper.md."""
    rows = printable(table)
    write_text(folder / "paper.tex", rows.to_latex(index=False, escape=True, caption=CAPTION))
    markdown = rows.to_markdown(index=False, disable_numparse=True)
    write_text(folder / "paper.md", f"{markdown}\n\n{CAPTION}\n")
