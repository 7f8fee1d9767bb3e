"""Controls: edits of the same size without information about the classes, in the same table."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens import transport
from ot_lens.activations import Activations
from ot_lens.localization.candidates import Candidate, Maps, candidates
from ot_lens.localization.methods import MethodSpec, fit_maps
from ot_lens.localization.settings import RANDOM, SweepPlan, SweepSettings
from ot_lens.prompts import CLASSES
from ot_lens.tables import SINGLE
from ot_lens.transport import ActivationMap, AffineMap, method_named

# Methods to compare with: a shift alone, and single coordinates alone.
REFERENCES = tuple(MethodSpec(name) for name in transport.REFERENCES)


def with_references(methods: Sequence[MethodSpec], controls: Sequence[str]) -> list[MethodSpec]:
    """Methods, and those that a sweep with controls measures beside them."""
    return [*methods, *(method for method in REFERENCES if controls and method not in methods)]


def controls(
    acts: Activations,
    maps: Maps,
    settings: SweepSettings,
    plan: SweepPlan,
    progress: Callable[[int], None] = lambda _done: None,
) -> Iterator[Candidate]:
    """Control candidates for every single layer of every method; only their refusal score is measured.

    "random_subspace" rotates the map into a random subspace, with the same rank and the same mean
    displacement of harmful activations; "permuted_labels" is the same fit on permuted class labels, without
    the methods that are trained through the model. Joint fits have no single layers, and so no controls.
    """
    maps = {method: by_layer for method, by_layer in maps.items() if not method.joint}
    fitted = [method for method in maps if not method.learned]
    layers = sorted({layer for by_layer in maps.values() for layer in by_layer})
    for draw in range(plan.control_draws):
        seed = settings.panel.seed * 1009 + draw
        for kind in plan.controls:
            if kind == RANDOM:
                controlled: Maps = _random(acts, maps, settings.position, seed)
            else:
                mixed = permuted(acts, seed=seed)
                controlled = fit_maps(mixed, fitted, layers=layers, position=settings.position)
            strengths = [max(plan.strengths)]
            for candidate in candidates(controlled, settings, [SINGLE], strengths, generates=False):
                both = plan.sufficiency and method_named(candidate.method.name).reversible
                read = CLASSES if both else ("harmful",)
                yield dataclasses.replace(candidate, control=kind, draw=draw, prompts=read)
            progress(1)


def permuted(acts: Activations, *, seed: int) -> Activations:
    """The same activations with permuted class labels, the same at every layer and position."""
    pooled = torch.cat([acts.data["harmful"], acts.data["harmless"]], dim=1)
    order = torch.randperm(pooled.shape[1], generator=torch.Generator().manual_seed(seed))
    mixed = pooled[:, order]
    data = {"harmful": mixed[:, : acts.n_harmful], "harmless": mixed[:, acts.n_harmful :]}
    return dataclasses.replace(acts, data=data)


def swapped(acts: Activations) -> Activations:
    """The same activations with the classes swapped: maps fitted on them go from harmless to harmful."""
    data = {"harmful": acts.data["harmless"], "harmless": acts.data["harmful"]}
    return dataclasses.replace(acts, data=data)


def random_subspace(
    edit: ActivationMap, samples: Float64[Tensor, "n d"], *, generator: torch.Generator
) -> AffineMap | None:
    """Rotate an affine map's displacement into a random subspace about the samples' mean.

    None for maps that no rotation preserves: diagonal ones, and those that are not affine.

    D(x) = T(x) - x = c + U V'(x - m), with m the mean of the samples. The columns of [U, V, c] keep their
    mutual inner products but span random directions, and a factor on U and c preserves the mean norm of the
    displacement over the samples.
    """
    if not isinstance(edit, AffineMap) or edit.scale is not None:
        return None
    if edit.is_identity:
        return edit
    m = samples.mean(dim=0)
    c = edit.bias + edit.U @ (edit.V.T @ m)
    columns = torch.cat([edit.U, edit.V, c[:, None]], dim=1)
    turned = _turned(columns, generator)
    k = edit.rank
    U, V, shift = turned[:, :k], turned[:, k : 2 * k], turned[:, -1]
    before = (edit(samples) - samples).norm(dim=1).mean()
    after = (shift + (samples - m) @ V @ U.T).norm(dim=1).mean()
    size = before / after
    return AffineMap(size * U, V, size * (shift - U @ (V.T @ m)), info=edit.info)


def _turned(columns: Float64[Tensor, "d m"], generator: torch.Generator) -> Float64[Tensor, "d m"]:
    """Columns in random directions with the same mutual inner products, a smooth function of them.

    A basis of linearly dependent columns, such as U and V in one subspace, would depend on rounding.
    """
    d, m = columns.shape
    drawn = torch.randn(d, min(d, m), generator=generator, dtype=torch.float64).to(columns.device)
    directions = torch.linalg.qr(drawn).Q
    if m >= d:
        return directions @ columns
    size = columns.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    unit = columns / size
    values, vectors = torch.linalg.eigh(unit.T @ unit)
    return directions @ (vectors * values.clamp(min=0).sqrt()) @ vectors.T * size


def _random(acts: Activations, maps: Maps, position: int, seed: int) -> Maps:
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[MethodSpec, dict[int, AffineMap]] = {}
    for method, by_layer in maps.items():
        for layer, edit in by_layer.items():
            control = random_subspace(edit, acts.harmful(layer, position), generator=generator)
            if control is not None:
                drawn.setdefault(method, {})[layer] = control
    return drawn
