"""Activations: capture, storage, and the labelled tensors that later steps read."""

from ot_lens.activations.capture import capture
from ot_lens.activations.data import Activations, restricted
from ot_lens.activations.moments import LayerMoments, capture_moments, moments_of, partial_moments
from ot_lens.activations.plan import CapturePlan, CaptureSettings, Shard, plan_shards, resolve_layers
from ot_lens.activations.positions import resolve_positions
from ot_lens.activations.shards import capture_shard, captured
from ot_lens.activations.store import ActivationStore, load_activations

__all__ = [
    "ActivationStore",
    "Activations",
    "CapturePlan",
    "CaptureSettings",
    "LayerMoments",
    "Shard",
    "capture",
    "capture_moments",
    "capture_shard",
    "captured",
    "load_activations",
    "moments_of",
    "partial_moments",
    "plan_shards",
    "resolve_layers",
    "resolve_positions",
    "restricted",
]
