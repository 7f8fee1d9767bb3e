"""Fits, distances and nulls against POT and scikit-learn, how they grow, and the cost of applying a map."""

from collections.abc import Iterator

import ot
import torch
from concept_erasure import LeaceFitter
from sklearn.decomposition import PCA
from torch import Tensor

from ot_lens.gaussian import Gaussian, bures_wasserstein
from ot_lens.geometry.distances import wasserstein
from ot_lens.geometry.resampled_moments import PooledGram
from ot_lens.linalg import Pooled, mapped
from ot_lens.samples import layer_batches
from ot_lens.statistics.resampling import observed, relabellings
from ot_lens.transport import fit_all, fit_gaussian_ot, fit_leace, fit_pca_ot
from tests.benchmarks.measure import Row, faster, seconds, within
from tests.generators.gaussians import Layers

D, N, LAYERS = 4096, 128, 32


def samples(layers: int, d: int = D, n: int = N) -> Layers:
    generator = torch.Generator().manual_seed(0)
    H = torch.randn(layers, n, d, generator=generator, dtype=torch.float64) * 2 + 1
    S = torch.randn(layers, n, d, generator=generator, dtype=torch.float64)
    return Layers(H, S, tuple(range(layers)))


def _dense(X: Tensor) -> Tensor:
    fitted = Gaussian.fit(X, shrinkage="ledoit_wolf")
    return fitted.factor.T @ fitted.factor + fitted.floor * torch.eye(X.shape[1], dtype=X.dtype)


def gaussian_ot() -> Iterator[Row]:
    acts = samples(1)
    H, S = acts.harmful(0), acts.harmless(0)
    moved: dict[str, Tensor] = {}

    def dense() -> None:
        A, b = ot.gaussian.bures_wasserstein_mapping(H.mean(0), S.mean(0), _dense(H), _dense(S))
        moved["dense"] = H @ A + b

    ours = seconds(lambda: fit_gaussian_ot(H, S), 5)
    theirs = seconds(dense, 1, warm=False)
    error = float((fit_gaussian_ot(H, S).map(H) - moved["dense"]).norm() / moved["dense"].norm())
    sizes = {"d": D, "n": f"{N} + {N}", "relative error": f"{error:.1e}"}
    yield faster("exact Gaussian OT", ours, "POT, dense float64", theirs, 100, error < 1e-8, **sizes)


def distance() -> Iterator[Row]:
    acts = samples(1)
    H, S = acts.harmful(0), acts.harmless(0)
    found: dict[str, float] = {}

    def dense() -> None:
        found["dense"] = float(
            ot.gaussian.bures_wasserstein_distance(H.mean(0), S.mean(0), _dense(H), _dense(S))
        )

    theirs = seconds(dense, 1, warm=False)
    for shrinkage in ("ledoit_wolf", None):
        ours = seconds(lambda s=shrinkage: bures_wasserstein(H, S, shrinkage=s), 5)
        sizes = {"d": D, "n": f"{N} + {N}", "shrinkage": str(shrinkage)}
        sound = True
        if shrinkage:
            error = abs(bures_wasserstein(H, S, shrinkage=shrinkage).distance / found["dense"] - 1)
            sizes["relative error"], sound = f"{error:.1e}", error < 1e-8
        yield faster("Bures-Wasserstein distance", ours, "POT, dense float64", theirs, 100, sound, **sizes)


def pca_ot() -> Iterator[Row]:
    acts = samples(LAYERS)

    def peer() -> None:
        for H, S in zip(acts.source.numpy(), acts.target.numpy(), strict=True):
            pca = PCA(2).fit(torch.cat([torch.from_numpy(H), torch.from_numpy(S)]).numpy())
            ot.gaussian.empirical_bures_wasserstein_mapping(pca.transform(H), pca.transform(S), reg=1e-6)

    both = torch.cat([acts.source, acts.target], dim=1)
    ours = seconds(lambda: fit_all(acts, "pca_ot", k=2), 5)
    floor = seconds(lambda: both @ both.mT, 5)
    theirs = seconds(peer, 1)
    sizes = {"d": D, "n": f"{N} + {N}", "layers": LAYERS, "k": 2}
    yield faster("PCA-OT, all layers", ours, "scikit-learn PCA + POT", theirs, 5, **sizes)
    yield within("PCA-OT against its floor", ours, "batched Gram product", floor, 4, **sizes)


def leace() -> Iterator[Row]:
    """Why ours is not the concept-erasure package: it decomposes d x d matrices."""
    d = 2048
    acts = samples(1, d)
    H, S = acts.harmful(0), acts.harmless(0)
    labels = torch.cat([torch.ones(N), torch.zeros(N)]).to(H.dtype)
    options = {"shrinkage": False, "constrain_cov_trace": False, "svd_tol": 1e-12, "dtype": H.dtype}
    moved: dict[str, Tensor] = {}

    def peer() -> None:
        eraser = LeaceFitter(d, 1, **options).update(torch.cat([H, S]), labels).eraser
        moved["peer"] = eraser(H)

    ours = seconds(lambda: fit_leace(H, S, shrinkage=None), 5)
    theirs = seconds(peer, 1, warm=False)
    error = float((fit_leace(H, S, shrinkage=None).map(H) - moved["peer"]).norm() / moved["peer"].norm())
    sizes = {"d": d, "n": f"{N} + {N}", "relative error": f"{error:.1e}"}
    yield faster("LEACE", ours, "concept-erasure", theirs, 1, error < 1e-8, **sizes)


def applying() -> Iterator[Row]:
    acts = samples(1)
    T = fit_pca_ot(acts.harmful(0), acts.harmless(0), k=2).to(torch.float32)
    x = torch.randn(64, 128, D)
    rows = x.reshape(-1, D)
    U, V = T.U.T.contiguous(), T.V.contiguous()
    pairs = [(seconds(lambda: T.map(x), 5), seconds(lambda: (rows @ V) @ U, 5)) for _ in range(3)]
    ours, floor = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
    yield within("applying a rank-2 map", ours, "its two products", floor, 1.5, x="[64, 128, 4096] float32")


def permutation_null() -> Iterator[Row]:
    """The W2 parts of every layer, from the activations to the last relabelling."""
    acts = samples(LAYERS)
    draws = relabellings(observed(N, N, 0), 1000, 0)

    def null() -> None:
        for batch in layer_batches(acts):
            for H, S in zip(batch.H, batch.S, strict=True):
                Z = Pooled.of(H, S).Z
                gram = PooledGram(Z @ Z.T)
                mapped(
                    lambda part, gram=gram: wasserstein(gram.under(part), fast=True),
                    draws.chunks(),
                )

    ours = seconds(null, 1, warm=False)
    sizes = {"d": D, "n": f"{N} + {N}", "layers": LAYERS, "permutations": draws.count}
    yield within("permutation null of the W2 parts", ours, "a minute", 60.0, 1, **sizes)


BENCHES = (gaussian_ot, distance, pca_ot, leace, applying, permutation_null)
