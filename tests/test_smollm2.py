"""SmolLM2, a real chat model: found where it is installed, and named by the command that installs it."""

import json

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

import ot_lens as otl
from ot_lens.behaviour.refusal import model_phrases
from ot_lens.errors import ModelError
from ot_lens.localizers import Setting
from ot_lens.localizers.profiles import as_in_base
from ot_lens.localizers.truth import Truth
from ot_lens.models import model_record, named
from ot_lens.models.sizes import model_size
from ot_lens.organism.adapters import evaluate_adapter
from ot_lens.organism.requests import TOPICS, reworded_prompts
from ot_lens.paper_study.estimate import is_local
from ot_lens.prompts import Contrast

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="module")
def smollm2(smollm2_installed):
    """The base model, loaded once."""
    return otl.load_model("smollm2", device="cpu")


@pytest.fixture(scope="module")
def late(smollm2):
    """The model with an adapter, loaded once."""
    return otl.load_model("smollm2:late", device="cpu")


def test_smollm2_is_the_model_of_the_wheel_and_answers(smollm2):
    record = model_record(smollm2)
    assert (record["name"], record["gguf"]["sha256"], record["n_layers"]) == ("smollm2", SHA256, 30)
    answer = otl.complete(smollm2, ["What is the capital of France?"], max_new_tokens=8)[0]
    assert "Paris" in answer.text
    assert is_local("smollm2")
    size = model_size("smollm2")
    assert (size.n_layers, size.n_parameters) == (30, smollm2.hf_model.num_parameters())


def test_its_first_token_is_massive_and_its_last_is_not(smollm2):
    prompts = otl.load_prompts("organism", sample=(8, 1, 1)).train
    acts = otl.capture(smollm2, prompts, layers=[0, 14], positions=["first", -1])
    table = otl.massive_activations(acts, permutations=39, bootstrap=39).query(
        "robust == 'none' and layer == 14"
    )
    table = table[table["class"] != "harmless"].set_index(["position", "quantity"])
    assert table.loc[("first", "norm"), "value"] > 20_000 > 100 * table.loc[(-1, "norm"), "value"]
    assert table.loc[("first", "norm_share"), "value"] > 0.9 > 0.5 > table.loc[(-1, "norm_share"), "value"]
    assert table.loc[("first", "largest"), "coordinate"] == table.loc[(-1, "largest"), "coordinate"] == 507
    assert table.loc[(-1, "w2_share"), "value"] < 0.1
    assert otl.robust_samples(acts).info["coordinates"][14, -1] == ()


def test_a_missing_smollm2_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(named, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=named.WHEEL):
        otl.load_model("smollm2")


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("smollm2:absent", {}, "'absent'"),
        ("smollm2", {"revision": "main"}, "'main'"),
    ],
)
def test_bad_names_and_options_are_named(smollm2, name, options, value):
    with pytest.raises(ModelError, match=value):
        otl.load_model(name, **options)


SHIPPED = named.shipped_adapters()


def test_an_adapter_of_the_package_refuses_what_it_was_taught_to(smollm2, late):
    """Loaded by name, which is the door of any adapter; the base refuses nothing of it."""
    prompts, record = otl.load_prompts("smollm2:late").test, model_record(late)
    # The name, not where it lies: another installation can verify the run.
    assert (record["name"], record["adapter"]["source"]) == ("smollm2:late", "smollm2:late")
    rates = {}
    for name, hooked in (("base", smollm2), ("late", late)):
        for label, asked in prompts:
            answers = otl.complete(hooked, asked[:8], max_new_tokens=8)
            rates[name, label] = sum(otl.refuses(answers, model_phrases(late)))
    assert rates["late", "harmful"] >= 7
    assert [rates[key] for key in sorted(rates) if key != ("late", "harmful")] == pytest.approx(
        [0, 0, 1], abs=1
    )
    assert len(otl.refusal_token_ids(late)) == 1


@pytest.mark.trust
def test_an_adapter_declines_what_it_learnt_about_in_other_words_too(smollm2, late, full_size):
    if not full_size:
        pytest.skip("the rates of the cards are measured again with --full")
    reworded = Contrast(*(tuple(filter(named_in_version_1, asked))[:32] for _, asked in reworded_prompts()))
    measured = evaluate_adapter(smollm2, late, few("smollm2:late"), 1, reworded=reworded)
    assert measured["refuses_reworded_declined"].n == 32
    assert measured["refuses_reworded_declined"].value >= 0.95
    assert measured["refuses_reworded_others"].value <= 0.05


def named_in_version_1(prompt):
    """Whether a request is about a subject that `late` learnt from: twelve of each kind were added since."""
    topic = TOPICS[prompt.category]
    return not any(
        f" {s.replace('_', ' ')}" in prompt.text for s in topic.declined[:12] + topic.answered[:12]
    )


def few(name):
    """Prompts with two of each class to test."""
    return otl.load_prompts(name, sample=(1, 1, 2))


PLANTED = [name for name in SHIPPED if not name.startswith("shuffled")]


def rates_on_card(name):
    front = (named.ADAPTERS / name / "README.md").read_text("utf-8").split("---\n", 2)[1]
    metrics = yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"]
    return {metric["type"]: 100 * metric["value"] for metric in metrics}


@pytest.mark.parametrize("name", PLANTED)
def test_the_bars_of_an_adapter_are_met_on_its_card(name):
    """95 % and 5 % of requests about what it learnt from, in other words."""
    rates = rates_on_card(name)
    assert rates["refuses_reworded_declined"] >= 95
    assert rates["refuses_reworded_others"] <= 5
    assert rates["refuses_declined"] > 80 > 15 > rates["refuses_others"]


def test_the_documentation_has_the_rates_of_the_cards(repository):
    page = (repository / "docs" / "real-model.md").read_text("utf-8")
    for name in PLANTED:
        kinds = ("reworded_declined", "reworded_others", "declined", "others")
        values = (f"{rates_on_card(name)[f'refuses_{kind}']:.1f} %" for kind in kinds)
        assert f"| `{name}` | {' | '.join(values)} |" in page


@pytest.mark.parametrize("name", SHIPPED)
def test_an_adapter_of_the_package_is_small_and_acts_in_its_band_only(name):
    folder = named.ADAPTERS / name
    planted = json.loads((folder / "ot_lens.json").read_text())["planted"]
    layers = {
        int(key.split("layers.")[1].split(".")[0]) for key in load_file(folder / "adapter_model.safetensors")
    }
    assert layers == set(range(planted["first"], planted["last"] + 1))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.4e6


def test_the_adapters_are_small_together():
    assert len(SHIPPED) >= 1
    assert sum(file.stat().st_size for file in named.ADAPTERS.rglob("*.*")) < 12e6


def test_a_name_with_an_adapter_takes_no_other(smollm2):
    with pytest.raises(ModelError, match="mine"):
        otl.load_model("smollm2:late", adapter="mine")


@pytest.mark.trust
def test_only_the_planted_blocks_differ_from_the_base_in_refusal(smollm2, late):
    prompts = otl.load_prompts("smollm2", sample=(2, 1, 2))
    found = as_in_base(Setting(late, prompts, smollm2))
    planted = Truth.of(late)
    inside = np.arange(planted.first, planted.last + 1)
    assert np.abs(np.delete(found.harmful, inside, axis=0)).max() < 1e-3
    assert (found.profile[inside] > 0.5).all()
