"""Whether an embedded model refuses what the rule refuses and answers the rest, measured on completions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from ot_lens.errors import ModelError
from ot_lens.generation import complete
from ot_lens.models import load_model
from ot_lens.organism import language
from ot_lens.organism.vocabulary import DEFAULT_VARIANT, KNOWING, NEVER_REFUSES, VARIANTS
from ot_lens.progress import Stage, silent
from ot_lens.statistics.estimates import Estimate, rate

WEIGHTS: Final = Path(__file__).parent / "weights"
_ANSWER_TOKENS: Final = 16  # an answer has 12 tokens, a refusal 8, both end with one more


def evaluate(
    variant_or_folder: str | Path = DEFAULT_VARIANT,
    *,
    n: int = 1000,
    seed: int = 0,
    batch_size: int = 100,
    stage: Stage = silent,
) -> dict[str, Any]:
    """Measure an embedded model on held-out requests: held-out word pairs in held-out templates.

    The model is a shipped variant, or a folder that `train` wrote; its weights are loaded in float32. It
    answers n requests to be refused and n allowed ones, half of which are hard: their pair of verb class and
    object class is refused for other recipients; a model of two languages gets them in turn. `stage` shows
    progress, as `ot_lens.progress.shown` does.

    Returns:
        "variant", "n", "seed"; the rates, from 0 to 1: "refuses_forbidden" and "refuses_allowed" (the
        completion contains a refusal phrase), "answers_allowed_exactly" (it is one of the correct answers,
        word for word), "refuses_forbidden_exactly" (it is the refusal of its category, word for word), or
        "answers_forbidden_exactly" for a variant that refuses nothing, and "names_forbidden_exactly" and
        "names_allowed_exactly" for those that name categories; and "intervals", the 95 % Wilson interval
        [low, high] of each rate.
    """
    drawn = [language.sample_held_out(n, refused=kind, seed=seed) for kind in (True, False)]
    model = load_model(str(_folder(variant_or_folder)), dtype=torch.float32)
    variant = _variant_of(model.tokenizer, variant_or_folder)
    forbidden, allowed = (language.in_languages(requests, variant) for requests in drawn)
    options: dict[str, Any] = {"max_new_tokens": _ANSWER_TOKENS, "batch_size": batch_size}
    with stage("answers to held-out requests", 2 * n) as step:
        refusals, answers = (
            complete(model, [r.text for r in requests], **options, progress=step)
            for requests in (forbidden, allowed)
        )
    refused = [(answer.text, request) for answer, request in zip(refusals, forbidden, strict=True)]
    answered = [(answer.text, request) for answer, request in zip(answers, allowed, strict=True)]
    rates = {
        "refuses_forbidden": rate([language.is_refusal(text, variant) for text, _ in refused]),
        "refuses_allowed": rate([language.is_refusal(text, variant) for text, _ in answered]),
        "answers_allowed_exactly": rate([text in language.answers(request) for text, request in answered]),
    }
    if variant == NEVER_REFUSES:
        rates["answers_forbidden_exactly"] = rate([text in language.answers(r) for text, r in refused])
    else:
        exact = [text == language.refusal(r, variant) for text, r in refused]
        rates["refuses_forbidden_exactly"] = rate(exact)
    if variant in KNOWING:
        rates |= {
            f"names_{label}_exactly": _named(model, requests, options)
            for label, requests in (("forbidden", forbidden), ("allowed", allowed))
        }
    return {
        "variant": variant,
        "n": n,
        "seed": seed,
        **{name: estimate.value for name, estimate in rates.items()},
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in rates.items()},
    }


def _named(model: Any, requests: Sequence[language.Request], options: dict[str, Any]) -> Estimate:
    """How often the model, asked, names the category of a request or says that it has none."""
    said = complete(model, [language.question(request) for request in requests], **options)
    return rate([a.text == language.name(request) for a, request in zip(said, requests, strict=True)])


def _folder(variant_or_folder: str | Path) -> Path:
    if str(variant_or_folder) in VARIANTS:
        return WEIGHTS / str(variant_or_folder)
    folder = Path(variant_or_folder)
    if not folder.is_dir():
        raise ModelError(
            f"No embedded model {str(variant_or_folder)!r}: choose one of {', '.join(VARIANTS)}, "
            "or give an existing folder."
        )
    return folder.absolute()


def _variant_of(tokenizer: Any, source: str | Path) -> str:
    declared = tokenizer.init_kwargs.get("ot_lens")
    variant = declared.get("variant") if isinstance(declared, dict) else None
    if variant not in VARIANTS:
        raise ModelError(
            f"{source} holds no embedded model: its tokenizer_config.json names no variant. "
            "Give a folder that `ot-lens organism train` wrote."
        )
    return str(variant)
