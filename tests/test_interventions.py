"""Interventions, tested on logits: what is edited, where, in which phase, and what is left behind."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import ot_lens as otl
from ot_lens.errors import HookError
from ot_lens.interventions import TOKEN_SCOPES, everywhere
from ot_lens.models import backend, evaluating, prompt_width
from ot_lens.transport import AffineMap, EntropicMap
from tests import checkpoints

pytestmark = pytest.mark.usefixtures("mixed_lengths")

D = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(params=["residual", "full"])
def model(request: pytest.FixtureRequest, folder: Path):
    return otl.load_model(folder, hooks=request.param)


@pytest.fixture
def batch(model):
    """Three prompts of different lengths, left padded."""
    return checkpoints.one_batch(model, ["w1 w2 w3 w4", "w5", "w6 w7"])


def random_map(seed: int = 0, rank: int = 3) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.randn(D, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(D, generator=generator, dtype=torch.float64)
    return AffineMap(U / 4, V / 4, bias)


def all_logits(model, batch) -> torch.Tensor:
    served = backend(model)
    with evaluating(served.model):
        return served.logits(batch.tokens, batch.mask)


def by_hand(model, batch, layer: int, edit: AffineMap, chosen: torch.Tensor) -> torch.Tensor:
    """Logits when the positions in `chosen` [batch, pos] are edited by a hook written out here."""
    point = backend(model).hook_point(layer, "resid_pre")

    def hook(x: torch.Tensor, hook: object) -> torch.Tensor:
        return torch.where(chosen[..., None], edit.to(torch.float32).map(x), x)

    point.add_hook(hook)
    try:
        return all_logits(model, batch)
    finally:
        point.remove_hooks()


def real(batch, logits: torch.Tensor) -> torch.Tensor:
    return logits[batch.mask.bool()]


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_identity_leaves_logits_bit_equal(model, batch, tokens):
    before = all_logits(model, batch)
    with otl.intervene(model, {layer: AffineMap.identity(D) for layer in range(4)}, tokens):
        assert torch.equal(all_logits(model, batch), before)


@pytest.mark.parametrize("tokens", ["all", "prompt", "last"])
def test_a_map_changes_logits_inside_the_block_and_nothing_after(model, batch, tokens):
    before = all_logits(model, batch)
    with otl.intervene(model, {1: random_map()}, tokens):
        inside = all_logits(model, batch)
    assert (inside[:, -1] - before[:, -1]).abs().max() > 1e-2
    assert torch.equal(all_logits(model, batch), before)


def test_scopes_in_prefill_edit_the_positions_they_name(model, batch):
    edit = random_map()
    everything = batch.mask.bool()
    last = torch.zeros_like(everything)
    last[:, -1] = True
    for tokens, chosen in (("all", everything), ("prompt", everything), ("last", last)):
        expected = by_hand(model, batch, 2, edit, chosen)
        with otl.intervene(model, {2: edit}, tokens):
            found = all_logits(model, batch)
        torch.testing.assert_close(real(batch, found), real(batch, expected), rtol=1e-5, atol=1e-5)


EVERY_KIND = (
    "projected_ablation",
    "reflection",
    "inlp",
    "som",
    "rotation",
    "mean_shift_null_space",
    "mean_shift_gated",
    "mean_shift_gated_threshold",
    "mean_shift_norm_preserving",
    "entropic_ot",
)


def test_maps_of_every_kind_edit_every_scope(folder):
    model = otl.load_model(folder)
    batch = checkpoints.one_batch(model, ["w1 w2 w3 w4", "w5", "w6 w7"])
    acts, served = otl.capture(model, checkpoints.contrast(16), layers=[2]), backend(model)
    last = torch.zeros_like(batch.mask, dtype=torch.bool)
    last[:, -1] = True
    columns = {
        "all": batch.mask.bool(),
        "prompt": batch.mask.bool(),
        "last": last,
        "generated": torch.zeros_like(last),
    }
    for method in EVERY_KIND:
        edit = otl.fit(method, acts.harmful(2) + 5, acts.harmless(2))
        assert not edit.is_identity
        half = acts.harmful(2).bfloat16()
        torch.testing.assert_close(edit.to(torch.float32).map(half), edit.map(half), rtol=0.05, atol=0.05)
        for tokens, chosen in columns.items():
            expected = by_hand(model, batch, 2, edit, chosen)
            with otl.intervene(model, {2: edit}, tokens), evaluating(served.model):
                found = all_logits(model, batch)
                answers = [
                    served.generate(batch.tokens, batch.mask, 3, [-1], cached) for cached in (True, False)
                ]
            torch.testing.assert_close(real(batch, found), real(batch, expected), rtol=1e-5, atol=1e-5)
            assert torch.equal(*answers)


def test_right_padding_finds_the_last_real_token(model):
    served = backend(model)
    tokens = torch.tensor([[1, 15, 16, 17], [1, 18, 0, 0]])
    mask = (tokens != 0).long()
    edit = random_map()
    with otl.intervene(model, {1: edit}, "last"), evaluating(served.model):
        padded = served.logits(tokens, mask)[1, 1]
        alone = served.logits(tokens[1:, :2], mask[1:, :2])[0, 1]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


def teacher_forced(model, batch, new: torch.Tensor, width: int) -> torch.Tensor:
    """Greedy tokens of a run without cache over prompt and answer at once."""
    served = backend(model)
    tokens = torch.cat([batch.tokens, new], dim=1)
    mask = torch.cat([batch.mask, torch.ones_like(new)], dim=1)
    with evaluating(served.model):
        return served.logits(tokens, mask)[:, width - 1 : -1].argmax(-1)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_cache_agrees_with_no_cache_and_with_teacher_forcing(model, batch, tokens):
    served = backend(model)
    edit, width = random_map(4), batch.tokens.shape[1]
    generated = {}
    for use_cache in (True, False):
        with otl.intervene(model, {0: edit, 2: edit}, tokens), evaluating(served.model):
            generated[use_cache] = served.generate(batch.tokens, batch.mask, 6, [-1], use_cache)
    assert torch.equal(generated[True], generated[False])
    with otl.intervene(model, {0: edit, 2: edit}, tokens, prompt_length=width):
        assert torch.equal(teacher_forced(model, batch, generated[True], width), generated[True])


def test_scopes_generate_different_answers(model):
    """The negative control of the test above: scopes that agreed everywhere would pass it too."""
    prompts = [p.text for p in checkpoints.contrast(12).harmful]
    answers = set()
    for tokens in TOKEN_SCOPES:
        with otl.intervene(model, {0: random_map(4), 2: random_map(4)}, tokens):
            answers.add(tuple(c.text for c in otl.complete(model, prompts, max_new_tokens=6)))
    assert len(answers) == len(TOKEN_SCOPES)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_left_padding_agrees_with_single_prompts(model, tokens):
    prompts = ["w1 w2 w3 w4 w5 w6", "w7", "w8 w9"]
    with otl.intervene(model, {1: random_map(2)}, tokens):
        together = otl.complete(model, prompts, max_new_tokens=5)
        alone = [otl.complete(model, [p], max_new_tokens=5)[0] for p in prompts]
    assert together == alone


def test_the_block_covers_the_model_s_own_calls(model, batch):
    edit = random_map()
    with otl.intervene(model, {1: edit}, "last"):
        ours = all_logits(model, batch)[:, -1]
        with torch.no_grad():
            theirs = model(batch.tokens, attention_mask=batch.mask)[:, -1]
            cached, cache = model.run_with_cache(batch.tokens, attention_mask=batch.mask)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cached[:, -1], ours, rtol=1e-4, atol=1e-4)
    assert "blocks.1.hook_resid_pre" in cache


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_embeddings_are_edited_like_the_tokens_they_are_of(folder, tokens, side):
    """A call with embeddings tells no token; its length is that of what the blocks see."""
    model = otl.load_model(folder)
    batch = checkpoints.one_batch(model, ["w1 w2 w3 w4", "w5", "w6 w7"])
    ids, mask = (part.flip(1) if side == "right" else part for part in (batch.tokens, batch.mask))
    stem, forward = model.hf_model.get_input_embeddings()(ids), model.hf_model
    with otl.intervene(model, {0: random_map(1), 2: random_map(2)}, tokens), torch.no_grad():
        expected = forward(input_ids=ids, attention_mask=mask, use_cache=True)
        found = forward(inputs_embeds=stem, attention_mask=mask, use_cache=True)
        torch.testing.assert_close(found.logits, expected.logits)
        longer = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        steps = [
            forward(input_ids=ids[:, :1], attention_mask=longer, past_key_values=past.past_key_values).logits
            for past in (expected, found)
        ]
    torch.testing.assert_close(steps[1], steps[0])


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_without_a_mask_every_token_is_real(folder, tokens):
    model = otl.load_model(folder)
    ids = torch.tensor([[1, 15, 16, 17], [1, 18, 19, 15], [1, 16, 16, 18]])
    with otl.intervene(model, {1: random_map()}, tokens), torch.no_grad():
        bare = model.hf_model(input_ids=ids).logits
        masked = model.hf_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(bare, masked)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_edits_are_made_where_the_activations_are(folder, tokens):
    """Not on torch's default device, which a user may set to another than the model's."""
    model = otl.load_model(folder)
    ids = torch.tensor([[1, 15, 16, 17], [1, 18, 19, 15]])
    with otl.intervene(model, {1: random_map()}, tokens), torch.no_grad():
        expected = model.hf_model(input_ids=ids, use_cache=False).logits
        with torch.device("meta"):
            found = model.hf_model(input_ids=ids, use_cache=False).logits
    assert torch.equal(found, expected)


RIGHT_PADDED = torch.arange(6) < torch.tensor([[1], [3], [4], [6]])
LEFT_PADDED = RIGHT_PADDED.flip(1)


@pytest.fixture
def in_two_calls(folder):
    """Logits of a prompt of six columns in one call, and in two with a border at column 3 or another."""
    model = otl.load_model(folder)
    forward, ids = model.hf_model, torch.tensor([[1, 15, 16, 17, 18, 19]]).repeat(4, 1)

    def read(mask: torch.Tensor, tokens: str, first_mask=None, border: int = 3, **options: int):
        mask = mask.long()
        with otl.intervene(model, {0: random_map(1), 2: random_map(2)}, tokens, **options), torch.no_grad():
            whole = forward(input_ids=ids, attention_mask=mask).logits
            known = mask[:, :border] if first_mask is None else first_mask.long()
            first = forward(input_ids=ids[:, :border], attention_mask=known, use_cache=True)
            past = first.past_key_values
            second = forward(input_ids=ids[:, border:], attention_mask=mask, past_key_values=past).logits
        return whole[mask.bool()], torch.cat([first.logits, second], dim=1)[mask.bool()]

    return read


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_a_prompt_read_in_two_calls_is_edited_as_in_one(in_two_calls, tokens):
    """Rows that begin in the first call and at every column of the second."""
    whole, found = in_two_calls(LEFT_PADDED, tokens, prompt_length=6)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_a_mask_of_the_whole_prompt_tells_where_its_rows_end(in_two_calls, tokens):
    """Rows that end in the first call, at the second's first column, and at its last."""
    for border in (2, 3, 4):
        whole, found = in_two_calls(RIGHT_PADDED, tokens, RIGHT_PADDED, border, prompt_length=6)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_a_row_that_ended_before_its_end_was_known_is_refused(in_two_calls):
    for known in (None, RIGHT_PADDED[:, :5]):
        with pytest.raises(HookError, match="last real token"):
            in_two_calls(RIGHT_PADDED, "last", known, prompt_length=6)
    ends_later = RIGHT_PADDED[[2, 2, 3, 3]]  # none in the first call
    whole, found = in_two_calls(ends_later, "last", prompt_length=6)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", ["prompt", "last", "generated"])
