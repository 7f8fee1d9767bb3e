"""Compare the refusal directions of two runs."""

from pathlib import Path

import pandas as pd

from ot_lens.activations import load_activations
from ot_lens.geometry import layer_cosines
from ot_lens.study.folder import RunFolder


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
        RunFolderError: If a folder holds no run, or its activations are incomplete.
        ActivationError: If the models have different widths.
    """
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
