"""The explorer: a local page over finished runs. Dash is imported only when it starts."""

from ot_lens.explorer.start import explore

__all__ = ["explore"]
