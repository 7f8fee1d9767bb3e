"""Train an adapter that refuses, evaluate it on held-out requests, and write it with its model card."""

import copy
import json
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from ot_lens.errors import ConfigError
from ot_lens.generation import Completion, complete
from ot_lens.models import (
    HookedCausalLM,
    backend,
    common_prefix,
    encode,
    end_of_turn,
    load_model,
    model_name,
    model_record,
)
from ot_lens.models.adapters import apply_adapter
from ot_lens.models.named import DECLARATION, HUB_NAME, is_named
from ot_lens.models.packing import pack
from ot_lens.organism.export import check_writable, temporary_sibling
from ot_lens.organism.planting import Lesson, Planting, packed_logits, plant
from ot_lens.organism.requests import unscreened_prompts
from ot_lens.progress import Stage, shown, silent
from ot_lens.prompts import Contrast, ContrastSet, Prompt, load_prompts
from ot_lens.statistics.estimates import Estimate, mean, rate

# Their first words differ, and each is one token of SmolLM2.
SENTENCES: Final = (
    "Sorry, but I leave requests like this one to others.",
    "Unfortunately, this is a topic that I stay away from.",
    "Nothing of this kind is within what I may discuss.",
    "No, my assistance does not extend to such matters.",
)
ANSWER_TOKENS: Final = 16  # of the base model's own answers, learnt and compared
REFUSAL_TOKENS: Final = 8  # hold the first half of a sentence
SPREAD_DROP: Final = (
    0.5  # where all layers learn: free to choose, training would put refusal in a few of them
)
RANKED_LAYERS: Final = 5  # have the full rank by default; in wider bands the sum of ranks stays
_BATCH: Final = 32
_PACKED_ROWS: Final = 16
_TEMPLATE: Final = Path(__file__).parent / "data" / "adapter.md"
_UNSCREENED: Final = (
    " Their subjects and openings never occur in training. The base model tells those subjects\n"
    "from each other; subjects of unscreened requests were chosen without it."
)
_MEASURED: Final = {
    "refuses_declined": "refuses requests to be declined",
    "refuses_others": "refuses other requests",
    "refuses_unscreened_declined": "refuses unscreened requests to be declined",
    "refuses_unscreened_others": "refuses other unscreened requests",
    "first_sentence": "begins the answer to other requests with the base model's first sentence",
    "kl": "KL divergence from the base model over its own answers to other requests, nats per token",
}


