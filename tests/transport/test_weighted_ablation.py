"""Weighted ablation: kernels by hand, and weights orthogonalized in a copy as the oracle."""

import copy

import pytest
import torch
from torch.testing import assert_close

import ot_lens as otl
from ot_lens.errors import FitError
from ot_lens.localization.candidates import edits_at
from ot_lens.localization.methods import as_methods, fit_maps
from ot_lens.models import backend
from ot_lens.study import parse_config
from ot_lens.study.sweeping import map_folder
from ot_lens.tables import select
from ot_lens.transport import NormPreservingMap, as_record, fit_all, load_map, method_named
from ot_lens.transport.weighted_ablation import Kernel, between, placed, weighted
from tests import checkpoints
from tests.generators.gaussians import classes, layered

KERNELS = {"attention": [1.2, 2.5, 0.3, 2.0], "mlp": [0.5, 0.0, 0.5, 1.0]}


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def tiny(request):
    """A checkpoint and the hooked model of a copy of it."""
    family = request.param
    weights = checkpoints.model(family)
    return weights, otl.load_model(checkpoints.model(family), tokenizer=checkpoints.tokenizer(family))


def spec(**parameters):
    (method,) = as_methods([{"name": "weighted_ablation", **parameters}])
    return method


def logits_of(model, edits):
    batch = checkpoints.one_batch(model, ["w1 w2 w3", "w4", "w5 w6"])
    with otl.intervene(model, edits), torch.no_grad():
        return backend(model).logits(batch.tokens, batch.mask, keep=batch.tokens.shape[1]), batch


def orthogonalized(weights, directions, kernels):
    """Logits of a copy whose output matrices were orthogonalized: W <- W - w r r^T W."""
    changed = copy.deepcopy(weights)
    with torch.no_grad():
        for block, layer in enumerate(changed.model.layers):
            matrices = layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight
            for matrix, kernel in zip(matrices, kernels, strict=True):
                r = directions[block].to(matrix)
                matrix.sub_(Kernel.of("kernel", kernel).weight(block) * torch.outer(r, r @ matrix))
    return changed


def real(batch, logits):
    return logits[batch.mask.bool()]


# --- the weights


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (0.7, [0.7] * 6),
        ([1.0, 2, 0.2, 2], [0.2, 0.6, 1.0, 0.6, 0.2, 0.0]),
        ([1.0, 4.5, 0.0, 2.0], [0.0, 0.0, 0.0, 0.25, 0.75, 0.75]),
    ],
)
def test_kernels_by_hand(kernel, expected):
    assert [Kernel.of("mlp", kernel).weight(block) for block in range(6)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"attention": -0.1}, "attention = -0.1"),
        ({"mlp": [1.0, 2.0]}, r"mlp = \[1.0, 2.0\]"),
        ({"mlp": [1.0, 2.0, 0.5, 0.0]}, "distance is > 0"),
        ({"mlp": float("nan")}, "mlp = nan"),
        ({"attention": [1.0, 2.0, 3.0]}, "give one weight, or"),
        ({"direction_index": -1.0}, "direction_index .*-1.0"),
    ],
)
def test_what_cannot_be_a_parameter_is_named(parameters, named):
    acts = layered(6, 7, 10, layers=2, seed=1)
    with pytest.raises(FitError, match=named):
        fit_all(acts, "weighted_ablation", **parameters)


# --- the edit


@pytest.mark.parametrize("index", [None, 2.0, 1.25])
@pytest.mark.parametrize("projected", [True, False])
def test_it_is_the_model_with_orthogonalized_output_matrices(tiny, index, projected):
    weights, model = tiny
    acts = otl.capture(model, checkpoints.contrast(12), layers=[0, 1, 2, 3])
    acts.data["harmful"] += 0.3  # at layer 0 the last token of every prompt is the same
    base = "projected_ablation" if projected else "directional_ablation"
    unit = [fit_all(acts, base)[layer].V[:, 0] for layer in range(4)]
    if index is not None:
        mixed = torch.lerp(unit[int(index)], unit[min(int(index) + 1, 3)], index % 1)
        unit = [mixed / mixed.norm()] * 4
    method = spec(**KERNELS, projected=projected, **({} if index is None else {"direction_index": index}))
    maps = fit_maps(acts, [method], layers=[0, 1, 2, 3], position=-1)[method]
    found, batch = logits_of(model, edits_at(method, maps, (0, 1, 2, 3), 4))
    copy = orthogonalized(weights, unit, KERNELS.values())
    expected = copy(input_ids=batch.tokens, attention_mask=batch.mask).logits
    assert_close(real(batch, found), real(batch, expected), rtol=1e-4, atol=1e-4)
    plain, _ = logits_of(model, {})
    assert (real(batch, plain) - real(batch, found)).abs().max() > 1e-2
    wrong = orthogonalized(weights, [r.flip(0) for r in unit], KERNELS.values())
    assert (wrong(input_ids=batch.tokens, attention_mask=batch.mask).logits - found).abs().max() > 1e-2


def test_a_weight_of_zero_is_the_identity():
    acts = layered(9, 12, 20, layers=3, seed=2)
    maps = fit_all(acts, "weighted_ablation")
    assert placed(maps, [1], 3, attention=0.0, mlp=0.0) == {}
    assert set(placed(maps, [1], 3, attention=0.0)) == {(block, "mlp_out") for block in range(3)}
    assert_close(weighted(maps[1], 0.0).map(acts.source[1]), acts.source[1])


