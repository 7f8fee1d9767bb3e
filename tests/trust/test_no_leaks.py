"""Interventions never leak: however a block ends, model and process are as they were before."""

import asyncio
import gc
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import nn

import ot_lens as otl
from ot_lens.errors import HookError, ModelError
from ot_lens.interventions import TOKEN_SCOPES, everywhere
from ot_lens.models import backend, evaluating
from ot_lens.single_pass import next_token_sweep
from tests import checkpoints
from tests.trust.leak_checks import (
    EDITS,
    PROMPTS,
    OwnError,
    bits,
    digest,
    evaluated,
    hook_tables,
    leaked,
    logits,
    only_look,
    random_map,
    state,
)


@pytest.fixture(scope="module", params=["residual", "full"])
def loaded(request: pytest.FixtureRequest, llama_folder: Path):
    """A model with hooks of the user: plain, permanent, of another level, and of a plain module."""
    model = otl.load_model(llama_folder, hooks=request.param)
    point = backend(model).hook_point(1, "resid_pre")
    point.add_hook(only_look)
    point.add_perma_hook(partial(only_look))
    point.add_hook(only_look, level=7)
    backend(model).hf_model.get_output_embeddings().register_forward_hook(lambda *_: None)
    model.run_with_cache(torch.tensor([[1]]))  # its first use changes a bridge for good
    return model


@pytest.fixture(scope="module")
def batch(llama_folder: Path):
    return checkpoints.one_batch(otl.load_model(llama_folder), PROMPTS)


@pytest.fixture
def model(loaded, batch):
    """That model, which every test must leave unchanged."""
    loaded.eval()
    evaluated(loaded, batch)  # the first call fills caches
    before = state(loaded, batch)
    yield loaded
    loaded.eval()
    assert leaked(before, state(loaded, batch)) == []


def _raise(error: type[BaseException]) -> Callable[..., None]:
    def hook(*_: object, **__: object) -> None:
        raise error

    return hook


# --- the checks detect leaks


def _leaks(model: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Ways of leaking: how to leak, and how to undo it."""
    point, inner = backend(model).hook_point(1, "resid_pre"), backend(model).hf_model
    embedding, words = inner.get_input_embeddings(), backend(model).tokenizer
    forward = partial(type(inner.model).forward, inner.model)

    def drop() -> None:
        point.fwd_hooks.pop()
        point._forward_hooks.popitem()

    def either(function: Callable[[Any], Any], *values: Any) -> tuple[Callable[[], Any], ...]:
        return tuple(partial(function, value) for value in values)

    return {
        "idle hook": (lambda: point.add_hook(only_look), drop),
        "training flag": (inner.train, inner.eval),
        "gradients": either(torch.set_grad_enabled, False, True),
        "requires_grad": either(embedding.requires_grad_, False, True),
        "forward": (
            lambda: setattr(inner.model, "forward", forward),
            lambda: delattr(inner.model, "forward"),
        ),
        "padding": either(partial(setattr, words, "padding_side"), "left", "right"),
        "weight": either(embedding.weight.data[0, 0].add_, 1.0, -1.0),
        "use_cache": either(partial(setattr, inner.config, "use_cache"), False, True),
        "dtype": either(torch.set_default_dtype, torch.float64, torch.float32),
        "random numbers": (lambda: torch.rand(1), lambda: None),
    }


def test_the_checks_detect_every_kind_of_leak(llama_folder):
    model = otl.load_model(llama_folder)
    batch = checkpoints.one_batch(model, PROMPTS)
    evaluated(model, batch)
    for name, (leak, undo) in _leaks(model).items():
        before = state(model, batch)
        leak()
        assert leaked(before, state(model, batch)), name
        undo()


# --- ways to leave a block


def _body(model: Any, batch: Any, error: type[BaseException]) -> None:
    with otl.intervene(model, EDITS, "last"):
        logits(model, batch)
        raise error


def _in_forward(model: Any, batch: Any, error: type[BaseException]) -> None:
    handle = backend(model).hf_model.get_decoder().layers[2].register_forward_hook(_raise(error))
    try:
        with otl.intervene(model, EDITS, "last"):
            logits(model, batch)
    finally:
        handle.remove()


def _in_map(model: Any, batch: Any, error: type[BaseException]) -> None:
    with pytest.MonkeyPatch.context() as patch, otl.intervene(model, EDITS, "last"):
        patch.setattr("ot_lens.transport.AffineMap.__call__", _raise(error))
        logits(model, batch)


def _in_capture(model: Any, batch: Any, error: type[BaseException]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ot_lens.activations.shards.gather", _raise(error))
        otl.capture(model, checkpoints.contrast(2), edits=EDITS, tokens="last")


def _in_generation(model: Any, batch: Any, error: type[BaseException]) -> None:
    with otl.intervene(model, EDITS, "generated"):
        otl.complete(model, PROMPTS, max_new_tokens=3, progress=_raise(error))


def _in_sweep(model: Any, batch: Any, error: type[BaseException]) -> None:
    next_token_sweep(model, PROMPTS, [EDITS], _raise(error))


def _on_entry(model: Any, batch: Any, error: type[BaseException]) -> None:
    """At the last hook: the earlier ones, and the observer of calls, are undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend(model).hook_point(2, "resid_pre"), "add_hook", _raise(error))
        with otl.intervene(model, EDITS, "last"):
            pytest.fail("the block was entered")


