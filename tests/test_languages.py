"""Maps fitted in one language and measured in another, on a model that has one policy in two."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import ot_lens as otl
from ot_lens import organism
from ot_lens.behaviour import refusal_score
from ot_lens.errors import ConfigError, PromptError, SinglePassError
from ot_lens.interventions import intervene
from ot_lens.statistics.estimates import mean, ratio
from tests.conftest import NO_MECHANISMS

LAYERS = (4, 7)
METHODS = ("directional_ablation", "mean_shift")


@pytest.fixture(scope="module")
def model():
    return otl.load_model("organism:bilingual")


@pytest.fixture(scope="module")
def prompts():
    english = otl.load_prompts("organism", sample=(48, 4, 16))
    return {"english": english, "pig_latin": organism.translated(english, "pig_latin")}


@pytest.fixture(scope="module")
def table(model, prompts):
    few = {"control_draws": 2, "permutations": 99, "bootstrap": 39}
    return otl.across_languages(model, prompts, METHODS, layers=LAYERS, **few)


def rows(table, **criteria):
    for column, value in criteria.items():
        table = table[table[column] == value]
    return table


def test_the_table_has_every_pair_and_its_effects_are_of_the_same_prompts(table):
    edits = rows(table, quantity="effect")
    assert len(edits) == 2 * 2 * len(METHODS) * len(LAYERS)
    plain = rows(table, method="none", quantity="refusal_score").set_index("measured_in")["value"]
    keys = ["fitted_in", "measured_in", "method", "layer"]
    scores = rows(table[table["method"] != "none"], quantity="refusal_score").set_index(keys)["value"]
    effects = edits.set_index(keys)["value"]
    for key, effect in effects.items():
        assert effect == pytest.approx(plain[key[1]] - scores[key])
        own = effects[(key[1], *key[1:])]
        share = rows(table, quantity="share").set_index(keys).loc[key]
        assert np.isnan(share["value"]) or share["value"] == pytest.approx(effect / own)
        assert np.isnan(share["value"]) or share["low"] <= share["value"] <= share["high"]


def test_scores_are_those_of_the_edited_model(model, prompts, table):
    acts = otl.capture(model, prompts["english"].train, layers=[7])
    edit = otl.fit_all(acts, "mean_shift", position=-1)[7]
    with intervene(model, {7: edit}, tokens="last"):
        expected = refusal_score(model, prompts["pig_latin"].test.harmful).mean()
    found = rows(table, fitted_in="english", measured_in="pig_latin", method="mean_shift", layer=7)
    assert rows(found, quantity="refusal_score")["value"].item() == pytest.approx(float(expected), abs=1e-3)


def test_the_shift_of_the_last_layer_transfers_more_than_permuted_labels_do(table):
    """The model refuses in both languages, with two first words, by one policy."""
    plain = rows(table, method="none", quantity="refusal_score")["value"]
    assert (plain > 5).all()
    last = rows(table, method="mean_shift", layer=7, quantity="effect")
    assert (last["low"] > last["null_high"]).all()
    assert (last["null_high"] < 2).all()
    shares = rows(table, method="mean_shift", layer=7, quantity="share").set_index(
        ["fitted_in", "measured_in"]
    )
    assert shares.loc[("english", "english"), ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert shares.loc[("english", "pig_latin"), "low"] > 0.2
    cosines = rows(table, quantity="cosine").set_index("layer")
    assert cosines.loc[7, "value"] > cosines.loc[7, "null_high"]


def test_nothing_transfers_from_a_language_without_a_policy(prompts):
    """The model of one language does not know the words of the other."""
    options = {"layers": [7], "control_draws": 0, "permutations": 0, "bootstrap": 0}
    table = otl.across_languages(otl.load_model("organism:single"), prompts, ["mean_shift"], **options)
    effects = rows(table, quantity="effect", measured_in="english").set_index("fitted_in")
    assert effects.loc["english", "low"] > 5
    assert abs(effects.loc["pig_latin", "high"]) < 0.5
    share = rows(table, quantity="share", fitted_in="pig_latin", measured_in="english")
    assert share["high"].item() < 0.05


def test_a_model_that_cannot_be_walked_gives_the_same_scores(model, prompts, table, monkeypatch):
    def refuses(*_args, **_options):
        raise SinglePassError("not this one")

    monkeypatch.setattr("ot_lens.localization.languages.next_token_readings", refuses)
    options = {"control_draws": 0, "permutations": 0, "bootstrap": 0}
    hooked = otl.across_languages(model, prompts, ["mean_shift"], layers=[7], **options)
    keys = ["fitted_in", "measured_in", "method", "layer", "quantity"]
    both = hooked.merge(table, on=keys)
    both = both[both["quantity"] == "effect"]
    assert len(both) == 4
    assert both["value_x"].to_numpy() == pytest.approx(both["value_y"].to_numpy(), abs=1e-3)
    assert hooked["null_low"].isna().all()


def test_what_cannot_be_compared(model, prompts):
    with pytest.raises(PromptError, match="english"):
        otl.across_languages(model, {"english": prompts["english"]})


def test_a_share_of_nothing_is_unknown_and_others_have_their_interval():
    rng = np.random.default_rng(0)
    nothing, effect = rng.standard_normal(50), 2 + rng.standard_normal(50)
    assert np.isnan(ratio(effect, nothing, seed=0).value)
    half = ratio(0.5 * effect + 0.1 * rng.standard_normal(50), effect, seed=0)
    assert half.low < 0.5 < half.high
    assert half.high - half.low < mean(effect, seed=0).high - mean(effect, seed=0).low
    reversed_ = ratio(-effect, effect, seed=0)
    assert (reversed_.value, reversed_.low, reversed_.high) == pytest.approx((-1, -1, -1))


def test_translations_can_be_compared_prompt_by_prompt(model, prompts):
    captures = [otl.capture(model, own.train, layers=[7]) for own in prompts.values()]
    with pytest.raises(otl.OtLensError, match="translations=True"):
        otl.similarity(*captures)
    table = otl.similarity(*captures, translations=True, permutations=39, bootstrap=39)
    assert isinstance(table, pd.DataFrame)
    order = torch.randperm(captures[0].n_harmful, generator=torch.Generator().manual_seed(0))
    mixed = {label: values[:, order] for label, values in captures[1].data.items()}
    other = otl.Activations(mixed, (7,), (-1,), "resid_pre", {})
    shuffled = otl.similarity(captures[0], other, permutations=39, bootstrap=39)
    first, second = (rows(t, quantity="linear_cka")["value"].to_numpy() for t in (table, shuffled))
    assert (first > second + 0.1).all()


@pytest.mark.trust
def test_a_study_of_two_languages_is_verified(prompts, without_figures, tmp_path):
    """File names count from the configuration; the table, its manifest and the second reading agree."""
    for name, own in prompts.items():
        few = {split: {label: texts(group) for label, group in both} for split, both in own.splits}
        (tmp_path / f"{name}.json").write_text(json.dumps({"splits": few}))
    settings = {
        "model": "organism:bilingual", "prompts": "english.json", "sample": [12, 4, 8], "layers": [6, 7],
        "methods": ["mean_shift"], "controls": [], "sufficiency": False, "search_size": 0, "sets": ["single"],
        "languages": {name: f"{name}.json" for name in prompts}, "measures": ["refusal_score"],
        "permutations": 39, "bootstrap": 39, **NO_MECHANISMS,
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    config = otl.read_config(tmp_path / "study.yaml")
    with without_figures():
        result = otl.run_study(config, tmp_path / "run")
    table = result.tables["languages"]
    assert set(table["measured_in"]) == set(prompts)
    assert set(rows(table, quantity="effect")["layer"]) == {6, 7}
    assert "From one language to another" in result.report.read_text()
    found = otl.verify_run(tmp_path / "run").set_index("item")["verdict"]
    assert found[["languages", "prompts/english", "prompts/pig_latin"]].tolist() == ["ok"] * 3
    english = tmp_path / "english.json"
    english.write_text(english.read_text().replace(" ", "  ", 1))
    assert (otl.verify_run(tmp_path / "run")["verdict"] == "differs").any()
    with pytest.raises(ConfigError, match=r"\['english'\]"):
        otl.run_study(config.model_copy(update={"languages": {"english": "organism"}}), tmp_path / "other")
    lost = {**config.languages, "german": "missing.json"}
    with pytest.raises(PromptError, match=r"missing\.json"):
        otl.run_study(config.model_copy(update={"languages": lost}), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    (tmp_path / "pig_latin.json").unlink()  # what needs it is not checked, and the rest still is
    found = otl.verify_run(tmp_path / "run")
    assert found.loc[found["item"] == "languages", "verdict"].tolist() == ["not checked"]


def texts(group):
    return [{"text": prompt.text, "answer": prompt.answer} for prompt in group]
