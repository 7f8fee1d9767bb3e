"""Trained directions and cones: the loss and its gradient, the optimizer, the maps and what they measure."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close

import ot_lens as otl
from ot_lens.errors import FitError
from ot_lens.interventions import everywhere, intervene
from ot_lens.learned.dimension import ALONE, DRAWN, FURTHER, _counted, _worst
from ot_lens.learned.objective import Loss, Objective, added
from ot_lens.learned.sphere import TrainingSettings, orthonormal, train
from ot_lens.learned.start import extended
from ot_lens.prompts import Contrast, ContrastSet, Prompt
from ot_lens.transport import FitInfo
from ot_lens.transport.projection import ablation_of
from tests.generators.gaussians import normal

LAYER, SITE = 5, (5, "resid_pre")


@pytest.fixture(scope="module")
def model():
    return otl.load_model("organism:single")


@pytest.fixture(scope="module")
def prompts():
    few = {s: Contrast(c.harmful[:8], c.harmless[:8]) for s, c in otl.load_prompts("organism").splits}
    return ContrastSet("few", **few)


@pytest.fixture(scope="module")
def trained(model, prompts):
    return otl.fit_rdo(model, prompts.train, LAYER, steps=10, learning_rate=0.03)


def score_under(model, prompts, vector):
    edit = ablation_of(normalize(vector, dim=0)[:, None], FitInfo())
    with intervene(model, everywhere(edit, range(8))):
        return float(otl.refusal_score(model, prompts).mean())


# --- the loss


def test_the_loss_is_that_of_the_public_measures(model, prompts):
    objective = Objective(model, prompts.train, SITE, 3.0, batch_size=3)
    unit = normalize(normal(1, 96, seed=0)[0], dim=0)
    found = objective.loss(unit, {"harmful": [1, 4], "harmless": [6, 0, 2]})
    harmful = [prompts.train.harmful[index] for index in (1, 4)]
    harmless = [prompts.train.harmless[index] for index in (6, 0, 2)]
    original = otl.next_token_logprobs(model, harmless)
    with intervene(model, everywhere(ablation_of(unit[:, None], FitInfo()), range(8))):
        refusal = otl.refusal_score(model, harmful).mean()
        kl = otl.kl_divergence(original, otl.next_token_logprobs(model, harmless)).mean()
    with intervene(model, {LAYER: added(unit, 3.0)}):
        induced = otl.refusal_score(model, harmless).mean()
    assert_close(torch.tensor([found.ablation, found.addition, found.retention]).double(),
                 torch.stack([refusal, induced, kl]), rtol=1e-4, atol=1e-5)  # fmt: skip
    assert found.total == pytest.approx(float(refusal - 0.2 * induced + kl), rel=1e-4)


def test_the_gradient_is_that_of_finite_differences(prompts):
    exact = otl.load_model("organism:single", dtype="float64")
    few = Contrast(prompts.train.harmful[:2], prompts.train.harmless[:2])
    objective = Objective(exact, few, SITE, 2.0, batch_size=1)
    unit, turn = (normalize(row, dim=0) for row in normal(2, 96, seed=1))
    loss, slope = objective.gradient(unit, objective.everything)
    assert loss == objective.loss(unit, objective.everything)
    assert float(slope @ unit) == pytest.approx(0, abs=1e-10 * float(slope.norm()))
    step = 1e-2  # the norms of the model are computed in float32
    ends = [
        objective.loss(normalize(unit + t * turn, dim=0), objective.everything).total for t in (-step, step)
    ]
    assert float(slope @ turn) == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-2)


def test_prompts_that_begin_alike_are_read_together_with_the_same_result(model, prompts):
    beginning = " ".join(prompt.text for prompt in prompts.val.harmful[:4])
    alike = Contrast(
        *(tuple(Prompt(f"{beginning} {p.text}") for p in group[:3]) for _, group in prompts.train)
    )
    unit = normalize(normal(1, 96, seed=10)[0], dim=0)
    packed, plain = (Objective(model, alike, SITE, 2.0) for _ in range(2))
    assert packed._packing is not None
    plain._packing = None
    few = {"harmful": [0, 2], "harmless": [1]}
    (loss, slope), (expected, its_slope) = (x.gradient(unit, few) for x in (packed, plain))
    assert vars(loss) == pytest.approx(vars(expected), rel=1e-4, abs=1e-4)
    assert_close(slope, its_slope, rtol=1e-2, atol=1e-3 * float(its_slope.norm()))


# --- the optimizer, on losses whose minimum is known


class Known:
    """Minus the squared length of a direction's part in a subspace."""

    @property
    def everything(self):
        return {"harmful": range(20), "harmless": range(30)}

    def __init__(self, basis, sign=1.0):
        self.basis, self.sign, self.sizes = basis, sign, set()

    def loss(self, direction, chosen):
        return Loss(-float((self.basis @ direction).square().sum()), 0.0, 0.0)

    def gradient(self, direction, chosen):
        self.sizes.add(tuple(map(len, chosen.values())))
        slope = -2 * self.sign * self.basis.T @ (self.basis @ direction)
        return self.loss(direction, chosen), slope - direction * (slope @ direction)