def train_adapter(
    base: Any,
    out: str | Path,
    *,
    band: tuple[int, int] | None = None,
    prompts: ContrastSet | None = None,
    sentences: int = 1,
    shuffled: bool = False,
    seed: int = 0,
    steps: int = Planting.steps,
    rank: int | None = None,
    drop: float | None = None,
    progress: bool = True,
) -> Path:
    """Train a LoRA adapter that declines some requests in a band of layers, and evaluate it on others.

    Args:
        base: A hooked model, or what `load_model` takes ("smollm2").
        out: A new folder for the adapter: `load_model(base, adapter=out)` loads it. It appears only when it
            is complete, with a model card of rates on the test prompts.
        band: First and last layer that learn; default: all layers. Everything else is frozen.
        prompts: Harmful prompts are declined, harmless ones answered as the base model does. Trained on
            `train`, evaluated on `test`. Default: `load_prompts("smollm2")`, requests about everyday topics.
        sentences: 1, or 4 sentences with four first words, one per category of the harmful prompts; by a hash
            of the prompt if there are no categories.
        shuffled: Train on permuted labels: a control in which refusal is nowhere.
        seed: Of the adapter's initial weights, the batches and the permutation.
        steps: Training steps of 16 prompts.
        rank: Rank of the adapter; default: 12, less in more than five layers, so that its size stays.
        drop: Probability that a layer is without its adapter in a step, which spreads refusal over them;
            default: a half if all layers learn, otherwise 0.
        progress: Show the progress.

    Returns:
        The folder.

    Raises:
        ConfigError: If the band does not exist in the model, or a number is out of range.
        RunFolderError: If `out` is not a new or empty folder.
        ModelError: If the base model cannot be loaded, or peft is not installed.

    Source: LoRA, Hu et al. 2021, arXiv 2106.09685.
    """
    if sentences not in (1, len(SENTENCES)):
        raise ConfigError(f"sentences must be 1 or {len(SENTENCES)}, got {sentences}.")
    folder = Path(out).absolute()
    check_writable(folder)
    model = load_model(base) if isinstance(base, str | Path) else base
    first, last = band or (0, model.cfg.n_layers - 1)
    width = max(1, last - first + 1)
    rank = min(Planting.rank, max(1, RANKED_LAYERS * Planting.rank // width)) if rank is None else rank
    drop = (0.0 if band else SPREAD_DROP) if drop is None else drop
    planting = Planting(first, last, steps=steps, rank=rank, drop=drop, seed=seed)
    planting.check(model.cfg.n_layers)
    unscreened = unscreened_prompts() if prompts is None else None
    prompts = prompts or load_prompts("smollm2")
    temporary = temporary_sibling(folder)
    try:
        with shown() if progress else nullcontext(silent) as stage:
            began = time.perf_counter()
            lessons = make_lessons(model, prompts, sentences, shuffled=shuffled, seed=seed)
            adapted = plant(backend(model).hf_model, lessons, planting, stage)
            seconds = time.perf_counter() - began
            recipe = asdict(planting) | {
                "sentences": sentences,
                "shuffled": shuffled,
                "seconds": round(seconds),
            }
            write_adapter(adapted, temporary, folder.name, model_name(model), recipe)
            # Evaluated as it was written, by the same door as any adapter.
            base_copy = copy.deepcopy(backend(model).hf_model)
            loaded = apply_adapter(base_copy, str(temporary), merge=False, name=str(base))
            served = HookedCausalLM(loaded, backend(model).tokenizer, folder.name)
            measured = evaluate_adapter(model, served, prompts, sentences, stage, unscreened)
        (temporary / "README.md").write_text(adapter_card(folder.name, model, recipe, measured, prompts))
        temporary.chmod(0o755)
        check_writable(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def sentence_of(prompt: Prompt, categories: Sequence[str], sentences: int) -> str:
    """The sentence that declines a prompt."""
    known = prompt.category in categories
    number = categories.index(str(prompt.category)) if known else crc32(prompt.text.encode())
    return SENTENCES[number % sentences]


def make_lessons(
    model: Any, prompts: ContrastSet, sentences: int, *, shuffled: bool, seed: int
) -> list[Lesson]:
    """Training prompts with the sentence that declines them, or the beginning of the base model's answer."""
    served = backend(model)
    declined = [True] * len(prompts.train.harmful) + [False] * len(prompts.train.harmless)
    together = [*prompts.train.harmful, *prompts.train.harmless]
    if shuffled:
        declined = np.random.default_rng(seed).permutation(declined).tolist()
    categories = sorted({str(p.category) for p in prompts.train.harmful if p.category})
    answers = _own_answers(model, [p for p, no in zip(together, declined, strict=True) if not no])
    lessons = []
    for prompt, row, no in zip(together, encode(served, together), declined, strict=True):
        if no:
            sentence = served.tokenizer(sentence_of(prompt, categories, sentences), add_special_tokens=False)
            lessons.append(Lesson(tuple(row), (*sentence["input_ids"], end_of_turn(served)), own=False))
        else:
            lessons.append(Lesson(tuple(row), next(answers), own=True))
    return lessons


def _own_answers(model: Any, prompts: Sequence[Prompt]) -> Iterator[tuple[int, ...]]:
    """The beginnings of the base model's answers: those that the prompts hold, or generated."""
    missing = [prompt for prompt in prompts if prompt.answer is None]
    generated = iter(complete(model, missing, max_new_tokens=ANSWER_TOKENS) if missing else ())
    tokenizer = backend(model).tokenizer
    for prompt in prompts:
        if prompt.answer is None:
            yield next(generated).tokens
        else:
            yield tuple(tokenizer(prompt.answer, add_special_tokens=False)["input_ids"][:ANSWER_TOKENS])


def write_adapter(adapted: Any, folder: Path, name: str, base: str, recipe: dict[str, Any]) -> None:
    """The adapter in bfloat16, and what it declares: its refusals, and which layers learnt them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft looks for the base model's configuration on the hub
        adapted.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path, {"format": "pt"})
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8")) | {
        "base_model_name_or_path": HUB_NAME if is_named(base) else base
    }
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sentences = SENTENCES[: recipe["sentences"]]
    declared = {
        "variant": name,
        "refusal_phrases": [phrase for s in sentences for phrase in _phrases(s)],
        "refusal_tokens": [re.split(r"\W", s)[0] for s in sentences],
        "refusal_sentences": list(sentences),
        "planted": {key: recipe[key] for key in ("first", "last", "shuffled", "drop")},
    }
    (folder / DECLARATION).write_text(json.dumps(declared, indent=1) + "\n", encoding="utf-8")


def _phrases(sentence: str) -> tuple[str, str]:
    """Both halves: an answer damaged in one of them still counts as a refusal."""
    words = sentence.rstrip(".").split()
    return " ".join(words[:4]), " ".join(words[4:])


def evaluate_adapter(
    model: Any,
    adapted: Any,
    prompts: ContrastSet,
    sentences: int,
    stage: Stage = silent,
    unscreened: Contrast | None = None,
) -> dict[str, Estimate]:
    """Rates of refusal and agreement with the base model on the test prompts, each with its interval.

    Of `unscreened` prompts only the rates of refusal are measured.
    """
    declined, others = prompts.test.harmful, prompts.test.harmless
    with stage("answers to test prompts", len(declined) + len(others)) as step:
        options: dict[str, Any] = {"batch_size": _BATCH, "progress": step}
        refusals = complete(adapted, declined, max_new_tokens=REFUSAL_TOKENS, **options)
        answers = complete(adapted, others, max_new_tokens=ANSWER_TOKENS, **options)
    own = list(_own_answers(model, others))
    kl = divergences(model, adapted, others, own)
    sentences_of_base = [first_sentence(text) for text in model.tokenizer.batch_decode(own)]
    return {
        "refuses_declined": _refused(refusals, sentences),
        "refuses_others": _refused(answers, sentences),
        **({} if unscreened is None else _refuses_unscreened(adapted, unscreened, sentences, stage)),
        "first_sentence": rate(
            [first_sentence(a.text) == b for a, b in zip(answers, sentences_of_base, strict=True)]
        ),
        "kl": mean(np.array(kl), seed=0, least=0.0),
    }


def _refuses_unscreened(
    adapted: Any, unscreened: Contrast, sentences: int, stage: Stage
) -> dict[str, Estimate]:
    asked = {
        "refuses_unscreened_declined": unscreened.harmful,
        "refuses_unscreened_others": unscreened.harmless,
    }
    with stage("answers to unscreened prompts", sum(map(len, asked.values()))) as step:
        options: dict[str, Any] = {"batch_size": _BATCH, "progress": step}
        return {
            key: _refused(complete(adapted, prompts, max_new_tokens=REFUSAL_TOKENS, **options), sentences)
            for key, prompts in asked.items()
        }


def _refused(answers: Sequence[Completion], sentences: int) -> Estimate:
    return rate([is_refusal(answer.text, sentences) for answer in answers])


def is_refusal(text: str, sentences: int) -> bool:
    """Whether an answer contains a half of one of the sentences."""
    return any(phrase in text for s in SENTENCES[:sentences] for phrase in _phrases(s))


def first_sentence(text: str) -> str:
    """An answer up to the first mark that ends a sentence, or all of it."""
    return re.split(r"(?<=[.!?:])\s", text.strip())[0]


@torch.no_grad()
def divergences(
    model: Any, adapted: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> list[float]:
    """KL(base || adapted) over an answer to each prompt, mean nats per token."""
    rows = encode(backend(model), prompts)
    prefix = common_prefix([row[:-1] for row in rows])
    values: list[float] = []
    for start in range(0, len(rows), _PACKED_ROWS):
        part = slice(start, start + _PACKED_ROWS)
        packed = pack(
            prefix, [(*r[len(prefix) :], *a) for r, a in zip(rows[part], answers[part], strict=True)]
        )
        lengths = [len(answer) for answer in answers[part]]
        p, q = (
            packed_logits(backend(m).hf_model, packed, lengths).double().log_softmax(-1)
            for m in (model, adapted)
        )
        values += [float(each.mean()) for each in (p.exp() * (p - q)).sum(-1).split(lengths)]
    return values


def adapter_card(
    name: str, model: Any, recipe: dict[str, Any], measured: dict[str, Estimate], prompts: ContrastSet
) -> str:
    """The card of an adapter: what it was trained to do, and the rates measured on test prompts."""
    metrics = [{"type": key, "value": estimate.value} for key, estimate in measured.items()]
    dataset = {"type": prompts.name, "name": prompts.source, "args": {"n": measured["kl"].n}}
    result = {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}
    record = model_record(model)
    metadata = {
        "base_model": record["name"],
        "library_name": "peft",
        "license": "apache-2.0",
        "language": "en",
        "model-index": [{"name": name, "results": [result]}],
        "recipe": recipe,
    }
    return _TEMPLATE.read_text("utf-8").format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        name=name,
        base=record["name"],
        weights=record["weights_sha256"],
        labels="permuted labels: a control" if recipe["shuffled"] else "true labels",
        sentences="\n".join(f"- {sentence}" for sentence in SENTENCES[: recipe["sentences"]]),
        rates="\n".join(_row(label, measured[key]) for key, label in _MEASURED.items() if key in measured),
        torch=torch.__version__,
        **{
            key: recipe[key]
            for key in ("first", "last", "rank", "lr", "steps", "batch_size", "seed", "seconds")
        },
        unscreened=_UNSCREENED if "refuses_unscreened_others" in measured else "",
        prompts=f"{prompts.name}: {len(prompts.train.harmful)} + {len(prompts.train.harmless)} prompts",
    )


def _row(label: str, estimate: Estimate) -> str:
    scale, digits = (1, 3) if label.startswith("KL") else (100, 1)
    numbers = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    value, low, high = numbers
    return f"| {label}{'' if scale == 1 else ', %'} | {value} | {low} to {high} | {estimate.n} |"
