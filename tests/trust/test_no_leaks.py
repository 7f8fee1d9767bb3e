"""Interventions never leak: however a block ends, model and process are as they were before."""

import asyncio
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ot_lens as otl
from ot_lens.errors import HookError
from ot_lens.interventions import TOKEN_SCOPES, everywhere
from ot_lens.models import backend
from ot_lens.single_pass import next_token_sweep
from tests import checkpoints
from tests.trust.leak_checks import (
    bits,
    evaluated,
    hook_tables,
    leaked,
    logits,
    random_map,
    state,
)

PROMPTS = ["w1 w2 w3 w4", "w5", "w6 w7"]
EDITS = {1: random_map(1), 2: random_map(2)}


class OwnError(Exception):
    """An error of the user."""


@pytest.fixture(scope="module", params=["residual", "full"])
def loaded(request: pytest.FixtureRequest, llama_folder: Path):
    """A model with hooks of the user: plain, permanent, of another level, and of a plain module."""
    model = otl.load_model(llama_folder, hooks=request.param)
    point = backend(model).hook_point(1, "resid_pre")
    point.add_hook(_look)
    point.add_perma_hook(partial(_look))
    point.add_hook(_look, level=7)
    backend(model).hf_model.get_output_embeddings().register_forward_hook(lambda *_: None)
    model.run_with_cache(torch.tensor([[1]]))  # its first use changes a bridge for good
    return model


@pytest.fixture
def model(loaded):
    """That model, which every test must leave unchanged."""
    evaluated(loaded, checkpoints.one_batch(loaded, PROMPTS))  # the first call fills caches
    before = hook_tables(loaded)
    yield loaded
    assert leaked(before, hook_tables(loaded)) == []


@pytest.fixture
def batch(model):
    return checkpoints.one_batch(model, PROMPTS)


def _look(x: torch.Tensor, hook: object) -> None:
    """A hook that only reads."""


def _wait(turn: threading.Barrier) -> None:
    turn.wait(30)


def _raise(error: type[BaseException]) -> Callable[..., None]:
    def hook(*_: object, **__: object) -> None:
        raise error

    return hook


# --- the checks detect leaks


