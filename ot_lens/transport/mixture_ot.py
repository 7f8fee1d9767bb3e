"""Transport between Gaussian mixtures within leading pooled components (MW2, Delon & Desolneux 2020)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float64
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.gaussian import checked_ridge
from ot_lens.linalg import PooledPCA, matrix_power, monge_matrix, nuclear_norm, one_thread, psd_eigen
from ot_lens.transport.affine import AffineMap
from ot_lens.transport.fitting import defines_method
from ot_lens.transport.gated import GatedMap, MixtureGate
from ot_lens.transport.info import FitInfo, diagnosed
from ot_lens.transport.methods import TRANSPORT
from ot_lens.transport.pca_ot import subspace_transport

BIC = "bic"
MOST_COMPONENTS, LEAST_SAMPLES = 8, 10
RESTARTS = 2
ITERATIONS = 500
# A component of fewer samples is one that EM has emptied.
FEWEST = 0.5
CLASSES, FEWER = ("source", "target"), "fewer components, a smaller q"


@dataclass(frozen=True)
class Components:
    """Moments of a mixture's components, from each sample's posterior probabilities.

    Attributes:
        weights: `[K]`, summing to 1.
        means: `[K, d]`, all coordinates.
        coordinates: The means in the q pooled components, `[K, q]`.
        values: Eigenvalues of the covariances in the q components, with the ridge, `[K, q]`, ascending.
        vectors: Their eigenvectors, `[K, q, q]`.
        clipped: Eigenvalues that came out negative and were set to 0.
    """

    weights: Float64[Tensor, " K"]
    means: Float64[Tensor, "K d"]
    coordinates: Float64[Tensor, "K q"]
    values: Float64[Tensor, "K q"]
    vectors: Float64[Tensor, "K q q"]
    clipped: int = 0

    @classmethod
    def of(
        cls,
        Z: Float64[Tensor, "n d"],
        posterior: Float64[Tensor, "n K"],
        axes: Float64[Tensor, "d q"],
        ridge: float,
    ) -> "Components":
        """Weighted moments; covariances with the factor n / (n - 1) of a single Gaussian's."""
        counts, n = posterior.sum(0), len(Z)
        means = posterior.T @ Z / counts.unsqueeze(1)
        coordinates = means @ axes
        deviations = (Z @ axes).unsqueeze(0) - coordinates.unsqueeze(1)
        spread = (posterior.T.unsqueeze(2) * deviations).mT @ deviations
        values, vectors, clipped = psd_eigen(spread / (counts[:, None, None] * (n - 1) / n))
        return cls(counts / n, means, coordinates, values + ridge, vectors, int(clipped.sum()))

    def root(self, exponent: float) -> Float64[Tensor, "K q q"]:
        """A power of the covariances."""
        return matrix_power(self.values, self.vectors, exponent)


def squared_distances(source: Components, target: Components) -> Float64[Tensor, "K_H K_S"]:
    """W2^2 between components as Gaussians in q dimensions (Gelbrich 1990)."""
    location = (source.coordinates.unsqueeze(1) - target.coordinates).square().sum(-1)
    spread = source.values.sum(-1).unsqueeze(1) + target.values.sum(-1)
    overlap = nuclear_norm(source.root(0.5).unsqueeze(1) @ target.root(0.5))
    return location + (spread - 2 * overlap).clamp_min(0.0)


def component_plan(source: Components, target: Components) -> Float64[Tensor, "K_H K_S"]:
    """The optimal plan between the components' weights: that of MW2 (Delon & Desolneux 2020)."""
    import ot

    masses = (side.weights.cpu().numpy() for side in (source, target))
    plan = ot.emd(*masses, squared_distances(source, target).cpu().numpy())
    return source.weights.new_tensor(plan)


def transport_of_pairs(
    source: Components, target: Components, gate: MixtureGate
) -> tuple[GatedMap, Float64[Tensor, "m q"]]:
    """The gated map of MW2's plan, for a gate of the source's posterior; eigenvalues of its matrices A_kl."""
    plan = component_plan(source, target)
    k, l = plan.nonzero(as_tuple=True)  # noqa: E741 (the plan's indices)
    A = monge_matrix(source.root(0.5)[k], source.root(-0.5)[k], target.root(0.5)[l])
    with one_thread():
        stretches = torch.linalg.eigvalsh(A)
    change = gate.axes @ (A - torch.eye(A.shape[-1], dtype=A.dtype, device=A.device))
    start = (source.means[k] + gate.centre).unsqueeze(1)
    bias = target.means[l] - source.means[k] - ((start @ change) @ gate.axes.T).squeeze(1)
    parts = (AffineMap(gate.axes, own, shift) for own, shift in zip(change, bias, strict=True))
    # Column j of the gate's plan: only component k of pair j sends anything to it.
    shares = torch.zeros(len(plan), len(k), dtype=plan.dtype, device=plan.device)
    shares[k, torch.arange(len(k), device=plan.device)] = (plan / plan.sum(1, keepdim=True))[k, l]
    return GatedMap(replace(gate, plan=shares), tuple(parts)), stretches


