"""`locate`: which blocks make refusal, and where it can be changed or seen, as each localizer has it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from ot_lens.components import has_heads
from ot_lens.errors import HookError
from ot_lens.localizers.bands import NOTHING, Effects, find_band
from ot_lens.localizers.profiles import LOCALIZERS, Localizer, Setting
from ot_lens.localizers.truth import Truth
from ot_lens.models import HFBackend, backend, load_model
from ot_lens.progress import Stage, silent
from ot_lens.prompts import ContrastSet

COLUMNS = (
    "localizer", "says", "verdict", "first", "last", "low", "high", "share", "effect", "spread", "n_harmful",
    "n_harmless", "recommended",
)  # fmt: skip
# Of its band, in a table that also has rows by layer.
OF_BAND = {name: f"band_{name}" for name in ("first", "last", "low", "high")}


def locate(
    model: Any,
    prompts: ContrastSet,
    base: Any = None,
    *,
    batch_size: int = 16,
    seed: int = 0,
    stage: Stage = silent,
) -> pd.DataFrame:
    """Where refusal is made, can be changed and can be seen: one row per localizer.

    Edits say where refusal can be read off and changed; only what a block does, when it is left out or
    replaced by the base model's, says which blocks make it. The two need not agree.

    Args:
        model: A hooked model that refuses.
        prompts: `train` fits edits, directions and probes, `test` measures.
        base: The model before it learnt to refuse, hooked, of the same architecture; it makes the surest
            localizer possible.
        batch_size: Prompts per batch.
        seed: Seed of resamples, permutations and partners.
        stage: Shows progress; see `ot_lens.progress`.

    Returns:
        One row per localizer: localizer, says ("makes it", "can be changed", "can be seen"), verdict ("band",
        "spread", "nothing"), first and last layer of the band, low and high (95 %: where it begins and ends),
        share (of all effects, in the layers that stand out most), effect and spread (p-values of "no block
        does anything" and "no layers stand out"), n_harmful, n_harmless, recommended (True for one).

    Raises:
        HookError: If `base` has another architecture, or needs to be of Hugging Face and is not.
        SinglePassError: If the model cannot be replayed block by block.
        PromptError: If prompts cannot be rendered.
    """
    return table_of(effects_of(Setting(model, prompts, base, batch_size, seed), stage), seed)


def locate_by_layer(
    model: Any,
    prompts: ContrastSet,
    base: Any = None,
    *,
    batch_size: int = 16,
    seed: int = 0,
    stage: Stage = silent,
) -> pd.DataFrame:
    """`locate`, with what each localizer measured at each layer: one row per localizer and layer.

    Args:
        model: A hooked model that refuses.
        prompts: `train` fits edits, directions and probes, `test` measures.
        base: The model before it learnt to refuse; see `locate`.
        batch_size: Prompts per batch.
        seed: Seed of resamples, permutations and partners.
        stage: Shows progress; see `ot_lens.progress`.

    Returns:
        The columns of `locate` and a label, with band_first, band_last, band_low and band_high for the band,
        and by layer: value, unit, low and high (95 % interval over prompts), null_mean, null_low and
        null_high (if the blocks did nothing: labels permuted, or signs flipped where only harmful prompts
        are edited) and n, prompts of both classes.

    Raises:
        HookError: If `base` has another architecture, or needs to be of Hugging Face and is not.
        SinglePassError: If the model cannot be replayed block by block.
        PromptError: If prompts cannot be rendered.
    """
    found = effects_of(Setting(model, prompts, base, batch_size, seed), stage)
    bands = table_of(found, seed).rename(columns=OF_BAND)
    parts = [
        effects.by_layer(seed).assign(localizer=localizer.name, label=localizer.label, unit=localizer.unit)
        for localizer, effects in found.items()
    ]
    return pd.concat(parts, ignore_index=True).merge(bands, on="localizer")


def located(
    model: Any,
    prompts: ContrastSet,
    base: str | None,
    loading: Mapping[str, Any],
    seed: int,
    stage: Stage = silent,
) -> pd.DataFrame:
    """`locate_by_layer`, with a base model by name, and the planted layers where the model declares them."""
    before = None if base is None else base_of(base, loading)
    table, truth = locate_by_layer(model, prompts, before, seed=seed, stage=stage), Truth.of(model)
    if truth is not None:
        for name, layer in (("planted_first", truth.first), ("planted_last", truth.last)):
            planted = None if truth.kind == NOTHING else layer
            table[name] = pd.array([planted] * len(table), dtype="Int64")
    return table


def base_of(base: str, loading: Mapping[str, Any]) -> Any:
    """The base model by name, loaded as the model itself is."""
    return load_model(**{**loading, "model": base, **dict.fromkeys(("revision", "gguf_file", "adapter"))})


def effects_of(setting: Setting, stage: Stage = silent) -> dict[Localizer, Effects]:
    """The effects by which each localizer that is possible judges."""
    if setting.base is not None:
        _check_base(setting.model, setting.base)
    by_head = has_heads(setting.model)
    possible = [
        one
        for one in LOCALIZERS
        if (setting.base is not None or not one.needs_base) and (by_head or not one.needs_heads)
    ]
    found = {}
    with stage("localizers", len(possible)) as step:
        for localizer in possible:
            found[localizer] = localizer.effects(setting)
            step(1)
    return found


def table_of(found: dict[Localizer, Effects], seed: int = 0) -> pd.DataFrame:
    """The band of each profile."""
    rows = []
    for number, (localizer, effects) in enumerate(found.items()):
        harmless = 0 if effects.harmless is None else effects.harmless.shape[1]
        row = {
            "localizer": localizer.name,
            "says": localizer.says,
            **asdict(find_band(effects, seed)),
            "n_harmful": effects.harmful.shape[1],
            "n_harmless": harmless,
            "recommended": number == 0,
        }
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = ["first", "last", "low", "high"]
    return table.astype(dict.fromkeys(whole, "Int64"))


def _check_base(model: Any, base: Any) -> None:
    served = backend(model), backend(base)
    shapes = [(one.n_layers, one.d_model) for one in served]
    if not all(isinstance(one, HFBackend) for one in served) or shapes[0] != shapes[1]:
        raise HookError(
            f"The base model has {shapes[1][0]} layers of width {shapes[1][1]}, the model {shapes[0][0]} of "
            f"{shapes[0][1]}: its blocks can only take the place of blocks of the same architecture, on "
            "Hugging Face models."
        )
