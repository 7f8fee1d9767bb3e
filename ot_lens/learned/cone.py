"""Concept cones: several orthonormal directions trained together, each of which removes refusal."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ot_lens.activations import Activations
from ot_lens.learned.rdo import SOURCE
from ot_lens.learned.sphere import TrainingSettings, train
from ot_lens.learned.start import by_layer, extended, objective_at
from ot_lens.prompts import Contrast
from ot_lens.transport import PROJECTION, AffineMap, FitInfo, Method
from ot_lens.transport.methods import register
from ot_lens.transport.projection import ablation_of


def fit_cone(
    model: Any,
    prompts: Contrast,
    layer: int,
    k: int = 2,
    *,
    acts: Activations | None = None,
    steps: int = 40,
    learning_rate: float = 0.01,
    prompts_per_step: int = 16,
    combinations: int = 8,
    refusal_tokens: Sequence[str | int] | None = None,
    position: int = -1,
    hook: str = "resid_pre",
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _done: None,
) -> AffineMap:
    """T(x) = x - Q Q^T x, with the k orthonormal columns of Q trained as the basis of a concept cone.

    The loss is that of `fit_rdo`, averaged over the basis vectors, plus its average over random non-negative
    combinations of them, normalized; each vector is ablated by itself while training. The first vector starts
    at the difference in means, the others at the leading components of what is left of the harmful samples,
    as seen from the harmless mean.

    Source: Wollschläger et al. 2025 (arXiv 2502.17420); the published code starts a cone of k vectors from
    the trained ones of k - 1, as `cone_dimension` does.

    Args:
        model: A hooked model.
        prompts: The training split.
        layer: Where the difference in means is taken, and vectors are added.
        k: Number of vectors.
        acts: Activations of `prompts` at that layer, if they were captured already.
        steps: Largest number of steps; training ends sooner when the loss stops falling.
        learning_rate: Of AdamW, at first.
        prompts_per_step: Prompts of each class per step; all of them if there are fewer.
        combinations: Random combinations per step; 0 trains the basis alone.
        refusal_tokens: As in `refusal_token_ids`.
        position: Token position of the means.
        hook: Hook point of the means and of the addition.
        batch_size: Prompts per batch.
        seed: Of the combinations and the order of the prompts.
        progress: Called with the number of steps just done.

    Returns:
        The map for `everywhere`; the columns of its V are the basis.

    Raises:
        FitError: If the class means coincide, k exceeds the width or the number of harmful prompts, or a
            parameter is out of range.
        OtLensTypeError: If `prompts` is a complete set.
        HookError: If the layer or hook point does not exist.
        PromptError: If prompts cannot be rendered, or a refusal token is unknown.
        ActivationError: If logits contain NaN.
    """
    settings = TrainingSettings(steps, learning_rate, prompts_per_step, combinations, seed)
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
    trained = train(start.objective, extended(start.unit[None], start.displaced, k), settings, progress)
    info = FitInfo(method="cone", k=k, rank=k, seed=seed, notes=trained.notes, **start.origin)
    return ablation_of(trained.basis.T.contiguous(), info)


def _learn(
    model: Any,
    prompts: Contrast,
    acts: Activations,
    *,
    layers: Sequence[int],
    k: int = 2,
    refusal_tokens: Sequence[str | int] | None = None,
    **options: Any,
) -> Mapping[int, AffineMap]:
    fit = partial(fit_cone, model, prompts, k=k, acts=acts, refusal_tokens=refusal_tokens, **options)
    return by_layer(acts, layers, options["position"], fit)


register(
    Method(
        "cone",
        "Cone (trained directions)",
        PROJECTION,
        learn=_learn,
        formula="x - Q Qᵀ x at every block input, attention output and MLP output, Q trained",
        source=SOURCE,
        everywhere=True,
        group="Projection",
        colour="#4D6FB3",
        marker="circle",
        dash="solid",
        order=54,
    )
)
