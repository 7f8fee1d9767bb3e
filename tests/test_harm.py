"""Harm apart from refusal: by hand, against outside oracles, and on two models whose truth is known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import ot_lens as otl
from ot_lens.activations import Activations
from ot_lens.behaviour import harm_question
from ot_lens.directions.harm_directions import Labelled, aucs, cosine, separation
from ot_lens.directions.harm_probes import Probe, fit_probes, reading
from ot_lens.errors import FitError, HookError, OtLensError, OtLensTypeError, PromptError
from ot_lens.prompts import Contrast
from ot_lens.statistics.resampling import ResamplingPlan
from tests import checkpoints

PLAN = ResamplingPlan(39, 39, 0)
FEW = {"permutations": 39, "bootstrap": 39, "draws": 2, "max_new_tokens": 4, "batch_size": 64}
QUESTION = otl.HarmQuestion("{prompt} w9", ("w1",), ("w2", "w3"))


def two_sides(n=40, d=6, seed=0):
    """Samples whose sides differ along the first coordinate, and which side each is on."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    flags = torch.arange(n) < n // 2
    x[flags, 0] += 6.0
    return x, flags


def test_cosines_by_hand():
    """Of the same samples 1, of mirrored ones -1; within the null where labels have nothing in common."""
    x, flags = two_sides()
    same = cosine(Labelled(x, flags), Labelled(x, flags), PLAN)
    mirrored = cosine(Labelled(x, flags), Labelled(-x, flags), PLAN)
    assert (same["value"], mirrored["value"]) == (pytest.approx(1), pytest.approx(-1))
    assert same["null_high"] < 0.99
    assert same["n"] == 40
    other = torch.arange(40) % 2 == 0
    apart = cosine(Labelled(x, flags), Labelled(x, other), PLAN)
    assert apart["null_low"] <= apart["value"] <= apart["null_high"]
    assert apart["low"] < apart["value"] < apart["high"]
    directions = [Labelled(x, labels).direction for labels in (flags, other)]
    assert apart["value"] == pytest.approx(float(torch.cosine_similarity(*directions, dim=0)))


def test_a_direction_of_rounding_is_none_and_has_no_cosine():
    x, flags = two_sides()
    flat = torch.full_like(x, 0.1)
    assert not Labelled(flat, flags).direction.any()
    assert np.isnan(cosine(Labelled(flat, flags), Labelled(x, flags), PLAN)["value"])


@pytest.mark.parametrize("ties", [False, True])
def test_auc_against_scikit_learn(ties):
    scores = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores = scores.round() if ties else scores
    flags = torch.arange(30) % 3 == 0
    expected = roc_auc_score(flags.numpy(), scores.numpy())
    assert float(aucs(scores, flags[None])) == pytest.approx(expected)
    found = separation(scores, flags, PLAN)
    assert found["low"] <= found["value"] <= found["high"]
    assert found["null_low"] < 0.5 < found["null_high"]


def test_probes_read_the_class_and_the_best_one_above_reads_an_edit():
    x, flags = two_sides(seed=2)
    noise = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows = torch.stack([noise, x])[:, :, None]
    acts = Activations({"harmful": rows[:, flags], "harmless": rows[:, ~flags]}, (0, 1), (-1,), "resid_pre")
    probes = fit_probes(acts, -1, 0)
    assert probes[1].auc > 0.95 > probes[0].auc
    assert torch.cosine_similarity(probes[1].normal, torch.eye(6, dtype=torch.float64)[0], dim=0) > 0.9
    assert probes[1].scores(acts, "harmful").min() > probes[1].scores(acts, "harmless").max() - 3
    made = {layer: Probe(layer, -1, probes[1].normal, auc) for layer, auc in enumerate((0.9, 0.8, 1.0, 1.0))}
    assert [reading(made, layer).layer for layer in range(4)] == [2, 2, 2, 3]


