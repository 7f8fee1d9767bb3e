"""Whether a fit is reliable: problems are stored in the map's `info.problems`, with one warning per call."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ot_lens.errors import PoorFitWarning
from ot_lens.transport.affine import AffineMap

MAX_CONDITION = 1e8
MAX_STRETCH = 300.0
PACKAGE = str(Path(__file__).parent.parent)


def problems_of(
    n: int,
    dimension: int,
    condition_number: float,
    *,
    regularized: bool,
    clipped: int,
    stretch: float,
) -> tuple[str, ...]:
    """Sentences about the covariances behind a map; empty when there is no problem.

    Args:
        n: samples of the smaller class.
        dimension: of the space the covariances live in.
        condition_number: of the regularized source covariance.
        regularized: whether shrinkage, which is meant for n <= dimension, was asked for.
        clipped: eigenvalues that came out negative.
        stretch: largest eigenvalue of the map.
    """
    problems = []
    if n <= dimension and not regularized:
        problems.append(
            f"{n} samples cannot estimate a covariance in {dimension} dimensions: "
            "choose a smaller k, more prompts or a larger ridge"
        )
    if condition_number > MAX_CONDITION:
        problems.append(
            f"the source covariance has condition number {condition_number:.1e}: "
            "choose a larger ridge or shrinkage, or a smaller k"
        )
    if clipped:
        problems.append(f"{clipped} eigenvalues came out negative and were set to 0: choose a larger ridge")
    if stretch > MAX_STRETCH:
        problems.append(
            f"the map stretches a direction by {stretch:.0f}, in which the source hardly varies: "
            "choose a larger ridge or shrinkage, or a smaller k"
        )
    return tuple(problems)


def warn_if_poor(maps: Sequence[AffineMap]) -> None:
    """Warn once about all maps of a call that have problems."""
    poor = [fitted.info for fitted in maps if fitted.info.problems]
    if poor:
        layers = [info.layer for info in poor if info.layer is not None]
        where = f" at layers {layers}" if layers else ""
        warn_of(f"poor {poor[0].method} fit{where}: {poor[0].problems[0]}")


def warn_of(problem: str) -> None:
    """Warn at the line outside this package that called the fit."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(problem, PoorFitWarning, stacklevel=level)
