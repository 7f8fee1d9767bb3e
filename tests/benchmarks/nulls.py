"""Permutation nulls, and how the tables grow with d and with the number of layers."""

from collections.abc import Callable, Iterator
from functools import partial

from ot_lens.geometry import diagnose, direction_cosines, spectra
from ot_lens.geometry.distances import wasserstein
from ot_lens.geometry.resampled_moments import DrawnClasses
from ot_lens.linalg import Pooled, mapped
from ot_lens.samples import layer_batches
from ot_lens.statistics.resampling import observed, relabellings
from tests.benchmarks.measure import Row, seconds, within
from tests.benchmarks.transport import LAYERS, D, N, samples
from tests.generators.gaussians import Layers


def permutation_null() -> Iterator[Row]:
    """The W2 parts of every layer, from the activations to the last relabelling."""
    acts = samples(LAYERS)
    draws = relabellings(observed(N, N, 0), 1000, 0)

    def null() -> None:
        for batch in layer_batches(acts):
            for H, S in zip(batch.H, batch.S, strict=True):
                Z = Pooled.of(H, S).Z
                gram = Z @ Z.T
                mapped(
                    lambda part, gram=gram: wasserstein(DrawnClasses.of(gram, part), fast=True),
                    draws.chunks(),
                )

    ours = seconds(null, 1, warm=False)
    sizes = {"d": D, "n": f"{N} + {N}", "layers": LAYERS, "permutations": draws.count}
    yield within("permutation null of the W2 parts", ours, "a minute", 60.0, 1, **sizes)


def growth() -> Iterator[Row]:
    few = {"permutations": 20, "bootstrap": 20}
    tables: dict[str, Callable[[Layers], object]] = {
        "diagnose": partial(diagnose, **few),
        "spectra": partial(spectra, bootstrap=20),
        "direction_cosines": partial(direction_cosines, permutations=200, bootstrap=200),
    }
    for name, table in tables.items():
        base = seconds(partial(table, samples(8, 4096)), 5)
        for varied, size in (("d", (8, 8192)), ("layers", (16, 4096))):
            # Cosines of all pairs of layers are a table that itself grows with the square of the layers.
            if (varied, name) != ("layers", "direction_cosines"):
                doubled = seconds(partial(table, samples(*size)), 5)
                sizes = {"layers, d": f"(8, 4096) -> {size}", "n": f"{N} + {N}"}
                yield within(f"{name}, {varied} doubled", doubled, f"half the {varied}", base, 2.2, **sizes)


BENCHES = (permutation_null, growth)
