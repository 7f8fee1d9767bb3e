"""Prompts kept by the model's own behaviour: harmful ones that it refuses, harmless ones that it answers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ot_lens.behaviour.next_token import refusal_score, refusal_token_ids
from ot_lens.behaviour.refusal import PhraseList, model_phrases, phrase_list, refuses
from ot_lens.errors import OtLensTypeError, PromptError, one_of
from ot_lens.execution import as_runner
from ot_lens.generation import complete
from ot_lens.prompts import SPLITS, Contrast, ContrastSet, Prompt

FILTERS = ("refusal_score", "answers")


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
    progress: Callable[[int], None] | None = None,
) -> ContrastSet:
    """Keep harmful prompts that the model refuses, and harmless ones that it answers.

    A prompt that the model treats like the other class is no example of refusal, and blurs the difference
    between the classes. Test prompts are left as they are by default: results should not be selected by what
    they measure.

    Source: Arditi et al. 2024 (arXiv 2406.11717), whose pipeline keeps harmful prompts with a refusal score
    > 0 and harmless ones with a score < 0, in train and val.

    Args:
        model: A hooked model without edits, or a `Runner`, whose tasks are `batch_size` prompts of a class.
        prompts: A contrast set.
        by: "refusal_score" at the next token, or "answers": greedy answers, judged by refusal phrases.
        threshold: Threshold of the refusal score, in nats: above it for harmful prompts, below for harmless.
        splits: The splits to filter.
        tokens: Refusal tokens of the score; see `refusal_token_ids`.
        phrases: What `phrase_list` takes; default: the model's own, else "arditi".
        max_new_tokens: Token budget of an answer.
        batch_size: Prompts per batch.
        progress: Called with the number of prompts just finished.

    Returns:
        The contrast set; its manifest lists under "filtered" the criterion, and for each split and class how
        many prompts were kept of how many.

    Raises:
        PromptError: If a choice is unknown, or no prompt of a class is left in a split.
        OtLensTypeError: If `prompts` is a single split.
    """
    if not isinstance(prompts, ContrastSet):
        raise OtLensTypeError(
            f"filter_by_behaviour takes a ContrastSet, got {type(prompts).__name__}: its manifest records "
            "the counts of every split."
        )
    one_of("filter", by, FILTERS, PromptError)
    splits = tuple(dict.fromkeys(splits))
    for split in splits:
        one_of("split", split, SPLITS, PromptError)
    runner = as_runner(model)
    size = max(1, batch_size)
    tasks = {
        f"filter|{split}|{label}|{start}": (label, group[start : start + size])
        for split in splits
        for label, group in getattr(prompts, split)
        for start in range(0, len(group), size)
    }

    def report(name: str) -> None:
        if progress is not None:
            progress(len(tasks[name][1]))

    if by == "refusal_score":
        ids = runner.call(refusal_token_ids, tokens)
        criterion: dict[str, Any] = {"by": by, "threshold": threshold, "tokens": list(ids)}
        passed = runner.map(_pass_by_score, tasks, ids, threshold, batch_size, progress=report)
    else:
        listed = runner.call(model_phrases) if phrases is None else phrase_list(phrases)
        named = f"{listed.name} v{listed.version}"
        criterion = {"by": by, "phrases": named, "max_new_tokens": max_new_tokens}
        options = listed, max_new_tokens, batch_size
        passed = runner.map(_pass_by_answers, tasks, *options, progress=report)
    contrasts, counts = dict(prompts.splits), []
    for split in splits:
        groups = {}
        for label, group in getattr(prompts, split):
            starts = range(0, len(group), size)
            flags = [flag for start in starts for flag in passed[f"filter|{split}|{label}|{start}"]]
            kept = groups[label] = tuple(p for p, keep in zip(group, flags, strict=True) if keep)
            if not kept:
                raise _none_left(f"{prompts.name}: {split}", label, len(group), by)
            counts.append({"split": split, "class": label, "n": len(group), "kept": len(kept)})
        contrasts[split] = Contrast(**groups)
    filters = [*prompts.provenance.get("filtered", []), {**criterion, "counts": counts}]
    fields: dict[str, Any] = {**contrasts, "provenance": {**prompts.provenance, "filtered": filters}}
    return replace(prompts, **fields)


def _pass_by_score(
    model: Any, tokens: Sequence[int], threshold: float, batch_size: int, task: tuple[str, Sequence[Prompt]]
) -> list[bool]:
    label, group = task
    scores = refusal_score(model, group, tokens=tokens, batch_size=batch_size)
    return [bool(passed) for passed in (scores > threshold if label == "harmful" else scores < threshold)]


def _pass_by_answers(
    model: Any, phrases: PhraseList, budget: int, batch_size: int, task: tuple[str, Sequence[Prompt]]
) -> list[bool]:
    label, group = task
    answers = complete(model, group, max_new_tokens=budget, batch_size=batch_size)
    return [refused == (label == "harmful") for refused in refuses(answers, phrases)]


def _none_left(split: str, label: str, n: int, by: str) -> PromptError:
    verb = "refuses" if label == "harmful" else "answers"
    cause = "threshold and refusal tokens" if by == "refusal_score" else "the phrase list"
    return PromptError(
        f"{split}: the model {verb} none of {n} {label} prompts (by {by}): check the model, its chat "
        f"template, and {cause}."
    )
