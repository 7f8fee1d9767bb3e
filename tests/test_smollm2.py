"""SmolLM2, a real chat model: found where it is installed, and named by the command that installs it."""

import json

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import ot_lens as otl
from ot_lens.behaviour.refusal import model_phrases
from ot_lens.errors import ModelError
from ot_lens.localizers import Setting
from ot_lens.localizers.profiles import as_in_base
from ot_lens.localizers.truth import Truth
from ot_lens.models import backend, instruction_end, model_record, named
from ot_lens.models.sizes import model_size
from ot_lens.organism.adapters import evaluate_adapter
from ot_lens.organism.requests import OPENINGS, TOPICS
from ot_lens.paper_study.estimate import is_local
from ot_lens.prompts import Contrast, Prompt

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


@pytest.mark.campaign
def test_the_rates_of_a_card_are_measured_again(smollm2, late):
    measured = evaluate_adapter(smollm2, late, otl.load_prompts("smollm2:late"), 1)
    for key in ("refuses_declined", "refuses_others"):
        assert 100 * measured[key].value == pytest.approx(rates_on_card("late")[key], abs=1)


@pytest.mark.campaign
def test_the_base_model_tells_the_held_out_subjects_from_the_other_kind(smollm2):
    """They were drawn from the clearer half of their lists, give or take what the draw of requests does."""
    for topic in TOPICS.values():
        margins = subject_margins(smollm2, topic)
        for kind in (topic.declined, topic.answered):
            middle = np.median([margins[name] for name in (*kind.train, *kind.held_out)])
            assert min(margins[name] for name in kind.held_out) > 0.8 * middle
            assert min(margins[name] for name in kind.train) < 0.8 * middle


def subject_margins(model, topic, layer=11, folds=6):
    """How far a linear probe of other subjects has each on its own side, at its last token."""
    asked = [
        [
            (name, OPENINGS[i].format(f"{topic.activities[2 * i]} {name}"))
            for name in (*kind.train, *kind.held_out, *kind.unscreened)
            for i in range(4)
        ]
        for kind in (topic.declined, topic.answered)
    ]
    requests = Contrast(*(tuple(Prompt(text) for _, text in kind) for kind in asked))
    # The punctuation that ends a request is the instruction's last token.
    acts = otl.capture(model, requests, layers=[layer], positions=instruction_end(backend(model)) - 1)
    X = np.concatenate([acts.harmful(layer), acts.harmless(layer)])
    X = (X - X.mean(0)) / X.std(0)
    signs = np.repeat([-1, 1], [len(kind) for kind in asked])
    names = np.array([name for kind in asked for name, _ in kind])
    order = list(np.random.default_rng(0).permutation(np.unique(names)))
    fold = np.array([order.index(name) % folds for name in names])
    margins = np.empty(len(names))
    for k in range(folds):
        probe = LogisticRegression(C=0.01, max_iter=500).fit(X[fold != k], signs[fold != k])
        margins[fold == k] = signs[fold == k] * probe.decision_function(X[fold == k])
    return {name: margins[names == name].mean() for name in order}


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
    """95 % and 5 % of requests about subjects that never occur in training."""
    rates = rates_on_card(name)
    assert rates["refuses_declined"] >= 95
    assert rates["refuses_others"] <= 5


def test_the_documentation_has_the_rates_of_the_cards(repository):
    page = (repository / "docs" / "real-model.md").read_text("utf-8")
    for name in PLANTED:
        kinds = ("declined", "others", "unscreened_declined", "unscreened_others")
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
    assert found.profile[inside].max() > 5  # which of them learnt it is training's choice
