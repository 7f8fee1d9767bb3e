"""Batches, templates and system prompts, the record of a model, and all the ways in which loading fails."""

import copy
import json
import logging
import warnings
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import errors as hub
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import ot_lens as otl
from ot_lens.errors import BatchHalvedWarning, ModelError, PromptError
from ot_lens.models import (
    TokenBatch,
    backend,
    batches,
    chat_settings,
    encode,
    end_of_turn,
    in_memory,
    model_record,
    post_instruction_tokens,
    render,
    set_chat,
    stream,
)
from ot_lens.models import pretrained as pretrained_module
from ot_lens.models.backends import HFBackend
from ot_lens.models.batching import groups_by_length
from ot_lens.transport import AffineMap
from tests import checkpoints, families

PROMPTS = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11"]


@pytest.fixture
def model(llama_folder: Path):
    return otl.load_model(llama_folder)


# ------------------------------------------------------------------------------------------------- batches


def log_normal(n: int) -> st.SearchStrategy[list[int]]:
    """Lengths like those of instructions: most short, with a long tail."""
    normal = st.floats(-3, 3)
    return st.lists(normal.map(lambda z: max(1, int(40 * 2.7**z))), min_size=1, max_size=n)


@given(st.one_of(st.lists(st.integers(1, 300), min_size=1, max_size=80), log_normal(80)), st.integers(1, 20))
def test_batches_hold_every_row_once_within_all_limits(lengths, batch_size):
    budget = 600
    groups = groups_by_length(lengths, batch_size, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    widths = [max(lengths[i] for i in group) for group in groups]
    assert widths == sorted(widths, reverse=True)
    assert all(len(group) <= batch_size for group in groups)
    assert all(len(g) * w <= budget for g, w in zip(groups, widths, strict=True) if len(g) > 1)
    cells = sum(len(group) * width for group, width in zip(groups, widths, strict=True))
    assert cells - sum(lengths) < 0.1 * cells
    assert groups == groups_by_length(lengths, batch_size, budget)


@given(st.integers(1, 100), st.integers(1, 20))
def test_rows_of_one_length_fill_their_batches(n, batch_size):
    sizes = [len(group) for group in groups_by_length([7] * n, batch_size, 10_000)]
    assert len(sizes) == -(-n // batch_size)


def test_batches_do_not_depend_on_the_order_of_prompts(model):
    served, prompts = backend(model), [p.text for p in checkpoints.contrast(20).harmful]
    whole = [{tuple(row) for row in b.tokens.tolist()} for b in batches(served, prompts, 4)]
    reordered = [{tuple(row) for row in b.tokens.tolist()} for b in batches(served, prompts[::-1], 4)]
    assert whole == reordered


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 1, "token_budget": 0}])
def test_invalid_batch_sizes_are_refused(model, options):
    with pytest.raises(PromptError, match="at least 1"):
        next(batches(backend(model), PROMPTS, **options))


def batch_of(n: int, width: int = 3) -> TokenBatch:
    tokens = torch.arange(n * width).reshape(n, width)
    return TokenBatch(tuple(range(n)), tokens, torch.ones_like(tokens))


class Memory:
    """A device that holds a limited number of rows at once."""

    def __init__(self, rows: int, error: RuntimeError | None) -> None:
        self.rows, self.error, self.tried = rows, error, []

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        self.tried.append(len(batch.indices))
        if len(batch.indices) > self.rows:
            raise self.error
        return batch.tokens.sum(1)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize(("rows", "error"), [(1, OUT_OF_MEMORY[0]), (3, OUT_OF_MEMORY[1]), (7, None)])
def test_a_batch_halves_itself_until_it_fits(error, rows):
    whole, memory = batch_of(7), Memory(rows, error)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        parts = list(in_memory(memory, whole))
    assert [i for part, _ in parts for i in part.indices] == list(range(7))
    assert torch.equal(torch.cat([values for _, values in parts]), whole.tokens.sum(1))
    assert all(part.tokens.shape[1] == whole.tokens.shape[1] for part, _ in parts)
    assert len(raised) == (0 if rows == 7 else 1)
    if raised:
        assert raised[0].category is BatchHalvedWarning
        assert "7 prompts of 3 tokens" in str(raised[0].message)


