"""Localizers: the band of a profile, what each localizer measures, and a model changed in known blocks."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.errors import ActivationError, HookError
from ot_lens.localizers import Effects, Setting, find_band
from ot_lens.localizers.benchmark import Truth
from ot_lens.localizers.profiles import as_in_base, edited, interchanged, left_out, probed, written
from ot_lens.models import HookedCausalLM, backend
from ot_lens.transport import AffineMap
from tests import checkpoints

LAYERS = 30


def effects(profile, n: int = 40, noise: float = 0.5, seed: int = 0) -> Effects:
    """Effects of harmful prompts around a profile, of harmless ones around zero."""
    rng = np.random.default_rng(seed)
    drawn = rng.normal(scale=noise, size=(2, len(profile), n))
    return Effects(drawn[0] + np.asarray(profile)[:, None], drawn[1])


def bump(first: int, last: int, height: float = 3.0) -> np.ndarray:
    profile = np.random.default_rng(1).normal(scale=0.3, size=LAYERS)
    profile[first : last + 1] += height
    return profile


# ------------------------------------------------------------------------------------------------ bands


@pytest.mark.parametrize(("first", "last"), [(0, 2), (13, 15), (22, 22), (27, 29)])
def test_a_planted_band_is_found(first, last):
    band = find_band(effects(bump(first, last)))
    assert (band.verdict, band.first, band.last) == ("band", first, last)
    assert band.low <= first <= last <= band.high
    assert band.spread <= 0.01


def test_layers_that_differ_by_chance_are_no_band():
    verdicts = [
        find_band(effects(np.random.default_rng(s).normal(1, 0.4, LAYERS))).verdict for s in range(60)
    ]
    assert set(verdicts) <= {"spread", "band"}
    assert verdicts.count("band") <= 9  # 5 % of 60 are 3; 99.9 % of such counts are at most 9


def test_where_labels_say_nothing_nothing_is_localized():
    own = effects(bump(13, 15))
    mixed = Effects(own.harmful[:, ::2], own.harmful[:, 1::2])
    assert find_band(mixed).verdict == "nothing"
    assert find_band(own).verdict == "band"


def test_the_interval_holds_the_ends_of_the_band_as_often_as_it_says():
    found = [find_band(effects(bump(10, 13, 1.5), n=20, noise=1.0, seed=s), seed=s) for s in range(40)]
    bands = [band for band in found if band.verdict == "band"]
    assert len(bands) > 30
    assert np.mean([band.low <= 10 and band.high >= 13 for band in bands]) >= 0.85


def test_blocks_that_do_exactly_nothing_leave_those_that_do():
    profile = np.zeros(LAYERS)
    profile[5:8] = 2.0, 2.2, 1.8
    harmful = np.tile(profile[:, None], 10)
    assert find_band(Effects(harmful, np.zeros((LAYERS, 10)))).verdict == "band"
    none = find_band(Effects(np.zeros((LAYERS, 10)), np.zeros((LAYERS, 10))))
    assert (none.verdict, none.first) == ("nothing", None)


# --------------------------------------------------------------------------------- what they measure


@pytest.fixture(scope="module")
def organism():
    return otl.load_model("organism")


@pytest.fixture
def setting(llama_folder):
    model = otl.load_model(llama_folder)
    return Setting(model, checkpoints.contrast_set(4))


def score(setting, label: str = "harmful") -> torch.Tensor:
    group = dict(setting.prompts.test)[label]
    return otl.refusal_score(setting.model, group)


def test_a_block_left_out_is_one_that_adds_nothing(setting, monkeypatch):
    monkeypatch.setattr("ot_lens.localizers.profiles.DESTROYED", float("inf"))
    own, found = score(setting), left_out(setting)
    for layer, block in enumerate(setting.model.hf_model.model.layers):
        with monkeypatch.context() as patch:
            patch.setattr(block, "forward", lambda hidden, **_: hidden)
            np.testing.assert_allclose(found.harmful[layer], own - score(setting), atol=1e-4)


@pytest.mark.parametrize("part", ["attn_out", "mlp_out"])
def test_a_part_left_out_is_an_edit_that_writes_zeros(setting, part, monkeypatch):
    monkeypatch.setattr("ot_lens.localizers.profiles.DESTROYED", float("inf"))
    own, found = score(setting), left_out(setting, part)
    d = backend(setting.model).d_model
    zeros = AffineMap(torch.zeros(d, 0), torch.zeros(d, 0), torch.zeros(d), torch.zeros(d))
    with otl.intervene(setting.model, {(1, part): zeros}):
        np.testing.assert_allclose(found.harmful[1], own - score(setting), atol=1e-4)


def test_a_block_that_destroys_the_model_says_nothing(setting, monkeypatch):
    monkeypatch.setattr("ot_lens.localizers.profiles.DESTROYED", -1.0)
    with pytest.raises(otl.OtLensError, match="knock-outs"):
        left_out(setting)


def changed(model: HookedCausalLM, layer: int, factor: float = 3.0) -> HookedCausalLM:
    """The model before one of its blocks learnt something."""
    other = copy.deepcopy(model.hf_model)
    with torch.no_grad():
        other.model.layers[layer].mlp.down_proj.weight.mul_(factor)
    return HookedCausalLM(other, model.tokenizer, "base")


def test_only_the_block_that_differs_from_the_base_has_an_effect(setting):
    base = changed(setting.model, 2)
    found = as_in_base(Setting(setting.model, setting.prompts, base))
    others = [layer for layer in range(len(found.harmful)) if layer != 2]
    assert np.abs(found.harmful[others]).max() < 1e-4
    assert np.abs(found.harmful[2]).min() > 1e-3
    assert np.abs(as_in_base(Setting(setting.model, setting.prompts, setting.model)).harmful).max() < 1e-4


def test_a_block_that_overflows_is_an_error_and_no_band(setting):
    base = changed(setting.model, 2, float("nan"))
    with pytest.raises(ActivationError, match="NaN"):
        as_in_base(Setting(setting.model, setting.prompts, base))


def test_a_base_of_another_architecture_is_refused(setting, organism):
    with pytest.raises(HookError, match="same architecture"):
        otl.locate(setting.model, setting.prompts, organism)


def test_what_blocks_write_adds_up_to_what_the_top_shows(setting):
    acts = otl.capture(setting.model, setting.prompts.train, hook="resid_post", positions=[-1])
    top, below = (
        otl.capture(setting.model, setting.prompts.test, layers=[layer], hook=hook, positions=[-1])
        for layer, hook in ((acts.layers[-1], "resid_post"), (0, "resid_pre"))
    )
    H, S = acts.harmful(acts.layers[-1]), acts.harmless(acts.layers[-1])
    r = torch.nn.functional.normalize(H.double().mean(0) - S.double().mean(0), dim=0)
    whole = (top.harmful(acts.layers[-1]).double() - below.harmful(0).double()) @ r
    np.testing.assert_allclose(written(setting).harmful.sum(axis=0), whole, atol=1e-4)


def test_edits_and_interchange_add_up_to_what_the_last_site_does(setting):
    """Steps from site to site: their sum is the effect at the top, less that at the embedding."""
    for found in (edited(setting, "last"), interchanged(setting)):
        assert found.harmless is None
        assert found.harmful.shape == (backend(setting.model).n_layers, len(setting.prompts.test.harmful))
    top = interchanged(setting).harmful.sum(axis=0)
    assert np.abs(top).max() > 0  # at the top the partner's score is taken over whole


def test_probes_of_the_embedded_model_see_refusal(organism):
    prompts = otl.load_prompts("organism", sample=(48, 4, 24))
    found = probed(Setting(organism, prompts))
    assert 0.5 + found.profile.sum() == pytest.approx(1.0, abs=0.1)  # the AUC at the top
    table = otl.locate(organism, prompts)
    assert list(table["recommended"]) == [True] + [False] * (len(table) - 1)
    assert set(table["says"]) == {"makes it", "can be changed", "can be seen"}
    assert (table["verdict"] != "nothing").any()
    assert (table["first"].notna() == (table["verdict"] == "band")).all()


# ------------------------------------------------------------------------------------- against a truth


def test_a_localizer_is_right_if_its_band_meets_the_planted_one():
    def row(verdict, first=None, last=None):
        return pd.Series({"verdict": verdict, "first": first, "last": last})

    planted = Truth("band", 5, 7)
    assert planted.judge(row("band", 7, 9)) == (True, 0)
    assert planted.judge(row("band", 10, 11)) == (False, 3)
    assert planted.judge(row("spread"))[0] is False
    assert Truth("spread", 0, 29).judge(row("spread"))[0]
    assert Truth("nothing", 5, 7).judge(row("nothing"))[0]
    assert not Truth("nothing", 5, 7).judge(row("band", 5, 7))[0]
