"""Whether ablating one direction leaves what the stream says about another."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ot_lens.activations import resolve_layers
from ot_lens.errors import FitError
from ot_lens.interventions import Edits, everywhere, intervene
from ot_lens.linalg import check_samples, float64
from ot_lens.models import Reversible, TokenBatch, backend, batches, by_row
from ot_lens.prompts import Contrast
from ot_lens.statistics import mean
from ot_lens.statistics.intervals import null_band
from ot_lens.transport import AffineMap, FitInfo
from ot_lens.transport.projection import ablation_of

# Share of the layers, from the first, that the published code compares.
SHARE = 0.9
PROFILE, LAYER = "profile_change", "cosine_change"

Profile = Float64[Tensor, "prompt layer"]


def representational_independence(
    model: Any,
    prompts: Contrast,
    direction_a: Tensor | AffineMap,
    direction_b: Tensor | AffineMap,
    *,
    layers: Sequence[int] | None = None,
    draws: int = 39,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _done: None,
) -> pd.DataFrame:
    """How far ablating one direction changes the cosines of the stream with another, layer by layer.

    The profile of a direction is the cosine of the last prompt token's stream entering each layer with it, on
    harmful prompts. Two directions are representationally independent if ablating either, everywhere, leaves
    the profile of the other where it was. Orthogonal directions need not be: later layers write one where
    they read the other. The null ablates random directions instead: what any ablation does.

    Source: Wollschläger et al. 2025 (arXiv 2502.17420), whose published code penalizes this change; null and
    interval are ours.

    Args:
        model: A hooked model.
        prompts: A split; its harmful prompts are read.
        direction_a: A vector `[d]` of any length, or a map that ablates one direction.
        direction_b: The other.
        layers: Default: the first 90 % of the layers, as published.
        draws: Random directions of the null; 39 are the fewest for 95 %.
        batch_size: Prompts per batch.
        seed: Of the random directions and the bootstrap over prompts.
        progress: Called with 1 for each ablation.

    Returns:
        For each direction that is ablated ("a" or "b") and the other, which is read: one row of quantity
        "profile_change", the mean squared change over layers and prompts, and one "cosine_change" per layer,
        the mean change there. Columns ablated, read, quantity, layer, value, low, high (95 % over prompts),
        null_mean, null_low, null_high, n, unit, and independent: whether "profile_change" is not above
        null_high.

    Raises:
        FitError: If a direction is zero, has another width than the model, or a map has another rank than 1.
        HookError: If a layer does not exist.
        PromptError: If prompts cannot be rendered.
    """
    served = backend(model)
    units = {
        name: _unit(given, name, served.d_model) for name, given in (("a", direction_a), ("b", direction_b))
    }
    if draws < 2:
        raise FitError(f"draws must be at least 2, got {draws}.")
    chosen = range(max(1, int(SHARE * served.n_layers))) if layers is None else layers
    read = partial(_profiles, model, prompts, resolve_layers(list(chosen), served.n_layers), batch_size)
    before = read({}, units)
    generator = torch.Generator().manual_seed(seed)
    null: list[Mapping[str, Profile]] = []
    for _ in range(draws):
        random = torch.randn(served.d_model, generator=generator, dtype=torch.float64)
        null.append(read(_ablation(random / random.norm(), served.n_layers), units))
        progress(1)
    rows = []
    for ablated, other in (("a", "b"), ("b", "a")):
        after = read(_ablation(units[ablated], served.n_layers), units)
        progress(1)
        drawn = torch.stack([profiles[other] - before[other] for profiles in null])
        rows += [
            {"ablated": ablated, "read": other, **row}
            for row in _rows(after[other] - before[other], drawn, list(chosen), seed)
        ]
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    whole = table["quantity"] == PROFILE
    return table.assign(independent=(table["value"] <= table["null_high"]).where(whole).astype("boolean"))


def _unit(given: Tensor | AffineMap, name: str, d_model: int) -> Float64[Tensor, " d"]:
    if isinstance(given, AffineMap):
        if given.rank != 1:
            raise FitError(
                f"Direction {name} is a map of rank {given.rank}: pass one of rank 1, or a vector."
            )
        given = given.V[:, 0]
    vector = check_samples(given.reshape(1, -1), f"direction {name}", least=1)[0].cpu()
    if len(vector) != d_model or not float(vector.norm()):
        size = f"width {len(vector)}" if len(vector) != d_model else "length 0"
        raise FitError(f"Direction {name} has {size}: pass a vector of width {d_model} that is not zero.")
    return vector / vector.norm()


def _ablation(unit: Float64[Tensor, " d"], n_layers: int) -> Edits:
    return everywhere(ablation_of(unit[:, None], FitInfo(k=1)), range(n_layers))


def _profiles(
    model: Any,
    prompts: Contrast,
    layers: Sequence[int],
    batch_size: int,
    edits: Edits,
    units: Mapping[str, Float64[Tensor, " d"]],
) -> dict[str, Profile]:
    """The profiles of some directions under edits."""
    served = backend(model)

    def read(batch: TokenBatch) -> Float64[Tensor, "batch layer name"]:
        seen: list[Float[Tensor, "batch d"]] = []

        def listen(changes: Reversible[None]) -> None:
            for layer in layers:
                changes.edit(served.hook_point(layer, "resid_pre"), note)

        def note(x: Tensor, hook: Any) -> None:  # noqa: ARG001  passed by name
            seen.append(float64(x[:, -1]).cpu())

        # Added after the edits, so that it sees what the layer sees.
        with intervene(model, edits), Reversible(listen):
            served.logits(batch.tokens, batch.mask, keep=1)
        stream = torch.stack(seen, dim=1)
        return torch.stack([cosine_similarity(stream, unit, dim=-1) for unit in units.values()], dim=-1)

    cosines = torch.stack(by_row(served, batches(served, prompts.harmful, batch_size), read))
    return {name: cosines[..., index] for index, name in enumerate(units)}


def _rows(
    change: Profile, null: Float64[Tensor, "draw prompt layer"], layers: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    columns: list[tuple[str, int | None, Tensor, Tensor]] = [
        (PROFILE, None, change.square().mean(dim=1), null.square().mean(dim=(1, 2)))
    ]
    columns += [
        (LAYER, layer, change[:, index], null[:, :, index].mean(dim=1)) for index, layer in enumerate(layers)
    ]
    rows = []
    for quantity, layer, values, drawn in columns:
        estimate = mean(values.numpy(), seed=seed, least=0.0 if layer is None else -float("inf"))
        row = {"quantity": quantity, "layer": layer, "value": estimate.value}
        ends = {"low": estimate.low, "high": estimate.high, **null_band(drawn)}
        rows.append({**row, **ends, "n": estimate.n, "unit": "cosine²" if layer is None else "cosine"})
    return rows
