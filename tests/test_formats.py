"""What people bring: GGUF files, adapters, vision-language folders, leftover weights, other devices."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from functools import partial

import gguf
import numpy as np
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PolyConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

import ot_lens as otl
from ot_lens.errors import ModelError, PromptError, UnusedWeightsWarning
from ot_lens.models import backend
from ot_lens.models.record import model_record
from tests import checkpoints


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return checkpoints.write(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def packed(tmp_path_factory, llama):
    """The Llama checkpoint as a GGUF file in float32, with a tokenizer and a chat template of its own."""
    path = tmp_path_factory.mktemp("packed") / "tiny.gguf"
    write_gguf(path, load_file(llama / "model.safetensors"), json.loads((llama / "config.json").read_text()))
    return path


def write_gguf(path, weights, config, quantization=None):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    letters = [chr(c) for c in range(65, 65 + config["vocab_size"] - 5)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<pad>", "<s>", "</s>", *letters, "ab", "cd"])
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(letters) + 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}<s>")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in weights.items():
        stem, kind = name.rsplit(".", 1)
        packed_name = names.get_name(stem)
        values = weight.numpy()
        n = heads.get(packed_name.rsplit(".", 1)[-1])
        if n is not None:  # llama.cpp interleaves the halves that the rotary embedding turns
            values = values.reshape(n, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        values = np.ascontiguousarray(values)
        if quantization is not None and values.ndim == 2:
            values = gguf.quants.quantize(values, quantization)
        writer.add_tensor(
            f"{packed_name}.{kind}", values, raw_dtype=quantization if values.ndim == 2 else None
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model, seed=0):
    tokens = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return backend(model).logits(tokens, torch.ones_like(tokens)).float()


@pytest.mark.parametrize("hooks", ["residual", "full"])
def test_a_gguf_file_is_the_model_it_was_made_from(packed, llama, hooks):
    model, source = otl.load_model(packed, hooks=hooks), otl.load_model(llama)
    assert torch.allclose(logits(model), logits(source), atol=1e-4)
    record = model_record(model)
    assert record["gguf"]["file"] == "tiny.gguf"
    assert len(record["gguf"]["sha256"]) == 64
    assert record["quantization"] is None
    assert otl.load_model(packed, dtype="bfloat16").cfg.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "BF16"])
def test_a_quantized_gguf_file_is_unpacked(llama, tmp_path, name):
    """Blocks lie within rows, so that the order of rows does not matter."""
    kind, weights = gguf.GGMLQuantizationType[name], load_file(llama / "model.safetensors")
    path = tmp_path / "tiny.GGUF"
    write_gguf(path, weights, json.loads((llama / "config.json").read_text()), kind)
    for key, weight in weights.items():
        if weight.ndim == 2:
            rounded = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
            weights[key] = torch.from_numpy(rounded.copy())
    source = shutil.copytree(llama, tmp_path / "source")
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model = otl.load_model(path)
    assert torch.allclose(logits(model), logits(otl.load_model(source)), atol=1e-3)
    model.tokenizer.chat_template = None
    with pytest.raises(PromptError, match=re.escape(str(path))):
        otl.complete(model, ["w1"])


def test_a_gguf_file_is_parsed_once(packed, monkeypatch):
    parsed, own = [], gguf.GGUFReader
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: parsed.append(path) or own(path))
    counting = gguf.GGUFReader
    otl.load_model(packed)
    assert len(parsed) == 1
    assert gguf.GGUFReader is counting


def test_a_gguf_file_ignores_its_neighbours(packed, llama, tmp_path):
    """Its tokenizer and template come from the file, whatever model lies in the same folder."""
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    shutil.copy(packed, tmp_path)
    model = otl.load_model(tmp_path, gguf_file="tiny.gguf")
    assert model.tokenizer.chat_template == otl.load_model(packed).tokenizer.chat_template
    assert model.tokenizer.chat_template != otl.load_model(tmp_path).tokenizer.chat_template
    assert model.cfg.model_name == f"{tmp_path}/tiny.gguf"


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        (lambda folder: folder / "absent.gguf", "absent.gguf"),
        (lambda folder: written(folder / "text.gguf", b"not weights"), "not a GGUF file"),
        (lambda folder: written(folder / "big-00001-of-00003.gguf", b"GGUF"), "--merge"),
        (lambda folder: written(folder / "cut.gguf", b"GGUF\x03\x00\x00\x00\x01"), "cut.gguf"),
    ],
)
def test_a_gguf_file_that_cannot_be_read_is_named(tmp_path, prepare, named):
    with pytest.raises(ModelError, match=named):
        otl.load_model(prepare(tmp_path))


def written(path, content):
    path.write_bytes(content)
    return path


def test_a_folder_of_gguf_files_names_the_option(tmp_path):
    written(tmp_path / "some.gguf", b"GGUF")
    with pytest.raises(ModelError, match=r"gguf_file='some.gguf'"):
        otl.load_model(tmp_path)


LORA = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory):
    """A LoRA adapter of the Llama checkpoint that changes its logits."""
    folder = tmp_path_factory.mktemp("adapter")
    wrapped = lora(llama)
    wrapped.save_pretrained(folder)
    return folder


def lora(llama):
    return adapted(llama, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))


def adapted(llama, config):
    """A PeftModel whose adapter has random weights, so that it acts."""
    base = AutoModelForCausalLM.from_pretrained(llama)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(base, config)
        for weight in wrapped.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.3)
    return wrapped.eval()


def test_an_adapter_acts_alike_however_it_arrives(llama, adapter):
    """In its own layers, merged, under every hook point, or inside a PeftModel already loaded."""
    expected = logits(otl.load_model(lora(llama), tokenizer=checkpoints.tokenizer("llama")))
    assert not torch.allclose(expected, logits(otl.load_model(llama)), atol=0.1)
    apart = otl.load_model(llama, adapter=adapter)
    merged = otl.load_model(llama, adapter=adapter, merge_adapter=True)
    full = otl.load_model(llama, adapter=adapter, merge_adapter=True, hooks="full")
    for model in (apart, merged, full):
        assert torch.allclose(logits(model), expected, atol=1e-4)
    assert model_record(apart)["adapter"] == {"source": str(adapter), "merged": False}
    assert model_record(merged)["adapter"] == {"source": str(adapter), "merged": True}
    (layers,) = model_record(apart)["adapters_in_layers"]
    assert (layers["type"], layers["active"], layers["merged"]) == ("LORA", True, False)
    assert model_record(merged)["adapters_in_layers"] is None


@pytest.mark.parametrize(
    ("config", "merges"),
    [
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, bias="all"), True),
        (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), True),
        (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]), True),
        (LoraConfig(r=2, target_modules=["embed_tokens"]), False),  # tied to the head
        (LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 3], [2, 4]]), False),
    ],
)
@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_an_adapter_is_merged_to_the_same_model_or_not_at_all(llama, tmp_path, config, merges):
    wrapped = adapted(llama, config)
    wrapped.save_pretrained(tmp_path)
    expected = logits(otl.load_model(wrapped, tokenizer=checkpoints.tokenizer("llama")))
    assert torch.allclose(logits(otl.load_model(llama, adapter=tmp_path)), expected, atol=1e-4)
    if merges:
        merged = otl.load_model(llama, adapter=tmp_path, merge_adapter=True)
        assert torch.allclose(logits(merged), expected, atol=1e-3)
    else:
        with pytest.raises(ModelError, match="leave out merge_adapter"):
            otl.load_model(llama, adapter=tmp_path, merge_adapter=True)


def test_several_adapters_are_the_peft_model_s_or_refused_by_name(llama, adapter, tmp_path):
    mixed = get_peft_model(checkpoints.model("llama"), LoraConfig(**LORA), adapter_name="one", mixed=True)
    mixed.add_adapter("two", LoHaConfig(r=2, target_modules=["v_proj"], init_weights=False))
    mixed.set_adapter(["one", "two"])
    model = otl.load_model(mixed.eval(), tokenizer=checkpoints.tokenizer("llama"))
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.allclose(model(tokens), mixed(input_ids=tokens).logits, atol=1e-5)
    assert [a["type"] for a in model_record(model)["adapters_in_layers"]] == ["LORA", "LOHA"]
    with pytest.raises(ModelError, match="one folder or hub name"):
        otl.load_model(llama, adapter=[adapter, adapter])
    several = get_peft_model(checkpoints.model("llama"), LoraConfig(**LORA), adapter_name="one")
    several.add_adapter("two", LoraConfig(**LORA))
    several.save_pretrained(tmp_path)
    for call in (partial(otl.load_model, tmp_path), partial(otl.load_model, llama, adapter=tmp_path)):
        with pytest.raises(ModelError, match=r"one, two.*adapter='.*one'"):
            call()


def test_a_disabled_adapter_is_recorded_as_inactive(llama):
    wrapped = lora(llama)
    wrapped.base_model.disable_adapter_layers()
    model = otl.load_model(wrapped, tokenizer=checkpoints.tokenizer("llama"))
    assert torch.equal(logits(model), logits(otl.load_model(llama)))
    assert [a["active"] for a in model_record(model)["adapters_in_layers"]] == [False]


def test_edits_act_on_an_adapted_model(llama, adapter):
    model = otl.load_model(llama, adapter=adapter)
    activations = otl.capture(model, checkpoints.contrast(6))
    fitted = otl.fit_mean_shift(activations.harmful(2), activations.harmless(2))
    before = logits(model)
    with otl.intervene(model, {2: fitted}):
        assert not torch.allclose(logits(model), before, atol=1e-3)
    assert torch.equal(logits(model), before)


def test_a_folder_with_weights_and_an_adapter_asks_which(llama, adapter, tmp_path):
    """transformers applies the adapter if peft is installed and ignores it otherwise."""
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(ModelError, match="adapter=False"):
        otl.load_model(tmp_path)
    plain = otl.load_model(tmp_path, adapter=False)
    assert torch.equal(logits(plain), logits(otl.load_model(llama)))
    adapted = otl.load_model(tmp_path, adapter=tmp_path)
    assert torch.allclose(logits(adapted), logits(otl.load_model(llama, adapter=adapter)))


def test_an_adapter_alone_names_its_base(adapter, llama):
    with pytest.raises(ModelError, match=r"adapter of .*adapter="):
        otl.load_model(adapter)


def test_adapters_that_do_not_belong_are_refused(llama, adapter, tmp_path):
    with pytest.raises(ModelError, match=str(adapter)):
        otl.load_model("organism", adapter=adapter)
    deeper = shutil.copytree(adapter, tmp_path / "deeper")
    weights = load_file(deeper / "adapter_model.safetensors")
    renamed = {name.replace("layers.3", "layers.7"): w for name, w in weights.items()}
    save_file(renamed, deeper / "adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns as well
        with pytest.raises(ModelError, match="no counterpart"):
            otl.load_model(llama, adapter=deeper)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "virtual tokens"),
        (LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM"), "LoRA"),
        (PolyConfig(target_modules=["q_proj"], n_tasks=2, task_type="CAUSAL_LM"), "LoRA"),
    ],
)
def test_adapters_that_act_outside_the_layers_are_refused(llama, tmp_path, config, named):
    wrapped = adapted(llama, config)
    wrapped.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=named):
        otl.load_model(wrapped, tokenizer=checkpoints.tokenizer("llama"))
    with pytest.raises(ModelError, match=named):
        otl.load_model(llama, adapter=tmp_path)


def test_a_model_in_memory_has_every_hook_point_if_asked(llama):
    tokenizer = checkpoints.tokenizer("llama")
    model = otl.load_model(lora(llama), tokenizer=tokenizer, hooks="full")
    plain = otl.load_model(lora(llama), tokenizer=tokenizer)
    assert "blocks.0.attn.hook_out" in model.hook_dict
    assert torch.allclose(logits(model), logits(plain), atol=1e-4)
    with pytest.raises(ModelError, match="hf_model"):
        otl.load_model(plain, hooks="full")
    with pytest.raises(ModelError, match="gives no logits"):
        otl.load_model(checkpoints.model("llama").model, tokenizer=tokenizer)


def test_an_adapter_brings_its_tokenizer(llama, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    own = AutoTokenizer.from_pretrained(llama)
    own.chat_template = "{% for m in messages %}<s> {{ m['content'] }} <eot>{% endfor %}"
    own.save_pretrained(tmp_path)
    assert otl.load_model(llama, adapter=tmp_path).tokenizer.chat_template == own.chat_template
    assert otl.load_model(llama, adapter=adapter).tokenizer.chat_template != own.chat_template


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"merge_adapter": True}, "needs an adapter"),
        ({"adapter": "x", "merge_adapter": True, "quantization": "int8"}, "cannot be merged exactly"),
        ({"gguf_file": "tiny.gguf", "quantization": "int8"}, "leave out quantization"),
    ],
)
def test_options_that_contradict_each_other(llama, options, named):
    with pytest.raises(ModelError, match=named):
        otl.load_model(llama, **options)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """A vision-language folder, of a class that AutoModelForCausalLM does not load."""
    folder = tmp_path_factory.mktemp("vision")
    text = checkpoints.model("llama").config
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        ),
        text_config=LlamaConfig(**{k: v for k, v in text.to_dict().items() if k != "model_type"}),
        image_token_index=3,
    )
    checkpoints.random_weights(LlavaForConditionalGeneration, config, 0).save_pretrained(folder)
    checkpoints.tokenizer("llama").save_pretrained(folder)
    return folder


def test_nothing_is_installed_for_a_vision_language_model(vision, monkeypatch):
    """TransformerLens would install torchvision on the fly, and with it another torch."""
    asked = []
    monkeypatch.setattr("subprocess.check_call", lambda command, *_, **__: asked.append(command))
    with suppress(ModelError):
        otl.load_model(vision, hooks="full")
    assert asked == []


def test_the_text_tower_of_a_vision_language_folder_is_read(vision):
    model = otl.load_model(vision)
    own = LlavaForConditionalGeneration.from_pretrained(vision)
    tokens = torch.arange(5, 12)[None]
    with torch.no_grad():
        expected = own(input_ids=tokens).logits
        assert torch.allclose(model(tokens), expected, atol=1e-5)
    assert model.cfg.n_layers == own.config.text_config.num_hidden_layers
    assert len(otl.complete(model, ["w1 w2"], max_new_tokens=3)) == 1


def test_weights_without_a_place_are_named(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.warns(UnusedWeightsWarning, match=r"1 weights.*q_proj\.bias"):
        otl.load_model(tmp_path)


@pytest.mark.trust
def test_every_stage_runs_on_a_device_without_float64():
    """In a process of its own, on a stand-in for MPS that refuses float64; results are those of the CPU."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.no_float64"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]


@pytest.mark.parametrize(
    ("device", "named"), [("gpu", "'gpu'"), ("cuda:7", "'cuda:7'"), ("mps", "'mps'"), ("meta", "no weights")]
)
def test_a_device_that_is_not_there(device, named):
    with pytest.raises(ModelError, match=named):
        otl.load_model("organism", device=device)


def test_the_default_device_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="mps"):  # this torch build has no MPS
        otl.load_model("organism")