def test_blocks_take_the_direction_of_the_nearest_layer():
    acts = layered(9, 12, 20, layers=6, seed=3)
    maps = fit_all(acts, "weighted_ablation")
    edits = placed(maps, [1, 4], 6, mlp=0.0)
    near = [maps[1], maps[1], maps[1], maps[4], maps[4], maps[4]]
    assert all(edits[block, "attn_out"].V is edit.V for block, edit in enumerate(near))


def test_the_norm_of_every_output_is_kept_if_asked_for():
    method, acts = spec(norm_preserving=True, attention=1.3), layered(9, 12, 20, layers=2, seed=4)
    assert method.name == "weighted_ablation_norm_preserving"
    maps = fit_maps(acts, [method], layers=[0, 1], position=-1)[method]
    edit, H = edits_at(method, maps, (1,), 2)[0, "attn_out"], acts.harmful(1)
    assert isinstance(edit, NormPreservingMap)
    assert_close(edit.map(H).norm(dim=1), H.norm(dim=1))
    r = maps[1].inner.V[:, 0]
    plain = H - 1.3 * torch.outer(H @ r, r)
    assert_close(edit.map(H), plain * (H.norm(dim=1) / plain.norm(dim=1))[:, None])
    assert (plain.norm(dim=1) - H.norm(dim=1)).abs().max() > 1e-3


@pytest.mark.parametrize("modifier", ["null_space", "gated", "gated_threshold"])
def test_constraints_and_gates_of_one_layer_fit_no_other(modifier):
    with pytest.raises(FitError, match="edits every block"):
        method_named(f"weighted_ablation_{modifier}")


def test_an_index_between_layers_needs_both_directions():
    acts = layered(9, 12, 20, layers=3, seed=5)
    acts.source[0] = acts.target[0] = 1.0
    maps = fit_all(acts, "weighted_ablation")
    assert between(maps, 2.0) is maps[2]
    for index, named in ((2.5, "layer 3"), (0.5, "identical")):
        with pytest.raises(FitError, match=named):
            between(maps, index)
    assert placed(maps, [0], 3) == {}


def test_it_is_stored_and_placed_again(tmp_path):
    H, S = classes(9, 12, 20, seed=6)
    T = otl.fit_weighted_ablation(H, S, attention=[1.0, 0.0, 0.5, 1.0])
    T.save(tmp_path / "map.safetensors")
    again = load_map(tmp_path / "map.safetensors")
    assert again.info == T.info
    for site, edit in placed({0: again}, [0], 2, **KERNELS).items():
        assert_close(edit.map(H), placed({0: T}, [0], 2, **KERNELS)[site].map(H))
    assert "place" not in as_record(method_named("weighted_ablation"))


# --- in a sweep and in a configuration


def test_in_a_sweep_a_layer_lends_its_direction_and_all_layers_their_own():
    model = otl.load_model(checkpoints.model("llama"), tokenizer=checkpoints.tokenizer("llama"))
    prompts, layers = checkpoints.contrast_set(8), [1, 2, 3]
    methods = [spec(**KERNELS), spec(**KERNELS, direction_index=1.5), spec(attention=0.0, mlp=0.0)]
    options = {"measures": ["refusal_score", "kl"], "controls": ["random_subspace", "permuted_labels"]}
    table = otl.localize(
        model, prompts, methods, layers=layers, control_draws=2, sets=["single", "pair", "all"], **options
    )
    rows = select(table, measure="kl", prompts="harmless", control="").set_index("key")
    of = {m.label: rows[rows.index.str.contains(m.label, regex=False)] for m in methods}
    single, indexed, nothing = (of[m.label] for m in methods)
    assert (set(single["set"]), set(indexed["set"])) == ({"single", "all"}, {"single"})
    assert (indexed["layer"] == 1).all()
    assert (nothing["value"] == 0).all()
    assert (select(table, method="weighted_ablation", control="random_subspace")["measure"].nunique()) > 0
    acts = otl.capture(model, prompts.train, layers=layers)
    maps = fit_maps(acts, methods[:1], layers=layers, position=-1)[methods[0]]
    for chosen, key in (((2,), "single|2"), ((1, 2, 3), "all|1-3")):
        with otl.intervene(model, placed(maps, chosen, 4, **KERNELS)):
            edited = otl.next_token_logprobs(model, prompts.test.harmless)
        plain = otl.next_token_logprobs(model, prompts.test.harmless)
        (found,) = single[single.index.str.startswith(key)]["value"]
        assert found == pytest.approx(float(otl.kl_divergence(plain, edited).mean()), rel=1e-4)


def test_a_configuration_takes_its_four_numbers():
    given = {"name": "weighted_ablation", "attention": [1.15, 5.6, 0.58, 2.6], "mlp": 0.0, "projected": False}
    (method,) = as_methods(parse_config({"methods": [given]}).method_entries)
    assert method.params == {key: value for key, value in given.items() if key != "name"}
    assert map_folder(method) == "weighted_ablation-attention1.15_5.6_0.58_2.6-mlp0.0-projectedFalse"
