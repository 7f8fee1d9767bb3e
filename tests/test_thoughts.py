"""Where the answer of a thinking model begins: thoughts as part of prompts, and activations behind them."""

from dataclasses import replace

import pytest
import torch

import ot_lens as otl
from ot_lens.activations import Activations, CaptureSettings, plan_shards
from ot_lens.errors import HookError, PromptError, PromptWarning, RunFolderError
from ot_lens.models import HFBackend, backend, encode, set_chat
from ot_lens.prompts import Contrast
from tests import checkpoints
from tests.families import TEMPLATES

OPENING = "{% if enable_thinking is defined and not enable_thinking %} <think> </think>{% endif %}"
ALWAYS = checkpoints.TEMPLATES["llama"].replace("<nl>{% endif %}", "<nl> <think>{% endif %}")
TEMPLATE = checkpoints.TEMPLATES["llama"].replace("<nl>{% endif %}", f"<nl>{OPENING}{{% endif %}}")


@pytest.fixture(scope="module")
def model():
    tokenizer = checkpoints.tokenizer("llama")
    tokenizer.add_tokens(["<think>", "</think>", "\n\n"])
    tokenizer.chat_template = TEMPLATE
    network = checkpoints.model("llama")
    network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return otl.load_model(network, tokenizer=tokenizer, thinking=True)


@pytest.fixture(scope="module")
def prompts():
    return checkpoints.contrast(5)


@pytest.fixture
def script(model, monkeypatch):
    """Make the model write a thought of 0 to 6 words, white space and an answer, from wherever it has got."""
    encoded = model.tokenizer.convert_tokens_to_ids
    end_of_prompt = encoded("<nl>")

    def written(prompt: list[int]) -> list[int]:
        thought = checkpoints.WORDS[: sum(prompt) % 7]
        return encoded(["<think>", *thought, "</think>", "\n\n", "w9", "w8", "</s>"])

    def generate(_self, tokens, mask, budget, stops, *_):
        rows = []
        for row, real in zip(tokens, mask.bool(), strict=True):
            ids = row[real].tolist()
            start = len(ids) - ids[::-1].index(end_of_prompt)
            rest = written(ids[:start])[len(ids) - start :][:budget]
            stop = next((i for i, token in enumerate(rest) if token in stops), len(rest))
            rows.append(rest[: stop + 1])
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    monkeypatch.setattr(HFBackend, "generate", generate)
    return written


def by_hand(model, group, script):
    """The stream at the last token of prompt and thought, without padding, and the next log-probabilities."""
    streams, logprobs = [], []
    for row in encode(backend(model), group):
        written = script(row)
        full = [*row, *written[: written.index(model.tokenizer.convert_tokens_to_ids("\n\n")) + 1]]
        with torch.no_grad():
            logits, cache = model.run_with_cache(torch.tensor([full]))
        streams.append(cache["resid_pre", 2][0, -1].double())
        logprobs.append(logits[0, -1].double().log_softmax(-1))
    return torch.stack(streams), torch.stack(logprobs)


def test_thought_end_is_where_the_answer_begins(model, prompts, script, tmp_path):
    acts = otl.capture(model, prompts, positions=[-1, "thought_end"], batch_size=3, store=tmp_path / "a")
    assert acts.positions == (-1, "thought_end")
    expected, logprobs = by_hand(model, prompts.harmful, script)
    plain = otl.capture(model, prompts)
    torch.testing.assert_close(acts.harmful(2, -1), plain.harmful(2), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain.harmful(2), expected, atol=0.1)
    thoughtful = Contrast(*(otl.think(model, group) for _, group in prompts))
    for way in (
        acts,
        otl.load_activations(tmp_path / "a"),
        otl.capture(model, prompts, positions="thought_end"),
        otl.capture(model, thoughtful, positions=["thought_end"]),
        otl.capture(model, thoughtful),
    ):
        torch.testing.assert_close(way.harmful(2, way.positions[-1]), expected, rtol=1e-4, atol=1e-4)
    found = otl.next_token_logprobs(model, thoughtful.harmful)
    torch.testing.assert_close(found, logprobs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, otl.next_token_logprobs(model, prompts.harmful), atol=0.1)
    assert set(otl.diagnose(acts, permutations=5, bootstrap=5)["position"]) == {-1, "thought_end"}