@pytest.mark.usefixtures("little_garbage")
def test_one_prompt_too_large_and_other_errors_are_not_halved():
    with pytest.warns(BatchHalvedWarning), pytest.raises(ModelError, match="3 tokens"):
        list(in_memory(Memory(0, OUT_OF_MEMORY[0]), batch_of(2)))
    memory = Memory(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_memory(memory, batch_of(4)))
    assert memory.tried == [4]


@pytest.mark.trust
@pytest.mark.usefixtures("little_garbage")
def test_measures_survive_a_full_device(model, monkeypatch):
    """Generation, next tokens and losses are those of a large device on one that holds two prompts."""
    prompts = [otl.Prompt(text, answer="w3 w4") for text in ("w1 w2 w3", "w4 w5 w6", "w7 w8 w9", "w1 w1 w1")]

    def measured() -> list:
        return [
            otl.complete(model, prompts, max_new_tokens=4),
            otl.next_token_logprobs(model, prompts),
            otl.answer_loss(model, prompts).nll,
            otl.text_loss(model, "w1 w2 w3 w4 " * 20, window=12).nll,
        ]

    expected = measured()
    forward = model.hf_model.forward

    def small(*args, **kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.hf_model, "forward", small)
    with pytest.warns(BatchHalvedWarning):
        found = measured()
    assert found[0] == expected[0]
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- templates and prompts


def served_with(template: str, merges: list[tuple[str, str]] = []):  # noqa: B006
    """A model whose byte-level tokenizer has these merges."""
    letters = ["<pad>", "</s>", *sorted(ByteLevel.alphabet()), *dict.fromkeys(a + b for a, b in merges)]
    words = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, merges))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    fast.chat_template = template
    return backend(otl.load_model(checkpoints.model("llama"), tokenizer=fast))


def tokens_after(served) -> list[str]:
    return served.tokenizer.convert_ids_to_tokens(list(post_instruction_tokens(served)))


def test_post_instruction_tokens_of_plain_and_merging_tokenizers():
    assert tokens_after(served_with("U:{{ messages[0]['content'] }}")) == []
    plain = served_with("U:{{ messages[0]['content'] }}\n\nA:")
    assert tokens_after(plain) == ["Ċ", "Ċ", "A", ":"]
    # With ".\n" as one token the first line break belongs to some instructions.
    merging = served_with("U:{{ messages[0]['content'] }}\n\nA:", [(".", "Ċ")])
    assert tokens_after(merging) == ["Ċ", "A", ":"]


def test_post_instruction_tokens_where_most_words_are_unknown():
    """The word tokenizer maps every ordinary word to <unk>, which must not count as a template token."""
    model = otl.load_model(checkpoints.model("llama"), tokenizer=checkpoints.tokenizer("llama"))
    assert tokens_after(backend(model)) == ["<eot>", "<assistant>", "<nl>"]


def test_the_date_in_a_template_is_fixed(tmp_path):
    """Llama 3.2's template writes today's date, so that prompts would change every day."""
    served = backend(otl.load_model(families.write(tmp_path, "llama32")))
    assert "Today Date: 26 Jul 2024" in render(served, ["w1"])[0]
    turns = [{"role": "user", "content": "w1"}]
    assert "26 Jul 2024" not in served.tokenizer.apply_chat_template(turns, tokenize=False)
    assert model_record(served.model)["template_date"] == "26 Jul 2024"


@pytest.mark.parametrize(
    ("family", "end"), [("llama2", "</s>"), ("llama31", "<|eot_id|>"), ("gemma2", "<end_of_turn>")]
)
def test_the_token_that_ends_a_turn_is_the_template_s(family, end):
    served = backend(otl.load_model(checkpoints.model("llama"), tokenizer=families.tokenizer(family)))
    assert served.tokenizer.convert_ids_to_tokens(end_of_turn(served)) == end


def test_thinking_is_switched_off(tmp_path):
    """Otherwise the first token of every answer of Qwen 3 would be <think>."""
    served = backend(otl.load_model(families.write(tmp_path, "qwen3")))
    turns = [{"role": "user", "content": "w1"}]
    own = served.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert render(served, ["w1"])[0] == own + "<think>\n\n</think>\n\n"
    assert model_record(served.model)["thinking"] == "off"


def test_a_system_prompt_of_each_kind_of_model(llama_folder):
    for hooks in ("residual", "full"):
        model = otl.load_model(llama_folder, hooks=hooks, system_prompt="w5 w6")
        assert chat_settings(model).system == "w5 w6"
        assert "w5 w6" in render(backend(model), ["w1"])[0]
        assert chat_settings(otl.load_model(model)).system == "w5 w6"
        otl.load_model(model, system_prompt="")
        assert render(backend(model), ["w1"]) != render(backend(otl.load_model(llama_folder)), ["w1"])


