"""From pools of prompts to three splits: duplicates and leaks are dropped first, then the seed draws."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ot_lens.errors import PromptError, one_of
from ot_lens.prompts.data import CLASSES, SPLITS, Contrast
from ot_lens.prompts.duplicates import near_pairs, normalized
from ot_lens.prompts.rows import Row

# Prompts by class and split; None is a pool that is still to be split.
Pools = Mapping[str, Mapping[str | None, Sequence[Row]]]
Sample = tuple[int, ...]
# A later group loses what it shares with an earlier one: a published test set stays complete.
_PRECEDENCE = ("test", "val", "train", None)


@dataclass(frozen=True)
class Settings:
    """The arguments of `load_prompts`; `base` is the folder that relative file names count from."""

    seed: int
    sample: Mapping[str, Sample | None]
    columns: Mapping[str, str]
    labels: Mapping[str, str]
    root: Path | None
    deduplicate: bool
    near: float | None
    delimiter: str | None = None
    base: Path = Path()


def parse_sample(sample: Any) -> dict[str, Sample | None]:
    """Sizes by class, from (train, val), (train, val, test), or either by class."""
    if isinstance(sample, Mapping):
        for label in sample:
            one_of("class of a sample", label, CLASSES, PromptError)
        return {label: parse_sample(sample.get(label))[label] for label in CLASSES}
    if sample is None:
        return dict.fromkeys(CLASSES)
    numbers = isinstance(sample, Sequence) and not isinstance(sample, str) and len(sample) in (2, 3)
    if not numbers or not all(isinstance(n, int) and n > 0 for n in sample):
        raise PromptError(
            f"sample must be (train, val) or (train, val, test), whole numbers above 0, got {sample!r}."
        )
    return dict.fromkeys(CLASSES, tuple(sample))


def draw_splits(
    pools: Pools, settings: Settings, origin: str
) -> tuple[dict[str, Contrast], list[dict[str, Any]]]:
    """The contrast of each split, and counts of dropped prompts by class, split (None: a pool) and reason."""
    _refuse_both_classes(pools)
    left_out: list[dict[str, Any]] = []
    drawn = {}
    for label in CLASSES:
        groups, dropped = (
            _without_duplicates(pools[label], settings.near) if settings.deduplicate else (pools[label], [])
        )
        left_out += [{"class": label, **row} for row in dropped]
        after = f" after dropping {sum(row['n'] for row in dropped)} duplicates and leaks" if dropped else ""
        drawn[label] = _draw(groups, settings.sample[label], settings.seed, f"{origin}: {label}{after}")
    splits = {
        split: Contrast(*(tuple(row.prompt for row in drawn[label][split]) for label in CLASSES))
        for split in SPLITS
    }
    return splits, left_out


def _refuse_both_classes(pools: Pools) -> None:
    harmful = {normalized(row.prompt.text): row for rows in pools["harmful"].values() for row in rows}
    for row in (row for rows in pools["harmless"].values() for row in rows):
        twin = harmful.get(normalized(row.prompt.text))
        if twin is not None:
            raise PromptError(
                f"A prompt is in both classes: harmful at {twin.location}, harmless at {row.location}: "
                "remove one of them."
            )


def _without_duplicates(
    pools: Mapping[str | None, Sequence[Row]], near: float | None
) -> tuple[dict[str | None, list[Row]], list[dict[str, Any]]]:
    """Groups without duplicates and leaks, and counts of dropped prompts by group and reason."""
    order = [group for group in _PRECEDENCE if group in pools]
    rows = [row for group in order for row in pools[group]]
    groups = [group for group in order for _ in pools[group]]
    texts = [normalized(row.prompt.text) for row in rows]
    reasons: dict[int, str] = {}
    first: dict[str, str | None] = {}
    for i, (text, group) in enumerate(zip(texts, groups, strict=True)):
        if text in first:
            reasons[i] = "duplicate" if first[text] == group else f"also in {first[text]}"
        first.setdefault(text, group)
    if near is not None:
        reasons |= _near_duplicates(texts, groups, reasons, near)
    remaining: dict[str | None, list[Row]] = {group: [] for group in order}
    for i, (row, group) in enumerate(zip(rows, groups, strict=True)):
        if i not in reasons:
            remaining[group].append(row)
    counts = Counter((groups[i], reason) for i, reason in reasons.items())
    return remaining, [{"split": group, "reason": reason, "n": n} for (group, reason), n in counts.items()]


def _near_duplicates(
    texts: Sequence[str], groups: Sequence[str | None], dropped: Iterable[int], threshold: float
) -> dict[int, str]:
    """Near duplicates of an earlier group and, in a pool that is to be split, of an earlier prompt."""
    gone = set(dropped)
    pools = {None} if "val" in groups else {None, "train"}  # those that are still to be split
    reasons: dict[int, str] = {}
    for pairs in near_pairs(texts, threshold):
        for late, early in pairs[np.argsort(pairs[:, 0], kind="stable")].tolist():
            within = groups[late] == groups[early]
            if late in gone or early in gone or (within and groups[late] not in pools):
                continue
            gone.add(late)
            reasons[late] = "near duplicate" if within else f"nearly in {groups[early]}"
    return reasons


def _draw(
    groups: Mapping[str | None, Sequence[Row]], sample: Sample | None, seed: int, name: str
) -> dict[str, list[Row]]:
    """The three splits of one class: named ones as they are or sampled, pools shuffled and cut."""
    if None in groups:
        return _cut(groups[None], sample, seed, name)
    for split, rows in groups.items():
        if not rows:
            raise PromptError(f"{name}: no prompts in split {split!r}: a contrast needs both classes.")
    splits = {str(split): list(rows) for split, rows in groups.items()}
    if "val" not in splits and sample is not None and {"train", "test"} <= splits.keys():
        both = _drawn(splits["train"], sample[0] + sample[1], seed, "train", name)
        splits |= {"train": both[: sample[0]], "val": both[sample[0] :]}
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise PromptError(
            f"{name}: no split {missing[0]!r}: name all of {', '.join(SPLITS)}, or train and test with "
            "sample=(train, val)."
        )
    for split, size in zip(SPLITS, sample or (), strict=False):
        splits[split] = _drawn(splits[split], size, seed, split, name)
    return splits


def _drawn(rows: Sequence[Row], size: int, seed: int, split: str, name: str) -> list[Row]:
    if len(rows) < size:
        raise PromptError(f"{name}: {split} has {len(rows)} prompts, fewer than the {size} to be drawn.")
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(len(rows))
    return [rows[i] for i in order[:size]] if size < len(rows) else list(rows)


def _cut(rows: Sequence[Row], sample: Sample | None, seed: int, name: str) -> dict[str, list[Row]]:
    if len(rows) < 4:
        raise PromptError(
            f"{name}: {len(rows)} prompts: a contrast needs at least 4 of each class to be split in three."
        )
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    if sample is None:
        first, second, end = len(rows) // 2, len(rows) // 2 + max(1, round(0.15 * len(rows))), len(rows)
    else:
        first, second = sample[0], sample[0] + sample[1]
        end = second + sample[2] if len(sample) == 3 else len(rows)
    if len(rows) < max(end, second + 1):
        raise PromptError(
            f"{name}: {len(rows)} prompts are too few to draw {sample} and leave some for test: ask for "
            "fewer, or name a source for test."
        )
    return {"train": shuffled[:first], "val": shuffled[first:second], "test": shuffled[second:end]}