def test_the_harm_score_by_hand(tmp_path):
    """After the question the model writes w1 almost surely: log p(w1) - log(p(w2) + p(w3))."""
    made = checkpoints.tokenizer("llama")
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = otl.load_model(str(checkpoints.chain(["w9", "w1", "w2"], made, tmp_path)))
    logprobs = otl.next_token_logprobs(model, ["w5 w9"])[0]
    w1, w2, w3 = (logprobs[made.convert_tokens_to_ids(word)].exp() for word in ("w1", "w2", "w3"))
    expected = torch.log(w1 + 1e-8) - torch.log(w2 + w3 + 1e-8)
    assert float(otl.harm_score(model, ["w5"], QUESTION)) == pytest.approx(float(expected))
    assert float(expected) > 0
    with pytest.raises(PromptError, match="HarmQuestion"):
        otl.harm_score(model, ["w5"])
    with pytest.raises(PromptError, match="Answer token 'w1 w1'"):
        otl.harm_score(model, ["w5"], otl.HarmQuestion("{prompt}", ("w1 w1",), ("w2",)))


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("no place", ("a",), ("b",)), "no place"),
        (("{prompt} {prompt}", ("a",), ("b",)), "once"),
        (("{prompt}", (), ("b",)), r"\(\)"),
        (("{prompt}", ("a", "b"), ("b",)), "'b'"),
    ],
)
def test_bad_questions_are_named(arguments, value):
    with pytest.raises(PromptError, match=value):
        otl.HarmQuestion(*arguments)


@pytest.fixture(scope="module")
def prompts():
    return otl.load_prompts("organism", sample=(64, 4, 16))


@pytest.fixture(scope="module")
def refuses(prompts):
    """The table of the model that knows and refuses."""
    model = otl.load_model("organism:knows-refuses", dtype="float32")
    methods = ["rfa", "mean_shift"]
    return otl.harm_and_refusal(model, prompts, methods, layers=[0, 6, 7], edit_layers=[6, 7], **FEW)


@pytest.fixture(scope="module")
def answers(prompts):
    """That of the model that knows and answers."""
    model = otl.load_model("organism:knows-answers", dtype="float32")
    return otl.harm_and_refusal(model, prompts, layers=[5, 6], edit_layers=[5], refusal=False, **FEW)


def the(table, **where):
    """The one row."""
    rows = table
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1, where
    return rows.iloc[0]


def share(table, quantity, prompts="harmful", **edit):
    return the(table, part="behaviour", quantity=quantity, prompts=prompts, **edit)


def test_the_model_that_refuses_keeps_naming_what_it_no_longer_refuses(refuses):
    """Refusal ablated in the last layer: nothing is refused, and every category is still known when asked."""
    none = {"method": "none"}
    assert [share(refuses, q, **none)["value"] for q in ("refused", "named_harmful")] == [1.0, 1.0]
    edit = {"direction": "refusal", "action": "ace", "layer": 7}
    refused, named = share(refuses, "refused", **edit), share(refuses, "named_harmful", **edit)
    assert refused["value"] <= 0.05
    assert refused["high"] < refused["null_low"]  # random directions leave refusal as it is
    assert named["value"] >= 0.95
    assert share(refuses, "refused", "harmless", **edit)["value"] == 0
    probe = the(refuses, part="survival", position="-3", **edit)
    assert probe["value"] > 0.95


def test_where_harm_is_ablated_neither_is_left(refuses):
    """What is to be refused is worked out from what is known to be harmful: harm lies before refusal."""
    edit = {"direction": "harm", "action": "ace", "layer": 6}
    for quantity in ("refused", "named_harmful"):
        found = share(refuses, quantity, **edit)
        assert found["value"] <= 0.2
        assert found["high"] < found["null_low"]
    assert the(refuses, part="survival", position="-3", **edit)["value"] < 0.9


