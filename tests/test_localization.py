"""The sweep: right numbers, the same table from the same seed, ground truth found and controls silent."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.errors import FitError, HookError, PromptError
from ot_lens.localization import MethodSpec, SweepPlan, fit_sequentially, search, sweep_settings
from ot_lens.localization.controls import permuted, random_subspace
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.tables import (
    COLUMNS,
    INDUCE,
    REMOVE,
    measured,
    one_direction,
    real_edits,
    select,
    single_layers,
    verdict,
)  # fmt: skip
from ot_lens.transport import AffineMap, fit_all
from tests import checkpoints


@pytest.fixture(scope="module")
def model(llama_folder: Path):
    return otl.load_model(llama_folder)


@pytest.fixture(scope="module")
def eight() -> ContrastSet:
    return checkpoints.contrast_set(8)


@pytest.fixture(scope="module")
def organism():
    return otl.load_model("organism")


@pytest.fixture(scope="module")
def prompts() -> ContrastSet:
    full = otl.load_prompts("organism")
    test = Contrast(full.test.harmful[:32], full.test.harmless[:32])
    return ContrastSet("some", full.train, full.val, test)


@pytest.fixture(scope="module")
def sweep(organism, prompts) -> pd.DataFrame:
    """One sweep of the embedded model, which several tests read."""
    methods = ["directional_ablation", "rfa", {"name": "pca_ot", "k": 4}]
    measured = {"measures": ["refusal_rate", "refusal_score"], "max_new_tokens": 8, "batch_size": 128}
    controlled = {"controls": ["random_subspace", "permuted_labels"], "control_draws": 3}
    options = {"sets": ["single"], "layers": [0, 7], "sufficiency": True, **measured, **controlled}
    return otl.localize(organism, prompts, methods, **options)


def at_layer(table: pd.DataFrame, measure: str, layer: int) -> pd.Series:
    """Value by method of a measure on harmful prompts."""
    rows = measured(single_layers(real_edits(table)), measure, "harmful")
    return select(rows, layer=layer).set_index("method")["value"]


def test_the_table_is_tidy_and_repeats(model, eight):
    methods = ["mean_shift", {"name": "pca_ot", "k": 2}]
    options = {"methods": methods, "layers": [1, 3], "max_new_tokens": 4, "seed": 3}
    table = otl.localize(model, eight, **options)
    again = otl.localize(model, eight, **options)
    pd.testing.assert_frame_equal(table, again, check_exact=True)
    assert tuple(table.columns) == COLUMNS
    # 5 measures, 4 that come with the refusal rate, and the score's shift; perplexity only on harmless
    # prompts, the share outside the domain on harmful ones, no shift of the unedited model from itself.
    edits = 2 * (2 + 1)
    assert len(table) == (edits + 1) * (9 + 10) + edits - 2
    assert not table.duplicated(["set", "layers", "method", "k", "measure", "prompts"]).any()
    by_measure = table.pivot_table(index=["key", "prompts"], columns="measure", values="value")
    assert (by_measure["attack_success_rate"] == 1 - by_measure["refusal_rate"]).all()
    assert (table["low"] <= table["value"] + 1e-12).all()
    assert (table["high"] >= table["value"] - 1e-12).all()
    assert (table.loc[table["measure"] != "out_of_domain_share", "n"] == 8).all()
    assert set(table.loc[table["method"] == "pca_ot", "k"]) == {2}
    assert table.loc[table["method"] == "mean_shift", "k"].isna().all()
    assert (select(table, set="none", measure="kl")["value"] == 0).all()


def test_the_sweep_agrees_with_doing_it_by_hand(organism, prompts, sweep):
    """Also "rfa", which edits everywhere with one layer's direction."""
    acts = otl.capture(organism, prompts.train, layers=[7])
    direction = otl.fit_directional_ablation(acts.harmful(7), acts.harmless(7))
    edits = {
        "mean_shift": ({7: otl.fit_mean_shift(acts.harmful(7), acts.harmless(7))}, "last"),
        "directional_ablation": ({7: direction}, "all"),
        "rfa": (otl.everywhere(direction, range(8)), "all"),
    }
    scores, rates = (at_layer(sweep, measure, 7) for measure in ("refusal_score", "refusal_rate"))
    for method, (edit, tokens) in edits.items():
        with otl.intervene(organism, edit, tokens):
            score = otl.refusal_score(organism, prompts.test.harmful)
            answers = otl.complete(organism, prompts.test.harmful, max_new_tokens=8)
        assert rates[method] == sum(otl.refuses(answers, "organism")) / 32
        assert scores[method] == pytest.approx(score.mean().item(), rel=1e-4)
    assert scores["rfa"] != pytest.approx(scores["directional_ablation"], rel=1e-3)


