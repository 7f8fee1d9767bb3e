"""Who writes a direction: the contribution of each component, by class, and whether the classes differ."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.components.reading import ALL, LAST, Component, Reading, read_contributions
from ot_lens.errors import ActivationError, HookError, OtLensError, one_of
from ot_lens.linalg import float64
from ot_lens.models import Backend, backend, check_layer
from ot_lens.prompts import CLASSES, Contrast
from ot_lens.statistics import holm, mean
from ot_lens.statistics.intervals import bootstrap_interval, null_band

DIFFERENCE = "difference"
# Draws of the null: Holm's correction over m components needs p-values of 0.05 / m, half of which suffices.
FEWEST, PER_COMPONENT = 999, 40
CHUNK = 1000
# Differences of this many roundings, relative to the contribution, are no evidence.
ROUNDINGS = 8.0
COLUMNS = (
    "prompts", "component", "layer", "head", "value", "unit", "low", "high", "null_mean", "null_low",
    "null_high", "p_value", "p_holm", "n", "tokens", "at_layer",
)  # fmt: skip

Values = Float64[Tensor, "component prompt"]


def contributions(
    model: Any,
    prompts: Contrast,
    direction: Float[Tensor, " d"],
    layer: int | None = None,
    *,
    heads: bool = True,
    tokens: str = LAST,
    permutations: int | None = None,
    bootstrap: int = 999,
    batch_size: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Who writes a direction: what each component adds to the stream along it, by class.

    The contribution of a component is its addend to the residual stream, projected on the unit direction
    (direct attribution; Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). Embedding,
    attention and MLP outputs below a layer sum to the projection of the stream that enters it, and the heads
    of an attention, with the bias of its output projection, to its output; both are checked on every batch.
    Where a norm lies behind the projection (Gemma 2, OLMo 2), its factors are taken as each token has them.

    Args:
        model: A hooked model.
        prompts: One split, such as `prompts.test`; not the one the direction was fitted on, if the class
            differences are to be evidence.
        direction: The direction, of any length other than zero; positive contributions point along it.
        layer: The layer whose input is taken apart; None, or the number of layers: what leaves the last one.
        heads: Split attention outputs into heads, where a layer has any that are known: recurrences have
            none, and neither have the layers of a HookedTransformer here.
        tokens: "last": at the prompt's last token; "all": summed over all tokens of the prompt.
        permutations: Label permutations of the null; default: as many as Holm's correction needs, 40 for each
            component and at least 999.
        bootstrap: Resamples of the interval of each difference.
        batch_size: Prompts per batch.
        seed: Seed of resamples and permutations.

    Returns:
        Three rows per component, by prompts: the class means ("harmful", "harmless") and their "difference".
        Columns component ("embedding", "attention", "head", "bias", "mlp", "block" where the parts of a layer
        are not known, "stream" for the sum), layer, head, value, unit, low and high (95 %), n, tokens and
        at_layer (`layer`, missing for the last one's output); of differences also null_mean, null_low and
        null_high (labels permuted), p_value (two-sided, permutation) and p_holm (Holm 1979, over all
        components but the sum).

    Raises:
        ActivationError: If the direction has another width than the model, or is zero or not finite, or
            contributions are not finite.
        HookError: If the layer or token scope does not exist, or the contributions do not add up.
        OtLensError: If a number of draws is not positive.
        PromptError: If prompts cannot be rendered.
    """
    served = backend(model)
    one_of("token scope", tokens, (LAST, ALL), HookError)
    reading = Reading(_unit(direction, served.d_model), _checked(layer, served), heads, tokens)
    for name, count in (("permutations", permutations), ("bootstrap", bootstrap)):
        if count is not None and count < 1:
            raise OtLensError(f"{name} must be at least 1, got {count}.")
    both = [*prompts.harmful, *prompts.harmless]  # in the same batches, whose rounding they share
    found = read_contributions(served, both, reading, batch_size)
    values = torch.stack(list(found.values()))
    table = _tested(list(found), values, len(prompts.harmful), permutations, bootstrap, seed)
    at = None if reading.stop == served.n_layers else reading.stop
    table["tokens"], table["at_layer"] = tokens, pd.array([at] * len(table), dtype="Int64")
    return table[list(COLUMNS)]