@pytest.mark.parametrize("k", [1, 3])
def test_training_finds_the_subspace_that_minimizes_the_loss(k):
    known = Known(orthonormal(normal(3, 20, seed=2)))
    settings, steps = TrainingSettings(150, 0.05, combinations=2), []
    found = train(known, normal(k, 20, seed=3), settings, steps.append)
    assert_close(found.basis @ found.basis.T, torch.eye(k).double())
    assert (known.basis @ found.basis.T).square().sum(dim=0).min() > 0.99
    assert found.after.total < found.before.total
    assert not found.kept_start
    assert known.sizes == {(16, 16)}
    assert len(steps) == len(found.curve) <= 150
    assert f"{found.after.total:.4g} after {len(steps)} steps" in found.notes[0]
    again = train(Known(known.basis), normal(k, 20, seed=3), settings)
    assert torch.equal(again.basis, found.basis)


def test_training_that_does_not_help_keeps_its_start_and_says_so():
    known = Known(orthonormal(normal(3, 20, seed=2)), sign=-1.0)
    start = normal(2, 20, seed=4)
    found = train(known, start, TrainingSettings(steps=5, prompts_per_step=99))
    assert torch.equal(found.basis, orthonormal(start))
    assert (found.after, known.sizes) == (found.before, {(20, 30)})
    assert "did not fall" in found.notes[-1]


def test_a_basis_keeps_its_first_vectors_and_their_signs():
    vectors = normal(3, 6, seed=5)
    Q = orthonormal(vectors)
    assert_close(Q @ Q.T, torch.eye(3).double())
    assert_close(Q[0], normalize(vectors[0], dim=0))
    assert ((Q * vectors).sum(dim=1) > 0).all()


def test_a_cone_grows_by_what_its_vectors_leave_of_the_displacement():
    """Four clusters of harmful samples about axes: each next vector is an axis that is still left."""
    axes = torch.eye(6, dtype=torch.float64)[:4]
    displaced = torch.cat(
        [size * axis.expand(5, 6) for size, axis in zip((4.0, 3.0, 2.0, 1.0), axes, strict=True)]
    )
    grown = extended(axes[:1], displaced, 4)
    assert torch.equal(grown[0], axes[0])
    assert_close(grown.abs(), axes)
    with pytest.raises(FitError, match="k = 7"):
        extended(axes[:1], displaced, 7)


# --- the maps


def test_a_trained_direction_removes_more_refusal_than_the_one_it_started_at_or_random_ones(
    model, prompts, trained
):
    acts = otl.capture(model, prompts.train, layers=[LAYER])
    start = acts.harmful(LAYER).mean(0) - acts.harmless(LAYER).mean(0)
    score = partial(score_under, model, prompts.test.harmful)
    random = [score(vector) for vector in normal(3, 96, seed=6)]
    assert score(trained.V[:, 0]) < score(start) < min(random)
    info = trained.info
    assert (info.method, info.layer, info.position, info.hook, info.k) == ("rdo", LAYER, -1, "resid_pre", 1)
    assert (info.n_harmful, info.n_harmless, info.seed) == (8, 8, 0)
    words = info.notes[0].split()
    first, last = float(words[1]), float(words[4])
    assert last < first - 3


