"""Write the page: one file, no network, every string from the run escaped."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ot_lens.io.files import write_text
from ot_lens.plots.style import MARKERS
from ot_lens.report import numbers
from ot_lens.report.figures import page_figures, script_json
from ot_lens.report.marks import SHAPES, mark_svg


def write_report(
    run: Path,
    tables: Mapping[str, pd.DataFrame],
    manifest: Mapping[str, Any],
    summary: Sequence[str],
    out: Path,
) -> Path:
    """Write the report of a run as one HTML file that needs no network.

    The run's config.yaml and figures are read where they exist; the page says which tables are missing.
    """
    config = run / "config.yaml"
    text = (
        _environment()
        .get_template("page.html")
        .render(
            facts=_facts(manifest, tables),
            summary=list(summary),
            figures=page_figures(tables, run),
            methods=_methods(manifest),
            glance=numbers.at_a_glance(tables.get("localization")),
            per_layer=numbers.per_layer(tables.get("localization")),
            geometry=numbers.geometry_table(tables.get("geometry")),
            measured=numbers.prompts_measured(tables.get("localization")),
            manifest=_sections(manifest),
            manifest_json=json.dumps(manifest, indent=2, ensure_ascii=False, default=str),
            versions=manifest.get("versions", {}),
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            tables={name: len(table) for name, table in tables.items()},
        )
    )
    write_text(out, text)
    return out


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ot_lens.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "mark": mark_svg,
        "shapes": script_json({MARKERS[name][1]: path for name, path in SHAPES.items()}),
        "style": _asset("page.css"),
        "boot": _asset("page.js"),
        "plotly": Markup(_inside_script(get_plotlyjs())),  # noqa: S704 - code of the plotly package
    }
    return environment


def _asset(name: str) -> Markup:
    return Markup(files("ot_lens.report").joinpath("assets", name).read_text(encoding="utf-8"))  # noqa: S704 - ours


def _inside_script(code: str) -> str:
    """Code that cannot close its script element."""
    return code.replace("</script", "<\\/script")


def _facts(manifest: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """What was studied, as (name, value) pairs for the head of the page."""
    model, prompts = manifest.get("model") or {}, manifest.get("prompts") or {}
    config, versions = manifest.get("config") or {}, manifest.get("versions") or {}
    size = " layers, width ".join(str(model[key]) for key in ("n_layers", "d_model") if key in model)
    facts = [
        ("model", model.get("name") or config.get("model") or "unknown"),
        ("size", size),
        ("prompts", prompts.get("name") or config.get("prompts") or ""),
        ("measured on", numbers.prompts_measured(tables.get("localization"))),
        ("seed", config.get("seed", "")),
        ("ot_lens", versions.get("ot_lens", "")),
    ]
    return [(name, str(value)) for name, value in facts if str(value)]


def _methods(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """Label, family, formula and source of every method of the run, as far as the manifest has them."""
    records = manifest.get("methods") or []
    fields = ("label", "family", "formula", "source")
    return [
        {name: str(record.get(name) or "") for name in fields}
        for record in records
        if isinstance(record, Mapping)
    ]


def _sections(manifest: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The manifest as sections of (dotted name, value)."""
    sections: dict[str, list[tuple[str, str]]] = {"run": []}
    for key, value in manifest.items():
        if isinstance(value, Mapping):
            sections[str(key)] = list(_flat(value))
        else:
            sections["run"].append((str(key), _text(value)))
    return {name: rows for name, rows in sections.items() if rows}


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    if value is None:
        return "\u2013"
    nested = isinstance(value, (list, dict))
    return json.dumps(value, ensure_ascii=False, default=str) if nested else str(value)
