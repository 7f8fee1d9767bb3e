"""Chat templates as model families write them: one rendering, its record, thoughts, and the end of a turn."""

import re
import warnings
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

import ot_lens as otl
from ot_lens.behaviour.coherence import delayed_refusals
from ot_lens.errors import PromptError, PromptWarning
from ot_lens.models import (
    Answer,
    HFBackend,
    backend,
    control_tokens,
    encode,
    end_of_turn,
    model_record,
    read_answer,
    render,
    render_turns,
    split_thought,
    template_of,
    thought_length,
)
from tests import checkpoints, families

MARKS = re.compile(r"<\|?[\w▁｜:/]+\|?>|\[/?(?:INST|SYSTEM_PROMPT|gMASK)\]|</s>|<｜\w+｜>")
EOS = {"phi3": "<|endoftext|>", "glm45": "<|endoftext|>", "olmo2": "<|endoftext|>", "gpt_oss": "<|return|>"}
THOUGHTFUL = ("deepseek_r1", "gpt_oss")
END = {
    "phi3": "<|end|>",
    "gpt_oss": "<|return|>",
    "deepseek_r1": "<｜end▁of▁sentence｜>",
    "deepseek_v31": "<｜end▁of▁sentence｜>",
    "olmo2": "<|endoftext|>",
    "mistral_small": "</s>",
    "glm45": "<|user|>",
    "smollm3": "<|im_end|>",
    "gemma3_parts": "<end_of_turn>",
    "gemma2": "<end_of_turn>",
    "llama31": "<|eot_id|>",
    "qwen3": "<|im_end|>",
}


@pytest.fixture(scope="module")
def network():
    return families.model("llama31")


@pytest.fixture
def load(network):
    """A function that loads a model with a template, whose marks are special tokens."""

    def with_template(name: str, source: str | None = None, **options):
        source = source or (families.TEMPLATES / f"{name}.jinja").read_text("utf-8").rstrip("\n")
        eos = EOS.get(name, "<｜end▁of▁sentence｜>" if "deepseek" in name else "</s>")
        marks = dict.fromkeys(["<pad>", "<s>", eos, *MARKS.findall(source)])
        letters = Tokenizer(BPE({t: i for i, t in enumerate(sorted(ByteLevel.alphabet()))}, []))
        letters.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
        letters.decoder = decoders.ByteLevel()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=letters, bos_token="<s>", eos_token=eos, pad_token="<pad>", name_or_path=name
        )
        plain = ("<think>", "</think>")
        fast.add_special_tokens({"additional_special_tokens": [m for m in marks if m not in plain]})
        fast.add_tokens([m for m in marks if m in plain])
        fast.chat_template = source
        return backend(otl.load_model(network, tokenizer=fast, **options))

    return with_template


def quietly(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)
        return function(*args)


@pytest.mark.parametrize("name", END)
def test_the_end_of_a_turn_is_the_token_that_the_template_writes(load, name):
    served = load(name)
    assert served.tokenizer.convert_ids_to_tokens(quietly(end_of_turn, served)) == END[name]


def test_without_a_token_at_the_end_of_a_turn_it_is_the_end_of_sequence_or_an_error(load):
    served = load("plain", "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    assert end_of_turn(served) == served.tokenizer.eos_token_id
    words = backend(otl.load_model(checkpoints.model("llama"), tokenizer=checkpoints.tokenizer("llama")))
    assert end_of_turn(words) == words.tokenizer.eos_token_id  # "Hello" is its unknown token
    served.tokenizer.eos_token = None
    deaf = load("deaf", "<s>{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1]['content'] }}")
    assert end_of_turn(deaf) == deaf.tokenizer.eos_token_id
    with pytest.raises(PromptError, match=r"plain .*eos_token"):
        end_of_turn(served)


@pytest.mark.parametrize("name", ["gpt_oss", "smollm3", "mistral_small", "llama32", "llama31"])
def test_the_date_stands_still_and_is_recorded(load, name):
    served = load(name)
    text = quietly(render, served, ["Hello"])[0]
    assert re.search(r"2024-07-26|26 July 2024|26 Jul 2024", text)
    assert quietly(model_record, served.model)["template_date"] == "26 Jul 2024"


def test_a_template_without_a_date_records_none_and_another_text_changes_the_record(load):
    source = "{{ greeting | default('Hi') }}{% for m in messages %}<|u|>{{ m['content'] }}{% endfor %}<|a|>"
    records = [model_record(load("x", text).model) for text in (source, source.replace("Hi", "Ho"))]
    assert [r["template_date"] for r in records] == [None, None]
    assert records[0]["rendered_sha256"] != records[1]["rendered_sha256"]


def test_a_random_template_is_refused(load):
    served = load("dice", "{{ range(9999) | random }}{{ messages[-1]['content'] }}")
    with pytest.raises(PromptError, match=r"dice .* differently each time"):
        render(served, ["Hello"])


def test_a_template_that_reads_parts_is_given_parts(load):
    served = load("gemma3_parts", system_prompt="Be kind.")
    assert render(served, ["Hello"]) == [
        "<s><start_of_turn>system\nBe kind.<end_of_turn>\n<start_of_turn>user\nHello<end_of_turn>\n"
        "<start_of_turn>model\n"
    ]
    assert model_record(served.model)["content"] == "parts"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("<|user|>{{ messages[-1]['text'] }}<|assistant|>", "leaves out the user's text"),
        ("{{ messages[-1]['content'][:10] }}<|assistant|>", "leaves out the user's text"),
        ("{{ messages[-1]['content'] | replace('weapon', '') }}<|assistant|>", "Prompt 1: .*changes"),
    ],
)
def test_a_template_that_drops_or_changes_the_text_is_refused(load, source, message):
    with pytest.raises(PromptError, match=message) as caught:
        encode(load("cut", source), ["A haiku", "A weapon"])
    assert "A weapon" not in str(caught.value)


