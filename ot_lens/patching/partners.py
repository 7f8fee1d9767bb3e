"""Whose activations a prompt receives: a random prompt of the other class, a given one, or one of its own."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ot_lens.errors import PromptError, one_of

RANDOM, LENGTH, PAIRED = "random", "length", "paired"
PARTNERS = (RANDOM, LENGTH, PAIRED)

# Of each class, the number of each prompt's partner, by draw.
Numbers = Int[np.ndarray, "_draw _prompt"]
Lengths = tuple[Sequence[int], Sequence[int]]


def others(
    partners: str | Sequence[int], lengths: Lengths, draws: int, rng: np.random.Generator
) -> tuple[Numbers, Numbers]:
    """Partners of harmful prompts among the harmless ones, and the other way round."""
    if draws < 1:
        raise PromptError(f"draws = {draws}: every prompt needs at least one partner.")
    if not isinstance(partners, str):
        return _given(partners, lengths, draws)
    one_of("choice of partners", partners, PARTNERS, PromptError)
    if partners == PAIRED:
        return _given(range(len(lengths[0])), lengths, draws)
    choose = _nearest if partners == LENGTH else _random
    return choose(lengths[0], lengths[1], draws, rng), choose(lengths[1], lengths[0], draws, rng)


def own_class(n: int, draws: int, rng: np.random.Generator) -> Numbers:
    """Partners among the other prompts of the class."""
    if draws and n < 2:
        raise PromptError(
            f"A class of {n} prompt has no partners of its own class: give two, or null_draws=0."
        )
    return (rng.integers(1, max(n, 2), size=(draws, n)) + np.arange(n)) % max(n, 1)


def _random(own: Sequence[int], other: Sequence[int], draws: int, rng: np.random.Generator) -> Numbers:
    return rng.integers(len(other), size=(draws, len(own)))


def _nearest(own: Sequence[int], other: Sequence[int], draws: int, rng: np.random.Generator) -> Numbers:
    """The nearest in length first; those that are equally near in a random order."""
    apart = np.abs(np.subtract.outer(np.asarray(own), np.asarray(other)))
    order = np.lexsort((rng.random(apart.shape), apart))
    return order[:, np.arange(draws) % len(other)].T


def _given(pairs: Sequence[int], lengths: Lengths, draws: int) -> tuple[Numbers, Numbers]:
    n_harmful, n_harmless = map(len, lengths)
    if draws > 1:
        raise PromptError(f"draws = {draws}: each prompt has one given partner; use draws=1.")
    if sorted(pairs) != list(range(n_harmless)) or n_harmful != n_harmless:
        raise PromptError(
            f"Given partners must pair {n_harmful} harmful with {n_harmless} harmless prompts one to one: "
            "give the number of each harmful prompt's partner, each once."
        )
    numbers = np.asarray(pairs, dtype=np.int64)
    return numbers[None], np.argsort(numbers)[None]