@defines_method(
    "mixture_ot",
    "Mixture OT",
    TRANSPORT,
    formula="x + Σ p(k | z) (π_kl / π_k) (M_l - M_k + P (A_kl - I) Pᵀ (x - M_k))",
    source="arXiv 1907.05254",
    reversible=True,
    group="Mixture OT",
    colour="#2F8FB0",
    marker="hexagon",
    dash="solid",
    order=95,
)
def fit_mixture_ot(
    H: Float64[Tensor, "L n_H d"],
    S: Float64[Tensor, "L n_S d"],
    q: int = 8,
    components: int | Sequence[int] | str = BIC,
    *,
    ridge: float | None = None,
    seed: int = 0,
) -> list[GatedMap]:
    """Transport between Gaussian mixtures of both classes in q pooled components, z = P^T (x - mu).

    T(x) = x + sum_kl p(k | z) pi_kl / pi_k (T_kl(x) - x), the barycentric map of MW2's plan pi (Delon &
    Desolneux 2020, arXiv 1907.05254; for activations CHaRS, arXiv 2603.02237), with
    T_kl(x) = x + (M_l - M_k) + P (A_kl - I) P^T (x - M_k). M_k and M_l are means of components in all d
    coordinates, so that each pair carries its own shift of the complement of P and the mean of T(H) is that
    of S; costs and plan see the q components only. With one component per class this is PCA-OT(q).

    Args:
        H: source samples `[n_H, d]`.
        S: target samples `[n_S, d]`.
        q: pooled components in which the mixtures live.
        components: of the mixtures; one number for both classes, a pair (source, target), or "bic" for the
            smallest Bayesian information criterion among up to 8 components with at least 2 q and 10 samples
            in each. BIC gives the target at most as many as the source, because a component that is sent to
            several others collapses to their barycentre.
        ridge: added to the covariance of every component, in squared activation units; None for 1e-6 of the
            mean variance of both classes in the q components, as for PCA-OT.
        seed: of the starting points of EM.

    Raises:
        ActivationError: If samples cannot be used (see `check_samples`).
        FitError: q or components not positive, q above the rank, more components than distinct samples of a
            class or than EM can fill, a negative ridge, ridge = 0 with a singular covariance.

    Warns:
        PoorFitWarning: too few samples for q, an ill-conditioned source covariance, or EM did not converge.
    """
    if type(q) is not int or q < 1:
        raise FitError(f"q = {q!r} components cannot be kept: give an int >= 1.")
    numbers = _component_numbers(components)
    if ridge is not None:
        checked_ridge(ridge)
    pca, n_H = PooledPCA.of(H, S), H.shape[1]
    lowest = int(pca.rank.min())
    if q > lowest:
        samples = f"of the pooled samples (n = {n_H} + {S.shape[1]})"
        raise FitError(f"q = {q} exceeds the rank {lowest} {samples}: choose q <= {lowest}.")
    # The axes and the ridge are those of one Gaussian per class.
    single = subspace_transport(pca, n_H, q, ridge, "full")
    share = pca.eigenvalues[:, :q].sum(-1) / pca.eigenvalues.sum(-1)
    maps = []
    for layer, (Z, axes, centre) in enumerate(zip(pca.Z, single.axes, pca.mean, strict=True)):
        info = FitInfo(
            k=q,
            ridge=float(single.ridge[layer]),
            rank=int(pca.rank[layer]),
            explained_variance=float(share[layer]),
            seed=seed,
        )
        maps.append(_map_of_layer((Z[:n_H], Z[n_H:]), axes, centre, numbers, info))
    return maps