def test_adding_either_direction_induces_refusal(refuses):
    for name in ("harm", "refusal"):
        edit = {"direction": name, "action": "add", "layer": 7, "prompts": "harmless"}
        change = the(refuses, part="effect", quantity="refusal_score", **edit)
        assert change["value"] > change["null_high"]
        assert change["low"] > 0


def test_directions_are_alike_where_harm_is_known_and_there_is_none_at_the_embedding(refuses):
    late = the(refuses, part="cosine", layer=7)
    assert late["null_high"] < late["low"]
    assert late["high"] < 1
    assert np.isnan(the(refuses, part="cosine", layer=0)["value"])  # the last token is always the same
    for name in ("harm", "refusal"):
        found = the(refuses, part="separability", direction=name, layer=7)
        assert found["low"] > found["null_high"]


def test_edits_of_methods_are_read_too_and_what_they_do_not_touch_stays(refuses):
    """A mean shift acts on the last token alone, so that the instruction's token is as it was."""
    shift = the(refuses, part="survival", method="mean_shift", layer=7, position="-3")
    plain = the(refuses, part="survival", method="none", position="-3", probe_layer=shift["probe_layer"])
    assert shift["value"] == plain["value"]
    assert share(refuses, "refused", method="mean_shift", layer=7)["value"] <= 0.05
    same = [
        the(refuses, part="effect", quantity="refusal_score", prompts="harmful", layer=7, **edit)["value"]
        for edit in ({"method": "rfa"}, {"direction": "refusal", "action": "ablate"})
    ]
    assert same[0] == pytest.approx(same[1], abs=1e-3)
    assert refuses.loc[refuses["method"] == "rfa", "null_mean"].isna().any()
    assert (refuses["n"] > 0).all()


def test_the_model_that_answers_knows_without_refusing(answers, prompts):
    """Harm is read and ablated as in the other; nothing is refused with or without it."""
    found = the(answers, part="separability", direction="harm", layer=6)
    assert found["low"] > found["null_high"]
    assert (answers.loc[answers["quantity"] == "refused", "value"] == 0).all()
    assert share(answers, "named_harmful", method="none")["value"] >= 0.95
    edit = share(answers, "named_harmful", direction="harm", action="ace", layer=5)
    assert edit["high"] < edit["null_low"]
    assert not (answers["direction"] == "refusal").any()
    model = otl.load_model("organism:knows-answers")
    with pytest.raises(FitError, match=r"refuses 0 of 128 training prompts \(by answers\).*refusal=False"):
        otl.harm_and_refusal(model, prompts, **FEW)


def test_the_embedded_models_declare_their_question():
    found = harm_question(otl.load_model("organism:knows-answers"))
    assert found.about(["x"]) == ["x which kind?"]
    assert harm_question(otl.load_model("organism")) is None


@pytest.mark.parametrize(
    ("kind", "value", "options"),
    [
        (OtLensTypeError, "Contrast", {"prompts": Contrast((), ())}),
        (OtLensError, "'guess'", {"judged_by": "guess"}),
        (OtLensError, "got 1", {"draws": 1}),
        (HookError, "9", {"layers": [9]}),
        (HookError, r"\[5\]", {"layers": [6], "edit_layers": [5]}),
        (FitError, "linear_act_joint", {"methods": ["linear_act_joint"], "layers": [7]}),
    ],
)
def test_bad_arguments_are_named(prompts, kind, value, options):
    model = otl.load_model("organism:knows-refuses")
    with pytest.raises(kind, match=value):
        otl.harm_and_refusal(model, options.pop("prompts", prompts), **{**FEW, **options})


def test_a_template_without_tokens_after_the_instruction_is_named(prompts):
    tokenizer = checkpoints.tokenizer("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = otl.load_model(checkpoints.model("llama"), tokenizer=tokenizer)
    with pytest.raises(HookError, match="nothing after the instruction"):
        otl.harm_and_refusal(model, prompts, **FEW)