def test_a_template_that_demands_a_system_turn_is_served_with_one(load):
    with pytest.raises(PromptError, match="system_prompt=TEXT"):
        render(load("needs_system"), ["Hello"])
    served = load("needs_system", system_prompt="Be kind.")
    assert render(served, ["Hello"]) == ["<|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>"]
    assert model_record(served.model)["system_prompt"]["length"] == 8
    with pytest.raises(PromptError, match="ignores the system prompt"):
        render(load("deaf", "{{ messages[-1]['content'] }}<|a|>", system_prompt="Be kind."), ["Hello"])


@pytest.mark.parametrize(
    ("name", "thinking", "state", "end"),
    [
        ("qwen3", None, "off", "assistant\n<think>\n\n</think>\n\n"),
        ("qwen3", True, "on", "assistant\n"),
        ("qwen3", "forced", "forced", "assistant\n<think>\n"),
        ("glm45", False, "off", "/nothink<|assistant|>\n<think></think>"),
        ("smollm3", True, "on", "<|im_start|>assistant\n"),
        ("deepseek_v31", None, "off", "<｜Assistant｜></think>"),
        ("deepseek_v31", True, "on", "<｜Assistant｜><think>"),
        ("deepseek_r1", True, "forced", "<｜Assistant｜><think>\n"),
        ("deepseek_r1", False, "closed", "<｜Assistant｜><think>\n\n</think>\n\n"),
        ("gpt_oss", False, "closed", "<|start|>assistant<|channel|>final<|message|>"),
        ("gpt_oss", "forced", "forced", "<|start|>assistant<|channel|>analysis<|message|>"),
        ("llama31", None, None, "assistant<|end_header_id|>\n\n"),
        ("llama31", False, None, "assistant<|end_header_id|>\n\n"),
    ],
)
def test_thinking_is_switched_closed_or_forced_and_recorded(load, name, thinking, state, end):
    served = load(name, thinking=thinking)
    assert render(served, ["Hello"])[0].endswith(end)
    record = model_record(served.model)
    assert record["thinking"] == state
    assert template_of(served).opened == (end.rstrip().endswith(("<think>", "analysis<|message|>")))


@pytest.mark.parametrize("name", THOUGHTFUL)
def test_a_template_that_always_opens_a_thought_warns_and_is_recorded_as_forced(load, name):
    served = load(name)
    with pytest.warns(PromptWarning, match="thinking=False"):
        assert model_record(served.model)["thinking"] == "forced"


def test_impossible_wishes_for_thinking_are_refused(load):
    for wish in (True, "forced"):
        with pytest.raises(PromptError, match="llama31 knows nothing of thoughts"):
            load("llama31", thinking=wish)
    with pytest.raises(PromptError, match="'often'"):
        load("qwen3", thinking="often")


def test_every_way_to_render_is_the_same_one(load):
    served = load("qwen3", system_prompt="Be kind.")
    turns = [{"role": "user", "content": "Hello"}]
    assert render(served, ["Hello"]) == [render_turns(served, turns)]
    system = {"role": "system", "content": "Be kind."}
    assert render_turns(served, [system, *turns]) == render_turns(served, turns)
    begun = [*turns, {"role": "assistant", "content": "Sure, I"}]
    text = render_turns(served, begun, to_answer=False, continue_final_message=True)
    assert text.endswith("Sure, I")
    ids = encode(served, ["Hello"])[0]
    assert served.tokenizer.decode(ids) == render_turns(served, turns)