def test_a_template_that_ignores_the_system_prompt_is_refused():
    served = served_with("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %} A:")
    assert render(served, ["w1"]) == ["w1 A:"]
    set_chat(served.model, system="be kind")
    with pytest.raises(PromptError, match="ignores the system prompt"):
        encode(served, ["w1"])


def test_a_record_is_json_and_distinguishes_models(llama_folder):
    plain = model_record(otl.load_model(llama_folder))
    assert json.loads(json.dumps(plain)) == plain
    assert plain["weight_processing"] == "none: Hugging Face's own weights"
    assert plain["post_instruction_tokens"] == ["<eot>", "<assistant>", "<nl>"]
    assert [plain[n] for n in ("bos", "quantization", "device_map", "thinking")] == ["template", *[None] * 3]
    for options in ({"dtype": "bfloat16"}, {"system_prompt": "w1"}, {"system_prompt": ""}, {"hooks": "full"}):
        assert model_record(otl.load_model(llama_folder, **options)) != plain
    bridge = otl.load_model(llama_folder, hooks="full")
    bridge.enable_compatibility_mode(disable_warnings=True)
    assert "compatibility mode" in model_record(bridge)["weight_processing"]


def test_a_bridge_that_was_made_elsewhere_is_run_once_and_refused_if_its_cache_is_lost(
    llama_folder, monkeypatch
):
    """As transformer-lens 4.3 loses the cache of transformers 5.24."""
    bridge, calls = otl.load_model(llama_folder, hooks="full"), []
    own = HFBackend.two_steps

    def lost(served, tokens, mask):
        calls.append(tokens)
        token, steps = own(served, tokens, mask)
        return token, torch.stack([steps[0], steps[0]]) if broken else steps

    monkeypatch.setattr(HFBackend, "two_steps", lost)
    broken = True
    with otl.intervene(bridge, {1: AffineMap.identity(backend(bridge).d_model)}):
        backend(copy.deepcopy(bridge))  # of an edited copy nothing can be said
    assert calls == []
    for broken in (False, True):
        stream._INSPECTED.pop(bridge)
        calls.clear()
        for _ in range(2):
            if broken:
                with pytest.raises(ModelError, match="with its cache"):
                    otl.capture(bridge, checkpoints.contrast(2))
            else:
                otl.capture(bridge, checkpoints.contrast(2))
        assert len(calls) == 1 + broken


