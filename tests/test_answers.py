"""Answers from the single pass are those of plain generation, token for token, whatever was known before."""

from functools import wraps
from pathlib import Path

import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.errors import ActivationError, SinglePassError
from ot_lens.localization import walking
from ot_lens.models import backend
from ot_lens.single_pass import answer_sweep, answers, why_not_answered
from ot_lens.transport import AffineMap
from tests import decoders, families

pytestmark = pytest.mark.usefixtures("mixed_lengths")

PROMPTS = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w10", "w11 w12 w13", "w2 w3"]
BUDGET = 6
SCOPES = ["last", "all", "prompt", "generated"]
# Different kinds of attention, and experts.
KINDS = ["llama31", "mistral", "gemma3", "gemma2", "qwen3_moe"]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    if kind in families.FAMILIES:
        return otl.load_model(families.write(folder, kind))
    return decoders.load(kind, folder)


@pytest.fixture
def llama(llama_folder: Path):
    return otl.load_model(llama_folder)


def random_map(model, seed: int, size: float = 1.0) -> AffineMap:
    generator, d = torch.Generator().manual_seed(seed), backend(model).d_model
    U, V = (torch.randn(d, 2, generator=generator, dtype=torch.float64) / 4 for _ in range(2))
    return AffineMap(size * U, V, size * torch.randn(d, generator=generator, dtype=torch.float64) / 2)


def candidates(model) -> list[dict]:
    """Layers alone, weakly and strongly; all together; both hook points; inside blocks; no edit."""
    layers = range(backend(model).n_layers)
    weak, strong = random_map(model, 1, 1e-3), random_map(model, 2)
    singles = [{layer: edit} for layer in layers for edit in (weak, strong)]
    inside = {(layer, hook): weak for layer in layers for hook in ("attn_out", "mlp_out")}
    return [*singles, dict.fromkeys(layers, weak), {(layers[-1], "resid_post"): strong}, inside, {}]


def plain(model, edits, tokens: str) -> list[tuple[int, ...]]:
    with otl.intervene(model, edits, tokens):
        return [answer.tokens for answer in otl.complete(model, PROMPTS, max_new_tokens=BUDGET)]


def swept(model, edits, tokens: str, known=None, **options):
    """Answers by candidate, and how many of their tokens were verified."""
    numbers = range(len(PROMPTS))
    unedited = [[answer] for answer in plain(model, {}, "all")]
    waves = answer_sweep(
        model,
        PROMPTS,
        edits,
        [numbers] * len(edits),
        unedited if known is None else known,
        tokens=tokens,
        max_new_tokens=BUDGET,
        **options,
    )
    found = sorted((one for wave in waves for one in wave), key=lambda one: one.candidate)
    given = [[one.completions[n].tokens for n in numbers] for one in found]
    return given, [sum(one.verified.values()) for one in found], found


@pytest.mark.parametrize("tokens", SCOPES)
def test_equal_to_plain_generation(model, tokens):
    edits = candidates(model)
    given, verified, _ = swept(model, edits, tokens, batch_size=3)
    expected = [plain(model, edit, tokens) for edit in edits]
    assert given == expected
    assert sum(verified[1:]) > 0 == verified[0]
    assert (
        len({tuple(answers) for answers in expected}) > 2
    )  # the edits matter, so that agreement means something


@pytest.mark.parametrize("known", [[[]] * 4, [[(5,) * BUDGET, (7, 7)]] * 4], ids=["nothing", "nonsense"])
def test_what_is_known_beforehand_changes_no_answer(llama, known):
    edits = candidates(llama)
    assert swept(llama, edits, "last", known)[0] == [plain(llama, edit, "last") for edit in edits]


def test_an_answer_known_to_its_last_token_is_verified_without_generating(llama, monkeypatch):
    """All answers are known: only the first candidate, which measures the margin, is generated."""
    edits = [{layer: random_map(llama, 3)} for layer in range(backend(llama).n_layers)] * 2
    known = [list(of_prompt) for of_prompt in zip(*(plain(llama, e, "last") for e in edits), strict=True)]
    made, generated = [], answers.generated
    monkeypatch.setattr(answers, "generated", lambda *a, **k: made.append(1) or generated(*a, **k))
    given, verified, _ = swept(llama, edits, "last", known)
    assert len(made) == 1
    assert verified[1:] == [sum(map(len, answers)) for answers in given[1:]]


