"""Drawing the figures of a run from its tables; no model library is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ot_lens.study.findings import summarize
from ot_lens.study.folder import RunFolder

if TYPE_CHECKING:
    from ot_lens.plots import Drawn


def draw_figures(
    run: str | Path, out: str | Path, *, formats: Sequence[str] = ("png", "pdf"), style: str = "icml"
) -> "Drawn":
    """Draw the figures of a run again from its tables; the result says which could not be drawn, and why.

    Raises:
        RunFolderError: If the folder contains no run.
    """
    from ot_lens.plots import draw_all

    folder = RunFolder.open(Path(run))
    return draw_all(folder.tables(), Path(out), tuple(formats), style, about=about(folder))


def about(folder: RunFolder) -> str:
    """What every caption ends with."""
    manifest = folder.manifest
    name = manifest.get("model", {}).get("name", "unknown model")
    seed, number = manifest["config"].get("seed"), manifest["versions"].get("ot_lens")
    return f"Model {name}, seed {seed}, ot_lens {number}."


def write_page(folder: RunFolder, tables: Mapping[str, pd.DataFrame], out: Path) -> Path:
    """Write the report of a run from its tables and its manifest."""
    from ot_lens.report import write_report

    return write_report(folder.path, tables, folder.manifest, summarize(tables["localization"]), out)
