"""What a sweep found, in plain words, never beyond its intervals."""

from pathlib import Path

import pandas as pd

from ot_lens.errors import RunFolderError
from ot_lens.io.untrusted import shown
from ot_lens.localization import (
    INDUCE,
    LISTED,
    REMOVE,
    SEARCHED,
    layers_label,
    one_direction,
    verdict,
)
from ot_lens.study.summary import best_singles, effects, method_label

FAMILIES = {
    "projection": ("directional_ablation", "rfa", "ace", "subspace_ablation", "leace"),
    "transport": ("pca_ot", "gaussian_ot"),
}


def summarize(table: pd.DataFrame) -> list[str]:
    """Findings of a sweep in sentences: which layers matter, what each method reaches, and at what cost."""
    if "refusal_rate" not in set(table["measure"]):
        return _without_answers(table)
    found = effects(table)
    base = found[found["set"] == "none"].iloc[0]
    best = best_singles(found)
    bands = {transport: verdict(table, transport) for transport in (REMOVE, INDUCE)}
    sentences = [
        f"Unedited, the model refuses {_share(base)} of {int(base['n'])} held-out harmful prompts and "
        f"{base['harmless_refusal']:.0%} of the harmless ones.",
        *_one_direction_sentence(table),
        *([_comparison_sentence(best)] if len(best) else []),
        _layers_sentence(table, bands[REMOVE], found[found["set"] == "single"]),
        *(_method_sentence(row, bands) for _, row in best.iterrows()),
    ]
    for layer_set, start in (
        ("all", "Edited at all layers at once"),
        (SEARCHED, "Best sets of layers, chosen on the validation prompts and measured on these"),
        (LISTED, "Sets of layers that were named"),
    ):
        together = found[found["set"] == layer_set]
        if len(together):
            sentences.append(_together_sentence(start, together, with_layers=layer_set != "all"))
    return sentences


def findings(table: pd.DataFrame, run: Path) -> list[str]:
    """`summarize`, of a table that was read from a file.

    Raises:
        RunFolderError: If its rows do not go together: it was altered.
    """
    try:
        if "refusal_rate" in set(table["measure"]):
            best_singles(effects(table))  # what is printed beside the sentences
        return summarize(table)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise RunFolderError(
            f"{run / 'tables' / 'localization.parquet'} was altered ({shown(str(error))}): restore it, or "
            "remove it and --resume."
        ) from error


def _without_answers(table: pd.DataFrame) -> list[str]:
    """What next-token measures alone allow to say."""
    sentences = ["The refusal rate was not measured: answers were not generated."]
    if "refusal_score" in set(table["measure"]) and (table["control"] != "").any():
        sentences.append(_layers_sentence(table, verdict(table, REMOVE), table.iloc[:0]))
    return sentences


def _share(row: pd.Series) -> str:
    return f"{row['refusal']:.0%} (95 % interval {row['low']:.0%} to {row['high']:.0%})"


def _layers_sentence(table: pd.DataFrame, removal: pd.DataFrame, singles: pd.DataFrame) -> str:
    """A layer counts only above the control band; without controls the refusal rate alone is reported."""
    if not (table["control"] != "").any():
        lowered = _counted(singles, "lowers")
        shown = f"lowers the refusal rate at {lowered}" if lowered else "lowers the refusal rate at no layer"
        return f"A single-layer edit {shown}. No control was swept, so nothing is localized."
    counted = _counted(removal, "localized")
    if not counted:
        return "No single-layer edit lowers refusal beyond the control band: nothing is localized."
    return (
        f"Refusal is removed beyond the control band, after Holm's correction over layers, at {counted}. "
        "The band is what random subspaces and permuted labels do at equal rank."
    )


def _counted(rows: pd.DataFrame, flag: str) -> str:
    counts = rows.groupby("layer")[flag].agg(["sum", "size"])
    acting = counts[counts["sum"] > 0]
    return ", ".join(
        f"layer {layer} ({int(row['sum'])} of {int(row['size'])} methods)" for layer, row in acting.iterrows()
    )


def _one_direction_sentence(table: pd.DataFrame) -> list[str]:
    found = one_direction(table)
    if found is None:
        return []
    meaning = {
        True: "one direction suffices to take most refusals away",
        False: "one direction does not suffice to take most refusals away",
        None: "whether one direction suffices is not decided",
    }
    return [
        f"With the best single direction ablated at every block (RFA, direction of layer {found.layer}), "
        f"{found.refusal:.0%} (95 % interval {found.low:.0%} to {found.high:.0%}) of {found.n} harmful "
        f"prompts are still refused: {meaning[found.suffices]}."
    ]


