"""Capture activations at hook points in one forward pass per batch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ot_lens.activations.data import Activations
from ot_lens.activations.plan import CapturePlan, CaptureSettings, plan_shards
from ot_lens.activations.positions import Positions
from ot_lens.activations.shards import captured
from ot_lens.activations.store import ActivationStore
from ot_lens.execution import Runner, as_runner
from ot_lens.interventions import Edits
from ot_lens.models import TOKEN_BUDGET
from ot_lens.prompts import CLASSES, Contrast


def capture(
    model: Any,
    prompts: Contrast,
    *,
    layers: str | Sequence[int] = "all",
    hook: str = "resid_pre",
    positions: Positions = (-1,),
    reduce: str | None = None,
    dtype: torch.dtype | str | None = None,
    edits: Edits | None = None,
    tokens: str = "all",
    batch_size: int = 64,
    token_budget: int = TOKEN_BUDGET,
    store: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Activations:
    """Activations of both classes of a contrast.

    Each pass ends at the highest of `layers`. The model keeps its hooks, training mode and weights.

    Args:
        model: A hooked model, or a `Runner` (see `ot_lens.execution`), which captures batch by batch.
        prompts: One split, such as `prompts.train`; the chat template is applied here.
        layers: "all" or layer numbers.
        hook: "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out".
        positions: Token positions counted from each prompt's end, -1 being its last token; "last";
            "post_instruction", all positions of the chat template after the instruction; or, also among
            integers, "instruction_last", the last token of the user's text (its index from the end where that
            is the same in all prompts, else under this name), "first", the rendered prompt's first token
            (special tokens included), and "thought_end", where the answer of a thinking model begins. The
            model first thinks without `edits`, as `think` has it.
        reduce: "mean" for the mean over those positions, as the one position "mean".
        dtype: "float32", "bfloat16", "float16" or "float64", in memory and on disk. Default: what the model
            computes in.
        edits: Maps that are active while capturing (see `intervene`), to read their effect at later layers.
        tokens: Token scope of those edits.
        batch_size: Maximum number of prompts per batch.
        token_budget: Maximum number of tokens per batch, padding included.
        store: Folder for the activations, which are then never all in memory; a folder that holds part of
            the same capture is completed.
        progress: Called with the number of prompts just finished; first with those already in the store.

    Returns:
        Activations on the CPU, or opened lazily from the store.

    Raises:
        HookError: If a layer, hook point or position does not exist.
        PromptError: If prompts cannot be rendered, a thought is asked for that does not come or end, or the
            last token of the user's text cannot be told.
        ActivationError: If the dtype is unknown, a finite value overflows it, or the model overflowed: an
            activation is NaN or Inf.
        RunFolderError: If `store` holds another capture, is in use, or cannot be written; its contents stay.
    """
    settings = CaptureSettings(
        layers, hook, positions, reduce, dtype, edits or {}, tokens, batch_size, token_budget
    )
    runner, report = as_runner(model), progress or (lambda _: None)
    plan = runner.call(plan_shards, prompts, settings)
    if store is None:
        return _into_memory(runner, prompts, plan, report)
    with ActivationStore(store, plan) as shards:
        missing = shards.missing()
        resumed = sum(map(plan.count, CLASSES)) - sum(len(shard.indices) for shard in missing)
        if resumed:
            report(resumed)
        for shard, values in runner.stream(captured, missing, prompts, plan):
            shards.write(shard, values)
            report(len(shard.indices))
        return shards.finish()


def _into_memory(
    runner: Runner, prompts: Contrast, plan: CapturePlan, report: Callable[[int], None]
) -> Activations:
    data: dict[str, torch.Tensor] = {}
    for shard, values in runner.stream(captured, plan.shards, prompts, plan):
        if shard.label not in data:
            shape = (values.shape[0], plan.count(shard.label), *values.shape[2:])
            data[shard.label] = values.new_empty(shape)
        data[shard.label][:, list(shard.indices)] = values
        report(len(shard.indices))
    return Activations(data, plan.layers, plan.labels, plan.settings.hook, plan.key)
