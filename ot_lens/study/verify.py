"""Verification of a run: bytes, tables, maps, figures and the model, on a sample."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from ot_lens.errors import OtLensError
from ot_lens.progress import Stage, silent
from ot_lens.study.folder import RunFolder
from ot_lens.study.preparation import import_extensions
from ot_lens.study.verifying.comparing import DIFFERS, MISSING, Checks
from ot_lens.study.verifying.evidence import Evidence
from ot_lens.study.verifying.pinned import pinned
from ot_lens.study.verifying.recomputed import fitted, recomputed
from ot_lens.study.verifying.remeasured import remeasured, unmeasured
from ot_lens.study.verifying.shown import shown

SAMPLE = 100


def verify_run(
    run: str | Path,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    full: bool = False,
    model: bool = True,
    trust_remote_code: bool = False,
    allow_code: bool = False,
    stage: Stage = silent,
) -> pd.DataFrame:
    """Recompute a sample of a run and compare it with the stored results; the run is only read.

    - The files: hashes against the manifest's, shards against their checksums.
    - The maps: fitted again on the stored activations, compared by how they move samples.
    - The tables: every value recomputed from stored activations, maps and sweep; nulls and intervals for a
      sample of layers, with the seeds of the run.
    - The model: a sample of shards captured again, the sweep planned again, a sample of its edits measured
      again, and the tables of edited models.
    - Captions and report, written again from the tables, and with `full` every figure.

    Args:
        run: A run folder.
        sample: Rows of each table that are recomputed with their resamples, or measured again.
        seed: Seed for choosing the rows.
        full: Check every row and every figure.
        model: Load the model that the manifest names; if not, what needs it is not checked.
        trust_remote_code: Run code that comes with the model; a run folder alone cannot ask for it.
        allow_code: Import the modules that the configuration names; likewise.
        stage: Shows progress.

    Returns:
        One row per check: item, how, compared, of, deviation (largest; NaN where only equality counts),
        tolerance, verdict ("ok", "differs", "missing" or "not checked"), note. The deviation of a number is
        relative to it, or to 0.001 of the largest of its column and quantity if that is larger: 0.01 where
        the model is run again, and a hundredth of the difference of its p-values.

    Raises:
        RunFolderError: If the folder contains no run.
        ConfigError: If its manifest has no configuration of this version.
        OtLensError: If `sample` is below 1.
    """
    if sample < 1:
        raise OtLensError(f"sample = {sample} must be at least 1; full=True checks every row.")
    evidence = Evidence(RunFolder.open(Path(run)), None if full else sample, seed, stage)
    checks = Checks()
    import_extensions(evidence.config, allow_code=allow_code)
    parts: list[Callable[[Evidence, Checks], None]] = [pinned, fitted, recomputed]
    if model:
        parts.append(partial(remeasured, trust_remote_code=trust_remote_code))
    else:
        parts.append(partial(unmeasured, reason="without the model"))
    if evidence.folder.finished:
        parts.append(partial(shown, figures=full))
    for part in parts:
        part(evidence, checks)
    return checks.table()


def holds(checks: pd.DataFrame) -> bool:
    """Whether nothing differs and nothing is missing."""
    return not checks["verdict"].isin([DIFFERS, MISSING]).any()