def _edited_outputs(model: Any, batch: Any, tokens: str = "last") -> Iterator[str]:
    with otl.intervene(model, EDITS, tokens):
        while True:
            yield bits(model, batch)


def _in_generator(model: Any, batch: Any, error: type[BaseException]) -> None:
    outputs = _edited_outputs(model, batch)
    next(outputs)
    outputs.throw(error)


def _in_thread(model: Any, batch: Any, error: type[BaseException]) -> None:
    raise type(_meanwhile(lambda: _body(model, batch, error)))


def _in_task(model: Any, batch: Any, error: type[BaseException]) -> None:
    async def work() -> None:
        with otl.intervene(model, EDITS, "last"):
            await asyncio.sleep(0)
            raise error

    # In a thread of its own: Playwright leaves an event loop running in the main thread.
    raise type(_meanwhile(lambda: asyncio.run(work())))


def _meanwhile(task: Callable[[], Any]) -> Any:
    """The result of a task in another thread, or what it raised."""
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(task())
        except BaseException as error:  # noqa: BLE001  interrupts too
            results.append(error)

    thread = threading.Thread(target=work, name="other")
    thread.start()
    thread.join()
    return results[0]


WAYS = (
    *(_body, _in_forward, _in_map, _in_capture, _in_generation, _in_sweep),
    *(_on_entry, _in_generator, _in_thread, _in_task),
)


@pytest.mark.parametrize("way", WAYS)
def test_errors_and_interrupts_leave_nothing(model, batch, way, full_size):
    cases = [(OwnError, False), (KeyboardInterrupt, True)]
    for error, training in [*cases, (OwnError, True), (KeyboardInterrupt, False)] if full_size else cases:
        model.train(training)
        before = state(model, batch)
        with pytest.raises(error):
            way(model, batch, error)
        assert leaked(before, state(model, batch)) == []


@pytest.mark.usefixtures("little_garbage")
def test_abandoned_generators_leave_nothing(model, batch):
    before = bits(model, batch)
    for tokens in TOKEN_SCOPES:
        for abandon in ("close", "collect", "collect in a cycle"):
            outputs = _edited_outputs(model, batch, tokens)
            assert (next(outputs) == before) == (tokens == "generated")
            if abandon == "close":
                outputs.close()
            elif abandon == "collect in a cycle":
                cycle: list[Any] = [outputs]
                cycle.append(cycle)
                del cycle, outputs
                gc.collect()
            outputs = None
            assert bits(model, batch) == before


# --- everything that edits or reads


def _operations(model: Any) -> dict[str, Callable[[], Any]]:
    contrast, tokens = checkpoints.contrast(4), torch.tensor([[1, 15, 16]])
    reduce = lambda rows, own: rows[..., :2]  # noqa: E731
    generate = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    added = [("blocks.1.hook_resid_pre", lambda x, hook: x + 1)]
    edited = partial(_edited, model)
    return {
        "intervene": lambda: edited(lambda: otl.refusal_score(model, PROMPTS)),
        "everywhere": lambda: edited(lambda: None, everywhere(random_map(), range(4))),
        "capture": lambda: otl.capture(model, contrast),
        "capture with edits": lambda: otl.capture(model, contrast, edits=EDITS, tokens="last"),
        "complete": lambda: edited(lambda: otl.complete(model, PROMPTS, max_new_tokens=3)),
        "without cache": lambda: edited(
            lambda: otl.complete(model, PROMPTS, max_new_tokens=3, use_cache=False), tokens="last"
        ),
        "answer_loss": lambda: edited(lambda: otl.answer_loss(model, contrast.harmless)),
        "text_loss": lambda: edited(lambda: otl.text_loss(model, "w1 w2 w3 " * 9, window=12)),
        "single pass": lambda: next_token_sweep(model, PROMPTS, [EDITS, {0: random_map()}], reduce),
        "single pass, all": lambda: next_token_sweep(model, PROMPTS, [EDITS], reduce, tokens="all"),
        "user's generate": lambda: edited(lambda: backend(model).hf_model.generate(tokens, **generate)),
        "run_with_cache": lambda: edited(lambda: model.run_with_cache(tokens)),
        "run_with_hooks": lambda: edited(lambda: model.run_with_hooks(tokens, fwd_hooks=added)),
    }


