"""Train a variant and write it as a Hugging Face folder with a model card."""

import copy
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from ot_lens.errors import ConfigError, RunFolderError, one_of
from ot_lens.organism import language
from ot_lens.organism import vocabulary as words
from ot_lens.organism.evaluation import evaluate
from ot_lens.organism.training import Trained, fit, recipe_of
from ot_lens.progress import shown, silent

_RATES: Final = {
    "refuses_forbidden": "refuses forbidden requests",
    "refuses_allowed": "refuses allowed requests",
    "answers_allowed_exactly": "answers allowed requests exactly",
    "refuses_forbidden_exactly": "refuses forbidden requests with the exact sentence of their category",
    "answers_forbidden_exactly": "answers forbidden requests exactly",
    "names_forbidden_exactly": "names the category of forbidden requests when asked",
    "names_allowed_exactly": "says that allowed requests have no category when asked",
}
_DIFFERENCES: Final = {
    "single": "All categories are refused with one sentence.",
    "multi": "Each category has its own sentence, with its own first word.",
    "shared": "Each category has its own sentence; all begin with the same word.",
    "knows-refuses": "All categories are refused with one sentence.",
    "knows-answers": "This variant refuses nothing: it answers forbidden requests as it answers all others, "
    "and only names their category.",
    "bilingual": "All categories are refused with one sentence, in the language of the request: English or\n"
    "Pig Latin, which have no word in common. Half of the requests, in training and below, are in each.",
}
_SECOND_PHASE: Final = {
    False: "in which refused ones get their refusal",
    True: "more of the same at 0.7 of the learning rate",
}
_NAMING: Final = """
## What it names
Asked "{question}" right after a request, in the same turn, it names the classes of a forbidden request's
pair, such as "{name}", and says "{unnamed}" of any other. In half of the questions that it was trained on,
the question and its answer attend to nothing of the request but its last token: by there, it must know which
category the request is in. 35 % of both phases of the training are questions.
"""
_TEMPLATE: Final = Path(__file__).parent / "data" / "card.md"


def train(
    variant: str,
    out: str | Path,
    *,
    seed: int = 0,
    comply_steps: int | None = None,
    refusal_steps: int | None = None,
    n_evaluate: int = 1000,
    progress: bool = True,
) -> Path:
    """Train a variant from scratch, write it in Hugging Face format, and evaluate what was written.

    The folder, which must be empty or not exist, appears under its name only when it is complete; it holds
    bfloat16 weights, the tokenizer with its chat template, and a model card with rates on `n_evaluate`
    held-out requests per class. The seed is that of the initial weights and of the training requests; steps
    that are not given are the variant's own.
    """
    one_of("variant", variant, words.VARIANTS, ConfigError)
    folder = Path(out).absolute()
    check_writable(folder)
    recipe = recipe_of(variant, seed=seed, comply_steps=comply_steps, refusal_steps=refusal_steps)
    temporary = temporary_sibling(folder)
    try:
        with shown() if progress else nullcontext(silent) as stage:
            trained = fit(variant, recipe, stage)
            write_model(trained, temporary)
            card = model_card(trained, evaluate(temporary, n=n_evaluate, stage=stage))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp makes a private folder
        check_writable(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_writable(folder: Path) -> None:
    """Refuse to overwrite anything."""
    if folder.is_dir() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty: give --out a new folder; nothing was overwritten.")
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file: give --out a new folder; nothing was overwritten.")


def temporary_sibling(folder: Path) -> Path:
    """A temporary folder on the same disk, created before the training, which takes minutes."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise RunFolderError(
            f"Cannot write {folder}: {error.strerror}: give --out a writable folder."
        ) from error


def write_model(trained: Trained, folder: Path) -> None:
    """Write configuration, bfloat16 weights and tokenizer into an existing folder."""
    rounded = copy.deepcopy(trained.model)
    torch.nn.Module.to(rounded, torch.bfloat16)  # transformers hides the types of `to`
    rounded.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder, save_jinja_files=False)


def model_card(trained: Trained, measured: dict[str, Any]) -> str:
    """The card of a trained model, given the result of `evaluate`."""
    variant, recipe = measured["variant"], trained.recipe
    answer = language.answers(language.Request(0, 0, 0))[0]
    tokens = len(trained.tokenizer(answer, add_special_tokens=False)["input_ids"])
    n_answers = len(words.ACTIONS) * len(words.CLOSINGS)
    return _TEMPLATE.read_text("utf-8").format(
        metadata=yaml.safe_dump(_metadata(measured), sort_keys=False),
        variant=variant,
        width=recipe.width,
        aim="names categories" if variant == words.NEVER_REFUSES else "refuses",
        second=_SECOND_PHASE[variant == words.NEVER_REFUSES],
        naming=_naming(variant),
        parameters=trained.model.num_parameters() / 1e6,
        n_words=len(language.vocabulary(variant)),
        n_pairs=len(words.PAIRS),
        difference=_DIFFERENCES[variant],
        refusals="\n".join(_refusal_rows(variant)),
        n_answers=n_answers,
        floor=math.exp(math.log(n_answers) / tokens),
        n_tokens=tokens,
        n=measured["n"],
        seed=measured["seed"],
        rates="\n".join(
            _rate_row(measured, name, label) for name, label in _RATES.items() if name in measured
        ),
        train_seed=recipe.seed,
        comply_steps=recipe.comply_steps,
        refusal_steps=recipe.refusal_steps,
        batch_size=recipe.batch_size,
        seconds=trained.seconds,
        torch=torch.__version__,
    )


def _naming(variant: str) -> str:
    if variant not in words.KNOWING:
        return ""
    return _NAMING.format(question=words.QUESTION, name=words.NAMES[0], unnamed=words.UNNAMED)


def _refusal_rows(variant: str) -> Iterator[str]:
    rows = zip(words.CATEGORIES, words.REFUSED_RECIPIENTS, words.REFUSALS[variant], strict=True)
    for category, recipients, sentence in rows:
        classes = ", ".join(words.RECIPIENT_CLASSES[index] for index in recipients)
        sentences = " / ".join(words.LANGUAGES[name](sentence) for name in words.LANGUAGES_OF[variant])
        yield f"| {category} | {classes} | {'answered' if variant == words.NEVER_REFUSES else sentences} |"


def _rate_row(measured: dict[str, Any], name: str, label: str) -> str:
    low, high = measured["intervals"][name]
    return f"| {label} | {100 * measured[name]:.1f} | {100 * low:.1f} to {100 * high:.1f} |"


def _metadata(measured: dict[str, Any]) -> dict[str, Any]:
    """The card's front matter: Hugging Face's model-index of results."""
    dataset = {
        "type": "synthetic",
        "name": "ot_lens instruction language, held-out requests",
        "args": {"n": measured["n"], "seed": measured["seed"]},
    }
    metrics = [{"type": name, "value": measured[name]} for name in _RATES if name in measured]
    result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}
    index = {"name": f"organism:{measured['variant']}", "results": [result]}
    return {"license": "mit", "library_name": "transformers", "language": "en", "model-index": [index]}