def test_several_tokens_for_a_cache_are_refused_where_they_could_be_either_s(in_two_calls, tokens):
    for border in (3, 4):
        message = f"whether {6 - border} tokens that are added to a cache of {border} .* prompt_length"
        with pytest.raises(HookError, match=message):
            in_two_calls(LEFT_PADDED, tokens, border=border)
    whole, found = in_two_calls(LEFT_PADDED, "all")
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_generate_with_a_prefill_in_chunks_is_edited_as_without(model, batch, tokens):
    """Chunks of two columns, the last of which may hold a single one."""
    inner, width = backend(model).hf_model, batch.tokens.shape[1]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": -1}
    asked = {"input_ids": batch.tokens, "attention_mask": batch.mask, **options}
    with otl.intervene(model, {0: random_map(4), 2: random_map(4)}, tokens, prompt_length=width):
        expected = inner.generate(**asked)
        for size in (2, width - 1):
            assert torch.equal(inner.generate(**asked, prefill_chunk_size=size), expected)


@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_an_announced_width_is_the_prompt_s_unless_a_length_is_given(model, tokens):
    ids = torch.tensor([[1, 15, 16, 17, 18, 19]])
    found = []
    for given, announced in ((None, 3), (3, 5), (3, None)):
        with otl.intervene(model, {1: random_map()}, tokens, prompt_length=given), ExitStack() as stack:
            if announced is not None:
                stack.enter_context(prompt_width(announced))
            with evaluating(model):
                found.append(backend(model).logits(ids, torch.ones_like(ids)))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])


