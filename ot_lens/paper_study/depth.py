"""Which layers the paper speaks of: those at 40-60 % of the depth, and those beyond 80 %."""

import math

from ot_lens.errors import ConfigError

DEPTH = (0.4, 0.6)
LATE = 0.8
# Layers that a grid has at most, besides all of the band, in a model of more than ALL_OF layers.
GRID, ALL_OF = 20, 32


def depth_band(n_layers: int) -> list[int]:
    """Layers between two shares of the depth, both ends rounded outward."""
    # A layer's input has passed as many blocks as its number says. Rounded, since 0.6 * 35 is not exactly 21.
    first, last = (round(share * n_layers, 9) for share in DEPTH)
    band = list(range(math.floor(first), min(n_layers - 1, math.ceil(last)) + 1))
    if len(band) < 2:
        raise ConfigError(
            f"A model of {n_layers} layers has no two of them at 40-60 % of its depth: use a deeper model."
        )
    return band


def middle(n_layers: int) -> int:
    """The layer at half depth."""
    return round(sum(DEPTH) / 2 * n_layers)


def depth_grid(n_layers: int) -> list[int]:
    """Layers over the whole depth: every one, or 20 evenly spaced ones and all of the band."""
    if n_layers <= ALL_OF:
        return list(range(n_layers))
    spaced = {round(i * (n_layers - 1) / (GRID - 1)) for i in range(GRID)}
    return sorted(spaced | set(depth_band(n_layers)))
