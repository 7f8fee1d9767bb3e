"""How many directions a cone can have of which each one removes refusal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from ot_lens.learned.sphere import Trained, TrainingSettings, train
from ot_lens.learned.start import Start, extended, objective_at
from ot_lens.models import backend
from ot_lens.prompts import ContrastSet, Prompt
from ot_lens.statistics import mean
from ot_lens.statistics.estimates import ratio_of_sums
from ot_lens.statistics.intervals import null_band
from ot_lens.transport import FitInfo
from ot_lens.transport.projection import ablation_of

ALONE, DRAWN, FURTHER = "refusal_score_shift", "drawn_shift", "further_shift"

# What the ablation of some directions does to the refusal score of each prompt.
Effects = Sequence[Float64[np.ndarray, " prompt"]]


def cone_dimension(
    model: Any,
    prompts: ContrastSet,
    layer: int,
    *,
    max_k: int = 4,
    least_share: float = 0.5,
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
    """The effect of the worst vector of concept cones of 1 to `max_k` vectors, and their dimension.

    Cones are trained on `prompts.train`, each from the vectors of the one before and the leading component of
    what they leave (see `fit_cone`). On the harmful prompts of `prompts.test` each basis vector is ablated
    everywhere by itself, and so are `draws` directions drawn in the cone; the worst is the one that lowers
    the mean refusal score least. The dimension is the largest k of which both the worst basis vector and the
    worst drawn direction lower the score beyond the band of random directions, and by at least `least_share`
    of what the best basis vector of all cones does, each with its whole interval; 1 if that vector alone is
    beyond the band, else 0. A dimension of `max_k` is a lower bound.

    Each basis vector is also ablated where all others are ablated already: a cone of k vectors is needed if
    its worst vector lowers the score beyond the band both by itself and further. Several vectors each of
    which removes all refusal are a cone of that dimension, of which one is needed.

    Source: Wollschläger et al. 2025 (arXiv 2502.17420), where all directions of a cone are to mediate refusal
    and directions drawn in it are tested. The least share, the band, the intervals and what is needed are
    ours.

    Args:
        model: A hooked model.
        prompts: `train` trains, `test` measures.
        layer: As in `fit_cone`.
        max_k: Largest number of vectors.
        least_share: Share of the best vector's effect that the worst one must keep, in [0, 1]; 0 asks for an
            effect beyond the band only.
        steps: As in `fit_cone`, for each cone.
        learning_rate: As in `fit_cone`.
        prompts_per_step: As in `fit_cone`.
        combinations: As in `fit_cone`.
        draws: Random directions of the band, and directions drawn in each cone; 39 are the fewest for 95 %.
        refusal_tokens: As in `refusal_token_ids`.
        position: As in `fit_cone`.
        hook: As in `fit_cone`.
        batch_size: Prompts per batch.
        seed: Of the training, the directions that are drawn and the bootstrap over prompts.
        progress: Called with the number of steps just done.

    Returns:
        Three rows per k: layer, k, quantity ("refusal_score_shift" of basis vectors by themselves,
        "drawn_shift" of directions drawn in the cone, "further_shift" of basis vectors where all others are
        ablated), vector (index of the worst among them), value, low, high (95 % over prompts), null_mean,
        null_low, null_high (of random directions by themselves), n, unit, share, share_low, share_high (value
        over that of the best basis vector, 95 % over prompts), beyond (whether high is below null_low),
        dimension, needed, loss_before, loss_after and steps of the training.

    Raises:
        FitError: If the class means coincide, or a parameter is out of range.
        OtLensTypeError: If `prompts` is not a complete set.
        HookError: If the layer or hook point does not exist.
        PromptError: If prompts cannot be rendered, or a refusal token is unknown.
        ActivationError: If logits contain NaN.
    """
    _check(prompts, max_k, draws, least_share)
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
    random = shifts.alone(normalize(_normal(draws, len(start.unit), seed), dim=-1))
    band = null_band(torch.tensor([float(effect.mean()) for effect in random], dtype=torch.float64))
    cones = list(_cones(start, max_k, settings, progress))
    measured = [_measured(shifts, cone.basis, draws, seed) for cone in cones]
    best = min((effect for own in measured for effect in own[ALONE]), key=np.mean)
    rows = [
        {"layer": layer, "k": k, "quantity": quantity, **_worst(effects, best, band, seed), **_course(cone)}
        for k, (cone, own) in enumerate(zip(cones, measured, strict=True), start=1)
        for quantity, effects in own.items()
    ]
    beyond = mean(best, seed=seed).high < band["null_low"]
    return _counted(pd.DataFrame(rows), least_share, fewest=int(beyond))


def _check(prompts: object, max_k: int, draws: int, least_share: float) -> None:
    if not isinstance(prompts, ContrastSet):
        raise OtLensTypeError(
            f"prompts must be a complete set, trained on and measured with different splits, got a "
            f"{type(prompts).__name__}: pass what load_prompts returns."
        )
    if max_k < 1 or draws < 2:
        raise FitError(f"max_k must be at least 1 and draws at least 2, got {max_k} and {draws}.")
    if not 0 <= least_share <= 1:
        raise FitError(f"least_share must be in [0, 1], got {least_share}.")


def _cones(
    start: Start, max_k: int, settings: TrainingSettings, progress: Callable[[int], None]
) -> Iterator[Trained]:
    """Cones of 1 to max_k vectors, each trained from the one before."""
    basis = start.unit[None]
    for k in range(1, max_k + 1):
        first = extended(basis, start.displaced, k)
        trained = train(start.objective, first, replace(settings, seed=settings.seed + k), progress)
        basis = trained.basis
        yield trained


def _course(cone: Trained) -> dict[str, float]:
    return {"loss_before": cone.before.total, "loss_after": cone.after.total, "steps": len(cone.curve)}


def _normal(count: int, width: int, seed: int) -> Float64[Tensor, "count width"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def _measured(shifts: "_Shifts", basis: Float64[Tensor, "k d"], draws: int, seed: int) -> dict[str, Effects]:
    """The effects of a cone's directions; combinations are drawn as in training."""
    alone, k = shifts.alone(basis), len(basis)
    drawn = shifts.alone(normalize(_normal(draws, k, seed).abs() @ basis, dim=-1)) if k > 1 else alone
    return {ALONE: alone, DRAWN: drawn, FURTHER: shifts.further(basis)}


