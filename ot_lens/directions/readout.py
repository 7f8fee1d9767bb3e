"""The tokens that a direction, the axes of a map and its mean displacement write: final norm, unembedding.

A vector v is read as logits(v) - logits(0), where logits is everything that the model does to the stream that
leaves its last block: final norm, unembedding, scaling and soft cap. The norm is that of v itself, not of an
activation with v added, as in TransformerLens' `logit_readout`; logits(0), which holds biases alone, is 0 in
models with an RMS norm. Vectors are first scaled to root mean square 1, so that their length plays no part,
and the mean over the vocabulary is subtracted, which no probability depends on.

Source: the logit lens (nostalgebraist 2020), for directions Geva et al. 2022 (arXiv 2203.14680), section 4.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.errors import ActivationError, FitError, HookError, OtLensError
from ot_lens.linalg import float64
from ot_lens.models import backend
from ot_lens.models.reversible import evaluating
from ot_lens.samples import Edit, LayerSamples, checked_layer, resolve_position
from ot_lens.statistics.intervals import null_band
from ot_lens.transport import AffineMap

KINDS = ("direction", "axis", "displacement")
SIDES = ("top", "bottom")
# Fewest random directions: 39 suffice for a 95 % band.
FEWEST_DRAWS = 39
# Vectors whose logits are in memory at once.
CHUNK = 64
# A displacement, axis or direction this short, relative to the activations, is rounding.
SMALLEST = 1e-10
COLUMNS = (
    "kind", "method", "layer", "position", "number", "side", "rank", "token_id", "token", "logit_change",
    "z", "null_mean", "null_low", "null_high", "draws", "length", "n_harmful", "n_harmless", "unit", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Vector:
    """One vector to read, and what the table says of it."""

    place: Mapping[str, Any]
    value: Float64[Tensor, " d"]


def vector_logits(model: Any, vectors: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of vectors read through the model's final norm and unembedding.

    The norm takes its statistics from each vector itself. Logit scales (Granite, Cohere) and the soft cap of
    the logits (Gemma 2) are those of the model, whose dtype the vectors are cast to. Agrees with
    `transformer_lens.tools.analysis.logit_readout`.

    Args:
        model: A hooked model.
        vectors: Vectors of the residual stream.

    Returns:
        In the dtype of the model, on the CPU.

    Raises:
        ActivationError: If the vectors are not floating point or have another width than the model.
        ModelError: If the model has no known final norm.
    """
    served = backend(model)
    if not vectors.dtype.is_floating_point or vectors.ndim == 0 or vectors.shape[-1] != served.d_model:
        raise ActivationError(
            f"Vectors of dtype {vectors.dtype} and shape {list(vectors.shape)} are not of this model's "
            f"stream: give floating-point vectors of width {served.d_model}."
        )
    rows = vectors.reshape(-1, served.d_model)
    if not len(rows):
        raise ActivationError("There is no vector to read: give at least one.")
    dtype = next(weight.dtype for weight in served.model.parameters() if weight.dtype.is_floating_point)
    with evaluating(served.model):
        logits = [served.unembed(chunk.to(served.device, dtype)).cpu() for chunk in rows.split(CHUNK)]
    return torch.cat(logits).unflatten(0, vectors.shape[:-1]) if vectors.ndim > 1 else logits[0][0]