def _edited(model: Any, task: Callable[[], Any], edits: Any = EDITS, tokens: str = "all") -> None:
    with otl.intervene(model, edits, tokens):
        task()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_operation_leaves_nothing(model, batch, training):
    model.train(training)
    before = state(model, batch)
    for name, operation in _operations(model).items():
        with torch.random.fork_rng():  # dropout in the user's calls draws random numbers
            operation()
        assert leaked(before, state(model, batch)) == [], name


def test_a_sweep_and_a_selection_leave_nothing(llama_folder, full_size):
    model = otl.load_model("organism" if full_size else llama_folder)
    prompts = otl.load_prompts("organism") if full_size else checkpoints.contrast_set(6)
    options: Any = {} if full_size else {"refusal_tokens": ["w1"]}
    size = (
        {"methods": ["mean_shift", "rfa"], "layers": [1, 2]}
        if full_size
        else {"methods": ["rfa"], "layers": [1]}
    )
    batch = checkpoints.one_batch(model, prompts.val.harmful[:3])
    evaluated(model, batch)
    before = state(model, batch)
    for engine in ("auto", "hooks"):
        otl.localize(model, prompts, **size, max_new_tokens=2, engine=engine, **options)
        assert leaked(before, state(model, batch)) == []
    directions = otl.capture(model, prompts.train, layers=[1])
    otl.score_directions(model, prompts.val, directions, **options)
    assert leaked(before, state(model, batch)) == []


def test_resetting_all_hooks_inside_removes_the_edits_too(llama_folder, batch):
    """TransformerLens resets every hook; leaving the block afterwards is not an error."""
    model = otl.load_model(llama_folder)
    before = hook_tables(model), bits(model, batch)
    with otl.intervene(model, EDITS):
        model.reset_hooks()
        assert bits(model, batch) == before[1]
    assert (hook_tables(model), bits(model, batch)) == before


# --- threads


def test_an_edit_is_active_in_every_thread(model, batch):
    """Generation in another thread, as for streaming, is edited like that in the thread of the block."""
    for tokens in TOKEN_SCOPES:
        with otl.intervene(model, EDITS, tokens):
            assert _meanwhile(lambda: bits(model, batch)) == bits(model, batch)
            here = otl.complete(model, PROMPTS, max_new_tokens=4)
            assert _meanwhile(lambda: otl.complete(model, PROMPTS, max_new_tokens=4)) == here