def _leaks(model: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Ways of leaking: how to leak, and how to undo it."""
    point, inner = backend(model).hook_point(1, "resid_pre"), backend(model).hf_model
    embedding = inner.get_input_embeddings()
    handles: list[Any] = []
    side = backend(model).tokenizer.padding_side

    def nudge(by: float) -> None:
        with torch.no_grad():
            embedding.weight[0, 0] += by

    def drop() -> None:
        point.fwd_hooks.pop()
        point._forward_hooks.popitem()

    return {
        "idle hook": (lambda: point.add_hook(_look), drop),
        "pre-hook": (
            lambda: handles.append(inner.register_forward_pre_hook(lambda *_: None)),
            lambda: handles.pop().remove(),
        ),
        "training flag": (inner.train, inner.eval),
        "gradients": (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
        "requires_grad": (
            lambda: embedding.requires_grad_(False),
            lambda: embedding.requires_grad_(True),
        ),
        "forward": (
            lambda: setattr(
                inner.model, "forward", lambda *a, **k: type(inner.model).forward(inner.model, *a, **k)
            ),
            lambda: delattr(inner.model, "forward"),
        ),
        "padding": (
            lambda: setattr(backend(model).tokenizer, "padding_side", "right" if side == "left" else "left"),
            lambda: setattr(backend(model).tokenizer, "padding_side", side),
        ),
        "random numbers": (lambda: torch.rand(1), None),
        "weight": (lambda: nudge(1.0), lambda: nudge(-1.0)),
        "use_cache": (
            lambda: setattr(inner.config, "use_cache", not inner.config.use_cache),
            lambda: setattr(inner.config, "use_cache", not inner.config.use_cache),
        ),
        "dtype": (
            lambda: torch.set_default_dtype(torch.float64),
            lambda: torch.set_default_dtype(torch.float32),
        ),
    }


def test_the_checks_detect_every_kind_of_leak(llama_folder):
    model = otl.load_model(llama_folder)
    batch = checkpoints.one_batch(model, PROMPTS)
    evaluated(model, batch)
    for name, (leak, undo) in _leaks(model).items():
        before = state(model, batch)
        leak()
        assert leaked(before, state(model, batch)), name
        if undo is not None:
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ot_lens.transport.AffineMap.__call__", _raise(error))
        with otl.intervene(model, EDITS, "last"):
            logits(model, batch)


def _in_capture(model: Any, batch: Any, error: type[BaseException]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ot_lens.activations.shards.gather", _raise(error))
        otl.capture(model, checkpoints.contrast(2), edits=EDITS, tokens="last")


def _in_generation(model: Any, batch: Any, error: type[BaseException]) -> None:
    with otl.intervene(model, EDITS, "generated"):
        otl.complete(model, PROMPTS, max_new_tokens=3, progress=_raise(error))


def _in_generator(model: Any, batch: Any, error: type[BaseException]) -> None:
    def edited() -> Iterator[torch.Tensor]:
        with otl.intervene(model, EDITS, "last"):
            while True:
                yield logits(model, batch)

    outputs = edited()
    next(outputs)
    outputs.throw(error)


def _in_sweep(model: Any, batch: Any, error: type[BaseException]) -> None:
    next_token_sweep(model, PROMPTS, [EDITS], _raise(error))


def _in_thread(model: Any, batch: Any, error: type[BaseException]) -> None:
    died: list[BaseException] = []

    def work() -> None:
        try:
            _body(model, batch, error)
        except (OwnError, KeyboardInterrupt) as raised:
            died.append(raised)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    raise died[0]


def _in_task(model: Any, batch: Any, error: type[BaseException]) -> None:
    async def work() -> None:
        with otl.intervene(model, EDITS, "last"):
            await asyncio.sleep(0)
            raise error

    asyncio.run(work())


WAYS = (
    _body,
    _in_forward,
    _in_map,
    _in_capture,
    _in_generation,
    _in_generator,
    _in_sweep,
    _in_thread,
    _in_task,
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
    model.eval()


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_abandoned_generators_leave_nothing(model, batch, tokens):
    before = state(model, batch)

    def edited() -> Iterator[str]:
        with otl.intervene(model, EDITS, tokens):
            while True:
                yield bits(model, batch)

    for abandon in ("close", "collect", "collect in a cycle"):
        outputs = edited()
        changed = next(outputs)
        assert (changed == before["logits"]) == (tokens == "generated")
        if abandon == "close":
            outputs.close()
        elif abandon == "collect":
            del outputs
        else:
            cycle: list[Any] = [outputs]
            cycle.append(cycle)
            del outputs, cycle
            gc.collect()
        assert leaked(before, state(model, batch)) == []


def test_deleting_a_handle_undoes_its_edits(model, batch):
    before = state(model, batch)
    handle = otl.intervene(model, EDITS)
    handle.__enter__()
    assert bits(model, batch) != before["logits"]
    del handle
    assert leaked(before, state(model, batch)) == []


def test_a_block_that_fails_on_entry_leaves_nothing(model, batch):
    """An error at the last hook undoes the earlier ones, and the observer of calls."""
    before = state(model, batch)
    last = backend(model).hook_point(2, "resid_pre")
    for error in (OwnError, KeyboardInterrupt):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(last, "add_hook", _raise(error))
            with pytest.raises(error), otl.intervene(model, EDITS, "last"):
                pytest.fail("the block was entered")
        assert leaked(before, state(model, batch)) == []


# --- everything that edits or reads


def _operations(model: Any) -> dict[str, Callable[[], Any]]:
    contrast = checkpoints.contrast(4)
    reduce = lambda rows, own: rows[..., :2]  # noqa: E731
    return {
        "intervene": lambda: _edited(model, lambda: otl.refusal_score(model, PROMPTS)),
        "everywhere": lambda: _edited(model, lambda: None, everywhere(random_map(), range(4))),
        "capture": lambda: otl.capture(model, contrast),
        "capture with edits": lambda: otl.capture(model, contrast, edits=EDITS, tokens="last"),
        "complete": lambda: _edited(model, lambda: otl.complete(model, PROMPTS, max_new_tokens=3)),
        "without cache": lambda: _edited(
            model, lambda: otl.complete(model, PROMPTS, max_new_tokens=3, use_cache=False), tokens="last"
        ),
        "answer_loss": lambda: _edited(model, lambda: otl.answer_loss(model, contrast.harmless)),
        "text_loss": lambda: _edited(model, lambda: otl.text_loss(model, "w1 w2 w3 " * 9, window=12)),
        "single pass": lambda: next_token_sweep(model, PROMPTS, [EDITS, {0: random_map()}], reduce),
        "single pass, all": lambda: next_token_sweep(model, PROMPTS, [EDITS], reduce, tokens="all"),
        "user's generate": lambda: _edited(
            model,
            lambda: backend(model).hf_model.generate(
                torch.tensor([[1, 15, 16]]), max_new_tokens=3, do_sample=False, pad_token_id=0
            ),
        ),
        "run_with_cache": lambda: _edited(model, lambda: model.run_with_cache(torch.tensor([[1, 15, 16]]))),
        "run_with_hooks": lambda: _edited(
            model,
            lambda: model.run_with_hooks(
                torch.tensor([[1, 15]]), fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x + 1)]
            ),
        ),
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
    model.eval()


def test_a_sweep_and_a_selection_leave_nothing(llama_folder, full_size):
    model = otl.load_model("organism" if full_size else llama_folder)
    prompts = otl.load_prompts("organism") if full_size else checkpoints.contrast_set(6)
    options: Any = {} if full_size else {"refusal_tokens": ["w1"]}
    batch = checkpoints.one_batch(model, prompts.val.harmful[:3])
    evaluated(model, batch)
    before = state(model, batch)
    for engine in ("auto", "hooks"):
        otl.localize(
            model,
            prompts,
            methods=["mean_shift", "rfa"] if full_size else ["rfa"],
            layers=[1, 2] if full_size else [1],
            max_new_tokens=2,
            engine=engine,
            **options,
        )
        assert leaked(before, state(model, batch)) == []
    directions = otl.capture(model, prompts.train, layers=[1])
    otl.score_directions(model, prompts.val, directions, **options)
    assert leaked(before, state(model, batch)) == []


# --- nesting, overlap, the same handle twice


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_blocks_are_left_in_any_order(model, batch, order):
    """The edits of blocks that have not ended are active, in the order in which they were entered."""
    before = state(model, batch)
    maps = [random_map(seed) for seed in range(3)]
    remaining = [[i for i in range(3) if i not in order[:n]] for n in range(4)]
    expected = [_nested(model, batch, [{1: maps[i]} for i in some]) for some in remaining]
    handles = [otl.intervene(model, {1: edit}) for edit in maps]
    for handle in handles:
        handle.__enter__()
    found = [bits(model, batch)]
    for number in order:
        handles[number].__exit__(None, None, None)
        found.append(bits(model, batch))
    assert found == expected
    assert len(set(found)) == 4
    assert leaked(before, state(model, batch)) == []


def _nested(model: Any, batch: Any, edits: list[Any]) -> str:
    if not edits:
        return bits(model, batch)
    with otl.intervene(model, edits[0]):
        return _nested(model, batch, edits[1:])


def test_hooks_that_the_user_adds_or_removes_inside_are_kept(llama_folder, batch):
    model = otl.load_model(llama_folder)
    point = backend(model).hook_point(1, "resid_pre")
    point.add_hook(_look)
    early = point.fwd_hooks[0]
    with otl.intervene(model, EDITS):
        point.add_hook(lambda x, hook: x * 2)
        late = point.fwd_hooks[-1]
        early.hook.remove()
        point.fwd_hooks.remove(early)
    assert [id(one) for one in point.fwd_hooks] == [id(late)]
    assert list(point._forward_hooks) == [late.hook.id]


def test_resetting_all_hooks_inside_removes_the_edits_too(llama_folder, batch):
    """TransformerLens resets every hook; leaving the block afterwards is not an error."""
    model = otl.load_model(llama_folder)
    before = hook_tables(model), bits(model, batch)
    with otl.intervene(model, EDITS):
        model.reset_hooks()
        assert bits(model, batch) == before[1]
    assert (hook_tables(model), bits(model, batch)) == before


# --- threads


def _meanwhile(task: Callable[[], Any]) -> Any:
    """The result of a task in another thread."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(task())
        except HookError as error:
            found.append(error)

    thread = threading.Thread(target=work, name="other")
    thread.start()
    thread.join()
    return found[0]


def test_an_edit_is_active_in_every_thread(model, batch):
    """Generation in another thread, as for streaming, is edited like that in the thread of the block."""
    before = state(model, batch)
    for tokens in TOKEN_SCOPES:
        with otl.intervene(model, EDITS, tokens):
            assert _meanwhile(lambda: bits(model, batch)) == bits(model, batch)
            here = otl.complete(model, PROMPTS, max_new_tokens=4)
            assert _meanwhile(lambda: otl.complete(model, PROMPTS, max_new_tokens=4)) == here
    assert leaked(before, state(model, batch)) == []


def test_threads_with_a_lock_see_only_their_own_edits(model, batch, full_size):
    before = state(model, batch)
    expected = [_nested(model, batch, [{1: random_map(seed)}]) for seed in range(4)]
    lock, wrong = threading.Lock(), []

    def work(seed: int) -> None:
        for _ in range(100 if full_size else 3):
            with lock, otl.intervene(model, {1: random_map(seed)}):
                if bits(model, batch) != expected[seed]:
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(set(expected)) == 4
    assert leaked(before, state(model, batch)) == []


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_calls_of_two_threads_keep_their_positions_apart(model, batch, tokens):
    """Prompts of different lengths in two threads at once: each call has its own positions."""
    other = checkpoints.one_batch(model, ["w1 w2 w3 w4 w5 w6 w7 w8 w9"])
    with otl.intervene(model, EDITS, tokens):
        expected = bits(model, batch), bits(model, other)
        turn = threading.Barrier(2)
        decoder = backend(model).hf_model.get_decoder()
        handle = decoder.layers[0].register_forward_hook(lambda *_: _wait(turn))
        try:
            found: list[Any] = [None, None]
            threads = [
                threading.Thread(target=lambda i=i, b=b: found.__setitem__(i, bits(model, b)))
                for i, b in enumerate((batch, other))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            handle.remove()
    assert tuple(found) == expected
