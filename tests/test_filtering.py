"""Filtering by behaviour on the embedded model, which refuses what it must not do and answers the rest."""

from dataclasses import replace

import pytest

import ot_lens as otl
from ot_lens.errors import PromptError
from ot_lens.models import backend
from ot_lens.prompts import CLASSES, Contrast

LAYER = 7


@pytest.fixture(scope="module")
def model():
    return otl.load_model("organism:single")


@pytest.fixture(scope="module")
def mislabelled():
    """The embedded prompts with four of each class, of train and test, under the wrong label."""
    full = otl.load_prompts("organism")

    def swapped(contrast: Contrast, n: int) -> Contrast:
        return Contrast(
            contrast.harmless[:4] + contrast.harmful[4:n], contrast.harmful[:4] + contrast.harmless[4:n]
        )

    small = Contrast(full.val.harmful[:12], full.val.harmless[:12])
    return replace(full, train=swapped(full.train, 24), val=small, test=swapped(full.test, 12))


@pytest.mark.parametrize("by", ["refusal_score", "answers"])
def test_mislabelled_prompts_go_and_the_rest_stays_in_order(model, mislabelled, by):
    sizes = {"train": (24, 20), "val": (12, 12)}
    found = otl.filter_by_behaviour(model, mislabelled, by=by, batch_size=16)
    assert found.train.harmful == mislabelled.train.harmful[4:]
    assert found.train.harmless == mislabelled.train.harmless[4:]
    assert found.val == mislabelled.val  # the control: correctly labelled prompts all stay
    assert found.test == mislabelled.test  # not asked for
    record = found.manifest()["filtered"][0]
    counts = [(c["split"], c["class"], c["n"], c["kept"]) for c in record["counts"]]
    expected = [(split, label, *n) for split, n in sizes.items() for label in CLASSES]
    assert (record["by"], counts) == (by, expected)
    assert mislabelled.manifest().get("filtered") is None
    assert found.manifest()["counts"]["train"] == {"harmful": 20, "harmless": 20}


def test_test_prompts_are_filtered_when_asked_and_each_filter_is_recorded(model, mislabelled):
    once = otl.filter_by_behaviour(model, mislabelled, splits=["test"])
    assert (len(once.test.harmful), len(once.train.harmful)) == (8, 24)
    twice = otl.filter_by_behaviour(model, once, by="answers", phrases="organism")
    assert [r["by"] for r in twice.manifest()["filtered"]] == ["refusal_score", "answers"]


def test_the_threshold_is_one_of_the_score(model, mislabelled):
    scores = otl.refusal_score(model, mislabelled.val.harmful)
    middle = float(scores.sort().values[6])
    found = otl.filter_by_behaviour(model, mislabelled, threshold=middle, splits=["val"])
    assert len(found.val.harmful) == int((scores > middle).sum())
    assert len(found.val.harmless) == 12


def test_a_model_that_no_longer_refuses_leaves_no_harmful_prompt(model, mislabelled):
    """The negative control: with refusal ablated, nothing of the class is left, and that is an error."""
    acts = otl.capture(model, otl.load_prompts("organism").train, layers=[LAYER])
    edit = otl.fit_directional_ablation(acts.harmful(LAYER), acts.harmless(LAYER))
    edits = otl.everywhere(edit, range(backend(model).n_layers))
    with otl.intervene(model, edits), pytest.raises(PromptError, match="refuses none of 12 harmful prompts"):
        otl.filter_by_behaviour(model, mislabelled, splits=["val"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "vibes"}, "no filter 'vibes': choose one of refusal_score, answers"),
        ({"splits": ["dev"]}, "no split 'dev'"),
        ({"threshold": 1e6}, "refuses none of 24 harmful prompts"),
        ({"threshold": -1e6}, "answers none of 24 harmless prompts"),
        ({"by": "answers", "phrases": "none such"}, "no phrase list 'none such'"),
        ({"tokens": ["elephantine"]}, "not a single token"),
    ],
)
def test_bad_options_and_emptied_classes_are_named(model, mislabelled, options, message):
    with pytest.raises(PromptError, match=message):
        otl.filter_by_behaviour(model, mislabelled, **options)
