"""How many directions a cone can have of which each one removes refusal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import normalize

from ot_lens.behaviour import refusal_score, refusal_token_ids
from ot_lens.errors import FitError, OtLensTypeError
from ot_lens.interventions import everywhere, intervene
from ot_lens.learned.sphere import TrainingSettings, train
from ot_lens.learned.start import extended, objective_at
from ot_lens.models import backend
from ot_lens.prompts import ContrastSet, Prompt
from ot_lens.statistics import mean
from ot_lens.statistics.intervals import null_band
from ot_lens.transport import FitInfo
from ot_lens.transport.projection import ablation_of

ALONE, FURTHER = "refusal_score_shift", "further_shift"


def cone_dimension(
    model: Any,
    prompts: ContrastSet,
    layer: int,
    *,
    max_k: int = 4,
    steps: int = 40,
    learning_rate: float = 0.01,
    prompts_per_step: int = 16,
    combinations: int = 8,
    draws: int = 39,
    refusal_tokens: Sequence[str | int] | None = None,
    position: int = -1,
    hook: str = "resid_pre",
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _done: None,
) -> pd.DataFrame:
    """The effect of the worst basis vector of concept cones of 1 to `max_k` vectors, and their dimension.

    Cones are trained on `prompts.train`, each from the vectors of the one before and the leading component of
    what they leave (see `fit_cone`). On the harmful prompts of `prompts.test` each vector is ablated
    everywhere by itself; the worst is the one that lowers the mean refusal score least. The dimension is the
    largest k whose worst vector still lowers the score beyond the band of random directions, with its whole
    interval; 0 if none does. A dimension of `max_k` is a lower bound.

    Training makes any vector lower the score a little. So each vector is also ablated where all others are
    ablated already: a cone of k vectors is needed if its worst vector lowers the score both by itself and
    further. Several vectors each of which removes all refusal are a cone of that dimension, of which one
    is needed.

    Source: Wollschläger et al. 2025 (arXiv 2502.17420); the band, the interval and what is needed are ours.

    Args:
        model: A hooked model.
        prompts: `train` trains, `test` measures.
        layer: As in `fit_cone`.
        max_k: Largest number of vectors.
        steps: As in `fit_cone`, for each cone.
        learning_rate: As in `fit_cone`.
        prompts_per_step: As in `fit_cone`.
        combinations: As in `fit_cone`.
        draws: Random directions of the band; 39 are the fewest for 95 %.
        refusal_tokens: As in `refusal_token_ids`.
        position: As in `fit_cone`.
        hook: As in `fit_cone`.
        batch_size: Prompts per batch.
        seed: Of the training, the random directions and the bootstrap over prompts.
        progress: Called with the number of steps just done.

    Returns:
        Two rows per k: layer, k, quantity ("refusal_score_shift" by itself, "further_shift" where all others
        are ablated), vector (index of the worst), value, low, high (95 % over prompts), null_mean, null_low,
        null_high (of random directions by themselves), n, unit, beyond (whether high is below null_low),
        dimension (the largest k beyond by itself), needed (beyond in both), loss_before, loss_after and steps
        of the training.

    Raises:
        FitError: If the class means coincide, or a parameter is out of range.
        OtLensTypeError: If `prompts` is not a complete set.
        HookError: If the layer or hook point does not exist.
        PromptError: If prompts cannot be rendered, or a refusal token is unknown.
        ActivationError: If logits contain NaN.
    """
    if not isinstance(prompts, ContrastSet):
        raise OtLensTypeError(
            f"prompts must be a complete set, trained on and measured with different splits, got a "
            f"{type(prompts).__name__}: pass what load_prompts returns."
        )
    if max_k < 1 or draws < 2:
        raise FitError(f"max_k must be at least 1 and draws at least 2, got {max_k} and {draws}.")
    settings = TrainingSettings(steps, learning_rate, prompts_per_step, combinations, seed)
    tokens = refusal_token_ids(model, refusal_tokens)
    start = objective_at(
        model,
        prompts.train,
        layer,
        None,
        position=position,
        hook=hook,
        refusal_tokens=tokens,
        batch_size=batch_size,
    )
    shifts = _Shifts(model, prompts.test.harmful, tokens, batch_size)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(draws, len(start.unit), generator=generator, dtype=torch.float64)
    drawn = [float(effect.mean()) for effect in shifts.alone(normalize(random, dim=-1))]
    band = null_band(torch.tensor(drawn, dtype=torch.float64))
    basis, rows = start.unit[None], []
    for k in range(1, max_k + 1):
        trained = train(
            start.objective, extended(basis, start.displaced, k), replace(settings, seed=seed + k), progress
        )
        basis = trained.basis
        described = {"loss_before": trained.before.total, "loss_after": trained.after.total}
        described["steps"] = len(trained.curve)
        for quantity, effects in (ALONE, shifts.alone(basis)), (FURTHER, shifts.further(basis)):
            worst = _worst(effects, band, seed)
            rows.append({"layer": layer, "k": k, "quantity": quantity, **worst, **described})
    table = pd.DataFrame(rows)
    alone = table.loc[table["quantity"] == ALONE].set_index("k")["beyond"]
    both = table.groupby("k")["beyond"].all()
    return table.assign(dimension=_largest(alone), needed=_largest(both))


def _largest(beyond: pd.Series) -> int:
    """The largest k of those beyond the band; 0 if there is none."""
    return max([0, *beyond.index[beyond]])


def _worst(
    effects: Sequence[Float64[np.ndarray, " prompt"]], band: Mapping[str, float], seed: int
) -> dict[str, Any]:
    """The effect of the vector that lowers the refusal score least."""
    worst = int(np.argmax([effect.mean() for effect in effects]))
    estimate = mean(effects[worst], seed=seed)
    return {
        "vector": worst,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        **band,
        "n": estimate.n,
        "unit": "nats",
        "beyond": estimate.high < band["null_low"],
    }


class _Shifts:
    """What the ablation of directions everywhere does to the refusal score of each prompt."""

    def __init__(self, model: Any, prompts: Sequence[Prompt], tokens: Sequence[int], batch_size: int) -> None:
        self._model, self._prompts, self._tokens, self._batch_size = model, prompts, tokens, batch_size
        self._layers = range(backend(model).n_layers)
        self._unedited = self._scores()

    def alone(self, basis: Float64[Tensor, "k d"]) -> list[Float64[np.ndarray, " prompt"]]:
        """Of each vector by itself."""
        return [self.of(vector[None]) for vector in basis]

    def further(self, basis: Float64[Tensor, "k d"]) -> list[Float64[np.ndarray, " prompt"]]:
        """Of each vector where all others are ablated already."""
        whole, numbers = self.of(basis), range(len(basis))
        return [whole - self.of(basis[[i for i in numbers if i != left]]) for left in numbers]

    def of(self, orthonormal: Float64[Tensor, "m d"]) -> Float64[np.ndarray, " prompt"]:
        """Of orthonormal vectors together."""
        if not len(orthonormal):
            return np.zeros(len(self._unedited))
        edits = everywhere(ablation_of(orthonormal.T.contiguous(), FitInfo(k=len(orthonormal))), self._layers)
        with intervene(self._model, edits):
            return self._scores() - self._unedited

    def _scores(self) -> Float64[np.ndarray, " prompt"]:
        scores = refusal_score(self._model, self._prompts, tokens=self._tokens, batch_size=self._batch_size)
        return scores.numpy()
