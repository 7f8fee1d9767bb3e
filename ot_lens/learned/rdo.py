"""Refusal direction optimization (RDO): a direction trained by gradient."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ot_lens.activations import Activations
from ot_lens.learned.sphere import TrainingSettings, train
from ot_lens.learned.start import by_layer, objective_at
from ot_lens.prompts import Contrast
from ot_lens.transport import PROJECTION, AffineMap, FitInfo, Method
from ot_lens.transport.methods import register
from ot_lens.transport.projection import ablation_of

SOURCE = "Wollschläger et al. 2025, arXiv 2502.17420"


def fit_rdo(
    model: Any,
    prompts: Contrast,
    layer: int,
    *,
    acts: Activations | None = None,
    steps: int = 40,
    learning_rate: float = 0.01,
    prompts_per_step: int = 16,
    refusal_tokens: Sequence[str | int] | None = None,
    position: int = -1,
    hook: str = "resid_pre",
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _done: None,
) -> AffineMap:
    """T(x) = x - v v^T x, with the unit vector v trained by gradient through the model (RDO).

    AdamW minimizes, over v on the unit sphere, the mean refusal score of harmful prompts while v is ablated
    everywhere, minus 0.2 times that of harmless prompts while alpha v is added at the layer to all tokens,
    alpha = ||mu_H - mu_S||, plus the mean KL(unedited || ablated) of harmless prompts. Training starts at the
    difference in means. The weights of the model stay as they are and get no gradients.

    Source: Wollschläger et al. 2025 (arXiv 2502.17420); in the published code the losses are cross-entropies
    of target texts and a KL over 30 tokens, and training starts at a random vector.

    Args:
        model: A hooked model.
        prompts: The training split.
        layer: Where the difference in means is taken, and v is added.
        acts: Activations of `prompts` at that layer, if they were captured already.
        steps: Largest number of steps; training ends sooner when the loss stops falling.
        learning_rate: Of AdamW, at first.
        prompts_per_step: Prompts of each class per step; all of them if there are fewer.
        refusal_tokens: As in `refusal_token_ids`.
        position: Token position of the means.
        hook: Hook point of the means and of the addition.
        batch_size: Prompts per batch.
        seed: Of the order of the prompts.
        progress: Called with the number of steps just done.

    Returns:
        The map for `everywhere`; `info.notes` have the first and the last loss, and the loss by step.

    Raises:
        FitError: If the class means coincide, or a parameter is out of range.
        OtLensTypeError: If `prompts` is a complete set.
        HookError: If the layer or hook point does not exist.
        PromptError: If prompts cannot be rendered, or a refusal token is unknown.
        ActivationError: If logits contain NaN.
    """
    settings = TrainingSettings(steps, learning_rate, prompts_per_step, seed=seed)
    start = objective_at(
        model,
        prompts,
        layer,
        acts,
        position=position,
        hook=hook,
        refusal_tokens=refusal_tokens,
        batch_size=batch_size,
    )
    trained = train(start.objective, start.unit[None], settings, progress)
    info = FitInfo(method="rdo", k=1, rank=1, seed=seed, notes=trained.notes, **start.origin)
    return ablation_of(trained.basis.T.contiguous(), info)


def _learn(
    model: Any,
    prompts: Contrast,
    acts: Activations,
    *,
    layers: Sequence[int],
    refusal_tokens: Sequence[str | int] | None = None,
    **options: Any,
) -> Mapping[int, AffineMap]:
    fit = partial(fit_rdo, model, prompts, acts=acts, refusal_tokens=refusal_tokens, **options)
    return by_layer(acts, layers, options["position"], fit)


register(
    Method(
        "rdo",
        "RDO (trained direction)",
        PROJECTION,
        learn=_learn,
        formula="x - v vᵀ x at every block input, attention output and MLP output, v trained",
        source=SOURCE,
        everywhere=True,
        group="Projection",
        colour="#B5475A",
        marker="square",
        dash="dash",
        order=52,
    )
)