def test_a_cache_made_outside_is_the_prompt_of_what_is_added_to_it(model):
    """And is so after a longer prompt that was read inside."""
    forward, ids = backend(model).hf_model, torch.tensor([[1, 15, 16]])
    for length in (1, 2):
        with torch.no_grad():
            caches = [forward(input_ids=ids[:, :length], use_cache=True).past_key_values for _ in range(5)]
            step = {"input_ids": ids[:, length : length + 1]}
            plain = forward(**step, past_key_values=caches.pop()).logits
            with otl.intervene(model, {1: random_map()}):
                edited = forward(**step, past_key_values=caches.pop()).logits
            for tokens, expected in (("prompt", plain), ("last", plain), ("generated", edited)):
                with otl.intervene(model, {1: random_map()}, tokens):
                    forward(input_ids=torch.tensor([[1, 15, 16, 17, 18, 19]]))
                    assert torch.equal(forward(**step, past_key_values=caches.pop()).logits, expected)


def test_a_new_prompt_of_one_token_more_is_not_a_continuation(model):
    """A longer prompt is only taken for the next step when it extends the one before token for token."""
    served, edit = backend(model), random_map()
    first, second = torch.tensor([[1, 15, 16]]), torch.tensor([[1, 17, 16, 18]])
    with otl.intervene(model, {1: edit}, "last"), evaluating(served.model):
        served.logits(first, torch.ones_like(first))
        after = served.logits(second, torch.ones_like(second))
    with otl.intervene(model, {1: edit}, "last"), evaluating(served.model):
        fresh = served.logits(second, torch.ones_like(second))
    assert torch.equal(after, fresh)


