"""What a family of models may do to the numbers: misplaced hook points, engines, settings of a checkpoint."""

import re
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

import ot_lens as otl
from ot_lens.errors import HookError, ModelError, PromptError, SinglePassError
from ot_lens.generation import Completion
from ot_lens.models import architectures, backend, backends
from ot_lens.prompts import Prompt
from ot_lens.single_pass import hugging_face, next_token_sweep
from ot_lens.transport import AffineMap
from tests import checkpoints, decoders
from tests.decoders import PROMPTS, WIDTH

SHIFT = AffineMap(torch.zeros(WIDTH, 0), torch.zeros(WIDTH, 0), torch.full((WIDTH,), 0.5))


@pytest.fixture
def load(tmp_path: Path):
    return lambda family, hooks="residual": decoders.load(family, tmp_path / family, hooks)


# ------------------------------------------------------------------------------ hook points and the stream


@pytest.mark.parametrize("family", ["llama", "olmo2", "granite", "falcon_h1", "llama4_text"])
def test_an_edit_of_a_branch_reaches_the_stream_as_it_is(family, load):
    model = load(family)
    for hook in ("attn_out", "mlp_out"):
        options = {"hook": "resid_post" if hook == "mlp_out" else "resid_mid", "layers": [1]}
        plain = otl.capture(model, checkpoints.contrast(2), **options)
        edited = otl.capture(model, checkpoints.contrast(2), edits={(1, hook): SHIFT}, **options)
        torch.testing.assert_close(edited.harmful(1), plain.harmful(1) + 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["olmo2", "glm4", "granite"])
def test_a_branch_that_is_not_what_is_added_is_refused(family, load, monkeypatch):
    """As if Llama's names applied to every family that has them."""
    llama = architectures.Branches(("self_attn",), ("mlp",), "post_attention_layernorm")
    monkeypatch.setattr(architectures, "BRANCHES", (llama,))
    monkeypatch.setattr(architectures, "EVERY_SCALE", "")
    model, prompts = load(family), checkpoints.contrast(2)
    with pytest.raises(HookError, match="misses"):
        otl.capture(model, prompts, hook="attn_out")
    with pytest.raises(HookError, match="resid_pre or resid_post"):
        otl.intervene(model, otl.everywhere(SHIFT, range(3)))
    assert otl.capture(model, prompts, hook="resid_post").n_harmful == 2


def test_a_third_branch_that_a_bridge_does_not_show_is_refused(load):
    bridge = load("falcon_h1", "full")
    with pytest.raises(HookError, match=r"attn_out of layer 0 .*hooks='residual'"):
        otl.intervene(bridge, otl.everywhere(SHIFT, range(3)))
    assert otl.capture(bridge, checkpoints.contrast(2), hook="mlp_out").n_harmful == 2


@pytest.mark.parametrize(
    ("family", "hooks"), [("cohere", "residual"), ("phi", "residual"), ("cohere", "full")]
)
def test_parallel_branches_have_no_stream_between_them(family, hooks, load):
    model = load(family, hooks)
    with pytest.raises(HookError, match="resid_mid"):
        otl.capture(model, checkpoints.contrast(2), hook="resid_mid")
    assert otl.capture(model, checkpoints.contrast(2), hook="mlp_out").n_harmful == 2


@pytest.mark.parametrize("family", ["gemma3n_text", "deepseek_v4"])
def test_layers_that_hand_on_more_than_one_stream_are_refused_at_load(family, load):
    with pytest.raises(ModelError, match=r"residual stream.*docs/models\.md"):
        load(family)


def test_a_model_that_fails_on_a_short_sequence_is_refused_at_load(monkeypatch):
    model = checkpoints.model("llama")
    monkeypatch.setattr(model.model.layers[1], "forward", lambda *_, **__: {}["state"])
    with pytest.raises(ModelError, match="KeyError"):
        otl.load_model(model, tokenizer=checkpoints.tokenizer("llama"))


def test_a_model_whose_cache_changes_what_it_says_is_refused_at_load(monkeypatch):
    """As a bridge of transformer-lens 4.3 does with the cache of transformers 5.24, which it drops."""
    model = checkpoints.model("llama")
    own = model.model.layers[1].forward

    def forward(hidden, *args, **kwargs):
        alone = hidden.shape[1] == 1
        return own(1.5 * hidden if alone else hidden, *args, **kwargs)

    monkeypatch.setattr(model.model.layers[1], "forward", forward)
    with pytest.raises(ModelError, match="cache"):
        otl.load_model(model, tokenizer=checkpoints.tokenizer("llama"))


