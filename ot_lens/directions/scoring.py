"""Scores of candidate directions: bypass, induce and KL with their intervals, and cosine similarities."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, resolve_layers
from ot_lens.behaviour import kl_divergence, refusal_token_ids, score_from_logprobs
from ot_lens.directions.last_token import read_last_token
from ot_lens.errors import ActivationError, HookError, OtLensTypeError
from ot_lens.interventions import everywhere, intervene
from ot_lens.models import backend
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.statistics import Estimate, mean
from ot_lens.transport import AffineMap, FitInfo

# Added to the norm that a direction is divided by, as in the published code: a difference in means that is
# only rounding (at a token that all prompts share) then ablates nothing.
EPSILON = 1e-8
# Share of the layers, those where the classes are least alike, at which COSMIC compares activations.
COMPARED_SHARE = 0.1

Candidates = dict[tuple[int, int], Float64[Tensor, " d"]]


def score_directions(
    model: Any,
    prompts: Contrast,
    directions: Any,
    *,
    positions: Sequence[int] | None = None,
    layers: str | Sequence[int] = "all",
    refusal_tokens: Sequence[str | int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Score every candidate direction on validation prompts, for `select_direction`.

    For each candidate r = mu_harmful - mu_harmless: the mean refusal score of the harmful prompts with r^
    ablated from every block's input, attention output and MLP output, at all positions (bypass); the mean
    refusal score of the harmless prompts with r, not normalized, added to its layer's input, at all positions
    (induce); and the mean KL of the harmless prompts' next-token distributions under that ablation. The
    published code has 1e-6 inside the logarithms of KL, this one does not.

    From the same passes come the similarities of COSMIC (Siu et al. 2025, arXiv 2506.00085), which need no
    refusal tokens: the cosine between the mean activation of the harmful prompts under that ablation and that
    of the unedited harmless ones, and between the harmless prompts under that addition and the unedited
    harmful ones, each averaged over the tenth of the layers (at least one) where the unedited classes are
    least alike. Activations are block outputs at the last token. The published code takes one cosine, of
    activations averaged over those layers.

    Candidate positions should be those of the template after the request, as in the paper. A direction from a
    word of the request may bypass refusal by erasing the request.

    Args:
        model: A hooked model.
        prompts: A split that the directions were not fitted on: `prompts.val`.
        directions: `Activations` at resid_pre of the training prompts, or differences in means
            [position, layer, d] of all layers, the prompt's last position last (as in mean_diffs.pt).
        positions: Candidate positions; default: all that `directions` holds.
        layers: Candidate layers; "all": all that `directions` holds.
        refusal_tokens: Tokens that begin a refusal; default as in `refusal_token_ids`.
        batch_size: Prompts per batch.
        seed: Of the bootstrap intervals over prompts.
        progress: Called with the name of each candidate just scored.

    Returns:
        One row per candidate: position, layer; refusal_score, steering_score, kl_div_score, each with a 95 %
        interval (`refusal_low` ...), in nats; ablation_similarity, addition_similarity; n_harmful,
        n_harmless; refusal_baseline, steering_baseline and similarity_baseline, the same without any edit;
        direction_norm; seed. NaN if a direction or the edited model's activations are not finite.

    Raises:
        HookError: If a position or layer does not exist, or the activations are not of resid_pre.
        OtLensTypeError: If `directions` is of another type, or `prompts` is a complete set.
        PromptError: If prompts cannot be rendered, or a refusal token is unknown.
    """
    if isinstance(prompts, ContrastSet):
        raise OtLensTypeError("score_directions takes one split: pass prompts.val.")
    candidates = _candidates(directions, backend(model).n_layers)
    scorer = _Scorer(model, prompts, refusal_token_ids(model, refusal_tokens), batch_size, seed)
    rows = []
    for position, layer in _chosen(candidates, positions, layers):
        rows.append(scorer.row(candidates[position, layer], position, layer))
        if progress is not None:
            progress(f"position {position}, layer {layer}")
    return pd.DataFrame(rows)


def _candidates(directions: Any, n_layers: int) -> Candidates:
    if isinstance(directions, Activations):
        if directions.hook != "resid_pre":
            raise HookError(
                f"The activations are of {directions.hook}, but directions are added to a block's input: "
                "capture them with hook='resid_pre'."
            )
        tokens = [p for p in directions.positions if isinstance(p, int)]
        if len(tokens) < len(directions.positions):
            raise HookError(
                f"The activations are of positions {list(directions.positions)}, but a direction belongs to "
                "one token: capture without reduce."
            )
        return {
            (p, la): directions.harmful(la, p).mean(0) - directions.harmless(la, p).mean(0)
            for p in tokens
            for la in directions.layers
        }
    if not isinstance(directions, Tensor) or not directions.is_floating_point():
        raise OtLensTypeError(
            f"directions must be Activations or a floating-point tensor, got {type(directions).__name__}."
        )
    if directions.ndim != 3 or directions.shape[1] != n_layers:
        raise HookError(
            f"directions must have shape [positions, {n_layers} layers, d], got {tuple(directions.shape)}."
        )
    return {
        (p, la): directions[p, la].cpu().double()
        for p in range(-len(directions), 0)
        for la in range(n_layers)
    }