def test_user_hooks_survive_and_run_first(model, batch):
    seen = []
    point = backend(model).hook_point(1, "resid_pre")
    point.add_hook(lambda x, hook: seen.append(x.clone()))
    with otl.intervene(model, {1: random_map()}):
        all_logits(model, batch)
    all_logits(model, batch)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])  # it sees what enters, not what the edit makes of it
    point.remove_hooks()


def test_exceptions_leave_the_model_clean(model, batch):
    before = all_logits(model, batch)
    points = [backend(model).hook_point(layer, "resid_pre") for layer in range(4)]
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), otl.intervene(model, {1: random_map()}, "last"):
            raise error
    assert torch.equal(all_logits(model, batch), before)
    assert all(not point.fwd_hooks and not point._forward_hooks for point in points)


def test_contexts_may_nest_and_overlap(model, batch):
    first, second = random_map(1), random_map(2)
    outer, inner = otl.intervene(model, {1: first}), otl.intervene(model, {1: second})
    outer.__enter__()
    inner.__enter__()
    both = all_logits(model, batch)
    outer.__exit__(None, None, None)
    only_second = all_logits(model, batch)
    inner.__exit__(None, None, None)
    with otl.intervene(model, {1: second.compose(first)}):
        composed = all_logits(model, batch)
    with otl.intervene(model, {1: second}):
        alone = all_logits(model, batch)
    torch.testing.assert_close(real(batch, both), real(batch, composed), rtol=1e-4, atol=1e-4)
    assert torch.equal(only_second, alone)


