"""Capability tasks through the optional lm-eval: what does an intervention cost elsewhere?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import pandas as pd

from ot_lens.errors import ModelError, OtLensError
from ot_lens.models import Backend, backend, chat_settings, evaluating
from ot_lens.models.overflow import no_nan
from ot_lens.models.templates import chat_template

NORMAL_95 = 1.959964
COLUMNS = ("task", "measure", "filter", "value", "low", "high", "n", "interval", "seed")
ITEM_COLUMNS = ("task", "part", "measure", "filter", "item", "value")


def capability(
    model: Any,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = True,
    batch_size: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Score a model on tasks of EleutherAI's lm-eval, under active interventions.

    Needs the extra `capability` and, for tasks given by name, a hub to fetch their data from. The harness
    does not distinguish prompts from answers, so interventions should have token scope "all". It seeds the
    global generators of Python, NumPy and torch. Prompts are rendered as for every other measure.

    Args:
        model: A hooked model backed by Hugging Face: what `load_model` returns, or a TransformerBridge.
        tasks: Names of tasks ("hellaswag"), or configurations of lm-eval.
        limit: Examples per task; default: all.
        num_fewshot: Examples before each question; default: that of the task.
        chat: Apply the chat template to questions.
        batch_size: Texts per batch.
        seed: Of the harness.

    Returns:
        One row per measure: task, measure, filter, value, low, high, n, interval, seed. Low and high are 1.96
        standard errors away ("normal") if lm-eval reports one, else NaN.

    Raises:
        ModelError: If lm-eval is not installed, or does not support this kind of model.
        ActivationError: If the model's logits contain NaN.
        OtLensError: If there is no task, lm-eval does not know one, or its data cannot be fetched.
    """
    settings = {"limit": limit, "num_fewshot": num_fewshot, "apply_chat_template": chat}
    return _table(_evaluated(model, tasks, batch_size, seed, log_samples=False, **settings), seed)


def capability_items(
    model: Any,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """The score of every item of the tasks, as in `capability`: two edits can then be compared item by item.

    Args:
        model: As in `capability`.
        tasks: As in `capability`.
        limit: Items of each task, or of each part of a group of tasks; default: all.
        batch_size: Texts per batch.
        seed: Of the harness.

    Returns:
        One row per measure and item: task (of a group, the group's name), part (the task itself), measure,
        filter, item (its number in the task), value.

    Raises:
        ModelError: If lm-eval is not installed, or does not support this kind of model.
        ActivationError: If the model's logits contain NaN.
        OtLensError: If there is no task, lm-eval does not know one, or its data cannot be fetched.
    """
    settings = {"limit": limit, "num_fewshot": None, "apply_chat_template": True}
    results = _evaluated(model, tasks, batch_size, seed, log_samples=True, **settings)
    names = _whole_tasks(results.get("group_subtasks", {}))
    rows = [
        (names.get(part, part), part, measure, sample["filter"], sample["doc_id"], float(sample[measure]))
        for part, samples in results["samples"].items()
        for sample in samples
        for measure in sample["metrics"]
        if isinstance(sample[measure], bool | int | float)
    ]
    return pd.DataFrame(rows, columns=list(ITEM_COLUMNS))


def _whole_tasks(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The outermost group of each task that is in one."""
    above = {child: group for group, children in groups.items() for child in children}

    def outermost(name: str) -> str:
        return outermost(above[name]) if name in above else name

    return {child: outermost(child) for child in above}


def _evaluated(
    model: Any,
    tasks: Sequence[str | Mapping[str, Any]],
    batch_size: int,
    seed: int,
    **settings: Any,
) -> Mapping[str, Any]:
    """What lm-eval makes of the model."""
    if isinstance(tasks, str) or not tasks:
        raise OtLensError(f"tasks must be a list with at least one task, got {tasks!r}.")
    harness, adapter, manager = _harness()
    served = backend(model)
    hf_model = served.hf_model
    if hf_model is None:
        raise ModelError(f"lm-eval does not support {type(model).__name__}: use ot_lens.load_model.")
    known = manager.TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))
    unknown = [task for task in tasks if isinstance(task, str) and task not in known.all_tasks]
    if unknown:
        raise OtLensError(f"lm-eval has no task {unknown[0]!r}: `lm-eval ls tasks` lists them.")
    try:
        with evaluating(served.model), no_nan(hf_model, last_only=False):
            results: Mapping[str, Any] = harness.simple_evaluate(
                model=_rendering(adapter.HFLM, served)(
                    pretrained=hf_model, tokenizer=served.tokenizer, batch_size=batch_size
                ),
                tasks=[task if isinstance(task, str) else dict(task) for task in tasks],
                task_manager=known,
                bootstrap_iters=1000,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                **settings,
            )
    except OSError as error:
        raise OtLensError(f"Cannot fetch the data of a task: {error}. A hub must be reachable.") from error
    return results


def _harness() -> Iterator[Any]:
    """lm-eval and two of its modules."""
    try:
        yield from map(import_module, ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks"))
    except ImportError as error:
        raise ModelError(
            f"Capability tasks need lm-eval ({error}): pip install 'ot-lens[capability]'."
        ) from error


def _rendering(adapter: type[Any], served: Backend) -> type[Any]:
    """lm-eval's adapter with prompts rendered as everywhere else: system prompt, thinking, pinned date."""

    class Adapter(adapter):  # type: ignore[misc]
        def apply_chat_template(
            self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            turns, settings = list(chat_history), chat_settings(served.model)
            if turns and turns[0]["role"] == "system":
                # The task's description follows the model's system prompt: templates take one system turn.
                texts = (settings.system, turns.pop(0)["content"])
                settings = replace(settings, system="\n\n".join(text for text in texts if text))
            return chat_template(served.tokenizer, settings).render(
                served.tokenizer,
                turns,
                to_answer=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

    return Adapter


def _table(results: Mapping[str, Any], seed: int) -> pd.DataFrame:
    rows = []
    for task, values in results["results"].items():
        n = results["n-samples"].get(task, {}).get("effective")
        for key, value in values.items():
            measure, _, kind = key.partition(",")
            if not kind or measure.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{measure}_stderr,{kind}")
            known = isinstance(error, int | float)  # else "N/A"
            half = NORMAL_95 * error if known else float("nan")
            keys = {"task": task, "measure": measure, "filter": kind, "n": n, "seed": seed}
            ends = {"low": value - half, "high": value + half, "interval": "normal" if known else ""}
            rows.append({**keys, "value": float(value), **ends})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"n": "Int64"})