@pytest.mark.parametrize("gap", [0.0, 1e-7])
def test_near_ties_are_generated(llama_folder, gap):
    """Every token has a twin whose logit is the same, or differs in its last digits.

    Which of the two is generated is up to the processor, so twins are read alike and count as one token.
    """
    model = otl.load_model(llama_folder)
    stop = backend(model).tokenizer.eos_token_id
    head = model.hf_model.get_output_embeddings().weight
    read = model.hf_model.get_input_embeddings().weight
    half = len(head) // 2
    with torch.no_grad():
        head[half : 2 * half] = head[:half] * (1 + gap)
        read[half : 2 * half] = read[:half]

    def without_twins(answers):
        merged = [[token % half for token in answer] for answer in answers]
        return [answer[: [*answer, stop].index(stop)] for answer in merged]

    edits = candidates(model)
    given, verified, _ = swept(model, edits, "all")
    expected = [without_twins(plain(model, edit, "all")) for edit in edits]
    assert [without_twins(answers) for answers in given] == expected
    assert len({str(answers) for answers in expected}) > 2
    assert sum(verified) == 0


def test_losses_of_reference_answers_are_read_beside(llama):
    edits, references = candidates(llama)[:5], {0: (5, 6, 7), 2: (9, 2)}
    found = swept(llama, edits, "last", references=references)[2]
    for edit, one in zip(edits, found, strict=True):
        with otl.intervene(llama, edit, "last"):
            losses = otl.behaviour.losses.token_losses(
                llama, [PROMPTS[n] for n in references], list(references.values())
            )
        for number, expected in zip(references, losses, strict=True):
            torch.testing.assert_close(one.nll[number], expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_be_replayed_fails_loudly(llama):
    calls = []
    llama.hf_model.model.layers[1].register_forward_hook(lambda _m, _a, out: out + len(calls) * 0.1)
    llama.hf_model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(SinglePassError, match="answers differ"):
        swept(llama, candidates(llama), "last")


def test_nan_is_an_error_and_nothing_is_left_behind(llama):
    good = random_map(llama, 1)
    broken = AffineMap(good.U, good.V, torch.full_like(good.bias, torch.nan))
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in llama.named_modules()}
    with pytest.raises(ActivationError, match="NaN"):
        swept(llama, [{1: random_map(llama, 1)}, {2: broken}], "last")
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in llama.named_modules()} == hooks


@pytest.mark.usefixtures("little_garbage")
def test_a_full_device_halves_batches_and_changes_no_answer(llama, monkeypatch):
    edits = candidates(llama)[:4]
    expected = swept(llama, edits, "last")[0]
    forward = llama.hf_model.forward

    @wraps(forward)
    def full(*args, input_ids=None, **options):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("full")
        return forward(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(llama.hf_model, "forward", full)
    with pytest.warns(otl.errors.BatchHalvedWarning):
        assert swept(llama, edits, "last")[0] == expected


def test_edits_that_share_nothing_are_left_to_plain_hooks(llama):
    inside = {(1, "attn_out"): random_map(llama, 1)}
    assert "inside a block" in (why_not_answered(llama, inside, "all") or "")
    assert why_not_answered(llama, inside, "last") is None
    llama.hook_dict["blocks.1.hook_resid_pre"].add_hook(lambda x, hook: None)
    assert "hooks of the user" in (why_not_answered(llama, {1: random_map(llama, 1)}, "last") or "")


# ------------------------------------------------------------------------------------------- in a sweep


def test_a_sweep_has_the_numbers_of_plain_hooks_and_says_how(monkeypatch):
    """On the embedded model: every measure, and the same again in batches of another size."""
    model = otl.load_model("organism")
    prompts = otl.load_prompts("organism", sample=(12, 4, 12))
    arguments = {
        "methods": ["mean_shift", "directional_ablation"],
        "layers": [2, 5, 7],
        "max_new_tokens": 16,
    }
    fast = otl.localize(model, prompts, **arguments)
    slow = otl.localize(model, prompts, engine="hooks", **arguments)
    keys = ["key", "prompts", "measure"]
    both = fast.merge(slow, on=keys, suffixes=("", "_slow"))
    assert len(both) == len(fast) == len(slow)
    for column in ("value", "low", "high", "p_value"):
        pd.testing.assert_series_equal(
            both[column], both[f"{column}_slow"], rtol=1e-4, atol=1e-4, check_names=False
        )
    shares = fast[(fast["measure"] == "refusal_rate") & (fast["method"] != "none")]
    assert (shares["engine"] == "single_pass").all()
    assert shares["verified"].mean() > 0.5
    assert slow["verified"].isna().all()
    monkeypatch.setattr(walking, "ANSWERED", 5)
    again = otl.localize(model, prompts, **arguments)
    pd.testing.assert_series_equal(again["value"], fast["value"], rtol=1e-4, atol=1e-5)
