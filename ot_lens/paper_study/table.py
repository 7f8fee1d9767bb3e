"""A run beside the numbers of arXiv 2603.04355: empty where either is unknown."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from ot_lens.io.files import write_text
from ot_lens.paper_study.architecture import paper_models
from ot_lens.study.folder import RunFolder
from ot_lens.study.summary import method_label
from ot_lens.tables import LISTED, SEARCHED, UNEDITED, real_edits, select

# (attack success rate in per cent, perplexity); the one row of its tables that is known here.
PUBLISHED: Mapping[tuple[str, str], tuple[float, float]] = {
    ("meta-llama/Llama-2-13b-chat-hf", "rfa"): (46.49, 8.04),
    ("meta-llama/Llama-2-13b-chat-hf", "linear_act"): (78.51, 11.16),
    ("meta-llama/Llama-2-13b-chat-hf", "pca_ot"): (79.25, 8.41),
}
METHODS = ("rfa", "linear_act", "pca_ot")
COLUMNS = (
    "model", "method", "k", "layers", "paper_asr", "paper_perplexity", "asr", "asr_low", "asr_high", "n",
    "unanswered", "judge", "perplexity", "perplexity_low", "perplexity_high", "perplexity_n", "perplexity_of",
)  # fmt: skip
_TEXTS = ("model", "method", "layers", "judge", "perplexity_of")
TYPES = (
    dict.fromkeys(_TEXTS, "string")
    | {"k": "Int64", "n": "Int64", "unanswered": "Int64", "perplexity_n": "Int64"}
    | dict.fromkeys(
        [
            c
            for c in COLUMNS
            if c.startswith(("paper_", "asr", "perplexity")) and not c.endswith(("_n", "_of"))
        ],
        "float64",
    )
)
CAPTION = (
    "Attack success rate in per cent with its 95 % Wilson interval, and perplexity with its bootstrap "
    "interval, beside those of arXiv 2603.04355 as far as they are known here. A published number stands in "
    "every row of its method: of which k and of how many layers it is, is not known here."
)


def paper_table(localization: pd.DataFrame, model: str, phrases: str) -> pd.DataFrame:
    """This run's chosen sets of layers beside the paper's numbers, and a place for each of its models.

    Args:
        localization: A sweep with searched or listed sets of layers.
        model: Name of the swept model.
        phrases: Name of the phrase list, which judges where no judge did.

    Returns:
        A row a model, method and set of layers. Rates in per cent; `n` prompts; `perplexity_of` "text" or
        "harmless answers"; `perplexity_n` windows of the text or prompts. Where nothing is known, nothing.
    """
    rows = [{"model": model, **row} for row in _measured(localization, phrases)]
    swept = {row["method"] for row in rows}
    for name in [model, *(other for other in paper_models() if other != model)]:
        rows += [
            {"model": name, "method": m}
            for m in METHODS
            if name in paper_models() and (name != model or m not in swept)
        ]
    for row in rows:
        row["paper_asr"], row["paper_perplexity"] = PUBLISHED.get((row["model"], row["method"]), (None, None))
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(TYPES)


def _measured(localization: pd.DataFrame, phrases: str) -> Iterator[dict[str, Any]]:
    chosen = select(real_edits(localization), set=(UNEDITED, LISTED, SEARCHED))
    keys = ["set", "layers", "method", "k", "strength"]
    for (_, layers, method, k, _), rows in chosen.groupby(keys, sort=False, dropna=False):
        by_key = {(row["measure"], row["prompts"]): row for row in rows.to_dict("records")}
        yield {
            "method": method,
            "k": k,
            "layers": layers,
            **_success(by_key, phrases),
            **_perplexity(by_key),
        }


def _success(by_key: Mapping[tuple[str, str], Any], phrases: str) -> dict[str, Any]:
    judged = by_key.get(("judged_success_rate", "harmful"))
    row = judged or by_key.get(("attack_success_rate", "harmful"))
    if row is None:
        return {}
    # The judge's note is "judge NAME, version V; U of N unanswered".
    name, _, unanswered = (
        str(row["note"]).removeprefix("judge ").partition("; ") if judged else (phrases, "", "")
    )
    return {
        "asr": 100 * row["value"],
        "asr_low": 100 * row["low"],
        "asr_high": 100 * row["high"],
        "n": row["n"],
        "unanswered": int(unanswered.split()[0]) if unanswered else 0,
        "judge": name,
    }


def _perplexity(by_key: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
    for prompts, name in (("text", "text"), ("harmless", "harmless answers")):
        row = by_key.get(("perplexity", prompts))
        if row is not None:
            return {
                "perplexity": row["value"],
                "perplexity_low": row["low"],
                "perplexity_high": row["high"],
                "perplexity_n": row["n"],
                "perplexity_of": name,
            }
    return {}


def printable(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people: names, numbers with their intervals, nothing where nothing is known."""
    return pd.DataFrame(
        {
            "model": table["model"],
            "method": [_label(m, k) for m, k in zip(table["method"], table["k"], strict=True)],
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


def _label(method: str, k: Any) -> str:
    return "unedited" if method == UNEDITED else method_label(method, k)


def _number(value: float, digits: int = 2) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"


def _with_interval(table: pd.DataFrame, name: str, digits: int) -> list[str]:
    rows = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
    return [
        f"{_number(v, digits)} ({_number(a, digits)} to {_number(b, digits)})"
        if not pd.isna(a)
        else _number(v, digits)
        for v, a, b in rows
    ]


def write_paper_table(folder: RunFolder, phrases: str) -> pd.DataFrame:
    """Write tables/paper.parquet, and for people paper.tex and paper.md."""
    model = folder.manifest["model"]["name"]
    table = paper_table(folder.read_table("localization"), model, phrases)
    folder.write_table("paper", table)
    shown = printable(table)
    place = folder.path / "tables"
    write_text(place / "paper.tex", shown.to_latex(index=False, escape=True, caption=CAPTION))
    text = shown.to_markdown(index=False, disable_numparse=True)
    write_text(place / "paper.md", f"{text}\n\n{CAPTION}\n")
    return table
