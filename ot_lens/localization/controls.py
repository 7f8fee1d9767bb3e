"""Controls: edits of the same size without information about the classes, in the same table."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens import transport
from ot_lens.activations import Activations
from ot_lens.errors import HookError, one_of
from ot_lens.localization.candidates import Candidate, Maps, candidates
from ot_lens.localization.methods import MethodSpec, fit_maps
from ot_lens.prompts import CLASSES
from ot_lens.transport import AffineMap, method_named

RANDOM, PERMUTED = "random_subspace", "permuted_labels"
CONTROLS = (RANDOM, PERMUTED)
# Methods to compare with: a shift alone, and single coordinates alone.
REFERENCES = tuple(MethodSpec(name) for name in transport.REFERENCES)


def controls(
    acts: Activations,
    maps: Maps,
    n_layers: int,
    *,
    position: int,
    kinds: Sequence[str] = CONTROLS,
    draws: int = 5,
    strength: float = 1.0,
    both_ways: bool = False,
    seed: int = 0,
) -> Iterator[Candidate]:
    """Control candidates for every single layer of every method; only their refusal score is measured.

    Args:
        acts: Training activations that the maps were fitted on.
        maps: The real maps.
        n_layers: Layers of the model.
        position: Token position of the fit.
        kinds: "random_subspace": the map rotated into a random subspace, with the same rank and the same mean
            displacement of harmful activations. "permuted_labels": the same fit on permuted class labels.
        draws: Random draws of each kind.
        strength: Strength of the edits.
        both_ways: Whether controls of reversible methods are read on harmless prompts as well.
        seed: Seed of the draws.

    Raises:
        HookError: If a kind is unknown or draws is below 2.
    """
    for kind in kinds:
        one_of("control", kind, CONTROLS, HookError)
    if draws < 2:
        raise HookError(
            f"A control band needs at least 2 draws, got control_draws = {draws}: give more, or no controls."
        )
    for draw in range(draws):
        for kind in kinds:
            controlled = (
                _random(acts, maps, position, seed, draw)
                if kind == RANDOM
                else fit_maps(
                    permuted(acts, seed=seed * 1009 + draw),
                    list(maps),
                    layers=_layers(maps),
                    position=position,
                )
            )
            for candidate in candidates(controlled, n_layers, ["single"], [strength]):
                read = (
                    CLASSES if both_ways and method_named(candidate.method.name).reversible else ("harmful",)
                )
                yield dataclasses.replace(candidate, control=kind, draw=draw, prompts=read, generates=False)


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
    edit: AffineMap, samples: Float64[Tensor, "n d"], *, generator: torch.Generator
) -> AffineMap | None:
    """Rotate a map's displacement into a random subspace about the samples' mean.

    D(x) = T(x) - x = c + U V'(x - m), with m the mean of the samples. The columns of [U, V, c] keep their
    mutual inner products but span random directions, and a factor on U and c preserves the mean norm of the
    displacement over the samples.

    Args:
        edit: The map.
        samples: Samples that it moves.
        generator: Random numbers.

    Returns:
        The control, or None for a diagonal map, which has no subspace to rotate.
    """
    if edit.scale is not None:
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


def _random(acts: Activations, maps: Maps, position: int, seed: int, draw: int) -> Maps:
    generator = torch.Generator().manual_seed(seed * 1009 + draw)
    drawn: dict[MethodSpec, dict[int, AffineMap]] = {}
    for method, by_layer in maps.items():
        for layer, edit in by_layer.items():
            control = random_subspace(edit, acts.harmful(layer, position), generator=generator)
            if control is not None:
                drawn.setdefault(method, {})[layer] = control
    return drawn


def _layers(maps: Maps) -> list[int]:
    return sorted({layer for by_layer in maps.values() for layer in by_layer})
