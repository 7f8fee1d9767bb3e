"""A judge that is a sequence classifier, any that AutoModelForSequenceClassification loads."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ot_lens.behaviour.judges import QUESTIONS, Verdict, checked_template, fill
from ot_lens.errors import JudgeError, ModelError, one_of
from ot_lens.generation import Completion
from ot_lens.io.untrusted import abbreviated
from ot_lens.models import evaluating, groups_by_length
from ot_lens.models.overflow import overflowed
from ot_lens.prompts import Prompt

# Tokenizers without a limit declare 1e30.
NO_LIMIT = 10**6


class ClassifierJudge:
    """Yes if a sequence classifier gives one of its labels at least a threshold probability."""

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        *,
        label: str | int,
        question: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: str = "{completion}",
        threshold: float = 0.5,
        max_tokens: int | None = None,
        batch_size: int = 16,
        device: str | torch.device | None = None,
        name: str | None = None,
        version: str = "1",
    ) -> None:
        """Load the classifier.

        Args:
            model: A hub name, a folder, or a loaded model (with its tokenizer), which stays on its device.
            label: The label that means yes, by name or index.
            question: What a yes means: "refused" or "harmful".
            tokenizer: Replaces the model's own.
            template: The text it reads, with {completion} and, if it was trained with it, {prompt}.
            threshold: Smallest probability of `label` that counts as yes. Softmax over labels; sigmoid for a
                model with one label, or one trained for several labels at once.
            max_tokens: Tokens it reads; default: the tokenizer's limit, else the model's.
            batch_size: Texts per batch.
            device: Default: "cuda" when there is one, else "cpu".
            name: Name shown with the results; default: that of the model.
            version: Version shown with the results.

        Raises:
            ModelError: If the model cannot be loaded.
            JudgeError: If label, question, threshold or template do not fit.
        """
        one_of("question of a judge", question, QUESTIONS, JudgeError)
        if not 0 < threshold < 1:
            raise JudgeError(f"threshold must be a probability between 0 and 1, got {threshold}.")
        self._model, self._tokenizer = _loaded(model, tokenizer, device)
        self._label = _label_index(label, self._model.config)
        self._template, self._threshold, self._batch_size = checked_template(template), threshold, batch_size
        self._limit = _limit(self._tokenizer, self._model.config) if max_tokens is None else max_tokens
        self.question, self.version = question, version
        self.name = name or str(self._model.config._name_or_path or type(self._model).__name__)

    @property
    def network(self) -> PreTrainedModel:
        """The network that classifies."""
        return self._model

    def __call__(
        self, prompts: Sequence[Prompt | str], completions: Sequence[str | Completion]
    ) -> list[Verdict]:
        """One verdict per completion; None for logits that overflow, and a note on a truncated input."""
        texts = [fill(self._template, p, c) for p, c in zip(prompts, completions, strict=True)]
        lengths = [len(row) for row in self._tokenizer(texts, verbose=False)["input_ids"]]
        # Without a padding token a decoder cannot tell where a padded text ends: one text at a time.
        pads = self._tokenizer.pad_token_id is not None and self._model.config.pad_token_id is not None
        shortened = [min(length, self._limit) for length in lengths]
        scores: dict[int, float] = {}
        for batch in groups_by_length(shortened, self._batch_size if pads else 1):
            probabilities = self._probabilities([texts[i] for i in batch]).tolist()
            scores.update(zip(batch, probabilities, strict=True))
        return [self._verdict(scores[i], length) for i, length in enumerate(lengths)]

    def _probabilities(self, texts: list[str]) -> Float[Tensor, " text"]:
        inputs = self._tokenizer(
            texts, truncation=True, max_length=self._limit, padding=len(texts) > 1, return_tensors="pt"
        ).to(self._model.device)
        with evaluating(self._model):
            logits = self._model(**inputs).logits.float().cpu()
        several = self._model.config.problem_type == "multi_label_classification"
        each = logits.sigmoid() if several or logits.shape[1] == 1 else logits.softmax(dim=-1)
        return torch.where(overflowed(logits), torch.nan, each[:, self._label])

    def _verdict(self, score: float, length: int) -> Verdict:
        note = f"input cut from {length} to {self._limit} tokens" if length > self._limit else ""
        if math.isnan(score):
            return Verdict(None, note="the classifier's logits contain NaN or Inf")
        return Verdict(score >= self._threshold, score=score, note=note)


def _loaded(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str | torch.device | None,
) -> tuple[Any, Any]:
    if isinstance(model, PreTrainedModel):
        if tokenizer is None:
            raise JudgeError("A loaded classifier needs its tokenizer: pass tokenizer=...")
        return model, tokenizer
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        network = AutoModelForSequenceClassification.from_pretrained(str(model), dtype="auto").eval()
        words = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Cannot load the classifier {str(model)!r}: {abbreviated(error)} Give the folder of a sequence "
            "classifier, or the name of one on a hub that can be reached."
        ) from error
    return network.to(target), words


def _label_index(label: str | int, config: Any) -> int:
    names = {int(index): str(name) for index, name in config.id2label.items()}
    if isinstance(label, int) and label in names:
        return label
    matching = [index for index, name in names.items() if name.lower() == str(label).lower()]
    if len(matching) != 1:
        known = ", ".join(f"{index} {name!r}" for index, name in sorted(names.items()))
        raise JudgeError(f"The classifier has no label {label!r}: choose one of {known}.")
    return matching[0]


def _limit(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    if tokenizer.model_max_length < NO_LIMIT:
        return int(tokenizer.model_max_length)
    return int(getattr(config, "max_position_embeddings", NO_LIMIT))