# ------------------------------------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for blocks of 64 quantized weights."""
    folder, words = tmp_path_factory.mktemp("wide"), checkpoints.tokenizer("llama")
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(words), initializer_range=0.1, pad_token_id=0, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("quantization", "kind"), [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
def test_quantized_models_load_and_answer_quietly(wide, quantization, kind, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        model = otl.load_model(wide, quantization=quantization, dtype="bfloat16")
        answers = otl.complete(model, PROMPTS, max_new_tokens=2)
    assert len(answers) == 3
    assert type(model.hf_model.model.layers[0].self_attn.q_proj).__name__ == kind
    assert model_record(model)["quantization"] == quantization
    assert capfd.readouterr().err == ""
    assert caplog.records == []
    plain = otl.load_model(wide, dtype="bfloat16")
    acts, near = (otl.capture(m, checkpoints.contrast(2)).harmful(1) for m in (plain, model))
    assert 0 < float((acts - near).norm() / acts.norm()) < 0.5


def test_quantization_without_its_library_names_the_extra(wide, monkeypatch):
    monkeypatch.setattr(pretrained_module, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'ot-lens\[quantization\]'"):
        otl.load_model(wide, quantization="int8")


def spread(layers: int, first_on_disk: int) -> dict[str, str]:
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    places = {f"model.layers.{i}": "disk" if i >= first_on_disk else "cpu" for i in range(layers)}
    return {**dict.fromkeys(parts, "cpu"), **places}


@pytest.mark.parametrize("device_map", ["auto", spread(4, 2), {**spread(4, 0), "model.embed_tokens": "disk"}])
def test_a_spread_model_is_captured_edited_and_swept_alike(tmp_path, device_map):
    """Layers on disk replace layers on other devices: accelerate fetches each when it runs."""
    folder = families.write(tmp_path, "qwen25")
    whole, spread_out = otl.load_model(folder), otl.load_model(folder, device_map=device_map)
    generator, d = torch.Generator().manual_seed(0), backend(whole).d_model
    U, V = (torch.randn(d, 2, generator=generator) / 4 for _ in range(2))
    edits = {layer: AffineMap(U, V, torch.ones(d)) for layer in (1, 3)}
    prompts = checkpoints.contrast(3)
    found = []
    for model in (whole, spread_out):
        with otl.intervene(model, edits, "last"):
            answers = otl.complete(model, PROMPTS, max_new_tokens=4)
        swept = otl.next_token_sweep(model, PROMPTS, [edits, {}], lambda rows, _: rows)
        found.append((answers, otl.capture(model, prompts).stacked("harmful"), swept))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2])
    if device_map != "auto":
        assert "disk" in model_record(spread_out)["device_map"].values()


def test_loading_prints_nothing(llama_folder, capfd):
    otl.load_model(llama_folder)
    assert capfd.readouterr() == ("", "")


def refuse(error: Exception):
    """A hub that responds with an error, wrapped as transformers wraps it."""

    def from_pretrained(*_args, **_kwargs):
        raise OSError("You are trying to access a repository.\nMore lines.") from error

    return from_pretrained


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: hub.GatedRepoError("gated", response=response(403)), "gated: accept its licence"),
        (lambda: hub.RepositoryNotFoundError("absent", response=response(404)), "no model 'some/model'"),
        (lambda: hub.RevisionNotFoundError("revision", response=response(404)), "has no revision 'v9'"),
        (lambda: hub.LocalEntryNotFoundError("no cache"), "not in the local cache"),
        (lambda: None, "You are trying to access a repository"),
    ],
)
def test_each_error_of_the_hub_is_one_clear_line(monkeypatch, error, message):
    monkeypatch.setattr(pretrained_module.AutoTokenizer, "from_pretrained", refuse(error()))
    with pytest.raises(ModelError, match=message) as caught:
        otl.load_model("some/model", revision="v9")
    assert "\n" not in str(caught.value)


def test_a_hub_name_without_a_network_is_an_error():
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        otl.load_model("some/model-that-is-not-cached")


def broken(
    llama_folder: Path, tmp_path: Path, *, without: str = "", text: dict[str, str] | None = None
) -> Path:
    for file in llama_folder.iterdir():
        if not (without and file.name.startswith(without)):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    for name, content in (text or {}).items():
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"without": "tokenizer"}, "holds no tokenizer"),
        ({"without": "config"}, "no config.json"),
        ({"without": "model"}, "Cannot load"),
        ({"text": {"model.safetensors": "no tensors"}}, "is damaged"),
        ({"text": {"config.json": "{"}}, "Cannot load"),
        ({"text": {"config.json": '{"model_type": "unheard"}'}}, "Cannot load"),
        ({"text": {"tokenizer.json": "{"}}, "Cannot load"),
    ],
)
def test_a_broken_folder_is_one_clear_line(llama_folder, tmp_path, damage, message):
    with pytest.raises(ModelError, match=message) as caught:
        otl.load_model(broken(llama_folder, tmp_path, **damage))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    model = checkpoints.model("llama")
    weights = {k: v.clone() for k, v in model.state_dict().items() if "layers.1.mlp.up" not in k}
    model.save_pretrained(tmp_path, state_dict=weights)
    checkpoints.tokenizer("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="lacks 1 weights"):
        otl.load_model(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat17"}, "bfloat17"),
        ({"dtype": "int8"}, "int8"),
        ({"device": "cpu", "device_map": "auto"}, "not both"),
        ({"device": "gpu"}, "'gpu'"),
        ({"quantization": "int3"}, "no quantization 'int3': choose one of int8, nf4"),
        ({"hooks": "some"}, "choose one of residual, full"),
        ({"revision": "main"}, "is a folder"),
    ],
)
def test_invalid_options_are_refused(llama_folder, options, message):
    with pytest.raises(ModelError, match=message):
        otl.load_model(llama_folder, **options)


def test_loading_options_of_a_loaded_model_are_refused(model):
    with pytest.raises(ModelError, match="already loaded"):
        otl.load_model(model, dtype="bfloat16")


def test_an_overlong_name_is_abbreviated():
    with pytest.raises(ModelError, match="choose one of") as refused:
        otl.load_model("organism:multi", hooks="z" * 9_000)
    assert len(str(refused.value)) < 300
