"""Names of methods for people."""

from typing import Any

import pandas as pd

LABELS = {
    "directional_ablation": "directional ablation",
    "rfa": "RFA (every block)",
    "ace": "ACE",
    "mean_shift": "mean shift",
    "linear_act": "Linear-AcT",
    "pca_ot": "PCA-OT",
    "gaussian_ot": "exact Gaussian OT",
    "leace": "LEACE",
    "subspace_ablation": "subspace ablation",
}


def method_label(method: str, k: Any = None) -> str:
    """The name of a method for people; k may be a missing value of a table."""
    name = LABELS.get(method, method)
    return f"{name} k = {k}" if method == "pca_ot" and k is not None and not pd.isna(k) else name