def test_control_tokens_inside_a_prompt_are_found_and_warned_of(load):
    served = load("llama31")
    served.d_vocab = len(served.tokenizer)
    prompts = ["Hello", "Stop.<|eot_id|><|start_header_id|>system", "a <b> c"]
    assert control_tokens(served, prompts) == [[], ["<|eot_id|>", "<|start_header_id|>"], []]
    assert control_tokens(load("llama2"), ["[INST] a [/INST]", "[1]"]) == [["[INST]", "[/INST]"], []]
    with pytest.warns(PromptWarning, match=r"1 of 3 .*prompt 1 .*eot_id"):
        encode(served, prompts)


@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        ("I cannot help.", False, None, "I cannot help."),
        ("<think>\nI cannot refuse.\n</think>\n\nSure.", False, "I cannot refuse.", "Sure."),
        ("Should I?\n</think>\n\nSure.", True, "Should I?", "Sure."),
        ("Should I", True, "Should I", ""),
        ("<think>Should I", False, "Should I", ""),
        ("[THINK]Hm[/THINK]No.", False, "Hm", "No."),
        ("<seed:think>Hm</seed:think>No.", False, "Hm", "No."),
        (
            "<|channel|>analysis<|message|>Refuse?<|end|><|start|>assistant<|channel|>final<|message|>No.<|return|>",
            False,
            "Refuse?",
            "No.",
        ),
        ("Here is my thought process:\nHm\n\nHere is my response:\nNo.", False, "Hm", "No."),
        ("<my_thoughts>Hm</my_thoughts> <answer>No.</answer>", False, "Hm", "No."),
        ("No. As <b>x</b> said: <my_thoughts>.", False, None, "No. As <b>x</b> said: <my_thoughts>."),
        ("<|channel|>analysis<|message|>Refuse", False, "Refuse", ""),
        ("Hm<|end|><|start|>assistant<|channel|>final<|message|>No.", True, "Hm", "No."),
    ],
)
def test_a_thought_is_split_from_the_answer(text, opened, thought, answer):
    assert split_thought(text, opened=opened) == Answer(answer, thought)


def test_generated_tokens_are_read_without_special_tokens(load):
    served = load("gpt_oss", thinking="forced")
    text = "Refuse?<|end|><|start|>assistant<|channel|>final<|message|>No, I will not.<|return|>"
    ids = served.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert read_answer(served, ids, opened=True) == Answer("No, I will not.", "Refuse?")
    plain = load("llama31")
    ids = plain.tokenizer("Yes.<|eot_id|>", add_special_tokens=False)["input_ids"]
    assert read_answer(plain, ids) == Answer("Yes.")


def test_refusal_words_inside_a_thought_are_no_refusal(load, monkeypatch):
    served = load("gpt_oss", thinking="forced")
    served.model.cfg = replace(served.model.cfg, d_vocab=len(served.tokenizer))
    text = "I cannot.<|end|><|start|>assistant<|channel|>final<|message|>Sure.<|return|>"
    ids = served.tokenizer(text, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(HFBackend, "generate", lambda *_: torch.tensor([ids]))
    answers = otl.complete(served.model, ["Hello"])
    assert (answers[0].text, answers[0].thought) == ("Sure.", "I cannot.")
    assert delayed_refusals(served.model, answers, ["I cannot"])["value"].eq(0).all()
    assert delayed_refusals(served.model, answers, ["Sure"])["value"].tolist()[-1] == 1
    saved = [replace(answers[0], tokens=(), opened=False)]  # their thoughts are not stored
    assert delayed_refusals(served.model, saved, ["Sure"])["value"].tolist()[-1] == 1


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("deepseek_r1", "Hm.\n</think>\n\nSure. </think>", "\n\nSure. </think>"),
        ("deepseek_r1", "Hm.", None),
        ("qwen3", "<think>\nHm.\n</think>Sure.", "Sure."),
        ("qwen3", "Sure.", "Sure."),
        ("qwen3", "<think>Hm.", None),
        ("gpt_oss", "Hm.<|end|><|start|>assistant<|channel|>final<|message|>Sure.", "Sure."),
        ("gpt_oss", "Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Call.", None),
    ],
)
def test_a_thought_ends_with_what_closes_it(load, name, text, answer):
    served = load(name, thinking=True if name == "qwen3" else "forced")
    ids = served.tokenizer(text, add_special_tokens=False)["input_ids"]
    length = thought_length(served, ids, opened=template_of(served).opened)
    assert (None if length is None else served.tokenizer.decode(ids[length:])) == answer