def test_the_record_names_the_thoughts(model, prompts, script, tmp_path, monkeypatch):
    options = {"positions": "thought_end", "layers": [1], "store": tmp_path / "a"}
    key = otl.capture(model, prompts, **options).info
    assert (key["positions"], len(key["thoughts_sha256"])) == (["thought_end"], 64)
    assert "thoughts_sha256" not in otl.capture(model, prompts, layers=[1]).info
    thoughtful = Contrast(*(tuple(replace(p, thought=(5,)) for p in group) for _, group in prompts))
    assert plan_shards(model, thoughtful, CaptureSettings()).key["prompts"] != prompts.sha256
    others = {group: getattr(thoughtful, label) for label, group in prompts}
    monkeypatch.setattr("ot_lens.activations.plan.think", lambda _model, group, **_: others[group])
    with pytest.raises(RunFolderError, match="thoughts_sha256"):
        otl.capture(model, prompts, **options)


def test_completions_after_a_thought_are_the_answer(model, prompts, script):
    set_chat(model, thinking="forced")  # prompts end inside a thought
    try:
        thoughtful = otl.think(model, prompts.harmful)
        assert otl.think(model, thoughtful) == thoughtful
        assert {model.tokenizer.decode(p.thought[-2:]) for p in thoughtful} == {"</think> \n\n"}
        whole, after = (otl.complete(model, group) for group in (prompts.harmful, thoughtful))
    finally:
        set_chat(model, thinking=True)
    assert [a.text for a in whole] == [a.text for a in after] == ["w9 w8"] * 5
    assert [a.thought is None for a in (whole[0], after[0])] == [False, True]


def test_a_model_that_answers_at_once_has_an_empty_thought(model, prompts, monkeypatch):
    monkeypatch.setattr(HFBackend, "generate", lambda _self, tokens, *_: torch.full((len(tokens), 3), 20))
    assert [p.thought for p in otl.think(model, prompts.harmful)] == [()] * 5
    last, end = (otl.capture(model, prompts, positions=p).harmful(2) for p in (-1, "thought_end"))
    assert torch.equal(last, end)


def test_thoughts_that_do_not_come_or_end_are_errors(model, prompts, script):
    with pytest.raises(PromptError, match=r"Prompt \d .*within 2 tokens .*max_new_tokens"):
        otl.think(model, prompts.harmful, max_new_tokens=2)
    with pytest.raises(PromptError, match="context of 128"):
        otl.think(model, prompts.harmful, max_new_tokens=128)
    set_chat(model, thinking=False)
    try:
        with pytest.raises(PromptError, match=r"off.*position -1"):
            otl.capture(model, prompts, positions="thought_end")
    finally:
        set_chat(model, thinking=True)
    thoughtful = Contrast(*(otl.think(model, group) for _, group in prompts))
    with pytest.raises(HookError, match="post_instruction"):
        otl.capture(model, thoughtful, positions="post_instruction")
    cache = {"blocks.0.hook_resid_pre": torch.zeros(1, 3, 4)}
    with pytest.raises(HookError, match="thought_end"):
        Activations.from_caches(harmful=cache, harmless=cache, positions="thought_end")
    with pytest.raises(HookError, match="'thought'"):
        otl.capture(model, prompts, positions=["thought"])


# The thought refuses and the answer complies.
WRITTEN = ["<nl>", "<think>", "I", "w1", "</think>", "\n\n", "w9", "w8", "</s>"]


@pytest.mark.parametrize(
    ("template", "thinking", "last", "thought"),
    [
        (TEMPLATE, True, "<nl>", "I w1"),  # the model opens the thought
        (TEMPLATE, "forced", "<think>", "I w1"),
        (ALWAYS, True, "<think>", "I w1"),
        (TEMPLATE, False, "</think>", None),
        (ALWAYS, False, "</think>", None),
    ],
)
def test_a_checkpoint_that_thinks_is_judged_by_its_answer(
    prompts, tmp_path, template, thinking, last, thought
):
    tokenizer = checkpoints.tokenizer("llama")
    tokenizer.add_tokens(["<think>", "</think>", "\n\n"])
    tokenizer.chat_template = template
    folder = checkpoints.chain(WRITTEN, tokenizer, tmp_path)
    model = otl.load_model(folder, thinking=thinking)
    served, own = backend(model), tokenizer.convert_tokens_to_ids
    assert {row[-1] for row in encode(served, prompts.harmful)} <= {own(last), own("\n\n")}
    answers = otl.complete(model, prompts.harmful, max_new_tokens=12)
    assert {(a.text, a.thought, a.truncated) for a in answers} == {("w9 w8", thought, False)}
    assert otl.refuses([a.text for a in answers], ["I "]).count(True) == 0
    assert otl.delayed_refusals(model, answers, ["I "])["value"].eq(0).all()
    if thought is None:
        with pytest.raises(PromptError, match="no thoughts"):
            otl.think(model, prompts.harmful)
        return
    acts = otl.capture(model, prompts, positions=[-1, "thought_end"])
    for position, token in ((-1, last), ("thought_end", "\n\n")):
        assert acts.harmful(1, position).argmax(-1).unique().tolist() == [own(token)]
    thoughtful = otl.think(model, prompts.harmful)
    assert otl.next_token_logprobs(model, thoughtful).argmax(-1).unique().tolist() == [own("w9")]
    assert {a.text for a in otl.complete(model, thoughtful)} == {"w9 w8"}