def top_heads(table: pd.DataFrame, k: int) -> list[tuple[int, int]]:
    """The heads whose contributions differ most between the classes, in the sense of the direction.

    Args:
        table: Of `contributions`, on prompts other than those on which the heads are to be ablated.
        k: How many.

    Returns:
        (layer, head) pairs, the largest difference first.

    Raises:
        OtLensError: If the table holds fewer heads.
    """
    rows = table[(table["component"] == "head") & (table["prompts"] == DIFFERENCE)]
    if not 1 <= k <= len(rows):
        raise OtLensError(
            f"k = {k}: the table holds {len(rows)} heads, of which 1 to {len(rows)} can be taken."
        )
    rows = rows.sort_values("value", ascending=False, kind="stable").head(k)
    return [(int(row["layer"]), int(row["head"])) for _, row in rows.iterrows()]


def _unit(direction: Float[Tensor, " width"], d_model: int) -> Float64[Tensor, " d"]:
    if direction.shape != (d_model,):
        raise ActivationError(
            f"The direction has shape {list(direction.shape)}, the model's stream width {d_model}: fit it on "
            "this model's activations."
        )
    unit = float64(direction.detach()).cpu()
    norm = float(unit.norm())
    if not 0 < norm < float("inf"):
        raise ActivationError(f"The direction has norm {norm}: a direction is finite and not zero.")
    return unit / norm


def _checked(layer: int | None, served: Backend) -> int:
    if layer is None or layer == served.n_layers:
        return served.n_layers
    check_layer(layer, served.n_layers)
    return layer


def _tested(
    components: list[Component],
    values: Values,
    n_harmful: int,
    permutations: int | None,
    bootstrap: int,
    seed: int,
) -> pd.DataFrame:
    """Class means with intervals, and their differences with interval, null and p-values."""
    count = max(FEWEST, PER_COMPONENT * len(components)) if permutations is None else permutations
    sizes = n_harmful, values.shape[1] - n_harmful
    groups = values[:, :n_harmful], values[:, n_harmful:]
    observed = groups[0].mean(dim=1) - groups[1].mean(dim=1)
    resampled = torch.cat([draw @ values.T for draw in _resamples(sizes, bootstrap, seed)])
    beyond, first = torch.zeros(len(components)), torch.empty(0)
    # A difference of rounding is never beyond the null.
    least = observed.abs() * (1 - 1e-9) - ROUNDINGS * torch.finfo(torch.float32).eps * values.abs().amax(
        dim=1
    )
    for draw in _relabellings(sizes, count, seed):
        null = draw @ values.T
        first = first if len(first) else null
        beyond += (null.abs() >= least).sum(dim=0)
    p_values = ((1 + beyond) / (1 + count)).numpy()
    whole = np.array([component.kind == "stream" for component in components])
    corrected = holm(np.where(whole, np.nan, p_values))
    rows: list[dict[str, Any]] = []
    for i, component in enumerate(components):
        own = {
            "component": component.kind,
            "layer": component.layer,
            "head": component.head,
            "unit": "activation",
        }
        for label, group in zip(CLASSES, groups, strict=True):
            estimate = mean(group[i].numpy(), seed=seed)
            ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
            rows.append({**own, "prompts": label, **ends})
        value = float(observed[i])
        ends = bootstrap_interval(value, resampled[:, i], sum(sizes)) | null_band(first[:, i])
        tests = {"p_value": p_values[i], "p_holm": corrected[i], "n": sum(sizes)}
        rows.append({**own, "prompts": DIFFERENCE, "value": value, **ends, **tests})
    return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})


def _resamples(sizes: tuple[int, int], count: int, seed: int) -> Iterator[Float64[Tensor, "draw prompt"]]:
    """Weights of prompts in the difference of means, drawn with replacement within each class."""
    rng = np.random.default_rng([seed, 1])
    for start in range(0, count, CHUNK):
        rows = min(CHUNK, count - start)
        weights = [rng.multinomial(n, np.full(n, 1 / n), size=rows) / n for n in sizes]
        yield torch.from_numpy(np.concatenate([weights[0], -weights[1]], axis=1))


def _relabellings(sizes: tuple[int, int], count: int, seed: int) -> Iterator[Float64[Tensor, "draw prompt"]]:
    """The same of permuted labels."""
    rng = np.random.default_rng([seed, 2])
    signed = np.repeat([1 / sizes[0], -1 / sizes[1]], sizes)
    for start in range(0, count, CHUNK):
        yield torch.from_numpy(rng.permuted(np.tile(signed, (min(CHUNK, count - start), 1)), axis=1))