def _method_sentence(best: pd.Series, bands: dict[str, pd.DataFrame]) -> str:
    name = method_label(best["method"], best["k"])
    start = f"{name[0].upper()}{name[1:]}"
    band = _band_words(best, bands)
    if not best["lowers"]:
        return f"{start}: no single layer lowers the refusal rate (best: {_share(best)}){band}."
    right = "" if pd.isna(best["right"]) else f" and {best['right']:.0%} answered rightly"
    return (
        f"{start}: best at layer {int(best['layer'])}, {_share(best)} still refused{right}; cost on harmless "
        f"prompts: {_cost(best)}{band}."
    )


def _band_words(best: pd.Series, bands: dict[str, pd.DataFrame]) -> str:
    """Where the method removes and induces refusal beyond its control band, as the end of a sentence."""
    words = []
    for transport, verb in ((REMOVE, "removes refusal"), (INDUCE, "induces it on harmless prompts")):
        rows = bands[transport]
        k = rows["k"].isna() if pd.isna(best["k"]) else rows["k"] == best["k"]
        mine = rows[(rows["method"] == best["method"]) & k]
        if mine.empty or not (mine["draws"] > 0).any():
            continue
        above = mine[mine["localized"]]
        if above.empty:
            words.append(f"{verb} at no layer")
            continue
        far = above.sort_values("margin").iloc[-1]
        layers = layers_label(sorted(int(layer) for layer in above["layer"]))
        plural = "layer" if len(above) == 1 else "layers"
        words.append(
            f"{verb} at {plural} {layers} (most at {int(far['layer'])}, by {far['margin']:.1f} nats)"
        )
    return f"; beyond the control band it {' and '.join(words)}" if words else ""


def _cost(row: pd.Series) -> str:
    parts = []
    if not pd.isna(row["kl"]):
        parts.append(f"KL {row['kl']:.3f} nats")
    if not pd.isna(row["harmless_right"]):
        parts.append(f"{row['harmless_right']:.0%} answered exactly")
    if not pd.isna(row["perplexity"]):
        parts.append(f"perplexity {row['perplexity']:.2f}")
    return ", ".join(parts) or "not measured"


def _together_sentence(start: str, together: pd.DataFrame, *, with_layers: bool) -> str:
    parts = [
        method_label(row["method"], row["k"])
        + (f" at {row['layers']}," if with_layers else "")
        + f" {row['refusal']:.0%} refused"
        + ("" if pd.isna(row["right"]) else f" and {row['right']:.0%} right")
        for _, row in together.iterrows()
    ]
    return f"{start}: {'; '.join(parts)}."


def _comparison_sentence(best: pd.DataFrame) -> str:
    """Transport against projection at their best single layers, only as far as the intervals part."""
    chosen = {}
    for family, methods in FAMILIES.items():
        part = best[best["method"].isin(methods)]
        if part.empty:
            return "Transport and projection were not both in this sweep, so they are not compared."
        chosen[family] = part.assign(wrong=-part["right"].fillna(0)).sort_values(["wrong", "refusal"]).iloc[0]
    projection, transport = chosen["projection"], chosen["transport"]
    text = f"Best single layers: transport, {_at(transport)}; projection, {_at(projection)}"
    answered = not (pd.isna(transport["right"]) or pd.isna(projection["right"]))
    ends = ("right_low", "right_high") if answered else ("low", "high")
    what = "right answers" if answered else "refusals"
    if transport[ends[1]] < projection[ends[0]] or projection[ends[1]] < transport[ends[0]]:
        more = (
            transport["right"] > projection["right"]
            if answered
            else transport["refusal"] < projection["refusal"]
        )
        winner = "Transport" if more else "Projection"
        return f"{text}. {winner} does better: the intervals of their {what} do not overlap."
    return f"{text}. The intervals of their {what} overlap: this sweep does not tell them apart."


def _at(row: pd.Series) -> str:
    right = "" if pd.isna(row["right"]) else f" and {row['right']:.0%} answered rightly"
    name = method_label(row["method"], row["k"])
    return f"{name} at layer {int(row['layer'])} with {row['refusal']:.0%} refused{right}"
