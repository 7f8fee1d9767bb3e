"""Perplexity of a text against Hugging Face's own loss, one window or many, and under edits."""

import math
from pathlib import Path

import pytest
import torch

import ot_lens as otl
from ot_lens.behaviour import text_loss
from ot_lens.errors import PromptError
from ot_lens.transport import AffineMap
from tests import checkpoints

pytestmark = pytest.mark.usefixtures("mixed_lengths")

D = 32
TEXT = " ".join(f"w{(7 * i * i + 3 * i) % 40}" for i in range(90))


@pytest.fixture(scope="module")
def model(llama_folder: Path):
    return otl.load_model(llama_folder)


def hugging_face_loss(model, ids: list[int], scored: int | None = None) -> float:
    tokens = torch.tensor([ids])
    labels = tokens.clone()
    if scored is not None:
        labels[0, : len(ids) - scored] = -100
    with torch.no_grad():
        return float(model.hf_model(tokens, labels=labels).loss)


def test_one_window_is_hugging_face_s_loss(model, tmp_path):
    ids = model.tokenizer(TEXT)["input_ids"]  # its own BOS in front
    found = text_loss(model, TEXT)
    assert found.loss == pytest.approx(hugging_face_loss(model, ids), rel=1e-5)
    assert found.estimate().value == pytest.approx(found.perplexity) == pytest.approx(math.exp(found.loss))
    assert found.n_tokens.tolist() == [90]
    assert text_loss(model, TEXT, bos=False).n_tokens.tolist() == [89]
    qwen = otl.load_model(checkpoints.write(tmp_path / "qwen2", "qwen2"))  # its tokenizer has no BOS
    short = "".join("abcdefgh"[(3 * i * i) % 8] for i in range(40))
    ids = qwen.tokenizer(short)["input_ids"]
    assert text_loss(qwen, short).loss == pytest.approx(hugging_face_loss(qwen, ids), rel=1e-5)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("window", "stride"), [(20, None), (20, 19), (20, 1), (91, 3)])
def test_windows_score_every_token_once_and_agree_with_hugging_face(model, bos, window, stride):
    """Each window by Hugging Face's own loss, its context masked by labels of -100."""
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    room = window - bos
    if stride == room + 1 or (stride == room and not bos):
        stride = room - 1
    found = text_loss(model, TEXT, window=window, stride=stride, bos=bos, batch_size=3)
    total, count, done = 0.0, [], 0
    for start in range(0, len(ids), found.stride):
        end = min(start + room, len(ids))
        row = [1] * bos + ids[start:end]
        scored = min(end - done, len(row) - 1)
        total += hugging_face_loss(model, row, scored) * scored
        count.append(scored)
        done = end
        if end == len(ids):
            break
    estimate = found.estimate()
    assert (estimate.n, estimate.low < found.perplexity < estimate.high) == (len(count), len(count) > 1)
    assert found.n_tokens.tolist() == count
    assert sum(count) == len(ids) - (not bos)
    assert found.loss == pytest.approx(total / sum(count), rel=1e-5)


def test_a_file_is_its_text(model, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    assert text_loss(model, path).loss == text_loss(model, TEXT).loss
    with pytest.raises(PromptError, match="names a file"):
        text_loss(model, str(path))
    path.write_bytes(b"caf\xe9")
    with pytest.raises(PromptError, match="not UTF-8"):
        text_loss(model, path)


@pytest.mark.parametrize("tokens", ["all", "prompt"])
def test_an_edit_changes_the_loss_of_the_whole_text(model, tokens):
    generator = torch.Generator().manual_seed(1)
    edit = AffineMap(torch.zeros(D, 0), torch.zeros(D, 0), torch.randn(D, generator=generator))
    plain = text_loss(model, TEXT, window=20)
    with otl.intervene(model, {1: edit}, tokens):
        edited = text_loss(model, TEXT, window=20)
    with otl.intervene(model, {1: AffineMap.identity(D)}, tokens):
        same = text_loss(model, TEXT, window=20)
    assert (edited.nll - plain.nll).abs().min() > 1e-3
    assert torch.equal(same.nll, plain.nll)
    with otl.intervene(model, {1: edit}, "generated"):
        assert torch.equal(text_loss(model, TEXT, window=20).nll, plain.nll)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: text_loss(m, ""), "0 tokens"),
        (lambda m: text_loss(m, "w1", bos=False), "1 tokens"),
        (lambda m: text_loss(m, TEXT, window=200), "128.*200"),
        (lambda m: text_loss(m, TEXT, window=1), "window .*1"),
        (lambda m: text_loss(m, TEXT, window=20, stride=20, bos=False), "1 and 19 .*20"),
        (lambda m: text_loss(m, TEXT, stride=0), "stride .*0"),
        (lambda m: text_loss(m, Path("nowhere.txt")), r"'nowhere\.txt'"),
    ],
)
def test_bad_input_is_named(model, call, message):
    with pytest.raises(PromptError, match=message):
        call(model)
