"""LinEAS: coordinate-wise maps of all layers fitted together, and the layers that its lasso chooses."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import ot_lens as otl
from ot_lens.behaviour import next_token_logprobs
from ot_lens.errors import FitError
from ot_lens.learned.marginals import Frame, Target
from ot_lens.learned.passes import EditedPasses
from ot_lens.learned.sparse_groups import critical_weights, proximal, soft_threshold
from ot_lens.localization import MethodSpec, fit_sequentially
from ot_lens.prompts import Contrast, ContrastSet, Prompt
from tests import checkpoints
from tests.generators.gaussians import classes, normal

LAYERS = (3, 5, 7)


@pytest.fixture(scope="module")
def model():
    return otl.load_model("organism:single")


@pytest.fixture(scope="module")
def prompts():
    few = {s: Contrast(c.harmful[:12], c.harmless[:10]) for s, c in otl.load_prompts("organism").splits}
    return ContrastSet("few", **few)


@pytest.fixture(scope="module")
def free(model, prompts):
    """Without a penalty."""
    return otl.fit_linear_act_joint(model, prompts.train, LAYERS, penalty=0, steps=20)


def relative_loss(acts, moved, layers=LAYERS) -> float:
    """The sum over layers of mean W2^2 by coordinate, computed with sorted lists and quantile functions."""
    total = 0.0
    for layer in layers:
        H, S, Z = acts.harmful(layer).numpy(), acts.harmless(layer).numpy(), moved.harmful(layer).numpy()
        # Both quantile functions are constant between multiples of 1 / (n m).
        n, m = len(Z), len(S)
        a, b = np.sort(Z, 0).repeat(m, axis=0), np.sort(S, 0).repeat(n, axis=0)
        total += float(((a - b) ** 2).mean() / np.concatenate([H, S]).var(0).mean())
    return total


def recaptured(model, prompts, maps, layers=LAYERS):
    """Activations under edits at these layers, as the edits leave them."""
    return otl.capture(model, prompts, layers=layers, edits=maps, tokens="last")


# --- the loss and the lasso


def test_a_layer_alone_has_a_quadratic_loss_whose_minimum_is_linear_act():
    H, S = (x[None] for x in classes(9, 6, 4, seed=1))
    frame = Frame.of(H, S)
    target = Target.of(S, 9, frame.size)
    best = otl.fit_linear_act(H[0], S[0])
    u = (best.scale - 1) / frame.inverse[0] / frame.size[0]
    w = (best.bias + (best.scale - 1) * frame.mean[0]) / frame.size[0]
    q = torch.stack([u, w])[None]
    (fitted,) = frame.maps([0], q).values()
    assert_close(fitted.map(H[0]), best.map(H[0]))
    lowest = target.losses(best.map(H))
    small = 0.01 * normal(1, 2, 4, seed=2)
    (near,) = frame.maps([0], q + small).values()
    assert_close(target.losses(near.map(H)), lowest + small.square().sum())
    assert_close(target.losses(H), lowest + q.square().sum())
    displacement = (best.map(H[0]) - H[0]).square().sum(1).mean()
    assert_close(q.square().sum(), displacement / frame.size[0] ** 2)


def test_the_distance_is_that_of_sorted_samples_and_its_gradient_keeps_the_coupling():
    H, S = (x[None] for x in classes(5, 7, 3, seed=3))
    target = Target.of(S, 5, torch.ones(1, dtype=torch.float64))
    pairs = zip(np.sort(H[0].numpy(), 0).repeat(7, 0).T, np.sort(S[0].numpy(), 0).repeat(5, 0).T, strict=True)
    assert float(target.losses(H)) == pytest.approx(sum(float(((a - b) ** 2).mean()) for a, b in pairs))
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(target.of_samples(H[:, order]), target.of_samples(H)[:, order])


def test_the_proximal_step_minimizes_by_hand_and_against_neighbours():
    q = torch.tensor([[3.0, -4.0], [0.3, 0.1]], dtype=torch.float64)
    assert_close(proximal(q, torch.tensor([1.0, 1.0]).double(), 0.0)[0], q[0] * 4 / 5)
    assert proximal(q, torch.tensor([1.0, 1.0]).double(), 0.0)[1].tolist() == [0.0, 0.0]
    by = torch.tensor([1.0, 0.2], dtype=torch.float64)
    assert_close(soft_threshold(q, by), torch.tensor([[2.0, -3.0], [0.1, 0.0]], dtype=torch.float64))
    q, weights, share = normal(3, 4, seed=4), torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64), 0.4

    def objective(x):
        penalty = (1 - share) * x.norm(dim=1) + share * x.abs().sum(1) / 2
        return float(((x - q).square().sum(1) / 2 + weights * penalty).sum())

    found = proximal(q, weights, share)
    assert all(objective(found) <= objective(found + 0.05 * normal(3, 4, seed=s)) for s in range(5, 25))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_critical_weight_is_where_a_layer_enters(share):
    gradient = normal(4, 6, seed=30)
    critical = critical_weights(gradient, share)
    assert proximal(gradient, 0.999 * critical, share).any(dim=1).all()
    assert not proximal(gradient, 1.001 * critical, share).any()
    if share == 0.0:
        assert_close(critical, gradient.norm(dim=1))


# --- the fit


def test_one_layer_without_penalty_is_linear_act(model, prompts):
    maps = otl.fit_linear_act_joint(model, prompts.train, [5], penalty=0, steps=5)
    acts = otl.capture(model, prompts.train, layers=[5])
    closed = otl.fit_linear_act(acts.harmful(5), acts.harmless(5))
    assert_close(maps[5].scale, closed.scale, rtol=0, atol=1e-4)
    losses = [
        relative_loss(acts, recaptured(model, prompts.train, {5: T}, [5]), [5]) for T in (maps[5], closed)
    ]
    assert losses[0] <= losses[1] * (1 + 1e-5)


def test_together_the_maps_do_better_than_fits_that_ignore_each_other(model, prompts, free):
    acts = otl.capture(model, prompts.train, layers=LAYERS)
    sequential = fit_sequentially(
        model, prompts.train, [MethodSpec("linear_act")], layers=LAYERS, tokens="last"
    )
    losses = {
        name: relative_loss(acts, recaptured(model, prompts.train, maps))
        for name, maps in {
            "none": {},
            "joint": free,
            "independent": otl.fit_all(acts, "linear_act"),
            "sequential": next(iter(sequential.values())),
        }.items()
    }
    assert losses["joint"] < losses["none"] / 2
    assert losses["joint"] < losses["independent"]
    assert losses["joint"] < 1.1 * losses["sequential"]
    note = free[5].info.notes[0]
    assert f"loss {losses['none']:.4g} at first, {losses['joint']:.4g} at last" in note
    assert "kept [3, 5, 7]" in note


def test_a_large_penalty_leaves_every_layer_out_and_a_smaller_one_some(model, prompts):
    def kept(penalty):
        maps = otl.fit_linear_act_joint(
            model, prompts.train, LAYERS, penalty=penalty, permutations=3, steps=4, seed=1
        )
        assert all(("left out" in T.info.notes[1]) == T.is_identity for T in maps.values())
        return [layer for layer, T in maps.items() if not T.is_identity]

    sizes = [kept(penalty) for penalty in (100.0, 1.2, 0.01)]
    assert sizes[0] == []
    assert 0 < len(sizes[1]) < 3
    assert sizes[2] == list(LAYERS)


def test_equal_classes_choose_nothing(model, prompts):
    harmful, others = prompts.train.harmful, prompts.val.harmful
    for contrast, permutations in ((Contrast(harmful, harmful), 1), (Contrast(harmful, others), 5)):
        maps = otl.fit_linear_act_joint(model, contrast, LAYERS, permutations=permutations, steps=3, seed=2)
        assert all(T.is_identity for T in maps.values())
        assert "kept none" in maps[5].info.notes[0]
        assert "converged" in maps[5].info.notes[0]


def test_whole_passes_with_hooks_and_small_batches_give_the_same_gradient(model, prompts):
    acts = otl.capture(model, prompts.train, layers=LAYERS)
    source, target = (torch.stack([of(layer) for layer in LAYERS]) for of in (acts.harmful, acts.harmless))
    frame = Frame.of(source, target)
    goals = Target.of(target, source.shape[1], frame.size).of_samples(source)
    at = 0.01 * normal(3, 2, source.shape[-1], seed=6)

    def loss(values, indices):
        return (values - goals[:, list(indices)]).square().sum()

    found = []
    for hooked in (False, True):
        passes = EditedPasses(model, prompts.train.harmful, LAYERS, batch_size=5)
        if hooked:
            passes.batches.clear()
            passes._by_hooks(prompts.train.harmful, "resid_pre", -1, 64)
        gradient = passes.gradient(lambda q: frame.maps(LAYERS, q), at, loss)
        found.append((passes.all(frame.maps(LAYERS, at)), gradient))
    assert_close(found[0], found[1], rtol=1e-3, atol=1e-3 * float(found[0][1].abs().max()))


def test_the_model_is_left_as_it_was(prompts):
    model = otl.load_model("organism:single")
    first = next(model.parameters())
    first.requires_grad_(False)
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    model.train()
    otl.fit_linear_act_joint(model, prompts.train, LAYERS, permutations=2, steps=2, penalty=0.1)
    assert model.training
    assert torch.is_grad_enabled()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize("hook", ["resid_post", "mlp_out"])
def test_other_hook_points_and_positions(model, prompts, hook):
    maps = otl.fit_linear_act_joint(model, prompts.train, [2], penalty=0, hook=hook, position=-2, steps=3)
    info = maps[2].info
    assert (info.hook, info.position, info.method, info.seed) == (hook, -2, "linear_act_joint", None)
    assert "kept [2]" in info.notes[0]


def test_in_a_model_with_a_cache_and_without_the_edits_are_the_same(model, prompts, free):
    texts = [p.text for p in prompts.test.harmful[:3]]
    before = next_token_logprobs(model, texts)
    for scope in ("last", "all"):
        with otl.intervene(model, free, scope):
            cached, plain = (
                otl.complete(model, texts, max_new_tokens=3, use_cache=use) for use in (True, False)
            )
            after = next_token_logprobs(model, texts)
        assert [c.tokens for c in cached] == [c.tokens for c in plain]
        assert not torch.allclose(before, after, atol=1e-2)
    with otl.intervene(model, {layer: T.at(0.0) for layer, T in free.items()}, "last"):
        assert torch.equal(next_token_logprobs(model, texts), before)


def test_layers_with_nothing_to_move_and_constant_coordinates_stay(tmp_path):
    model = otl.load_model(checkpoints.write(tmp_path, "llama"))
    texts = ("w1 w2 w9", "w4 w9", "w7 w9"), ("w3 w9", "w5 w6 w9", "w8 w8 w9")
    contrast = Contrast(*(tuple(map(Prompt, group)) for group in texts))
    maps = otl.fit_linear_act_joint(model, contrast, penalty=0, steps=2)
    assert maps[0].is_identity
    assert "loss 0 at first, 0 at last" in maps[0].info.notes[1]
    assert not maps[1].is_identity


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"penalty": -1}, "-1"),
        ({"penalty": float("nan")}, "nan"),
        ({"share": 1.5}, r"1\.5"),
        ({"steps": 0}, "steps"),
        ({"permutations": 0}, "permutations"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_impossible_options_are_named(model, prompts, options, named):
    with pytest.raises(FitError, match=named):
        otl.fit_linear_act_joint(model, prompts.train, LAYERS, **options)


# --- in a sweep


def test_a_sweep_measures_it_as_one_set_and_compares_its_choice(model, prompts):
    joint = {"name": "linear_act_joint", "penalty": 1.2, "permutations": 3, "steps": 4}
    table = otl.localize(
        model, prompts, [joint, "linear_act"], LAYERS, sets=["single"], measures=["refusal_score", "kl"],
        controls=["random_subspace"], control_draws=2, fitting=["independent", "sequential"],
        layer_sets=[(5, 7)], search_size=1, seed=1,
    )  # fmt: skip
    own = table[table["method"] == "linear_act_joint"]
    assert own["key"].nunique() == 1
    assert set(own["set"]) == {"all"}
    assert own["note"].str.contains("chose").all()
    maps = otl.fit_linear_act_joint(
        model, prompts.train, LAYERS, penalty=1.2, permutations=3, steps=4, seed=1
    )
    chosen = [layer for layer, T in maps.items() if not T.is_identity]
    assert set(own["layers"]) == {",".join(map(str, chosen))}
    score = own.loc[own["measure"] == "refusal_score", "value"]
    with otl.intervene(model, maps, "last"):
        expected = otl.refusal_score(model, prompts.test.harmful).mean()
    assert float(score.iloc[0]) == pytest.approx(float(expected), abs=1e-3)
    choices = otl.layer_choices(table)
    assert set(choices["compared_with"]) == {"linear_act", "mean_shift"}, "the reference of controls too"
    row = choices.iloc[0]
    assert row["is_chosen"] == (row["most_effective_layer"] in chosen)
    assert row["distance"] == min(abs(row["most_effective_layer"] - layer) for layer in chosen)


def test_a_choice_of_no_layer_and_a_sweep_without_joint_fits(model, prompts):
    joint = {"name": "linear_act_joint", "penalty": 100, "permutations": 1}
    table = otl.localize(model, prompts, [joint, "mean_shift"], LAYERS, measures=["refusal_score"])
    (row,) = otl.layer_choices(table).to_dict("records")
    assert (row["chosen"], row["is_chosen"]) == ("", False)
    assert pd.isna(row["distance"])
    edited = table[table["measure"] == "refusal_score"].groupby("method")["value"].first()
    assert edited["linear_act_joint"] == pytest.approx(edited["none"])
    with pytest.raises(FitError, match="linear_act_joint"):
        otl.layer_choices(table[table["method"] != "linear_act_joint"])