def _worst(
    effects: Effects, best: Float64[np.ndarray, " prompt"], band: Mapping[str, float], seed: int
) -> dict[str, Any]:
    """The effect of the direction that lowers the refusal score least, and its share of the best one's."""
    worst = int(np.argmax([effect.mean() for effect in effects]))
    value = mean(effects[worst], seed=seed)
    share = ratio_of_sums(effects[worst], best, seed=seed, least=-np.inf)
    return {
        "vector": worst,
        "value": value.value,
        "low": value.low,
        "high": value.high,
        **band,
        "n": value.n,
        "unit": "nats",
        "share": share.value,
        "share_low": share.low,
        "share_high": share.high,
        "beyond": value.high < band["null_low"],
    }


def _counted(table: pd.DataFrame, least_share: float, fewest: int) -> pd.DataFrame:
    """The table with the dimension, at least `fewest`, and how many vectors are needed."""
    rows = table.assign(mediates=table["beyond"] & (table["share_low"] >= least_share))
    beyond, mediates = (rows.pivot(index="k", columns="quantity", values=x) for x in ("beyond", "mediates"))
    dimension = max(fewest, _largest(mediates[[ALONE, DRAWN]]))
    return table.assign(dimension=dimension, needed=_largest(beyond[[ALONE, FURTHER]]))


def _largest(passed: pd.DataFrame) -> int:
    """The largest k of which all quantities passed; 0 if there is none."""
    return max([0, *passed.index[passed.all(axis=1)]])


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