def test_the_model_is_left_as_it_was(prompts):
    model = otl.load_model("organism:single")
    first, second, *_ = parameters = list(model.parameters())
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    model.train()
    before = [(p.detach().clone(), p.requires_grad) for p in parameters]
    with torch.no_grad():
        otl.fit_rdo(model, prompts.train, LAYER, steps=1, seed=1)
        assert not torch.is_grad_enabled()
    for parameter, (value, required) in zip(parameters, before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == required
    assert [p.grad is None for p in parameters] == [p is not second for p in parameters]
    assert torch.equal(second.grad, torch.ones_like(second))
    assert all(module.training for module in model.modules())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_trained_methods_are_swept_everywhere_and_are_the_identity_where_nothing_varies(model, prompts):
    methods = [{"name": "rdo", "steps": 1}, {"name": "cone", "k": 2, "steps": 1, "combinations": 1}]
    small = replace(prompts, train=Contrast(prompts.train.harmful[:3], prompts.train.harmless[:3]))
    table = otl.localize(model, small, methods, [0, LAYER], measures=["refusal_score", "kl"])
    shifts = table[(table["measure"] == "refusal_score_shift") & (table["prompts"] == "harmful")]
    assert shifts["layers"].tolist() == ["0", "5"] * 2
    assert shifts["k"].tolist()[2:] == [2, 2]
    assert (shifts.loc[shifts["layers"] == "0", "value"] == 0).all()
    assert (shifts.loc[shifts["layers"] == "5", "value"] != 0).all()


def test_a_sweep_passes_its_refusal_tokens_to_the_training(model, prompts, registries):
    seen = []

    def learn(model, prompts, acts, *, layers, refusal_tokens=None, **_given):
        seen.append(refusal_tokens)
        return {layer: otl.AffineMap.identity(96) for layer in layers}

    otl.register_method("mine", learn=learn)
    for params in ({}, {"refusal_tokens": 7}):
        methods = [{"name": "mine", **params}]
        otl.localize(model, prompts, methods, [LAYER], refusal_tokens=[5], measures=["kl"])
    assert seen == [(5,), 7]


def test_what_cannot_be_trained_is_named(model, prompts):
    fit = partial(otl.fit_rdo, model, prompts.train, LAYER)
    for options, named in (({"steps": 0}, "steps"), ({"learning_rate": 0.0}, "learning_rate"),
                           ({"prompts_per_step": 0}, "prompts_per_step")):  # fmt: skip
        with pytest.raises(FitError, match=named):
            fit(**options)
    with pytest.raises(FitError, match="coincide"):
        otl.fit_rdo(model, prompts.train, 0)
    with pytest.raises(FitError, match="k = 97"):
        otl.fit_cone(model, prompts.train, LAYER, k=97)
    with pytest.raises(FitError, match="max_k"):
        otl.cone_dimension(model, prompts, LAYER, max_k=0)
    with pytest.raises(FitError, match=r"least_share.*1\.5"):
        otl.cone_dimension(model, prompts, LAYER, least_share=1.5)
    acts = otl.capture(model, prompts.train, layers=[LAYER])
    with pytest.raises(FitError, match=r"'rdo'.*localize"):
        otl.fit_all(acts, "rdo")


# --- what they measure


def test_the_table_of_a_dimension_follows_from_its_columns(model, prompts):
    few = replace(prompts, train=Contrast(prompts.train.harmful[:2], prompts.train.harmless[:2]))
    options = {"max_k": 2, "draws": 3, "combinations": 1, "learning_rate": 0.05}
    table = otl.cone_dimension(model, few, LAYER, steps=2, **options)
    assert table["k"].tolist() == [1, 1, 1, 2, 2, 2]
    assert (table["beyond"] == (table["high"] < table["null_low"])).all()
    assert (table["low"] <= table["value"]).all()
    assert set(table["n"]) == {8}
    assert table.loc[table["k"] == 1, ["value", "share", "share_low"]].drop_duplicates().shape == (1, 3)
    best = table["value"] / table["share"]  # one vector for all
    assert best.tolist() == pytest.approx([best[0]] * 6)
    assert best[0] <= table.loc[table["quantity"] == "refusal_score_shift", "value"].min()
    mediates = table["beyond"] & (table["share_low"] >= 0.5)
    found = largest(table, mediates, "drawn_shift")
    assert table["dimension"].nunique() == 1
    assert table["dimension"][0] in (found, max(1, found))  # the best vector is a cone of one
    assert set(table["needed"]) == {largest(table, table["beyond"], "further_shift")}
    first = otl.fit_cone(model, few.train, LAYER, k=1, steps=2, learning_rate=0.05, seed=1)
    unedited = float(otl.refusal_score(model, prompts.test.harmful).mean())
    expected = score_under(model, prompts.test.harmful, first.V[:, 0]) - unedited
    assert table["value"][0] == pytest.approx(expected, abs=1e-4)


def largest(table, passed, other):
    """The largest k that passed by itself and in another way."""
    asked = table["quantity"].isin(["refusal_score_shift", other])
    by_k = passed[asked].groupby(table["k"]).all()
    return max([0, *by_k.index[by_k]])


def test_a_vector_that_keeps_less_than_the_share_is_none_of_the_cone():
    """By hand: all of the best vector's effect, half of it, and a third, beyond the band each time."""
    best, band = np.full(4, -9.0), {"null_mean": 0.0, "null_low": -1.0, "null_high": 1.0}
    worst = partial(_worst, best=best, band=band, seed=0)
    rows = [
        {"k": k, "quantity": quantity, **worst([best, share * best])}
        for k, share in enumerate((1.0, 0.5, 1 / 3), start=1)
        for quantity in (ALONE, DRAWN, FURTHER)
    ]
    table = pd.DataFrame(rows)
    assert table["vector"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert table["beyond"].all()
    for least, dimension in ((0.6, 1), (0.5, 2), (0.0, 3)):
        counted = _counted(table, least, fewest=1)
        assert (set(counted["dimension"]), set(counted["needed"])) == ({dimension}, {3})
    weak_inside = table.assign(share_low=table["share_low"].where(table["quantity"] != DRAWN, 0.1))
    for fewest in (0, 1):
        assert set(_counted(weak_inside, 0.5, fewest)["dimension"]) == {fewest}
        assert set(_counted(table.assign(beyond=False), 0.0, fewest)["dimension"]) == {fewest}


def counts(name, sample, **options):
    """The dimension, and how many vectors are needed."""
    table = otl.cone_dimension(
        otl.load_model(name), otl.load_prompts("organism", sample=sample, seed=0), LAYER, **options
    )
    return table["dimension"][0], table["needed"][0]


@pytest.mark.trust
def test_one_sentence_has_a_cone_of_one_dimension_and_needs_one_vector():
    """On `organism:single` a second vector lowers the score beyond the band too, but by less than half.

    On `organism:multi` so short a training leaves each vector with some of the four sentences only.
    """
    options = {
        "max_k": 2, "steps": 6, "learning_rate": 0.04, "combinations": 0, "prompts_per_step": 8, "draws": 2,
    }  # fmt: skip
    assert counts("organism:single", (8, 2, 24), **options) == (1, 1)
    assert counts("organism:multi", (8, 2, 24), **options)[1] == 2


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "needed"), [("single", 1), ("multi", 3)])
def test_no_second_vector_keeps_half_of_the_effect_whatever_the_number_of_sentences(name, needed):
    options = {"max_k": 4, "steps": 30, "combinations": 4}
    assert counts(f"organism:{name}", (64, 8, 128), **options) == (1, needed)


