"""Shape of each class covariance under every draw."""

import torch

from ot_lens.geometry.resampled_moments import LABELS, DrawnClasses, DrawnShapes, Values
from ot_lens.moments import intensity_of_gram


def dimensions(classes: DrawnClasses | DrawnShapes, d: int) -> Values:
    """Effective rank, participation ratio and condition number of each class; NaN for equal samples.

    Effective rank is exp(entropy of the normalized spectrum) (Roy & Vetterli 2007), the participation ratio
    (sum l)^2 / sum l^2. The condition number is that of the Ledoit-Wolf covariance, because the raw one is
    singular for n <= d: it says how ill-posed a map fitted here would be.
    """
    values: Values = {}
    for label in LABELS:
        gram = classes.within(label)
        spectrum = torch.linalg.eigvalsh(gram).clamp_min(0.0)
        total = gram.diagonal(dim1=1, dim2=2).sum(1)
        total = total.masked_fill(spectrum[:, -1] <= classes.rounding, torch.nan)
        values[f"effective_rank_{label}"] = torch.special.entr(spectrum / total.unsqueeze(1)).sum(1).exp()
        values[f"participation_ratio_{label}"] = total.square() / gram.square().sum((1, 2))
        values[f"condition_number_{label}"] = _condition(spectrum, total, intensity_of_gram(gram, d), d)
    return values


def _condition(spectrum: torch.Tensor, total: torch.Tensor, shrinkage: torch.Tensor, d: int) -> torch.Tensor:
    floor = shrinkage * total / d
    smallest = spectrum[:, -d] if spectrum.shape[1] > d else torch.zeros_like(total)
    return ((1 - shrinkage) * spectrum[:, -1] + floor) / ((1 - shrinkage) * smallest + floor)
