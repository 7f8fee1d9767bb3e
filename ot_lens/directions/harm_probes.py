"""Linear probes of harm, trained on the unedited model, and which of them reads an edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor

from ot_lens.linalg import Pooled
from ot_lens.samples import LayerSamples, checked_layer
from ot_lens.transport.probe import RIDGE, CrossFit


@dataclass(frozen=True)
class Probe:
    """The normal vector of a ridge logistic regression of the class, and its cross-fitted AUC."""

    layer: int
    position: int | str
    normal: Float64[Tensor, " d"]
    auc: float

    def scores(self, acts: LayerSamples, label: str) -> Float64[Tensor, " n"]:
        """Log odds of each prompt of a class, up to a constant."""
        return (acts.harmful if label == "harmful" else acts.harmless)(
            self.layer, self.position
        ) @ self.normal


def fit_probes(acts: LayerSamples, position: int | str, seed: int) -> dict[int, Probe]:
    """A probe for each layer."""
    probes = {}
    for layer in acts.layers:
        H, S = checked_layer(acts, layer, position)
        pooled = Pooled.of(H, S)
        fit = CrossFit.of(pooled, len(H), RIDGE, seed)
        grams = fit.gram.expand(fit.folds + 1, -1, -1)
        weights = fit.probes(grams)
        probes[layer] = Probe(layer, position, weights[-1] @ pooled.Z, fit.held_out_auc(grams, weights).value)
    return probes


def reading(probes: Mapping[int, Probe], layer: int) -> Probe:
    """The probe that reads an edit at a layer: the best one there or above, the lowest of equals."""
    above: Sequence[Probe] = [probes[at] for at in sorted(probes) if at >= layer]
    return max(above, key=lambda probe: probe.auc)
