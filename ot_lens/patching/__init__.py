"""Interchange and knock-out over layers and tokens: activations of another prompt, or none."""

from ot_lens.patching.explained import share_explained
from ot_lens.patching.interchange import interchange

__all__ = ["interchange", "share_explained"]