def test_ranks_and_strengths_are_axes_and_strength_scales_the_edit(model, eight):
    axes = {"layers": [1, 3], "k": [1, 3], "strength": [0.0, 0.5, 1.0]}
    table = otl.localize(model, eight, ["pca_ot", "mean_shift"], **axes, measures=["kl"], sets=["single"])
    edits = select(table, set="single", measure="kl")
    assert len(edits) == (2 + 1) * 3 * 2 * 2
    assert set(edits.loc[edits["method"] == "pca_ot", "k"]) == {1, 3}
    kl = edits[edits["method"] == "mean_shift"].groupby("strength")["value"].mean()
    assert list(kl.index) == [0.0, 0.5, 1.0]
    assert 0 == kl[0.0] < kl[0.5] < kl[1.0]


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_the_engines_agree(model, tokens, eight):
    options = {
        "methods": ["rfa", {"name": "pca_ot", "k": 2}],
        "measures": ["refusal_score", "kl"],
        "sets": ["single", "pair", "all"],
        "layers": [0, 2, 3],
        "tokens": tokens,
        "controls": ["random_subspace"],
        "control_draws": 2,
    }
    fast = otl.localize(model, eight, **options)
    slow = otl.localize(model, eight, engine="hooks", **options)
    assert fast["value"].tolist() == pytest.approx(slow["value"].tolist(), rel=1e-3, abs=1e-4)
    assert (fast.loc[~fast["method"].isin(["rfa", "none"]), "engine"] == "single_pass").all()
    rfa = fast[fast["method"] == "rfa"]
    assert (rfa["engine"] == "hooks").all()
    assert rfa["note"].str.contains("inside a block").all()
    assert (slow["engine"] == "hooks").all()
    assert (fast["set"] == "pair").sum() > 0


def test_single_pass_on_request_says_what_it_cannot_serve(model):
    with pytest.raises(HookError, match=r"cannot serve.*inside a block"):
        otl.localize(model, checkpoints.contrast_set(4), ["rfa"], engine="single_pass", measures=["kl"])
    model.hook_dict["blocks.1.hook_resid_pre"].add_hook(lambda x, hook: None)
    table = otl.localize(model, checkpoints.contrast_set(4), ["mean_shift"], measures=["kl"])
    model.reset_hooks()
    assert (table["engine"] == "hooks").all()
    assert table.loc[table["set"] != "none", "note"].str.contains("hooks of the user").all()


def test_a_planted_layer_is_found_and_nothing_else(sweep):
    """The verdict on the embedded model: transport above the control band late, projection nowhere."""
    found, induced = (
        verdict(sweep, way).set_index(["method", "layer"])["localized"] for way in (REMOVE, INDUCE)
    )
    for localized in (found, induced):
        assert localized["pca_ot"].to_dict() == {0: False, 7: True}
    assert not found["directional_ablation"].any()
    assert "directional_ablation" not in induced.index.get_level_values("method")
    assert {"mean_shift", "linear_act"} <= set(sweep["method"])


def test_one_direction_and_several_are_told_apart(prompts):
    """The embedded models' ground truth, read off a number with an interval."""
    found = {}
    for variant in ("single", "multi"):
        model = otl.load_model(f"organism:{variant}")
        options = {"measures": ["refusal_rate"], "sets": ["single"], "max_new_tokens": 16}
        table = otl.localize(model, prompts, ["rfa"], layers=[7], **options)
        found[variant] = one_direction(table)
    assert found["single"].suffices is True
    assert found["multi"].suffices is False
    assert found["single"].high < found["multi"].low
    assert one_direction(table[table["method"] != "rfa"]) is None


def test_a_random_model_is_localized_nowhere(model):
    table = otl.localize(
        model,
        checkpoints.contrast_set(24),
        ["mean_shift"],
        measures=["refusal_rate", "refusal_score"],
        sets=["single"],
        controls=["random_subspace", "permuted_labels"],
        phrases=["w1 w2 w3"],
        max_new_tokens=4,
    )
    assert not verdict(table)["localized"].any()
    without_controls = verdict(table[table["control"] == ""])
    assert not without_controls["localized"].any()
    assert without_controls["band"].isna().all()


