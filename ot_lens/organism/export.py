"""Train a variant and write it as a Hugging Face folder with a model card."""

import copy
import shutil
import tempfile
from pathlib import Path

import torch

from ot_lens.errors import ConfigError, RunFolderError, one_of
from ot_lens.organism.card import model_card
from ot_lens.organism.evaluation import evaluate
from ot_lens.organism.training import Recipe, Trained, fit
from ot_lens.organism.vocabulary import VARIANTS


def train(
    variant: str,
    out: str | Path,
    *,
    seed: int = 0,
    comply_steps: int = Recipe.comply_steps,
    refusal_steps: int = Recipe.refusal_steps,
    n_evaluate: int = 1000,
    progress: bool = True,
) -> Path:
    """Train a variant from scratch, write it in Hugging Face format, and evaluate what was written.

    The folder appears under its name only when it is complete; it holds bfloat16 weights, the tokenizer with
    its chat template, and a model card.

    Args:
        variant: "single", "multi" or "shared".
        out: Folder to write; it must be empty or not exist.
        seed: Seed of the initial weights and of the training requests.
        comply_steps: Steps of the first phase.
        refusal_steps: Steps of the second phase.
        n_evaluate: Held-out requests per class for the model card.
        progress: Show a progress bar.

    Returns:
        The folder.

    Raises:
        ConfigError: The variant is unknown, or a number is below one.
        RunFolderError: `out` is a file, is not empty, or cannot be written.
    """
    one_of("variant", variant, VARIANTS, ConfigError)
    folder = Path(out).absolute()
    _check_writable(folder)
    recipe = Recipe(seed=seed, comply_steps=comply_steps, refusal_steps=refusal_steps)
    temporary = _temporary_sibling(folder)
    try:
        trained = fit(variant, recipe, progress=progress)
        write_model(trained, temporary)
        card = model_card(trained, evaluate(temporary, n=n_evaluate))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp makes a private folder
        _check_writable(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_writable(folder: Path) -> None:
    """Refuse to overwrite anything."""
    if folder.is_dir() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty: give --out a new folder; nothing was overwritten.")
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file: give --out a new folder; nothing was overwritten.")


def _temporary_sibling(folder: Path) -> Path:
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