@pytest.mark.parametrize(
    ("begin", "end", "answer"),
    [
        ("<seed:think>", "</seed:think>", ()),
        ("[THINK]", "[/THINK]", ()),
        ("<mm:think>", "</mm:think>", ()),
        ("<think>", "</think>", ("<answer>", "</answer>")),  # Hunyuan
        ("<think>", "</think>", ("<response>", "</response>")),  # Granite 3.3, ERNIE
        ("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
        # Marks that no list has: their names tell.
        ("<|thought_start|>", "<|thought_end|>", ()),
        ("<my:reasoning>", "</my:reasoning>", ()),
        ("[INNER_THOUGHT]", "[/INNER_THOUGHT]", ()),
    ],
)
def test_thoughts_are_known_by_the_names_of_their_marks(prompts, tmp_path, begin, end, answer):
    tokenizer = checkpoints.tokenizer("llama")
    tokenizer.add_tokens([begin, end, *answer])
    tokenizer.chat_template = ALWAYS.replace("<think>", begin) + f"{{% set other = '{end}' %}}"
    written = [begin, "I", "w1", end, *answer[:1], "w9", "w8", *answer[1:], "</s>"]
    model = otl.load_model(checkpoints.chain(written, tokenizer, tmp_path), thinking=True)
    answers = otl.complete(model, prompts.harmful, max_new_tokens=12)
    assert {(a.text, a.thought) for a in answers} == {("w9 w8", "I w1")}
    thoughtful = otl.think(model, prompts.harmful)
    own = tokenizer.convert_tokens_to_ids
    assert otl.next_token_logprobs(model, thoughtful).argmax(-1).unique().tolist() == [own("w9")]


def test_a_mark_without_a_counterpart_is_never_judged_in_silence(prompts, tmp_path):
    tokenizer = checkpoints.tokenizer("llama")
    tokenizer.add_tokens(["<|reasoning_start|>"])
    written = ["<nl>", "<|reasoning_start|>", "I", "w1", "</s>"]
    silent = otl.load_model(checkpoints.chain(written, tokenizer, tmp_path / "silent"))
    with pytest.warns(PromptWarning, match=r"reasoning_start.*counterpart"):
        otl.complete(silent, prompts.harmful, max_new_tokens=4)
    tokenizer.chat_template += "{% if thinking_mode == 'x' %}<|reasoning_start|>{% endif %}"
    folder = checkpoints.chain(written, tokenizer, tmp_path / "named")
    with pytest.warns(PromptWarning, match="knows of thoughts"):
        otl.next_token_logprobs(otl.load_model(folder), prompts.harmful)
    with pytest.raises(PromptError, match=r"thinking = False.*reasoning_start"):
        otl.load_model(folder, thinking=False)


def test_the_channels_of_a_checkpoint_are_a_thought_and_an_answer(prompts, tmp_path):
    analysis = "<|channel|>analysis<|message|>"
    final = "<|start|>assistant<|channel|>final<|message|>"
    tokenizer = checkpoints.tokenizer("llama")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [analysis, final, "<|end|>", "<|return|>", "<|start|>assistant"]}
    )
    tokenizer.eos_token = "<|return|>"
    tokenizer.chat_template = (TEMPLATES / "gpt_oss.jinja").read_text("utf-8")
    written = ["<|start|>assistant", analysis, "I", "w1", "<|end|>", final, "w9", "w8", "<|return|>"]
    folder = checkpoints.chain(written, tokenizer, tmp_path)
    own = tokenizer.convert_tokens_to_ids
    for thinking, first in ((True, "<|start|>assistant"), ("forced", analysis)):
        model = otl.load_model(folder, thinking=thinking)
        answers = otl.complete(model, prompts.harmful, max_new_tokens=12)
        assert {(a.text, a.thought) for a in answers} == {("w9 w8", "I w1")}
        acts = otl.capture(model, prompts, positions=[-1, "thought_end"])
        for position, token in ((-1, first), ("thought_end", final)):
            assert acts.harmful(1, position).argmax(-1).unique().tolist() == [own(token)]