def test_training_mode_and_gradients_are_left_alone(model, batch):
    inner = backend(model).hf_model
    inner.train()
    inner.model.layers[0].eval()
    flags = {name: module.training for name, module in model.named_modules()}
    grads = {name: p.requires_grad for name, p in inner.named_parameters()}
    otl.capture(model, checkpoints.contrast(2))
    with otl.intervene(model, {1: random_map()}):
        otl.refusal_score(model, ["w1"])
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {name: p.requires_grad for name, p in inner.named_parameters()} == grads
    inner.eval()


def test_gradients_flow_through_an_edit(folder):
    model = otl.load_model(folder)
    tokens = torch.tensor([[1, 15, 16, 17]])
    with otl.intervene(model, {1: random_map()}, "last"):
        model(tokens)[:, -1].sum().backward()
    assert model.hf_model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_everywhere_ablates_the_direction_from_every_write(folder, batch):
    """After ablation at every write to the stream, no residual entering a block has the direction."""
    model = otl.load_model(folder)
    r = torch.nn.functional.normalize(torch.randn(D, generator=torch.Generator().manual_seed(0)), dim=0)
    ablation = AffineMap(-r[:, None].double(), r[:, None].double(), torch.zeros(D, dtype=torch.float64))
    with otl.intervene(model, everywhere(ablation, range(4))), torch.no_grad():
        _, cache = model.run_with_cache(batch.tokens, attention_mask=batch.mask)
    for layer in range(4):
        assert (cache[f"blocks.{layer}.hook_resid_post"] @ r).abs().max() < 1e-5
    with torch.no_grad():
        _, plain = model.run_with_cache(batch.tokens, attention_mask=batch.mask)
    assert (plain["blocks.3.hook_resid_post"] @ r).abs().max() > 1e-2


def test_a_copy_made_inside_is_edited_no_longer_than_the_block(folder, batch):
    model = otl.load_model(folder)
    before = all_logits(model, batch)
    with otl.intervene(model, {1: random_map()}, "last"):
        other = copy.deepcopy(model)
        inside = all_logits(model, batch)
        assert torch.equal(all_logits(other, batch), inside)
    assert torch.equal(all_logits(other, batch), before)
    with otl.intervene(other, {1: random_map()}, "last"):
        assert torch.equal(all_logits(other, batch), inside)
        assert torch.equal(all_logits(model, batch), before)


def test_a_handle_is_entered_once_at_a_time_and_again_later(folder, batch):
    model = otl.load_model(folder)
    before = all_logits(model, batch)
    handle = otl.intervene(model, {1: random_map()}, "last")
    with handle as named:
        assert named is model
        inside = all_logits(model, batch)
        with pytest.raises(HookError, match="entered"):
            handle.__enter__()
        assert torch.equal(all_logits(model, batch), inside)
    assert torch.equal(all_logits(model, batch), before)
    with handle:
        assert torch.equal(all_logits(model, batch), inside)
    with otl.intervene(model, {}) as named:
        assert named is model


IN_FORCE = (
    r"^Thread 'MainThread' has an active intervention on this model: leave its block first \(a lock around "
    r"both serializes them\), or give each thread a copy of the model\.$"
)