def readout(
    model: Any,
    acts: LayerSamples,
    maps: Mapping[str, Mapping[int, Edit]] | None = None,
    *,
    moved: LayerSamples | None = None,
    layers: Sequence[int] | None = None,
    position: int | str | None = None,
    k: int = 10,
    axes: int = 4,
    draws: int = 199,
    seed: int = 0,
) -> pd.DataFrame:
    """Top and bottom tokens of the refusal direction, of the axes of maps, and of their mean displacements.

    - direction: mu_H - mu_S at each layer.
    - axis: the left singular vectors of the low-rank part U V^T of an `AffineMap`, by singular value: what
      the map writes. Each is turned to where the harmful mean lies, seen from the harmless one. A map with a
      diagonal (coordinate-wise transport) has no few axes, and other kinds of maps none at all.
    - displacement: the mean of T(x) - x over harmful samples. On the samples that a map was fitted to, that
      of any map that moves the mean exactly is minus the direction: pass other samples as `moved`.

    The null is what isotropic random directions give at the same rank and side.

    Args:
        model: A hooked model.
        acts: Its activations of both classes.
        maps: Maps by layer, by the name that the table shows.
        moved: Activations whose harmful samples the maps move; default: `acts`.
        layers: Layers of `acts` to read; default: all.
        position: A captured position; optional if there is only one.
        k: Tokens on each side.
        axes: Axes of each map at most.
        draws: Random directions.
        seed: Their seed.

    Returns:
        One row per vector, side and rank: kind, method ("" for directions), layer, position, number (of the
        axis, from 0), side ("top" or "bottom"), rank (from 1), token_id, token (as text), logit_change (of
        the vector scaled to root mean square 1, about the mean over the vocabulary), z (the same in standard
        deviations of this token's change over the random directions: some tokens move with any vector),
        null_mean, null_low and null_high (mean and 95 % band of the random directions at that rank), draws,
        length (of the direction or displacement; the singular value of an axis), n_harmful, n_harmless (of
        the samples read), unit, seed. A vector that is 0 has no rows.

    Raises:
        HookError: If a layer was not captured.
        OtLensError: If k or axes is too small or large, or there are too few draws.
        FitError: If a map has another width than the activations.
    """
    vectors = readout_vectors(acts, maps or {}, moved=moved, layers=layers, position=position, axes=axes)
    return tokens_written(model, vectors, k=k, draws=draws, seed=seed)


def readout_vectors(
    acts: LayerSamples,
    maps: Mapping[str, Mapping[int, Edit]],
    *,
    moved: LayerSamples | None = None,
    layers: Sequence[int] | None = None,
    position: int | str | None = None,
    axes: int = 4,
) -> list[Vector]:
    """What `readout` reads, which needs no model."""
    at, chosen = resolve_position(acts, position), tuple(acts.layers if layers is None else layers)
    missing = [layer for layer in chosen if layer not in acts.layers]
    if missing or not chosen:
        raise HookError(f"layers = {list(chosen)}: choose at least one of the captured {list(acts.layers)}.")
    if axes < 0:
        raise OtLensError(f"axes must be >= 0, got {axes}.")
    vectors: list[Vector] = []
    for layer in chosen:
        edits = {name: by_layer[layer] for name, by_layer in maps.items() if layer in by_layer}
        vectors += _vectors((acts, moved or acts), edits, layer, at, axes)
    return vectors


def tokens_written(
    model: Any, vectors: Sequence[Vector], *, k: int, draws: int = 199, seed: int = 0
) -> pd.DataFrame:
    """The table of `readout`."""
    served = backend(model)
    if not 1 <= k <= served.d_vocab:
        raise OtLensError(f"k must be 1 to {served.d_vocab}, the size of the vocabulary, got {k}.")
    if draws < FEWEST_DRAWS:
        raise OtLensError(f"draws must be at least {FEWEST_DRAWS} for a 95 % band, got {draws}.")
    rows = list(_rows(model, vectors, k, _Null.of(model, served.d_model, k, draws, seed)))
    tokens = {i: _text(served.tokenizer, i) for i in {row["token_id"] for row in rows}}
    about = {"draws": draws, "unit": "logits", "seed": seed}
    told = [{**row, "token": tokens[row["token_id"]], **about} for row in rows]
    return pd.DataFrame(told, columns=list(COLUMNS)).astype({"number": "Int64"})


def _vectors(
    samples: tuple[LayerSamples, LayerSamples],
    edits: Mapping[str, Edit],
    layer: int,
    position: int | str,
    axes: int,
) -> Iterator[Vector]:
    """The vectors of one layer; those that are rounding are left out."""
    (H, S), (X, Y) = (checked_layer(acts, layer, position) for acts in samples)
    place = {"layer": layer, "position": position}
    size, direction = float(torch.cat([H, S]).norm(dim=1).mean()), H.mean(0) - S.mean(0)
    counts = {"n_harmful": len(H), "n_harmless": len(S)}

    def vector(value: Float64[Tensor, " d"], kind: str, method: str = "", **more: Any) -> Vector:
        return Vector(
            {"kind": kind, "method": method, "length": float(value.norm()), **place, **counts, **more}, value
        )

    found = [vector(direction, "direction")]
    for method, edit in edits.items():
        found += [
            vector(axis, "axis", method, number=number, length=value)
            for number, (axis, value) in enumerate(_axes(edit, direction, axes))
        ]
        displacement = (_moved(edit, X) - X).mean(0)
        found.append(vector(displacement, "displacement", method, n_harmful=len(X), n_harmless=len(Y)))
    yield from (v for v in found if float(v.value.norm()) > SMALLEST * size)