def test_ablating_a_direction_erases_its_own_profile_and_the_table_says_how_much_of_another(model, prompts):
    a, b = normal(2, 96, seed=7)
    table = otl.representational_independence(model, prompts.test, a, b, draws=3)
    acts = otl.capture(model, prompts.test, layers=range(7))
    edits = everywhere(ablation_of(normalize(a, dim=0)[:, None], FitInfo()), range(8))
    moved = otl.capture(model, prompts.test, layers=range(7), edits=edits)
    change = torch.stack([
        cosine_similarity(moved.harmful(la), b, dim=-1) - cosine_similarity(acts.harmful(la), b, dim=-1)
        for la in range(7)
    ], dim=1)  # fmt: skip
    own = table[(table["ablated"] == "a") & (table["read"] == "b")]
    assert own.loc[own["quantity"] == "cosine_change", "value"].tolist() == pytest.approx(
        change.mean(0).tolist(), abs=1e-5
    )
    profile = own[own["quantity"] == "profile_change"]
    assert profile["value"].item() == pytest.approx(float(change.square().mean()), rel=1e-3)
    assert profile["n"].item() == 8
    same = otl.representational_independence(model, prompts.test, a, a, layers=[3, 6], draws=2)
    erased = same[same["quantity"] == "profile_change"]
    expected = np.mean([cosine_similarity(acts.harmful(la), a, dim=-1).square().mean() for la in (3, 6)])
    assert erased["value"].tolist() == pytest.approx([expected, expected], rel=1e-3)
    assert not erased["independent"].any()
    assert same["independent"].isna().sum() == 4


def test_directions_that_are_none_are_named(model, prompts, trained):
    ask = partial(otl.representational_independence, model, prompts.test, trained)
    cone = ablation_of(orthonormal(normal(2, 96, seed=8)).T, FitInfo())
    for other, named in ((cone, "rank 2"), (torch.zeros(96), "length 0"), (torch.ones(95), "width 95")):
        with pytest.raises(FitError, match=f"b .*{named}"):
            ask(other)
    with pytest.raises(FitError, match="draws"):
        ask(torch.ones(96), draws=1)


@pytest.mark.campaign
def test_a_full_training_beats_every_random_direction():
    model, full = otl.load_model("organism:single"), otl.load_prompts("organism")
    train_split = Contrast(full.train.harmful[:32], full.train.harmless[:32])
    found = otl.fit_rdo(model, train_split, LAYER)
    random = [score_under(model, full.test.harmful[:64], vector) for vector in normal(39, 96, seed=9)]
    assert score_under(model, full.test.harmful[:64], found.V[:, 0]) < min(random)
