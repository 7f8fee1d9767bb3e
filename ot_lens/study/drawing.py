"""Figures and page of a run, drawn from its tables without a model; and the comparison with another run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ot_lens.progress import Stage, silent
from ot_lens.study.findings import summarize
from ot_lens.study.folder import RunFolder

if TYPE_CHECKING:
    from ot_lens.plots import Drawn


def draw_figures(
    run: str | Path,
    out: str | Path,
    *,
    formats: Sequence[str] = ("png", "pdf"),
    style: str = "icml",
    stage: Stage = silent,
) -> "Drawn":
    """Draw the figures of a run again from its tables; the result says which could not be drawn, and why.

    As many processes draw as torch has threads; `stage` shows progress, as `ot_lens.progress.shown` does.

    Raises:
        RunFolderError: If the folder contains no run.
    """
    from ot_lens.plots import draw_all

    folder = RunFolder.open(Path(run))
    return draw_all(folder.tables(), Path(out), tuple(formats), **drawing_options(folder, style, stage))


def drawing_options(folder: RunFolder, style: str, stage: Stage, processes: int = 1) -> dict[str, Any]:
    """How `draw_all` draws a run: with at least as many processes as torch has threads."""
    count = max(processes, torch.get_num_threads())
    return {"style": style, "about": about(folder), "processes": count, "stage": stage}


def about(folder: RunFolder) -> str:
    """What every caption ends with."""
    manifest = folder.manifest
    name = manifest.get("model", {}).get("name", "unknown model")
    seed, number = manifest["config"].get("seed"), manifest["versions"].get("ot_lens")
    return f"Model {name}, seed {seed}, ot_lens {number}."


def write_page(folder: RunFolder, tables: Mapping[str, pd.DataFrame], out: Path) -> Path:
    """Write the report of a run from its tables and its manifest."""
    from ot_lens.report import write_report

    return write_report(
        folder.path, tables, folder.manifest, summarize(tables["localization"], tables.get("localizers")), out
    )


def compare_runs(run: str | Path, other: str | Path) -> pd.DataFrame:
    """Cosines between the refusal directions of two runs, for every pair of layers.

    They are computed from both runs' training activations, with the resamples and the seed of the first run,
    and written to its tables/run_cosines.parquet, where `draw_figures` finds them.

    Args:
        run: A run folder.
        other: Another run folder; both models must have the same width.

    Returns:
        Columns layer, layer_other, position, cosine, n, low, high, null_mean, null_low, null_high, other.

    Raises:
        RunFolderError: If a folder contains no run, or its activations are incomplete.
        ActivationError: If the models have different widths.
    """
    from ot_lens.activations import load_activations
    from ot_lens.geometry import layer_cosines

    folder, against = RunFolder.open(Path(run)), RunFolder.open(Path(other))
    config = folder.config
    table = layer_cosines(
        load_activations(folder.path / "activations" / "train"),
        load_activations(against.path / "activations" / "train"),
        position=config.position,
        permutations=config.permutations,
        bootstrap=config.bootstrap,
        seed=config.seed,
    ).assign(other=against.path.resolve().name)
    folder.write_table("run_cosines", table)
    return table