def test_a_second_thread_s_edits_are_refused_as_long_as_the_first_s_are_in_force(folder, batch):
    model, other = otl.load_model(folder), otl.load_model(folder)

    def enter(target) -> str:
        with otl.intervene(target, {2: random_map(5)}, "last"):
            all_logits(target, batch)
        return "entered"

    with ThreadPoolExecutor(1, thread_name_prefix="second") as pool:
        before = all_logits(model, batch)
        with otl.intervene(model, {1: random_map()}):
            inside = all_logits(model, batch)
            for _ in range(2):  # a refusal leaves nothing that would refuse or be refused later
                with pytest.raises(HookError, match=IN_FORCE):
                    pool.submit(enter, model).result()
            assert torch.equal(all_logits(model, batch), inside)
            assert torch.equal(pool.submit(all_logits, model, batch).result(), inside)  # edited there too
            assert pool.submit(enter, other).result() == "entered"
            assert enter(model) == "entered"  # one's own may nest
            with pytest.raises(HookError, match="active intervention"):
                pool.submit(enter, model).result()
        assert torch.equal(all_logits(model, batch), before)
        assert pool.submit(enter, model).result() == "entered"


def test_a_call_in_inference_mode_spoils_no_later_gradient(model, batch):
    """The map is converted at the first call; what it keeps must serve autograd at the second."""
    with otl.intervene(model, {1: random_map(1), 2: random_map(2)}):
        with torch.inference_mode():
            model(batch.tokens, attention_mask=batch.mask)
        model(batch.tokens, attention_mask=batch.mask).sum().backward()
    model.zero_grad()


def test_a_map_in_use_is_not_spoilt_by_inference_mode(model, batch):
    """A user's own map in the model's dtype is used as it is, and stays usable for gradients."""
    edit = random_map(1).to(torch.float32)
    with otl.intervene(model, {1: edit}), torch.inference_mode():
        model(batch.tokens)
    x = torch.randn(3, 32, requires_grad=True)
    edit(x).sum().backward()
    assert x.grad is not None


def test_autocast_does_not_coarsen_an_edit(model):
    """Under autocast the edit of a float32 stream is computed in float32, as everywhere."""
    seen: list[torch.Tensor] = []
    point, edit = backend(model).hook_point(1, "resid_pre"), random_map(1)
    point.add_hook(lambda x, hook: seen.append(x.clone()))
    tokens = torch.tensor([[1, 15, 16, 17]])
    with otl.intervene(model, {1: edit}), torch.no_grad():
        point.add_hook(lambda x, hook: seen.append(x.clone()))
        with torch.autocast("cpu", torch.bfloat16):
            model(tokens)
            assert torch.is_autocast_enabled("cpu")
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[1], edit.to(torch.float32)(seen[0]), rtol=0, atol=0)


def test_a_block_run_by_itself_is_refused_where_its_positions_are_unknown(folder):
    model = otl.load_model(folder)
    decoder, tokens = model.hf_model.get_decoder(), torch.tensor([[1, 15, 16]])
    with otl.intervene(model, {1: random_map(1), 2: random_map(2)}, "last"), torch.no_grad():
        for _ in range(2):  # a call that is over tells nothing of the next
            with pytest.raises(HookError, match=r"'last'.*compile"):
                decoder(tokens)
            model(tokens)
    with otl.intervene(model, {1: random_map(1), 2: random_map(2)}, "all"), torch.no_grad():
        decoder(tokens)


def test_maps_that_are_not_affine_are_edits_too(folder, batch):
    model = otl.load_model(folder)
    acts = otl.capture(model, checkpoints.contrast(16))
    H, S = acts.harmful(2), acts.harmless(2)
    before = all_logits(model, batch)
    for edit in (otl.restrict_to_support(otl.fit_linear_act(H, S), H), otl.fit_entropic_ot(H, S)):
        with otl.intervene(model, {2: edit}, "last"):
            assert not torch.allclose(all_logits(model, batch)[:, -1], before[:, -1], atol=1e-3)
        moved = otl.capture(model, checkpoints.contrast(16), layers=[2], edits={2: edit}, tokens="last")
        torch.testing.assert_close(moved.harmful(2), edit(H), rtol=1e-3, atol=1e-3)
    assert torch.equal(all_logits(model, batch), before)


@torch.no_grad()
def logits(model, ids: torch.Tensor, **options) -> torch.Tensor:
    return backend(model).hf_model(input_ids=ids, **options).logits