def test_a_model_that_cannot_be_replayed_falls_back_to_hooks_and_stays_right(llama_folder, eight):
    """A layer with an argument of unknown meaning stands for every architecture the engine does not know."""
    model = otl.load_model(llama_folder)
    options = {"methods": ["mean_shift"], "measures": ["refusal_score"], "layers": [1, 2]}
    plain = otl.localize(model, eight, engine="hooks", **options)
    for layer in model.hf_model.model.layers:
        layer.register_forward_pre_hook(
            lambda _module, args, kwargs: (args, {**kwargs, "memory": torch.zeros(3)}), with_kwargs=True
        )
    fallen = otl.localize(model, eight, **options)
    assert (fallen["engine"] == "hooks").all()
    assert fallen.loc[fallen["set"] != "none", "note"].str.contains("'memory'").all()
    pd.testing.assert_series_equal(fallen["value"], plain["value"])
    with pytest.raises(HookError, match="cannot serve this sweep"):
        otl.localize(model, eight, engine="single_pass", **options)


def test_shuffled_classes_are_localized_nowhere(organism, prompts):
    """The negative control of the verdict itself: with labels permuted, no layer passes it."""
    acts = permuted(otl.capture(organism, prompts.train, layers=[5, 7], batch_size=128), seed=1)
    table = otl.localize(
        organism, prompts, [{"name": "pca_ot", "k": 2}], layers=[5, 7], measures=["refusal_score"],
        sets=["single"], controls=["random_subspace", "permuted_labels"], acts=acts, batch_size=128,
    )  # fmt: skip
    found = verdict(table)
    assert not found.loc[found["method"] == "pca_ot", "localized"].any()


def test_p_values_are_paired_and_corrected_over_layers(sweep):
    rows = select(measured(real_edits(sweep), "refusal_rate", "harmful"), method="pca_ot")
    rows = rows.set_index("layer")
    assert (rows["test"] == "mcnemar").all()
    assert rows.loc[0, "p_value"] == 1  # layer 0 changes nothing
    assert rows.loc[7, "p_value"] < 0.05
    assert rows.loc[7, "p_holm"] == pytest.approx(min(1, 2 * rows.loc[7, "p_value"]))


def test_a_random_subspace_has_the_rank_and_the_size_of_the_map_and_hangs_on_its_seed_alone():
    """U and V of a map within one subspace depend on each other: no basis of theirs is unique."""
    generator = torch.Generator().manual_seed(0)
    H, S = (torch.randn(12, 24, generator=generator, dtype=torch.float64) + at for at in (3, 0))

    def control(seed: int, factor: float = 1.0) -> tuple[AffineMap, AffineMap]:
        edit = otl.fit_pca_ot(factor * H, S, k=2)
        return edit, random_subspace(edit, H, generator=torch.Generator().manual_seed(seed))

    def size(m: AffineMap) -> float:
        return (m(H) - H).norm(dim=1).mean().item()

    (edit, turned), (_, again), (_, other) = control(1), control(1, 1 + 1e-13), control(2)
    assert turned.rank == edit.rank == 2
    assert size(turned) == pytest.approx(size(edit), rel=1e-9)
    assert torch.linalg.svdvals(torch.linalg.qr(edit.U).Q.T @ torch.linalg.qr(turned.U).Q).max() < 0.9
    moved = (turned(H) - H).norm()
    assert (again(H) - turned(H)).norm() < 1e-7 * moved
    assert (other(H) - turned(H)).norm() > 0.1 * moved
    diagonal = AffineMap(torch.zeros(24, 0), torch.zeros(24, 0), torch.zeros(24), torch.full((24,), 2.0))
    assert random_subspace(diagonal, H, generator=generator) is None
    narrow = AffineMap(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), torch.ones(2))
    assert random_subspace(narrow, H[:, :2], generator=generator)(H[:, :2]).isfinite().all()


