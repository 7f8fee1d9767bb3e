"""Real architectures, saved and loaded as users do: rendering, system prompts, half precision."""

from pathlib import Path

import pytest
import torch

import ot_lens as otl
from ot_lens.errors import PromptError
from ot_lens.models import backend, encode, model_record, render
from ot_lens.transport import AffineMap
from tests import checkpoints, families

pytestmark = pytest.mark.usefixtures("mixed_lengths")

PROMPTS = ["w1 w2 w3 w4 w5 w6 w7", "w8", "w9 w10 w11"]
SYSTEM = "Answer in rhymes."


@pytest.fixture(scope="module", params=families.FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def family(name: str) -> families.Family:
    return families.FAMILIES[name]


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.write(tmp_path_factory.mktemp(name), name)


@pytest.fixture(scope="module", params=["residual", "full"])
def model(request: pytest.FixtureRequest, folder: Path):
    return otl.load_model(folder, hooks=request.param)


def test_the_template_is_rendered_once_and_no_second_bos_is_added(folder, family, model):
    served = backend(model)
    (text,), (ids,) = render(served, ["w1 w2"]), encode(served, ["w1 w2"])
    assert served.tokenizer.decode(ids) == text
    assert text.endswith(f"w1 w2{family.suffix}")
    assert (family.own_system or "") in text
    if family.special is not families.QWEN:  # Qwen has no BOS; the others' tokenizers would add one
        assert ids.count(served.tokenizer.bos_token_id) == 1
        assert served.tokenizer("w1")["input_ids"][0] == served.tokenizer.bos_token_id


@pytest.mark.parametrize("hooks", ["residual", "full"])
def test_a_system_prompt_is_effective_and_recorded(folder, family, hooks):
    plain = otl.load_model(folder, hooks=hooks)
    record = model_record(plain)
    assert record["template_adds_system_turn"] == (family.own_system is not None)
    assert record["system_prompt"] == ("none" if family.own_system is None else "template's own")
    model = otl.load_model(folder, hooks=hooks, system_prompt=SYSTEM)
    if family.system == "refuses":
        with pytest.raises(PromptError, match="refuses the system prompt"):
            render(backend(model), PROMPTS)
        return
    assert model_record(model)["system_prompt"]["length"] == len(SYSTEM)
    text = render(backend(model), PROMPTS)[0]
    assert text.count(SYSTEM) == 1
    assert (family.own_system or "Llama dates") not in text or "llama3" in str(folder)
    assert not torch.equal(otl.next_token_logprobs(model, PROMPTS), otl.next_token_logprobs(plain, PROMPTS))
    assert SYSTEM not in render(backend(plain), PROMPTS)[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_maps_are_computed_in_float32(folder, dtype):
    """An edited stream is the map's image in float32, rounded once."""
    model = otl.load_model(folder, dtype=dtype)
    contrast = checkpoints.contrast(4)
    plain = otl.capture(model, contrast)
    generator = torch.Generator().manual_seed(0)
    d = backend(model).d_model
    U, V = (torch.randn(d, 2, generator=generator) / 4 for _ in range(2))
    edit = AffineMap(U, V, torch.randn(d, generator=generator))
    edited = otl.capture(model, contrast, edits={1: edit}, tokens="last", layers=[1])
    image = edit.map(plain.harmful(1).float()).to(getattr(torch, dtype))
    assert torch.equal(edited.harmful(1), image.double())
    with otl.intervene(model, {1: edit}):
        assert len(otl.complete(model, PROMPTS, max_new_tokens=3)) == len(PROMPTS)