def test_a_prompt_longer_than_the_residual_stream_is_wide_is_edited_to_its_end(model):
    edit, border = random_map(1), 40
    ids = torch.arange(50).remainder(40)[None] + 15
    position = torch.arange(50)[None, :, None]
    point = backend(model).hook_point(1, "resid_pre")
    for tokens, chosen in (("prompt", position < border), ("generated", position >= border)):
        own = edit.to(torch.float32)

        def by_hand(x: torch.Tensor, hook: object, own=own, chosen=chosen) -> torch.Tensor:
            return torch.where(chosen, own(x), x)

        point.add_hook(by_hand)
        expected = logits(model, ids)
        point.remove_hooks()
        with otl.intervene(model, {1: edit}, tokens, prompt_length=border):
            found = logits(model, ids)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_may_be_of_one_token(model):
    edit, ids = random_map(1), torch.tensor([[1, 15, 16]])
    with otl.intervene(model, {1: edit}, "prompt", prompt_length=1):
        found = logits(model, ids)
    with otl.intervene(model, {1: edit}, "last", prompt_length=1):
        assert torch.equal(logits(model, ids), found)
    with otl.intervene(model, {1: edit}, "prompt", prompt_length=2):
        assert not torch.allclose(logits(model, ids), found, atol=1e-3)


def test_rows_that_a_mask_does_not_reach_to_their_end_wait_for_the_call_that_does(model):
    """The first call's mask ends with padding, as if the prompt did; that is decided by the whole one."""
    ids = torch.tensor([[1, 15, 16, 17]])
    known = torch.tensor([[1, 1, 0, 0]])
    plain = logits(model, ids, attention_mask=known)
    with otl.intervene(model, {1: random_map(1)}, "last", prompt_length=6):
        assert torch.equal(logits(model, ids, attention_mask=known), plain)


@pytest.mark.parametrize(
    ("dtype", "computed"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_a_map_is_computed_in_the_activations_precision_and_in_float32_at_least(
    folder, dtype, computed, monkeypatch
):
    """Entropic maps compute in the precision they are kept in."""
    seen, mapped = [], EntropicMap.map
    monkeypatch.setattr(
        EntropicMap, "map", lambda edit, x: (seen.append(edit.targets.dtype), mapped(edit, x))[1]
    )
    generator = torch.Generator().manual_seed(0)
    H, S = (torch.randn(20, D, generator=generator, dtype=torch.float64) for _ in range(2))
    with otl.intervene(otl.load_model(folder, dtype=dtype), {1: otl.fit_entropic_ot(H, S)}) as model:
        logits(model, torch.tensor([[1, 15, 16]]))
    assert seen == [getattr(torch, computed)]


# The check of shapes in tests comes before ours.
NO_MAP = r"is a Tensor: pass a map of ot_lens, such as an AffineMap\.$|^Type-check error"


@pytest.mark.parametrize(
    ("edits", "options", "error", "message"),
    [
        ({40: AffineMap.identity(D)}, {}, HookError, "Layer 40 does not exist: this model has layers 0-3"),
        ({-1: AffineMap.identity(D)}, {}, HookError, "Layer -1 does not exist"),
        ({1: AffineMap.identity(D)}, {"tokens": "some"}, HookError, "'some'.*all, prompt, last, generated"),
        ({1: AffineMap.identity(D)}, {"hook": "resid"}, HookError, "'resid'.*resid_pre"),
        ({(1, "resid_mid"): AffineMap.identity(D)}, {}, HookError, "skip"),
        ({1: AffineMap.identity(D + 1)}, {}, HookError, "width 33, the model 32"),
        ({1: torch.zeros(D)}, {}, TypeError, NO_MAP),
        ({1: AffineMap.identity(D)}, {"prompt_length": 0}, HookError, "prompt_length = 0"),
    ],
)
def test_bad_edits_are_named_and_leave_no_hook(model, batch, edits, options, error, message):
    before = all_logits(model, batch)
    with pytest.raises(error, match=message), otl.intervene(model, edits, **options):
        pass
    assert torch.equal(all_logits(model, batch), before)