def test_sequential_fitting_repairs_what_earlier_edits_moved(organism, prompts):
    """Each later map is fitted on the edited stream: under all edits, means end on the harmless ones."""
    method = MethodSpec("mean_shift")
    maps = fit_sequentially(organism, prompts.train, [method], layers=[5, 7])[method]
    plain = otl.capture(organism, prompts.train, layers=[7])
    moved = otl.capture(organism, prompts.train, layers=[7], edits=maps)
    target = plain.harmless(7).mean(0)
    torch.testing.assert_close(moved.harmful(7).mean(0), target, rtol=1e-3, atol=1e-3)
    alone = fit_all(otl.capture(organism, prompts.train, layers=[5, 7]), "mean_shift")
    naive = otl.capture(organism, prompts.train, layers=[7], edits=alone)
    assert (naive.harmful(7).mean(0) - target).norm() > 10 * (moved.harmful(7).mean(0) - target).norm()


def test_the_search_finds_the_best_set_by_brute_force(model, eight):
    prompts = eight
    acts = otl.capture(model, prompts.train)
    maps = {MethodSpec("mean_shift"): fit_all(acts, "mean_shift")}
    settings = sweep_settings(model, ["refusal_score"], tokens="all")

    def score(layers: tuple[int, ...]) -> float:
        with otl.intervene(model, {i: maps[MethodSpec("mean_shift")][i] for i in layers}):
            return otl.refusal_score(model, prompts.val.harmful).mean().item()

    sets = [(i,) for i in range(4)] + [(i, j) for j in range(4) for i in range(j)]
    best, greedy = (
        search(model, prompts.val.harmful, maps, settings, SweepPlan(search_size=2, search=kind))[0]
        for kind in ("beam", "greedy")
    )
    assert best.chosen_at == pytest.approx(min(score(s) for s in sets), abs=1e-3)
    assert greedy.chosen_at >= best.chosen_at - 1e-6
    assert (best.note.split()[2], greedy.note.split()[2]) == ("10", "7")  # sets tried
    ranked = sorted(range(4), key=lambda i: score((i,)))
    pairs = [tuple(sorted((ranked[0], layer))) for layer in ranked[1:]]  # the most promising first
    for budget, of, tried in (
        (1, "4 of up to 10 ", sets[:4]),
        (6, "6 of up to 10 ", sets[:4] + pairs[:2]),
        (10, "10 sets", sets),
    ):
        plan = SweepPlan(search_size=2, search_budget=budget)
        bounded = search(model, prompts.val.harmful, maps, settings, plan)[0]
        assert f"best of {of}" in bounded.note
        assert bounded.chosen_at == pytest.approx(min(score(s) for s in tried), abs=1e-3)


def test_a_searched_set_is_confirmed_on_other_prompts(model, eight):
    table = otl.localize(model, eight, ["mean_shift"], measures=["refusal_score"], search_size=2)
    rows = table[(table["set"] == "search") & (table["prompts"] == "harmful")].set_index("measure")
    price = rows.loc["choice_price"]
    chosen_at = float(re.search(r"of 10 sets, .* prompts: (-?[\d.]+) nats", price["note"]).group(1))
    assert price["value"] == pytest.approx(rows.loc["refusal_score", "value"] - chosen_at, abs=1e-3)
    assert price["low"] <= price["value"] <= price["high"]


@pytest.mark.parametrize(
    ("options", "error", "value"),
    [
        ({"methods": ["pca"]}, FitError, "'pca'.*pca_ot"),
        ({"methods": []}, FitError, "methods is empty"),
        ({"methods": [{"name": "pca_ot", "k": 0}]}, FitError, "k = 0"),
        ({"layers": [99]}, HookError, "99"),
        ({"tokens": "first"}, HookError, "'first'"),
        ({"hook": "resid"}, HookError, "'resid'"),
        ({"sets": ["pairs"]}, HookError, "'pairs'"),
        ({"engine": "fast"}, HookError, "'fast'"),
        ({"controls": ["none"]}, HookError, "'none'"),
        ({"fitting": ["joint"]}, HookError, "'joint'"),
        ({"strength": [0.5, 2.0]}, HookError, "2.0"),
        ({"search_size": 9}, HookError, "9"),
        ({"search_size": 2, "search": "full"}, HookError, "'full'"),
        ({"controls": ["random_subspace"], "control_draws": 0}, HookError, "control_draws = 0"),
        ({"measures": ["asr"]}, PromptError, "'asr'"),
    ],
)
def test_bad_input_is_named(model, options, error, value):
    with pytest.raises(error, match=f"(?i){value}"):
        otl.localize(model, checkpoints.contrast_set(4), **{"methods": ["mean_shift"], **options})
