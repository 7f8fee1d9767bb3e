"""Interchange and knock-out over layers and tokens: another prompt's activations, or none, in place of a prompt's own."""

from ot_lens.patching.interchange import interchange

__all__ = ["interchange"]
