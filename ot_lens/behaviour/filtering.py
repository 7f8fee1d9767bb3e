"""Prompts kept by the model's own behaviour: harmful ones that it refuses, harmless ones that it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ot_lens.behaviour.refusal import (
    PhraseList,
    model_phrases,
    phrase_list,
    refusal_score,
    refusal_token_ids,
    refuses,
)
from ot_lens.errors import OtLensTypeError, PromptError, one_of
from ot_lens.generation import complete
from ot_lens.models import backend, batches
from ot_lens.prompts import SPLITS, Contrast, ContrastSet, Prompt

FILTERS = ("refusal_score", "answers")

Batch = tuple[str, tuple[Prompt, ...]]


def filter_by_behaviour(
    model: Any,
    prompts: ContrastSet,
    *,
    by: str = "refusal_score",
    threshold: float = 0.0,
    splits: Sequence[str] = ("train", "val"),
    tokens: Sequence[str | int] | None = None,
    phrases: str | Path | Sequence[str] | PhraseList | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
) -> ContrastSet:
    """Keep harmful prompts that the model refuses, and harmless ones that it answers.

    A prompt that the model treats as of the other class says nothing of refusal, and blurs the difference of
    the classes. Test prompts are left as they are, unless asked for: what is reported should not be chosen by
    what it measures.

    Source: Arditi et al. 2024 (arXiv 2406.11717), whose pipeline keeps a refusal score > 0 of harmful and
    < 0 of harmless prompts, of train and val.

    Args:
        model: A hooked model, without the edits that are to be studied.
        prompts: A contrast set.
        by: "refusal_score", at the next token; or "answers", greedy ones, by refusal phrases.
        threshold: Of the refusal score, in nats: harmful prompts lie above it, harmless ones below.
        splits: Which splits are filtered.
        tokens: Refusal tokens of the score; see `refusal_token_ids`.
        phrases: What `phrase_list` takes; default: the model's own, else "arditi".
        max_new_tokens: Token budget of an answer.
        batch_size: Prompts a batch.

    Returns:
        The contrast set, whose manifest says under "filtered" what was asked, and of each split and class how
        many of how many prompts were kept.

    Raises:
        PromptError: If a choice is unknown, or no prompt of a class is left in a split.
        OtLensTypeError: If `prompts` is no whole set.
    """
    plan = plan_filter(
        model,
        prompts,
        by=by,
        threshold=threshold,
        splits=splits,
        tokens=tokens,
        phrases=phrases,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    batches = plan.batches(prompts)
    return plan.keep(prompts, {name: treated_as_labelled(model, plan, b) for name, b in batches.items()})


@dataclass(frozen=True)
class FilterPlan:
    """How prompts are filtered, and the batches in which a model is asked.

    Attributes:
        by: "refusal_score" or "answers".
        threshold: Of the refusal score, in nats.
        tokens: Refusal tokens of the score.
        phrases: Phrases of a refusal in an answer.
        max_new_tokens: Token budget of an answer.
        groups: For each split and class the prompts of each batch, as indices.
    """

    by: str
    threshold: float
    tokens: tuple[int, ...]
    phrases: PhraseList
    max_new_tokens: int
    groups: Mapping[tuple[str, str], Sequence[Sequence[int]]]

    def batches(self, prompts: ContrastSet) -> dict[str, Batch]:
        """Class and prompts of every batch, by name."""
        return {
            _batch_name(split, label, number): (
                label,
                tuple(dict(getattr(prompts, split))[label][i] for i in group),
            )
            for (split, label), groups in self.groups.items()
            for number, group in enumerate(groups)
        }

    def keep(self, prompts: ContrastSet, right: Mapping[str, Sequence[bool]]) -> ContrastSet:
        """The prompts that are treated as of their class, in order.

        Args:
            prompts: All splits.
            right: Of each batch, whether the model treats its prompts as of their class.

        Raises:
            PromptError: If none is left of a class.
        """
        counts: list[dict[str, Any]] = []
        kept = dict(prompts.splits)
        for split in dict.fromkeys(split for split, _ in self.groups):
            groups = {}
            for label, group in getattr(prompts, split):
                chosen = sorted(self._chosen(split, label, right))
                groups[label] = tuple(group[index] for index in chosen)
                _refuse_empty(groups[label], label, len(group), f"{prompts.name}: {split}", self.by)
                counts.append({"split": split, "class": label, "n": len(group), "kept": len(chosen)})
            kept[split] = Contrast(**groups)
        past = list(prompts.provenance.get("filtered", []))
        provenance = {**prompts.provenance, "filtered": [*past, {**self._record, "counts": counts}]}
        return replace(
            prompts, train=kept["train"], val=kept["val"], test=kept["test"], provenance=provenance
        )

    def _chosen(self, split: str, label: str, right: Mapping[str, Sequence[bool]]) -> list[int]:
        return [
            index
            for number, group in enumerate(self.groups[split, label])
            for index, kept in zip(group, right[_batch_name(split, label, number)], strict=True)
            if kept
        ]

    @property
    def _record(self) -> dict[str, Any]:
        if self.by == "refusal_score":
            return {"by": self.by, "threshold": self.threshold, "tokens": list(self.tokens)}
        named = f"{self.phrases.name} v{self.phrases.version}"
        return {"by": self.by, "phrases": named, "max_new_tokens": self.max_new_tokens}


def plan_filter(
    model: Any,
    prompts: ContrastSet,
    *,
    by: str = "refusal_score",
    threshold: float = 0.0,
    splits: Sequence[str] = ("train", "val"),
    tokens: Sequence[str | int] | None = None,
    phrases: str | Path | Sequence[str] | PhraseList | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
) -> FilterPlan:
    """What `filter_by_behaviour` asks of a model, batch by batch; its arguments.

    Raises:
        PromptError: If a choice is unknown.
        OtLensTypeError: If `prompts` is no whole set.
    """
    if not isinstance(prompts, ContrastSet):
        raise OtLensTypeError(
            f"filter_by_behaviour takes a ContrastSet, got {type(prompts).__name__}: it keeps the counts of "
            "every split in the manifest."
        )
    one_of("filter", by, FILTERS, PromptError)
    for split in splits:
        one_of("split", split, SPLITS, PromptError)
    groups = {
        (split, label): [batch.indices for batch in batches(backend(model), group, batch_size)]
        if group
        else []
        for split in splits
        for label, group in getattr(prompts, split)
    }
    return FilterPlan(
        by,
        threshold,
        tuple(refusal_token_ids(model, tokens)) if by == "refusal_score" else (),
        model_phrases(model) if phrases is None else phrase_list(phrases),
        max_new_tokens,
        groups,
    )


def treated_as_labelled(model: Any, plan: FilterPlan, batch: Batch) -> list[bool]:
    """Whether a model refuses each of some harmful prompts, or answers each of some harmless ones."""
    label, group = batch
    if plan.by == "refusal_score":
        scores = refusal_score(model, group, tokens=plan.tokens, batch_size=len(group))
        right = scores > plan.threshold if label == "harmful" else scores < plan.threshold
        return [bool(value) for value in right]
    answers = complete(model, group, max_new_tokens=plan.max_new_tokens, batch_size=len(group))
    return [bool(refused) == (label == "harmful") for refused in refuses(answers, plan.phrases)]


def _batch_name(split: str, label: str, number: int) -> str:
    return f"filter|{split}|{label}|{number}"


def _refuse_empty(kept: Sequence[Prompt], label: str, n: int, where: str, by: str) -> None:
    if not kept:
        verb = "refuses" if label == "harmful" else "answers"
        cause = "threshold and refusal tokens" if by == "refusal_score" else "the phrase list"
        raise PromptError(
            f"{where}: the model {verb} none of {n} {label} prompts (by {by}): check model, chat template "
            f"and {cause}."
        )
