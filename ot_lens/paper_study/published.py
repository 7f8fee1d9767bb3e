"""What arXiv 2603.04355 is known here to say of each claim, and whether that was read there.

Nothing is computed from these: they stand next to what a run measured.
"""

from collections.abc import Mapping

# Read in the paper itself, or known from others.
PRIMARY, SECOND_HAND = "P", "S"
LLAMA_13B = "meta-llama/Llama-2-13b-chat-hf"
FEW_LAYERS = "1-2 layers at about 40-60 % of the depth beat transport of the full network"
# By claim, and by the name of the method that PCA-OT or an edit is compared with, if that matters.
OF_ANY_MODEL: Mapping[tuple[str, str], tuple[str, str]] = {
    ("layers", ""): (FEW_LAYERS, PRIMARY),
    ("depth", ""): (FEW_LAYERS, PRIMARY),
    ("collapse", ""): ("edits beyond 80 % of the depth collapse", SECOND_HAND),
    ("gain", ""): ("up to 11 % more ASR than baselines at comparable perplexity", PRIMARY),
}
OF_MODEL: Mapping[tuple[str, str, str], tuple[str, str]] = {
    (LLAMA_13B, "gain", "rfa"): ("ASR 79-82 % against 46-73 %", SECOND_HAND),
    (LLAMA_13B, "gain", "linear_act"): ("ASR 79-82 % against 74-78 %", SECOND_HAND),
    (LLAMA_13B, "capability", "mmlu"): ("MMLU 52.86 against 53.15", SECOND_HAND),
}


def published(model: str, claim: str, other: str) -> tuple[str, str]:
    """What is known of a claim on a model, and its source; two empty texts if nothing is."""
    known = OF_MODEL.get((model, claim, other)) or OF_ANY_MODEL.get((claim, other))
    return known or OF_ANY_MODEL.get((claim, ""), ("", ""))
