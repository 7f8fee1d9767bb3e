"""What a study will need of memory, disk and time, from parameter counts alone, before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ot_lens.behaviour import YesNoJudge
from ot_lens.errors import one_of
from ot_lens.paper_study.architecture import Architecture, architecture
from ot_lens.prompts import CLASSES
from ot_lens.study.config import StudyConfig

GB = 1e9
BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Of a weight of a linear layer: 8 bits and a scale a row; 4 bits and a doubly quantized scale per 64 weights
# (Dettmers et al. 2023, arXiv 2305.14314).
QUANTIZED = {"int8": 1.0, "nf4": 0.5 + 0.127 / 8}
# A rendered request, and the judge's template around request and answer.
PROMPT_TOKENS, JUDGE_TOKENS = 64, 330
BEAM = 4


@dataclass(frozen=True)
class Hardware:
    """What time is reckoned against.

    Attributes:
        name: The device.
        tflops: Its peak at 16 bits, dense, in TFLOP/s.
        bandwidth: Its peak memory bandwidth, in TB/s.
        low: Least share of both that is reached.
        high: Largest share.
    """

    name: str = "one A100 80 GB"
    tflops: float = 312.0
    bandwidth: float = 2.039
    low: float = 0.15
    high: float = 0.5


@dataclass(frozen=True)
class Counts:
    """Prompts of a study, by split and class.

    The defaults are the paper's: 128 / 32 a class, the 159 requests of HarmBench's test split that have no
    context and ask for no copyrighted text, 100 harmless test prompts.
    """

    train: int = 256
    validation: int = 32
    test: Mapping[str, int] | None = None

    @property
    def tested(self) -> Mapping[str, int]:
        """Test prompts by class."""
        return self.test or {"harmful": 159, "harmless": 100}


@dataclass(frozen=True)
class Estimate:
    """What one study needs.

    Attributes:
        model: The model.
        parameters: Its number of parameters.
        weights: Bytes of its weights.
        cache: Bytes of the KV cache of the largest batch of answers.
        logits: Bytes of next-token distributions, float64, of the unedited model and of a batch.
        judge: Bytes of the judge's weights; 0 without one.
        memory: Bytes that are needed at once.
        disk: Bytes of stored activations.
        tokens: Tokens through the model.
        judged_tokens: Tokens through the judge.
        hours: Shortest and longest time.
    """

    model: str
    parameters: int
    weights: float
    cache: float
    logits: float
    judge: float
    memory: float
    disk: float
    tokens: float
    judged_tokens: float
    hours: tuple[float, float]


def estimate(
    config: StudyConfig,
    hardware: Hardware | None = None,
    counts: Counts | None = None,
) -> Estimate:
    """Memory, disk and time of a study; an upper bound of the work, a range of the speed.

    Args:
        config: A study whose layers are listed, as `paper_study` makes it.
        hardware: Default: one A100 of 80 GB.
        counts: Default: the paper's.

    Raises:
        ModelError: If the configuration of model or judge cannot be read.
    """
    hardware, counts = hardware or Hardware(), counts or Counts()
    shape = architecture(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    one_of("dtype", config.dtype or shape.dtype, tuple(BYTES))
    per_value = BYTES[config.dtype or shape.dtype]
    weights = _weight_bytes(shape, per_value, config.quantization)
    judge_weights, judge_parameters = _judge_size(config.judge)
    longest = PROMPT_TOKENS + config.max_new_tokens
    cache = 2 * shape.n_layers * shape.n_kv_heads * shape.d_head * per_value * config.batch_size * longest
    tested = sum(counts.tested.values())
    logits = 8.0 * shape.d_vocab * (tested + 2 * config.batch_size)
    layers = range(shape.n_layers) if isinstance(config.layers, str) else config.layers
    stored = config.activation_dtype or config.dtype or shape.dtype
    one_of("activation_dtype", stored, tuple(BYTES))
    read, answers = _work(config, len(layers), counts)
    judged = answers * counts.tested["harmful"] * (JUDGE_TOKENS + config.max_new_tokens)
    running = weights + cache + logits
    swapped = config.judge_memory == "swap"
    work = _Work(
        read=read * PROMPT_TOKENS,
        answers=answers * tested,
        budget=config.max_new_tokens,
        batch=config.batch_size,
        judged=judged if judge_parameters else 0.0,
    )
    return Estimate(
        config.model,
        shape.n_parameters,
        weights,
        cache,
        logits,
        judge_weights,
        max(running, judge_weights) if swapped else running + judge_weights,
        len(layers) * (counts.train + tested) * shape.d_model * BYTES[stored],
        work.read + work.answers * longest,
        work.judged,
        (
            _seconds(work, shape, weights, judge_parameters, hardware, hardware.high, 0.25) / 3600,
            _seconds(work, shape, weights, judge_parameters, hardware, hardware.low, 1.0) / 3600,
        ),
    )


def assumptions(config: StudyConfig, hardware: Hardware | None = None, counts: Counts | None = None) -> str:
    """What an estimate rests on, in one sentence."""
    hardware, counts = hardware or Hardware(), counts or Counts()
    tested = " + ".join(f"{counts.tested[label]} {label}" for label in CLASSES)
    return (
        f"Reckoned with {counts.train} training, {counts.validation} harmful validation and {tested} test "
        f"prompts of {PROMPT_TOKENS} tokens; answers of {config.max_new_tokens // 4} to "
        f"{config.max_new_tokens} tokens in batches of {config.batch_size}; 2 x parameters x tokens floating-"
        f"point operations; every generated token reads all weights and the cache once; {hardware.name} "
        f"({hardware.tflops:g} TFLOP/s, {hardware.bandwidth:g} TB/s) at {hardware.low:.0%} to "
        f"{hardware.high:.0%} of its peak. Downloads, the perplexity of a text and figures are not in it."
    )


@dataclass(frozen=True)
class _Work:
    """Tokens read, answers given and tokens judged."""

    read: float
    answers: float
    budget: int
    batch: int
    judged: float


def _seconds(
    work: _Work,
    shape: Architecture,
    weights: float,
    judge_parameters: int,
    hardware: Hardware,
    reached: float,
    length: float,
) -> float:
    """Time at a share of the peaks, answers being a share of their budget long."""
    flops, bandwidth = hardware.tflops * 1e12 * reached, hardware.bandwidth * 1e12 * reached
    prefill = 2 * shape.n_parameters * (work.read + work.answers * PROMPT_TOKENS) / flops
    steps = work.answers / work.batch * work.budget * length
    cache = 2 * shape.n_layers * shape.n_kv_heads * shape.d_head * 2 * work.batch * work.budget * length
    step = max(2 * shape.n_parameters * work.batch / flops, (weights + cache) / bandwidth)
    return prefill + steps * step + 2 * judge_parameters * work.judged / flops


def _work(config: StudyConfig, n_layers: int, counts: Counts) -> tuple[float, float]:
    """Prompts read, under some edit or none; and edits, none being one, under which answers are given."""
    methods = len(config.methods)
    tested = sum(counts.tested.values())
    sets = methods * n_layers * len(config.strength)
    read = counts.train + 2 * tested + sets * tested
    answers = 1 + methods * len(config.layer_sets)
    if config.search_size:
        tried = n_layers + (config.search_size - 1) * BEAM * max(0, n_layers - 1)
        read += methods * tried * counts.validation
        answers += methods * (config.search_size if config.search_each_size else 1)
    if config.answers == "all":
        answers += sets
    return float(read), float(answers)


def _weight_bytes(shape: Architecture, per_value: float, quantization: str | None) -> float:
    if quantization is None:
        return shape.n_parameters * per_value
    one_of("quantization", quantization, tuple(QUANTIZED))
    inside = shape.n_parameters - shape.n_outside
    return inside * QUANTIZED[quantization] + shape.n_outside * per_value


def _judge_size(judge: str | Mapping[str, Any] | None) -> tuple[float, int]:
    """Bytes and parameters of a judge's weights."""
    if judge is None:
        return 0.0, 0
    name, loading = judge_model(judge), judge if isinstance(judge, Mapping) else {}
    if Path(name).is_dir():
        stored = sum(path.stat().st_size for path in Path(name).glob("*.safetensors"))
        return float(stored), stored // 2
    shape = architecture(name)
    return _weight_bytes(shape, BYTES[shape.dtype], loading.get("quantization")), shape.n_parameters


def judge_model(judge: str | Mapping[str, Any]) -> str:
    """Hub name or folder of a judge's model."""
    given = {"preset": judge} if isinstance(judge, str) else judge
    for kind in ("classifier", "yes_no", "model"):
        if kind in given:
            return str(given[kind])
    return YesNoJudge.preset_model(str(given["preset"]))