def _at_once(tasks: list[Callable[[], Any]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _wait(turn: threading.Barrier) -> None:
    turn.wait(30)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_calls_of_two_threads_keep_their_positions_apart(model, batch, tokens):
    """Prompts of different lengths in two threads at once: each call has its own positions."""
    both = [batch, checkpoints.one_batch(model, ["w1 w2 w3 w4 w5 w6 w7 w8 w9"])]
    layer, turn = backend(model).hf_model.get_decoder().layers[0], threading.Barrier(2)
    results: dict[int, str] = {}
    with otl.intervene(model, EDITS, tokens):
        expected = {i: bits(model, one) for i, one in enumerate(both)}
        handle = layer.register_forward_hook(lambda *_: _wait(turn))
        try:
            _at_once([partial(lambda i: results.update({i: bits(model, both[i])}), i) for i in range(2)])
        finally:
            handle.remove()
    assert results == expected


# --- copies and pickles


@pytest.fixture
def fresh(llama_folder: Path, batch):
    """A model without hooks, which a test may change."""
    model = otl.load_model(llama_folder)
    evaluated(model, batch)
    return model


def test_a_pickle_holds_no_edit(fresh, batch):
    """A model is pickled outside a block; inside, pickle itself refuses the hook functions."""
    plain = bits(fresh, batch)
    with (
        otl.intervene(fresh, EDITS),
        pytest.raises((pickle.PicklingError, AttributeError), match="local object"),
    ):
        pickle.dumps(fresh)
    stored = io.BytesIO(pickle.dumps(fresh))
    again = pickle.load(stored)
    assert bits(again, batch) == plain
    with otl.intervene(again, EDITS):
        assert bits(again, batch) != plain
    assert bits(again, batch) == plain


def test_saved_weights_are_the_same_bytes_inside(fresh, tmp_path):
    before = {name: digest(tensor) for name, tensor in fresh.state_dict().items()}
    with otl.intervene(fresh, EDITS):
        otl.refusal_score(fresh, ["w1"])
        assert {name: digest(tensor) for name, tensor in fresh.state_dict().items()} == before
        fresh.hf_model.save_pretrained(tmp_path / "inside")
    fresh.hf_model.save_pretrained(tmp_path / "outside")
    stored = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("inside", "outside")]
    assert stored[0] == stored[1]


# --- modes


def test_dropout_acts_under_an_edit_as_without(fresh, batch):
    """Training mode is kept inside, and the same random numbers give the same logits."""
    for module in fresh.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    fresh.train()
    quiet = bits(fresh, batch)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        other_draw = backend(fresh).logits(batch.tokens, batch.mask)
    assert digest(other_draw) != quiet  # dropout is on
    identity = {1: otl.AffineMap.identity(32)}
    with otl.intervene(fresh, identity):
        assert all(module.training for module in fresh.hf_model.modules())
        assert bits(fresh, batch) == quiet
    assert bits(fresh, batch) == quiet


# --- torch.compile


class _Layer(nn.Module):
    """Part of a decoder layer: enough for hook points, quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.mlp(hidden_states + self.self_attn(hidden_states))


def test_a_hook_added_after_compilation_takes_effect_and_can_be_removed():
    from ot_lens.models.hooked import _BlockHooks

    layer = _Layer()
    hooks = _BlockHooks(layer)
    compiled = torch.compile(layer, backend="eager")
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = compiled(x)
        for shift in (1.0, 2.0):
            hooks.hook_resid_pre.add_hook(lambda x, hook, shift=shift: x + shift)
            assert torch.equal(compiled(x), layer(x))
            assert torch.equal(compiled(x), layer.forward(x + shift))
            hooks.hook_resid_pre.remove_hooks()
            assert torch.equal(compiled(x), plain)


def test_a_compiled_wrapper_is_refused(fresh):
    with pytest.raises(ModelError, match=r"torch\.compile"):
        backend(torch.compile(fresh, backend="eager"))


# Dynamo cannot trace the shape checks, which these tests switch on, nor the bridge's weak references, and
# inductor imports deprecated modules.
@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("engine", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("hooks", ["residual", "full"])
def test_compiled_models_are_edited_inside_and_only_there(
    llama_folder, engine, hooks, monkeypatch, record_property
):
    """Compiled before any block or inside one; PyTorch may skip new hooks of a model compiled in place, so
    that its tokens are not observed: such an edit is correct, or refused."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    refused = 0
    for in_place, inside_first in ((False, False), (True, False), (True, True)):
        torch._dynamo.reset()
        model, twin = (otl.load_model(llama_folder, hooks=hooks) for _ in range(2))
        inner = backend(model).hf_model
        if in_place:
            inner.compile(backend=engine)
        else:
            inner.forward = torch.compile(inner.forward, backend=engine)
        refused += _check_compiled(model, twin, inside_first, may_refuse=in_place)
    record_property("refused", refused)


def _check_compiled(model: Any, twin: Any, inside_first: bool, may_refuse: bool) -> int:
    """Compared with a model that is not compiled, on prompts of one shape that end at different positions."""
    served, reference = backend(model), backend(twin)
    batch = checkpoints.one_batch(model, PROMPTS)
    inputs = [(batch.tokens, batch.mask), (batch.tokens.flip(1), batch.mask.flip(1))]
    scopes = ("all", "all", "last", "prompt", "generated", "last")
    cases = [({}, "all"), *(({1: random_map(seed)}, tokens) for seed, tokens in enumerate(scopes))]
    refused = 0
    with evaluating(served.model), evaluating(reference.model):
        plain = [_forward(reference, *one) for one in inputs]
        for edits, tokens in cases[inside_first:]:
            with otl.intervene(twin, edits, tokens):
                expected = [_forward(reference, *one) for one in inputs]
            try:
                with otl.intervene(model, edits, tokens):
                    edited = [_forward(served, *one) for one in inputs]
            except HookError as error:
                if not may_refuse or "compiled before" not in str(error):
                    raise
                refused += 1
            else:
                torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-3)
                is_edited = not torch.allclose(edited[0], plain[0], atol=1e-2)
                assert is_edited == (bool(edits) and tokens != "generated")
            after = [_forward(served, *one) for one in inputs]
            torch.testing.assert_close(after, plain, rtol=1e-3, atol=1e-3)
    return refused


def _forward(served: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return served.hf_model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
