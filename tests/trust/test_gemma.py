"""Gemma 3 270M, whose residual stream has massive activations at every token: `make gemma` downloads it."""

import os
from pathlib import Path

import pytest

import ot_lens as otl
from ot_lens.models import model_record

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# A base model: what a chat template would add to the prompt is its first token alone.
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def gemma():
    path = Path(os.environ.get("OT_LENS_GEMMA", ""))
    if not path.is_file():
        pytest.skip("Gemma 3 270M is 238 MB to download: run `make gemma`")
    model = otl.load_model(str(path), device="cpu")
    model.tokenizer.chat_template = TEMPLATE
    return model


def test_one_coordinate_can_be_the_whole_norm_or_the_whole_distance(gemma):
    assert model_record(gemma)["gguf"]["sha256"] == SHA256
    prompts = otl.load_prompts("organism", sample=(16, 1, 1)).train
    acts = otl.capture(gemma, prompts, layers=[0, 2, 8, 17], positions=["first", -1])
    table = otl.massive_activations(acts, permutations=39, bootstrap=39)

    def value(layer, quantity, position=-1, robust="none"):
        rows = table.query("layer == @layer and position == @position and robust == @robust")
        row = rows[rows["quantity"] == quantity].iloc[-1]
        return row["value"], row["coordinate"]

    assert value(17, "norm")[0] > 30_000
    assert value(17, "norm_share")[0] > 0.9
    assert value(17, "largest")[0] > 30_000
    assert value(17, "largest")[1] == value(8, "largest", "first")[1] == 163
    assert value(8, "massive_share", "first")[0] == 1 > value(8, "massive_share")[0]
    # The norm says nothing of the distance: most of it lies in one coordinate at layer 2, hardly any at 17.
    share, coordinate = value(2, "w2_share")
    assert (share > 0.6, coordinate) == (True, 400)
    assert value(2, "massive_share")[0] == 1
    assert value(2, "w2_squared", robust="exclude")[0] < 0.3 * value(2, "w2_squared")[0]
    assert value(17, "w2_share")[0] < 0.05
    # The negative control: the embedding of the last token, before any block.
    assert value(0, "rogue_coordinates", robust="exclude")[0] == 0
    excluded = otl.robust_samples(acts).info["coordinates"]
    assert (excluded[0, -1], excluded[17, -1]) == ((), (163,))
    assert 400 in excluded[2, -1]