def _moved(edit: Edit, H: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    width = getattr(edit, "d_model", H.shape[1])
    if width != H.shape[1]:
        raise FitError(f"The samples have width {H.shape[1]}, the map {width}.")
    return float64(edit(H))


def _axes(
    edit: Edit, direction: Float64[Tensor, " d"], most: int
) -> list[tuple[Float64[Tensor, " d"], float]]:
    """Left singular vectors of U V^T with their singular values, turned towards the direction."""
    if not isinstance(edit, AffineMap) or edit.scale is not None or edit.rank == 0:
        return []
    left, coefficients = torch.linalg.qr(float64(edit.U))
    right = torch.linalg.qr(float64(edit.V)).R
    vectors, values, _ = torch.linalg.svd(coefficients @ right.T)
    written = left @ vectors
    signs = torch.where(written.T @ direction < 0, -1.0, 1.0)
    kept = int((values > SMALLEST * values[0]).sum())
    return [(signs[i] * written[:, i], float(values[i])) for i in range(min(kept, most))]


@dataclass(frozen=True)
class _Null:
    """What isotropic random directions write: the band of each rank by side, and the spread of each token."""

    bands: Mapping[str, Sequence[Mapping[str, float]]]
    mean: Float64[Tensor, " d_vocab"]
    spread: Float64[Tensor, " d_vocab"]

    @classmethod
    def of(cls, model: Any, d: int, k: int, draws: int, seed: int) -> "_Null":
        """From so many directions, a chunk of them at a time."""
        random = torch.randn(draws, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        parts: list[Mapping[str, tuple[Tensor, Tensor]]] = []
        total, squares = torch.zeros(2, backend(model).d_vocab, dtype=torch.float64)
        for chunk in random.split(CHUNK):
            changes = _changes(model, chunk)
            parts.append(_sides(changes, k))
            total, squares = total + changes.sum(0), squares + changes.square().sum(0)
        mean = total / draws
        spread = ((squares - draws * mean.square()).clamp_min(0) / (draws - 1)).sqrt()
        by_side = {side: torch.cat([part[side][0] for part in parts]) for side in SIDES}
        bands = {side: [null_band(column) for column in values.T] for side, values in by_side.items()}
        return cls(bands, mean, spread)

    def deviation(self, change: float, token: int) -> float:
        """A change of a token's logit in standard deviations of the same token; NaN if it never changes."""
        spread = float(self.spread[token])
        return (change - float(self.mean[token])) / spread if spread else float("nan")


def _changes(model: Any, vectors: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d_vocab"]:
    """Changes of the logits by vectors of root mean square 1, about their mean over the vocabulary."""
    scaled = vectors / vectors.square().mean(1, keepdim=True).sqrt()
    changes = float64(vector_logits(model, scaled) - vector_logits(model, torch.zeros_like(scaled[:1])))
    return changes - changes.mean(1, keepdim=True)


def _sides(changes: Float64[Tensor, "n d_vocab"], k: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The k largest and smallest changes, the most extreme first, and their tokens."""
    top, bottom = changes.topk(k, dim=1), (-changes).topk(k, dim=1)
    return {"top": (top.values, top.indices), "bottom": (-bottom.values, bottom.indices)}


def _rows(model: Any, vectors: Sequence[Vector], k: int, null: _Null) -> Iterator[dict[str, Any]]:
    """The tokens at both ends, with the null, for each vector."""
    for start in range(0, len(vectors), CHUNK):
        few = vectors[start : start + CHUNK]
        sides = _sides(_changes(model, torch.stack([vector.value for vector in few])), k)
        for i, vector in enumerate(few):
            for side, (values, ids) in sides.items():
                for rank, (value, token) in enumerate(zip(values[i].tolist(), ids[i].tolist(), strict=True)):
                    found = {"side": side, "rank": rank + 1, "token_id": token, "logit_change": value}
                    z = null.deviation(value, token)
                    yield {**vector.place, **found, "z": z, **null.bands[side][rank]}


def _text(tokenizer: Any, token: int) -> str:
    """A token as text; white space and what cannot be printed are escaped, a space before a word is kept."""
    text = str(tokenizer.decode([token]))
    return text if text.strip() and text.isprintable() else repr(text)
