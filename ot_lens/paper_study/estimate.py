"""Memory, disk and time that a study needs, from parameter counts alone, before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ot_lens.errors import one_of
from ot_lens.models.sizes import BYTES, ModelSize
from ot_lens.prompts import CLASSES
from ot_lens.study.config import StudyConfig
from ot_lens.study.weights import judge_size, size_of

GB = 1e9
# A rendered request, and the judge's template around request and answer.
PROMPT_TOKENS, JUDGE_TOKENS = 64, 330
BEAM = 4


@dataclass(frozen=True)
class Hardware:
    """The device for which the time is estimated.

    Attributes:
        name: The device.
        tflops: Its peak at 16 bits, dense, in TFLOP/s.
        bandwidth: Its peak memory bandwidth, in TB/s.
        low: Smallest share of both that is reached.
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

    The defaults are the paper's: 128 / 32 per class, the 159 requests of HarmBench's test split that have no
    context and ask for no copyrighted text, 100 harmless test prompts.
    """

    train: int = 256
    validation: int = 32
    test: Mapping[str, int] = field(default_factory=lambda: {"harmful": 159, "harmless": 100})


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


def estimate(config: StudyConfig, hardware: Hardware | None = None, counts: Counts | None = None) -> Estimate:
    """Memory, disk and time of a study; an upper bound of the work, a range of the speed.

    Args:
        config: A study whose layers are listed, as `paper_study` makes it.
        hardware: Default: one A100 of 80 GB.
        counts: Default: the paper's.

    Raises:
        ConfigError: If a dtype or quantization is unknown.
        ModelError: If the configuration of model or judge cannot be read.
    """
    hardware, counts = hardware or Hardware(), counts or Counts()
    size = size_of(config)
    weights = size.weight_bytes(config.dtype, config.quantization)
    stored = config.activation_dtype or config.dtype or size.dtype
    one_of("activation_dtype", stored, tuple(BYTES))
    judge_weights, judge_parameters = judge_size(config.judge)
    tested = sum(counts.test.values())
    longest = PROMPT_TOKENS + config.max_new_tokens
    cache = _cache_values(size, float(config.batch_size * longest)) * BYTES[config.dtype or size.dtype]
    logits = 8.0 * size.d_vocab * (tested + 2 * config.batch_size)
    layers = size.n_layers if isinstance(config.layers, str) else len(config.layers)
    read, edits = _prompts_read_and_edits(config, layers, counts)
    work = _Work(size, weights, judge_parameters, read * PROMPT_TOKENS, edits * tested, config, edits, counts)
    running = weights + cache + logits
    together = max if config.judge_memory == "swap" else sum
    return Estimate(
        model=config.model,
        parameters=size.n_parameters,
        weights=weights,
        cache=cache,
        logits=logits,
        judge=judge_weights,
        memory=together((running, judge_weights)),
        disk=layers * (counts.train + tested) * size.d_model * BYTES[stored],
        tokens=work.read + work.answers * longest,
        judged_tokens=work.judged,
        hours=(work.hours(hardware, hardware.high, 0.25), work.hours(hardware, hardware.low, 1.0)),
    )


def assumptions(config: StudyConfig, hardware: Hardware | None = None, counts: Counts | None = None) -> str:
    """The assumptions of an estimate, in a few sentences."""
    hardware, counts = hardware or Hardware(), counts or Counts()
    tested = " + ".join(f"{counts.test[label]} {label}" for label in CLASSES)
    return (
        f"Assumes {counts.train} training, {counts.validation} harmful validation and {tested} test prompts "
        f"of {PROMPT_TOKENS} tokens; answers of {config.max_new_tokens // 4} to {config.max_new_tokens} "
        f"tokens in batches of {config.batch_size}; 2 x parameters x tokens floating-point operations; "
        f"every generated token reads all weights and the cache once; {hardware.name} ({hardware.tflops:g} "
        f"TFLOP/s, {hardware.bandwidth:g} TB/s) at {hardware.low:.0%} to {hardware.high:.0%} of its peak. "
        "Excludes downloads, the perplexity of a text and figures."
    )


@dataclass(frozen=True)
class _Work:
    """Tokens read, answers generated under `edits` edits, and the sizes that their time depends on."""

    size: ModelSize
    weights: float
    judge_parameters: int
    read: float
    answers: float
    config: StudyConfig
    edits: float
    counts: Counts

    @property
    def judged(self) -> float:
        """Tokens through the judge."""
        per_answer = JUDGE_TOKENS + self.config.max_new_tokens
        return self.edits * self.counts.test["harmful"] * per_answer if self.judge_parameters else 0.0

    def hours(self, hardware: Hardware, share: float, length: float) -> float:
        """Time at a share of the peaks, with answers that use a share of their token budget."""
        batch, tokens = self.config.batch_size, self.config.max_new_tokens * length
        flops, bandwidth = hardware.tflops * 1e12 * share, hardware.bandwidth * 1e12 * share
        per_token = 2 * self.size.n_parameters
        prefill = per_token * (self.read + self.answers * PROMPT_TOKENS) / flops
        cache = 2 * _cache_values(self.size, batch * tokens)
        step = max(per_token * batch / flops, (self.weights + cache) / bandwidth)
        judging = 2 * self.judge_parameters * self.judged / flops
        return (prefill + self.answers / batch * tokens * step + judging) / 3600


def _cache_values(size: ModelSize, tokens: float) -> float:
    """Keys and values of some tokens."""
    return 2.0 * size.n_layers * size.n_kv_heads * size.d_head * tokens


def _prompts_read_and_edits(config: StudyConfig, n_layers: int, counts: Counts) -> tuple[float, float]:
    """Prompts read under any edit or none; and edits, none being one, under which answers are generated."""
    methods, tested = len(config.methods), sum(counts.test.values())
    sets = methods * n_layers * len(config.strength)
    read = counts.train + 2 * tested + sets * tested
    edits = 1 + methods * len(config.layer_sets)
    if config.search_size:
        tried = n_layers + (config.search_size - 1) * BEAM * max(0, n_layers - 1)
        read += methods * tried * counts.validation
        edits += methods * (config.search_size if config.search_each_size else 1)
    if config.answers == "all":
        edits += sets
    return float(read), float(edits)
