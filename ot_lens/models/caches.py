"""The cache of generation: what a token sees of earlier ones is for the model's masks to say, not for it."""

from typing import Any

from transformers import Cache, DynamicCache

# More tokens than any prompt has, as the window of a layer of a cache.
ENDLESS = 2**31


def cache_of_everything(hf_model: Any) -> Cache | None:
    """A new cache that drops no token; None if the one that `generate` makes drops none either.

    By its default a cache forgets what lies outside a window that the configuration names. Models that have
    such a window mask it as well; others (a Llama whose configuration still says `sliding_window`) would
    continue a long prompt differently than they read it without a cache.
    """
    if not hf_model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=hf_model.config.get_text_config(decoder=True))
    windows = [layer for layer in cache.layers if hasattr(layer, "sliding_window")]
    for layer in windows:
        layer.sliding_window = ENDLESS
    return cache if windows else None