def test_prompts_share_a_batch_only_where_padding_changes_nothing(load, mixed_lengths):
    """RecurrentGemma ignores the mask: a padded prompt would be another one."""
    model = load("recurrent_gemma")
    assert not backend(model).pads
    alone = torch.cat([otl.next_token_logprobs(model, [prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(otl.next_token_logprobs(model, PROMPTS), alone, rtol=1e-4, atol=1e-4)
    assert backend(load("llama")).pads


# ---------------------------------------------------------------------------------------- the single pass


def sweep(model, **options):
    prompts = checkpoints.contrast_set(6)
    return otl.localize(model, prompts, ["mean_shift"], measures=["refusal_score"], tokens="last", **options)


def test_experts_are_swept_in_a_single_pass(load):
    model = load("qwen3_moe")
    table, hooks = sweep(model), sweep(model, engine="hooks")
    assert set(table["engine"].dropna()) == {"single_pass", "hooks"} - {"hooks"} | set(
        table["engine"].dropna()
    )
    assert "single_pass" in set(table["engine"])
    torch.testing.assert_close(
        torch.tensor(table["value"].to_numpy()), torch.tensor(hooks["value"].to_numpy()), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("hooks", ["residual", "full"])
def test_linear_attention_falls_back_with_a_note(hooks, load):
    table = sweep(load("qwen3_next", hooks))
    assert "single_pass" not in set(table["engine"])
    assert table["note"].str.contains("plain hooks").any()


def test_an_error_after_the_check_falls_back_too(load, monkeypatch):
    """A block that fails on some number of rows only, as kernels of experts do."""
    model, block = load("llama"), hugging_face.HuggingFaceRecord.block

    def fragile(record, layer, rows):
        if len(rows) > 2:
            raise IndexError("three rows")
        return block(record, layer, rows)

    expected = sweep(model, engine="hooks")
    monkeypatch.setattr(hugging_face.HuggingFaceRecord, "block", fragile)
    table = sweep(model)
    assert table["note"].str.contains("three rows").any()
    torch.testing.assert_close(
        torch.tensor(table["value"].to_numpy()), torch.tensor(expected["value"].to_numpy())
    )
    with pytest.raises(HookError, match="three rows"):
        sweep(model, engine="single_pass")


def test_arguments_that_may_carry_a_state_are_not_replayed(load):
    """Keys and values that layers share in a dict, for example: every call of a layer would change it."""
    model = load("llama")
    layer = model.hf_model.model.layers[1]
    layer.register_forward_pre_hook(lambda _, args, given: (args, {**given, "shared": {}}), with_kwargs=True)
    with pytest.raises(SinglePassError, match="shared"):
        next_token_sweep(model, PROMPTS, [{1: SHIFT}], lambda rows, _: rows, tokens="all")


def test_a_sweep_says_that_a_model_cannot_be_replayed(load):
    with pytest.raises(otl.OtLensError, match="cannot be run again"):
        next_token_sweep(load("qwen3_next"), PROMPTS, [{1: SHIFT}], lambda rows, _: rows)


# ------------------------------------------------------------------------------------- what a cache forgets

LONG = [" ".join(checkpoints.WORDS[start : start + 18]) for start in (0, 3, 9, 17)]


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen3_vl_moe", "mistral"])
def test_answers_are_the_same_with_a_cache_where_only_the_cache_has_a_window(family, tmp_path, monkeypatch):
    """A configuration may keep the `sliding_window` of the model it was converted from; Mistral has one."""
    network = decoders.model(family)
    network.config.get_text_config().sliding_window = 4
    network.save_pretrained(tmp_path / family)
    model = decoders.load(family, tmp_path / family)
    read = otl.complete(model, LONG, max_new_tokens=8, use_cache=False)
    assert otl.complete(model, LONG, max_new_tokens=8) == read
    monkeypatch.setattr(backends, "cache_of_everything", lambda _: None)
    assert (otl.complete(model, LONG, max_new_tokens=8) == read) == (family == "mistral")


@pytest.mark.parametrize("family", ["mamba", "mamba2", "qwen3_next"])
def test_scopes_know_the_prompt_where_a_cache_does_not_say_what_it_has_read(family, load, mixed_lengths):
    """States of recurrent models have no length: each step of an answer would look like a prompt."""
    model = load(family)
    plain = otl.complete(model, LONG, max_new_tokens=6)
    edit = AffineMap(torch.zeros(WIDTH, 0), torch.zeros(WIDTH, 0), torch.linspace(-3, 3, WIDTH))
    for scope in ("last", "prompt", "generated"):
        with otl.intervene(model, {1: edit}, scope):
            read = otl.complete(model, LONG, max_new_tokens=6, use_cache=False)
            assert otl.complete(model, LONG, max_new_tokens=6) == read != plain


@pytest.mark.parametrize("hooks", ["residual", "full"])
def test_a_context_ends_where_positions_begin_to_depend_on_the_batch(hooks, load, monkeypatch):
    """Phi 3's two sets of frequencies: the longest row of a batch chooses one for all rows."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    monkeypatch.setitem(
        decoders.FAMILIES, "phi3", {"rope_parameters": rope, "original_max_position_embeddings": 32}
    )
    model = load("phi3", hooks)
    assert len(otl.complete(model, LONG, max_new_tokens=6)) == len(LONG)
    for length, budget in ((18, 16), (40, 1)):
        with pytest.raises(PromptError, match=r"32.*longrope"):
            otl.complete(model, [" ".join(checkpoints.WORDS[:length])], max_new_tokens=budget)


# ----------------------------------------------------------------------- settings that come with a checkpoint


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 5, "suppress_tokens": list(range(20, 40))},
        {"return_dict_in_generate": True, "output_scores": True},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "temperature": 5.0},
    ],
)
def test_answers_are_greedy_whatever_the_checkpoint_says(settings, llama_folder):
    model = otl.load_model(llama_folder)
    expected = otl.complete(model, PROMPTS, max_new_tokens=6)
    model.hf_model.generation_config = GenerationConfig(**settings)
    assert otl.complete(model, PROMPTS, max_new_tokens=6) == expected
    assert model.hf_model.generation_config.to_diff_dict().items() >= settings.items()


def test_stop_tokens_are_the_checkpoint_s(llama_folder):
    model = otl.load_model(llama_folder)
    longest = max(otl.complete(model, PROMPTS, max_new_tokens=6), key=lambda answer: answer.n_tokens)
    assert longest.n_tokens == 6
    model.hf_model.generation_config = GenerationConfig(eos_token_id=list(range(3, 55)))
    assert {answer.n_tokens for answer in otl.complete(model, PROMPTS, max_new_tokens=6)} <= {0, 1}


@pytest.mark.parametrize("pad", ["<eot>", None])
def test_text_is_masked_by_its_padding_alone(pad, llama_folder):
    """The padding token may end a turn, or be absent."""
    model = otl.load_model(llama_folder)
    texts = ["<s> w1 <eot> <nl> w2 <eot>", "<s> w3 w4 <eot>"]
    expected = [model(text)[0, -1] for text in texts]
    model.tokenizer.pad_token = pad
    for text, logits in zip(texts, expected, strict=True):
        torch.testing.assert_close(model(text)[0, -1], logits)
    torch.testing.assert_close(model(texts)[:, -1], torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert otl.capture(model, checkpoints.contrast(3)).n_harmful == 3


def test_a_padding_token_beyond_the_embedding_is_not_looked_up(mixed_lengths):
    tokenizer = checkpoints.tokenizer("llama")
    expected = otl.load_model(checkpoints.model("llama"), tokenizer=checkpoints.tokenizer("llama"))
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    model = otl.load_model(checkpoints.model("llama"), tokenizer=tokenizer)
    assert otl.complete(model, PROMPTS, max_new_tokens=3) == otl.complete(expected, PROMPTS, max_new_tokens=3)
    with pytest.raises(PromptError, match=r"Prompt 1 has the token 55.*55 embeddings"):
        otl.next_token_logprobs(model, ["w1", "w2 <padding> w3"])
    with pytest.raises(PromptError, match="Text 0 has the token 55"):
        model("w2 <padding>")
    with pytest.raises(PromptError, match="Answer 0 has the token 55"):
        otl.answer_loss(model, [Prompt("w1", answer="<padding>")])
    with pytest.raises(PromptError, match="Answer 0 has the token 55"):
        otl.answer_nll(model, ["w1"], [Completion("x", 1, True, (55,))])


def test_a_tokenizer_made_in_memory_serves_every_hook_point(llama_folder):
    tokenizer = checkpoints.tokenizer("llama")
    assert "name_or_path" not in tokenizer.init_kwargs
    found = otl.complete(otl.load_model(llama_folder, hooks="full", tokenizer=tokenizer), PROMPTS)
    assert found == otl.complete(otl.load_model(llama_folder), PROMPTS)


# ------------------------------------------------------------------------------------- one module that knows


def test_no_other_module_names_the_parts_of_a_family(repository: Path):
    tables = [
        *architectures.LAYERS,
        *architectures.FINAL_NORMS,
        "date_string",
        "strftime_now",
        *architectures.THINKING_SWITCHES,
        *architectures.BRIDGE_ADDENDS.values(),
        *(
            part
            for entry in architectures.BRANCHES
            for part in (*entry.attention, *entry.mlp, entry.before_mlp)
        ),
        *architectures.SCALES.values(),
        architectures.OUTPUT_PROJECTION,
        architectures.WRAPPED,
        architectures.EVERY_SCALE,
        architectures.PARALLEL,
        "logits_scaling",
        "final_logit_softcapping",
    ]
    names = re.compile("|".join(rf"\b{n}\b" for entry in tables for n in entry.split("|") if "_" in n))
    package = repository / "ot_lens"
    # The embedded model is a Llama that the package itself builds.
    sources = [path for path in package.rglob("*.py") if "organism" not in path.parts]
    aware = [path.relative_to(package) for path in sources if names.search(path.read_text("utf-8"))]
    assert aware == [Path("models/architectures.py")]
