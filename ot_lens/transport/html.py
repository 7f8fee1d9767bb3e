"""How a map displays itself in a notebook: one small table."""

from html import escape
from typing import Any

from ot_lens.transport.info import FitInfo
from ot_lens.transport.methods import METHODS

GENERAL = "scale ⊙ x + bias + U (Vᵀ x)"


def map_table(info: FitInfo, size: dict[str, str]) -> str:
    """An HTML table of a map's origin, its size by name, and the quality of its fit."""
    rows = {"method": info.method or "unnamed", "T(x)": _formula(info.method)}
    rows |= _origin(info) | size | _soundness(info)
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption>AffineMap</caption>{cells}</table>"


def _formula(method: str | None) -> str:
    known = METHODS.get(method or "")
    return "x" if method == "identity" else known.formula if known and known.formula else GENERAL


def _origin(info: FitInfo) -> dict[str, str]:
    where = {"layer": info.layer, "hook point": info.hook, "position": info.position}
    rows = {name: str(value) for name, value in where.items() if value is not None}
    if info.n_harmful is not None:
        rows["fitted on"] = f"{info.n_harmful} harmful, {info.n_harmless} harmless"
    if info.strength != 1.0:
        rows["strength"] = f"{info.strength:g}"
    return rows


def _soundness(info: FitInfo) -> dict[str, str]:
    shrunk = (info.shrinkage_harmful, info.shrinkage_harmless)
    known: dict[str, Any] = {
        "variance explained": None if info.explained_variance is None else f"{info.explained_variance:.0%}",
        "condition number": None if info.condition_number is None else f"{info.condition_number:.3g}",
        "ridge": None if info.ridge is None else f"{info.ridge:.3g} activation²",
        "shrinkage": None if None in shrunk else f"{info.shrinkage}, {shrunk[0]:.2f} and {shrunk[1]:.2f}",
    }
    sentences = {"problems": "; ".join(info.problems), "notes": "; ".join(info.notes)}
    return {name: text for name, text in (known | sentences).items() if text}