def _chosen(
    candidates: Candidates, positions: Sequence[int] | None, layers: str | Sequence[int]
) -> list[tuple[int, int]]:
    known = {"position": sorted({p for p, _ in candidates}), "layer": sorted({la for _, la in candidates})}
    chosen = {
        "position": known["position"] if positions is None else sorted(set(positions)),
        "layer": known["layer"] if layers == "all" else list(resolve_layers(layers, known["layer"][-1] + 1)),
    }
    for name, values in chosen.items():
        missing = [value for value in values if value not in known[name]]
        if missing or not values:
            problem = f"There is no direction of {name} {missing[0]}" if missing else f"No {name} is chosen"
            raise HookError(f"{problem}: choose among {name}s {known[name]}.")
    return [(p, la) for p in chosen["position"] for la in chosen["layer"]]


class _Scorer:
    """Scores candidates, NaN where the edited model overflows; keeps what the unedited model computes."""

    def __init__(
        self, model: Any, prompts: Contrast, tokens: Sequence[int], batch_size: int, seed: int
    ) -> None:
        self._model, self._prompts, self._tokens = model, prompts, tuple(tokens)
        self._batch_size, self._seed = batch_size, seed
        self._n_layers = backend(model).n_layers
        self._layers: Sequence[int] = range(self._n_layers)
        harmful, mean_harmful = self._read("harmful")
        self._harmless, mean_harmless = self._read("harmless")
        alike = torch.cosine_similarity(mean_harmful, mean_harmless, dim=-1)
        count = max(1, int(COMPARED_SHARE * self._n_layers))
        self._layers = sorted(alike.argsort(stable=True)[:count].tolist())
        self._means = {"harmful": mean_harmful[self._layers], "harmless": mean_harmless[self._layers]}
        self._baselines = {
            "refusal_baseline": self._score(harmful).value,
            "steering_baseline": self._score(self._harmless).value,
            "similarity_baseline": float(alike[self._layers].mean()),
        }

    def row(self, r: Float64[Tensor, " d"], position: int, layer: int) -> dict[str, Any]:
        """The scores of one candidate."""
        unknown = Estimate(float("nan"), float("nan"), float("nan"), 0, "bootstrap")
        scores = dict.fromkeys(("refusal", "steering", "kl_div"), unknown)
        similarities = dict.fromkeys(("ablation_similarity", "addition_similarity"), float("nan"))
        if torch.isfinite(r).all():
            self._ablate(r, layer, scores, similarities)
            self._add(r, layer, scores, similarities)
        row: dict[str, Any] = {"position": position, "layer": layer}
        for name, found in scores.items():
            row |= {f"{name}_score": found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        sizes = {f"n_{label}": len(group) for label, group in self._prompts}
        about = {"direction_norm": float(r.norm()), "seed": self._seed}
        return {**row, **similarities, **sizes, **self._baselines, **about}

    def _ablate(
        self,
        r: Float64[Tensor, " d"],
        layer: int,
        scores: dict[str, Estimate],
        similarities: dict[str, float],
    ) -> None:
        unit = (r / (r.norm() + EPSILON)).unsqueeze(1)
        info = FitInfo(method="directional_ablation", layer=layer, hook="resid_pre", k=1)
        edit = AffineMap(-unit, unit, torch.zeros_like(r), info=info)
        edits = everywhere(edit, range(self._n_layers))
        with suppress(ActivationError), intervene(self._model, edits):
            logprobs, means = self._read("harmful")
            scores["refusal"] = self._score(logprobs)
            similarities["ablation_similarity"] = self._similarity(means, "harmless")
        with suppress(ActivationError), intervene(self._model, edits):
            logprobs, _ = self._read("harmless")
            scores["kl_div"] = mean(
                kl_divergence(self._harmless, logprobs).numpy(), seed=self._seed, least=0.0
            )

    def _add(
        self,
        r: Float64[Tensor, " d"],
        layer: int,
        scores: dict[str, Estimate],
        similarities: dict[str, float],
    ) -> None:
        empty = r.new_zeros(len(r), 0)
        with suppress(ActivationError), intervene(self._model, {layer: AffineMap(empty, empty, r)}):
            logprobs, means = self._read("harmless")
            scores["steering"] = self._score(logprobs)
            similarities["addition_similarity"] = self._similarity(means, "harmful")

    def _read(self, label: str) -> tuple[Float64[Tensor, "prompt d_vocab"], Float64[Tensor, "layer d"]]:
        """Next-token distributions, and mean activations at the compared layers."""
        logprobs, activations = read_last_token(
            self._model, getattr(self._prompts, label), self._layers, batch_size=self._batch_size
        )
        return logprobs, activations.mean(1)

    def _similarity(self, means: Float64[Tensor, "layer d"], label: str) -> float:
        return float(torch.cosine_similarity(means, self._means[label], dim=-1).mean())

    def _score(self, logprobs: Float64[Tensor, "prompt d_vocab"]) -> Estimate:
        return mean(score_from_logprobs(logprobs, self._tokens).numpy(), seed=self._seed)
