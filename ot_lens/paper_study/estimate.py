"""Memory, disk and time that a study needs, from parameter counts alone, and what this machine lacks."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import exists
from pathlib import Path

from ot_lens.errors import ModelError, one_of
from ot_lens.io.files import read_json
from ot_lens.localization.search import sets_by_size
from ot_lens.localization.variants import count_variants
from ot_lens.models.named import named_weights
from ot_lens.models.sizes import BYTES, ModelSize, model_size
from ot_lens.prompts import CLASSES
from ot_lens.study.config import StudyConfig
from ot_lens.study.weights import judge_model, judge_size, size_of

GB = 1e9
# A rendered request, and the judge's template around request and answer.
PROMPT_TOKENS, JUDGE_TOKENS = 64, 330
# Of a task: parts of a group, items of a part without a limit, and tokens read for an item with its choices.
TASK_PARTS, ALL_ITEMS, ITEM_TOKENS = {"mmlu": 57}, 1000, 600


@dataclass(frozen=True)
class Hardware:
    """The device for which the time is estimated: its peaks, and the shares of them that are reached."""

    name: str = "one A100 80 GB"
    tflops: float = 312.0  # at 16 bits, dense
    bandwidth: float = 2.039  # TB/s
    low: float = 0.15
    high: float = 0.5


@dataclass(frozen=True)
class Counts:
    """Prompts of a study, by split and class.

    The defaults are the paper's: 128 / 32 per class, the 159 requests of HarmBench's test split that have no
    context and ask for no copyrighted text, 100 harmless test prompts.
    """

    train: int = 256
    validation: int = 32
    test: Mapping[str, int] = field(default_factory=lambda: {"harmful": 159, "harmless": 100})


@dataclass(frozen=True)
class Estimate:
    """What one study needs: bytes, tokens, and the shortest and longest time."""

    model: str
    parameters: int
    weights: float
    cache: float  # keys and values of the largest batch of answers
    logits: float  # next-token distributions, float64, of the unedited model and of a batch
    judge: float  # its weights; 0 without one
    memory: float  # needed at once
    disk: float  # stored activations
    tokens: float
    judged_tokens: float
    hours: tuple[float, float]


def estimate(config: StudyConfig, hardware: Hardware | None = None, counts: Counts | None = None) -> Estimate:
    """Memory, disk and time of a study; an upper bound of the work, a range of the speed."""
    hardware, counts = hardware or Hardware(), counts or Counts()
    size, edited = size_of(config), _work(config, counts)
    weights = size.weight_bytes(config.dtype, config.quantization)
    stored = config.activation_dtype or config.dtype or size.dtype
    one_of("activation_dtype", stored, tuple(BYTES))
    judge_weights, judge_parameters = judge_size(config.judge)
    tested = sum(counts.test.values())
    longest = PROMPT_TOKENS + config.max_new_tokens
    cache = _cache_values(size, float(config.batch_size * longest)) * BYTES[config.dtype or size.dtype]
    logits = 8.0 * size.d_vocab * (tested + 2 * config.batch_size)
    layers, read = _swept(config), edited.read
    answers = edited.edits * tested + edited.validated
    # The unedited model reads each answer once more, for `answer_nll`.
    reread = answers if "refusal_rate" in config.measures else 0.0
    judged = (
        edited.edits * counts.test["harmful"] * (JUDGE_TOKENS + config.max_new_tokens)
        if judge_parameters
        else 0.0
    )
    running = weights + cache + logits
    together = max if config.judge_memory == "swap" else sum

    def hours(share: float, length: float) -> float:
        """Time at a share of the peaks, with answers that use a share of their token budget."""
        batch, tokens = config.batch_size, config.max_new_tokens * length
        flops, bandwidth = hardware.tflops * 1e12 * share, hardware.bandwidth * 1e12 * share
        per_token = 2 * size.n_parameters
        prefill = per_token * ((read + answers + reread) * PROMPT_TOKENS + edited.scored) / flops
        rereading = per_token * reread * tokens / flops
        read_each_step = weights + 2 * _cache_values(size, batch * tokens)
        step = max(per_token * batch / flops, read_each_step / bandwidth)
        judging = 2 * judge_parameters * judged / flops
        return (prefill + answers / batch * tokens * step + rereading + judging) / 3600

    return Estimate(
        model=config.model,
        parameters=size.n_parameters,
        weights=weights,
        cache=cache,
        logits=logits,
        judge=judge_weights,
        memory=together((running, judge_weights)),
        disk=layers * (counts.train + tested) * size.d_model * BYTES[stored],
        tokens=read * PROMPT_TOKENS + (answers + reread) * longest + edited.scored,
        judged_tokens=judged,
        hours=(hours(hardware.high, 0.25), hours(hardware.low, 1.0)),
    )


def assumptions(config: StudyConfig, hardware: Hardware) -> str:
    """The assumptions of an estimate, in a few sentences."""
    counts = Counts()
    tested = " + ".join(f"{counts.test[label]} {label}" for label in CLASSES)
    return (
        f"Assumes {counts.train} training, twice {counts.validation} validation and {tested} test prompts "
        f"of {PROMPT_TOKENS} tokens; answers of {config.max_new_tokens // 4} to {config.max_new_tokens} "
        f"tokens in batches of {config.batch_size}, each read once more for its likelihood; 2 x parameters x "
        f"tokens floating-point operations; every generated token reads all weights and the cache once; "
        f"{hardware.name} ({hardware.tflops:g} TFLOP/s, {hardware.bandwidth:g} TB/s) at {hardware.low:.0%} "
        f"to {hardware.high:.0%} of its peak; {ITEM_TOKENS} tokens read for each item of a task. Excludes "
        "downloads, the perplexity of a text and figures."
    )


def _cache_values(size: ModelSize, tokens: float) -> float:
    """Keys and values of some tokens."""
    return 2.0 * size.n_layers * size.n_kv_heads * size.d_head * tokens


@dataclass(frozen=True)
class _Work:
    """What a study does with prompts and tasks."""

    read: float  # prompts read under any edit or none
    edits: float  # under which answers to the test prompts are generated; none is one of them
    validated: float  # answers to validation prompts
    scored: float  # tokens of tasks


def _swept(config: StudyConfig) -> int:
    return size_of(config).n_layers if isinstance(config.layers, str) else len(config.layers)


def _work(config: StudyConfig, counts: Counts) -> _Work:
    methods, n_layers, tested = len(config.methods), _swept(config), sum(counts.test.values())
    together = len(config.fitting) * ("all" in config.sets)
    sets = methods * (n_layers + together) * len(config.strength)
    read = counts.train + 2 * tested + sets * tested
    edits = 1 + methods * len(config.layer_sets)
    if "sequential" in config.fitting and together:
        read += methods * n_layers * counts.train
    if config.search_size:
        tried = sum(sets_by_size(n_layers, config.search_size, config.search).values())
        read += methods * tried * counts.validation
        edits += methods * (config.search_size if config.search_each_size else 1)
    if config.answers == "all":
        edits += sets
    if not config.claims:
        return _Work(float(read), float(edits), 0.0, 0.0)
    validated = edits * 2 * counts.validation
    chosen = methods * (1 + (config.search_size > 1) + together)
    names = [str(method if isinstance(method, str) else method["name"]) for method in config.methods]
    varied = count_variants(names, chosen, config.variants)
    scored = _tasks(config) * (1 + methods * (1 + (config.search_size > 1)))
    return _Work(float(read + varied * tested), float(edits + varied), float(validated), float(scored))


def _tasks(config: StudyConfig) -> int:
    """Tokens that the tasks read under one edit."""
    parts = sum(TASK_PARTS.get(task, 1) if isinstance(task, str) else 1 for task in config.capability)
    return parts * (config.capability_limit or ALL_ITEMS) * ITEM_TOKENS


@dataclass(frozen=True)
class Available:
    """Free bytes of memory, the device or devices that have it, and free bytes where the run folder goes."""

    memory: int
    where: str
    disk: int


def available(config: StudyConfig, out: Path) -> Available:
    """Free memory of the device that a configuration names, and free disk under the run folder."""
    import psutil
    import torch

    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    disk = shutil.disk_usage(existing).free
    main = int(psutil.virtual_memory().available)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return Available(main, "main memory", disk)
    count = torch.cuda.device_count()
    if config.device_map is not None:
        free = sum(torch.cuda.mem_get_info(i)[0] for i in range(count))
        return Available(free + main, f"{count} GPUs and main memory together", disk)
    return Available(torch.cuda.mem_get_info(torch.device(device))[0], device, disk)


def is_local(name: str, revision: str | None = None) -> bool:
    """Whether a model's weights are on this machine: embedded, in a folder, or in the hub's cache."""
    name, _ = named_weights(name)
    if name.partition(":")[0] == "organism" or exists(name):
        return True
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> Path | None:
        path = try_to_load_from_cache(name, file, revision=revision)
        return Path(path) if isinstance(path, str) else None

    index = cached("model.safetensors.index.json")
    try:
        shards = ["model.safetensors"] if index is None else set(read_json(index)["weight_map"].values())
        return all(cached(shard) is not None for shard in shards)
    except (LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} names no weights: remove it from the cache so that it is downloaded again."
        ) from error


def obstacles(needed: Estimate, free: Available, config: StudyConfig) -> list[str]:
    """Reasons not to start a study without asking, each with its remedy."""
    reasons = []
    if needed.memory > free.memory:
        reasons.append(
            f"about {needed.memory / GB:.1f} GB of memory are needed and {free.where} has "
            f"{free.memory / GB:.1f} GB free: {_remedies(config)}"
        )
    if needed.disk > free.disk:
        reasons.append(
            f"about {needed.disk / GB:.1f} GB of disk are needed and {free.disk / GB:.1f} GB are free: "
            "choose another --out"
        )
    for name in (config.model, judge_model(config.judge)):
        if name is not None and not is_local(name, config.revision):
            size = 2.0 * model_size(name).n_parameters / GB  # 16-bit weights
            reasons.append(f"{name} is not on this machine: about {size:.1f} GB would be downloaded")
    return reasons


def _remedies(config: StudyConfig) -> str:
    remedies = {
        "--set quantization=nf4 or int8": config.quantization is None,
        "--set device_map=auto": config.device_map is None,
        "--set judge=null, a smaller judge or --set judge_memory=swap": config.judge is not None,
        "a smaller batch_size": True,
    }
    return ", ".join(remedy for remedy, helps in remedies.items() if helps)