def _component_numbers(components: int | Sequence[int] | str) -> tuple[int | None, int | None]:
    """Numbers of source and target components; None for the choice by BIC."""
    if isinstance(components, str):
        if components == BIC:
            return None, None
    else:
        numbers = [components] * 2 if isinstance(components, int) else list(components)
        if len(numbers) == 2 and all(type(number) is int and number >= 1 for number in numbers):
            return cast("tuple[int, int]", tuple(numbers))
    raise FitError(f'components = {components!r} must be an int >= 1, a pair of them, or "bic".')


def _map_of_layer(
    classes: tuple[Float64[Tensor, "n_H d"], Float64[Tensor, "n_S d"]],
    axes: Float64[Tensor, "d q"],
    centre: Float64[Tensor, " d"],
    numbers: tuple[int | None, int | None],
    info: FitInfo,
) -> GatedMap:
    """The map of samples about their pooled mean `centre`."""
    gates, fitted, problems, most = [], [], [], MOST_COMPONENTS
    for name, Z, number in zip(CLASSES, classes, numbers, strict=True):
        model = _mixture(Z, axes, number, most, info, name)
        # A source component that is sent to several targets collapses to their barycentre.
        most = model.n_components
        if not model.converged_:
            problems.append(f"EM of the {name} did not converge: choose fewer components or a larger ridge")
        gates.append(_gate_of(model, axes, centre))
        posterior = gates[-1].posterior(Z + centre)
        if float(posterior.sum(0).min()) < FEWEST:
            raise FitError(
                f"{model.n_components} components leave one of the {name} without samples: choose fewer."
            )
        fitted.append(Components.of(Z, posterior, axes, info.ridge or 0.0))
    source, target = fitted
    map_, stretches = transport_of_pairs(source, target, gates[0])
    smallest = min(float(side.weights.min()) * len(Z) for side, Z in zip(fitted, classes, strict=True))
    info = replace(
        info,
        condition_number=float((source.values[:, -1] / source.values[:, 0]).max()),
        clipped_eigenvalues=source.clipped + target.clipped,
        components_harmful=len(source.weights),
        components_harmless=len(target.weights),
    )
    stretch = float(stretches.max())
    info = diagnosed(info, round(smallest), axes.shape[1], regularized=False, stretch=stretch, fewer=FEWER)
    return map_.labelled(**vars(replace(info, problems=(*info.problems, *problems))))


def _mixture(
    Z: Float64[Tensor, "n d"],
    axes: Float64[Tensor, "d q"],
    number: int | None,
    most: int,
    info: FitInfo,
    name: str,
) -> GaussianMixture:
    """The mixture of one class with that many components, or of at most so many with the smallest BIC."""
    X, q, distinct = (Z @ axes).cpu().numpy(), axes.shape[1], len(Z.unique(dim=0))
    if number is not None and number > distinct:
        raise FitError(
            f"{number} components exceed the {distinct} distinct {name} samples: choose at most {distinct}."
        )
    # With fewer samples, BIC finds components in Gaussian noise.
    least = max(2 * q, LEAST_SAMPLES)
    most = max(1, min(most, len(X) // least, distinct))
    candidates = range(1, most + 1) if number is None else [number]
    fits = [_expectation_maximization(X, K, info) for K in candidates]
    known = [fit for fit in fits if fit is not None]
    filled = [fit for fit in known if fit.n_components == 1 or fit.weights_.min() * len(X) >= least]
    if not known:
        raise FitError(
            f"The {name} covariance is singular in q = {q} components: give ridge > 0, a smaller q or more "
            "prompts."
        )
    return known[0] if number is not None else min(filled, key=lambda fit: fit.bic(X))


def _expectation_maximization(X: object, components: int, info: FitInfo) -> GaussianMixture | None:
    """A fitted mixture; None if a covariance is singular."""
    model = GaussianMixture(
        components,
        reg_covar=info.ridge,
        n_init=RESTARTS if components > 1 else 1,
        max_iter=ITERATIONS,
        random_state=info.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            return model.fit(X)
        except ValueError:
            # The only one that finite samples can cause.
            return None


def _gate_of(
    model: GaussianMixture, axes: Float64[Tensor, "d q"], centre: Float64[Tensor, " d"]
) -> MixtureGate:
    """The posterior of a mixture as a gate with one part per component."""
    weights, means, precisions = (
        axes.new_tensor(part) for part in (model.weights_, model.means_, model.precisions_cholesky_)
    )
    every = torch.eye(len(weights), dtype=axes.dtype, device=axes.device)
    return MixtureGate(axes, centre, weights.log(), means, precisions, every)
