"""Direction selection: against published choices, by hand, and on models with known ground truth."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.behaviour import kl_divergence, model_phrases, refusal_token_ids, refuses, score_from_logprobs
from ot_lens.directions import read_refusal_direction_run, score_directions, select_direction
from ot_lens.errors import HookError, NoDirectionLeftError, OtLensError, OtLensTypeError
from ot_lens.models import backend, batches
from ot_lens.prompts import Contrast
from ot_lens.transport import AffineMap
from tests import checkpoints

PUBLISHED = Path(__file__).parent / "data" / "refusal_direction"
RUNS = ["gemma-2b-it", "llama-2-7b-chat-hf"]
D = 32
NAN = float("nan")
NO_FILTERS = {"kl_threshold": None, "induce_threshold": None, "prune_share": None}


@pytest.mark.parametrize("name", RUNS)
def test_the_published_choice_is_reproduced(name):
    run = read_refusal_direction_run(PUBLISHED / name)
    chosen = select_direction(run.scores, run.n_layers)
    assert (chosen.position, chosen.layer) == run.selected
    left = chosen.table.dropna(subset="rank").sort_values("rank")[list(run.filtered.columns)]
    pd.testing.assert_frame_equal(left.reset_index(drop=True), run.filtered)
    unfiltered = select_direction(run.scores, run.n_layers, **NO_FILTERS)
    assert (unfiltered.position, unfiltered.layer) != run.selected


def scores(*rows: tuple[int, int, float, float, float]) -> pd.DataFrame:
    names = ["position", "layer", "refusal_score", "steering_score", "kl_div_score"]
    return pd.DataFrame(rows, columns=names)


BY_HAND = scores(
    (-2, 0, -9.0, -1.0, 0.05),  # does not induce
    (-2, 1, -8.0, 1.0, 0.2),  # harms
    (-2, 2, -1.0, 0.0, 0.1),  # on both thresholds: stays
    (-1, 0, NAN, 1.0, 0.05),
    (-1, 1, -2.0, 2.0, 0.0),  # the answer
    (-1, 4, -9.0, 2.0, 0.0),  # too late
)


def test_a_choice_by_hand():
    chosen = select_direction(BY_HAND, 5)
    assert (chosen.position, chosen.layer) == (-1, 1)
    reasons = ["induce < 0", "KL > 0.1", "", "a score is NaN", "", "layer >= 4 of 5"]
    assert chosen.table["dropped"].tolist() == reasons
    assert chosen.table["rank"].tolist() == [pd.NA, pd.NA, 1, pd.NA, 0, pd.NA]
    assert "Next: position -2, layer 2 at -1.00" in chosen.why
    assert "rank" not in BY_HAND


SIMILAR = scores(
    (-2, 0, -9.0, -1.0, 0.0),  # the answer: refusal scores do not count
    (-2, 1, NAN, NAN, 0.2),  # harms
    (-1, 0, -9.0, 9.0, 0.0),
    (-1, 1, 0.0, 0.0, 0.1),
    (-1, 4, 0.0, 0.0, 0.0),  # too late
).assign(ablation_similarity=[0.4, 0.9, 0.8, NAN, 0.9], addition_similarity=[0.9, 0.9, 0.4, 0.9, 0.9])


def test_cosmic_by_hand():
    chosen = select_direction(SIMILAR, 5, rule="cosmic")
    assert (chosen.position, chosen.layer) == (-2, 0)
    assert chosen.table["dropped"].tolist() == ["", "KL > 0.1", "", "a score is NaN", "layer >= 4 of 5"]
    assert chosen.table["rank"].tolist() == [0, pd.NA, 1, pd.NA, pd.NA]
    for number in ("0.400", "0.900", "position -1, layer 0 at 1.200"):
        assert number in chosen.why
    late = select_direction(SIMILAR, 5, rule="cosmic", **NO_FILTERS)
    assert (late.position, late.layer) == (-2, 1)
    tied = select_direction(
        SIMILAR.assign(ablation_similarity=0.5, addition_similarity=0.5), 5, rule="cosmic"
    )
    assert (tied.position, tied.layer) == (-2, 0)


def test_cosmic_says_why_it_cannot_choose():
    with pytest.raises(NoDirectionLeftError, match=r"smallest KL is 0\.2:") as caught:
        select_direction(SIMILAR.assign(kl_div_score=0.2), 5, rule="cosmic", prune_share=None)
    assert [step.removed for step in caught.value.filters] == [1, 4]
    with pytest.raises(OtLensError, match="ablation_similarity, addition_similarity"):
        select_direction(BY_HAND, 5, rule="cosmic")
    with pytest.raises(OtLensError, match=r"'cosine'.*arditi, cosmic"):
        select_direction(SIMILAR, 5, rule="cosine")


def test_each_filter_can_be_set():
    for settings, expected in (
        ({"prune_share": None}, (-1, 4)),
        ({"kl_threshold": None}, (-2, 1)),
        ({"induce_threshold": None}, (-2, 0)),
        ({"kl_threshold": 0.2}, (-2, 1)),
    ):
        chosen = select_direction(BY_HAND, 5, **settings)
        assert (chosen.position, chosen.layer) == expected, settings


def test_ties_go_to_the_earliest_position_then_the_lowest_layer_in_any_order_of_rows():
    table = scores((-1, 0, -3.0, 1, 0), (-2, 2, -3.0, 1, 0), (-2, 1, -3.0, 1, 0), (-2, 3, -2.9, 1, 0))
    for seed in range(5):
        chosen = select_direction(table.sample(frac=1, random_state=seed), 10)
        assert (chosen.position, chosen.layer) == (-2, 1)


def test_an_error_counts_what_each_filter_dropped():
    rows = (-1, 0, NAN, 0.0, 0.0), (-1, 1, -1.0, 3.0, 0.5), (-1, 2, -1.0, -0.5, 0.1), (-1, 4, 0, 1, 0)
    with pytest.raises(NoDirectionLeftError) as caught:
        select_direction(scores(*rows), 5)
    for rule in ("a score is NaN", "layer >= 4 of 5", "KL > 0.1", "induce < 0"):
        assert f"{rule} dropped 1" in str(caught.value)
    assert "smallest KL is 0, the highest induce score 3" in str(caught.value)
    assert [step.removed for step in caught.value.filters] == [1, 1, 1, 1]
    assert (caught.value.table["dropped"] != "").all()
    with pytest.raises(NoDirectionLeftError, match="bfloat16"):
        select_direction(scores((-1, 0, NAN, NAN, NAN)), 5)


@pytest.mark.parametrize(
    ("table", "n_layers", "message"),
    [
        (BY_HAND.drop(columns="kl_div_score"), 5, "kl_div_score"),
        (BY_HAND.iloc[:0], 5, "no rows"),
        (BY_HAND, 4, "Layer 4 .* 4 layers"),
        (pd.concat([BY_HAND, BY_HAND.iloc[:1]]), 5, "position -2, layer 0"),
        (BY_HAND.assign(refusal_score="low"), 5, "numbers"),
        (BY_HAND.assign(layer=NAN), 5, "numbers"),
    ],
)
def test_a_bad_table_is_named(table, n_layers, message):
    with pytest.raises(OtLensError, match=message):
        select_direction(table, n_layers)


@pytest.fixture(scope="module")
def tiny(llama_folder: Path):
    return otl.load_model(llama_folder)


@pytest.fixture(scope="module")
def split() -> Contrast:
    return checkpoints.contrast(5, seed=3)


def directions(seed: int = 0, positions: int = 2) -> torch.Tensor:
    return torch.randn(positions, 4, D, generator=torch.Generator().manual_seed(seed))


def naive(model, prompts, *, ablate: torch.Tensor | None = None, add: tuple[int, torch.Tensor] | None = None):
    """Next-token log-probabilities with hooks on the Hugging Face modules."""
    handles = []

    def project(x: torch.Tensor) -> torch.Tensor:
        unit = (ablate / ablate.norm()).to(x.dtype)
        return x - (x @ unit)[..., None] * unit

    for number, block in enumerate(model.hf_model.model.layers):
        if ablate is not None:
            handles += [
                block.register_forward_pre_hook(lambda _m, args: (project(args[0]), *args[1:])),
                block.self_attn.register_forward_hook(lambda _m, _a, out: (project(out[0]), *out[1:])),
                block.mlp.register_forward_hook(lambda _m, _a, out: project(out)),
            ]
        if add is not None and number == add[0]:
            push = lambda _m, args: (args[0] + add[1].to(args[0].dtype), *args[1:])  # noqa: E731
            handles.append(block.register_forward_pre_hook(push))
    try:
        rows = {}
        for batch in batches(backend(model), prompts, 1):
            with torch.no_grad():
                logits = model.hf_model(input_ids=batch.tokens).logits[0, -1]
            rows[batch.indices[0]] = logits.double().log_softmax(-1)
        return torch.stack([rows[i] for i in range(len(prompts))])
    finally:
        for handle in handles:
            handle.remove()


def test_scores_agree_with_explicit_hooks(tiny, split):
    r = directions()
    table = score_directions(tiny, split, r, batch_size=2).set_index(["position", "layer"])
    ids = refusal_token_ids(tiny)
    original = naive(tiny, split.harmless)
    for position, layer in ((-2, 0), (-1, 2), (-1, 3)):
        row, vector = table.loc[position, layer], r[position, layer]
        bypass = score_from_logprobs(naive(tiny, split.harmful, ablate=vector), ids).mean()
        induce = score_from_logprobs(naive(tiny, split.harmless, add=(layer, vector)), ids).mean()
        kl = kl_divergence(original, naive(tiny, split.harmless, ablate=vector)).mean()
        assert row["refusal_score"] == pytest.approx(bypass.item(), abs=1e-4)
        assert row["steering_score"] == pytest.approx(induce.item(), abs=1e-4)
        assert row["kl_div_score"] == pytest.approx(kl.item(), rel=1e-3)
        assert row["refusal_low"] <= row["refusal_score"] <= row["refusal_high"]
    baseline = score_from_logprobs(original, ids).mean().item()
    assert table["steering_baseline"].iloc[0] == pytest.approx(baseline, abs=1e-4)
    assert (table["n_harmful"] == 5).all()


def test_similarities_are_of_what_is_captured_under_the_same_edits(tiny, split):
    r = directions()
    row = score_directions(tiny, split, r, positions=[-1], layers=[1], batch_size=2).iloc[0]
    unit = (r[-1, 1] / r[-1, 1].norm()).double()[:, None]
    ablation = otl.everywhere(AffineMap(-unit, unit, torch.zeros(D).double()), range(4))
    addition = {1: AffineMap(unit[:, :0], unit[:, :0], r[-1, 1].double())}

    def means(label: str, edits=None) -> torch.Tensor:
        return otl.capture(tiny, split, hook="resid_post", edits=edits).stacked(label).mean(1)

    harmful, harmless = means("harmful"), means("harmless")
    alike = torch.cosine_similarity(harmful, harmless, dim=-1)
    least = int(alike.argmin())  # a tenth of four layers, at least one
    for name, moved, target in (
        ("ablation_similarity", means("harmful", ablation), harmless),
        ("addition_similarity", means("harmless", addition), harmful),
    ):
        expected = torch.cosine_similarity(moved[least], target[least], dim=0).item()
        assert row[name] == pytest.approx(expected, abs=1e-5)
    assert row["similarity_baseline"] == pytest.approx(alike.min().item(), abs=1e-5)


def test_activations_give_the_same_scores_as_their_means(tiny, split):
    acts = otl.capture(tiny, checkpoints.contrast(6), positions=[-2, -1])
    means = [[acts.stacked(label, p).mean(1) for p in (-2, -1)] for label in ("harmful", "harmless")]
    r = torch.stack(means[0]) - torch.stack(means[1])
    pd.testing.assert_frame_equal(score_directions(tiny, split, acts), score_directions(tiny, split, r))


def test_chosen_candidates_are_scored_in_order_with_progress_as_among_all(tiny, split):
    reported: list[str] = []
    chosen = {"positions": [-1], "layers": [3, 1], "progress": reported.append}
    table = score_directions(tiny, split, directions(), seed=4, **chosen)
    assert table[["position", "layer"]].to_numpy().tolist() == [[-1, 1], [-1, 3]]
    assert reported == ["position -1, layer 1", "position -1, layer 3"]
    complete = score_directions(tiny, split, directions(), seed=4)
    again = complete[(complete["position"] == -1) & complete["layer"].isin([1, 3])]
    pd.testing.assert_frame_equal(table, again.reset_index(drop=True))
    assert json.loads(table.to_json(orient="records"))  # plain numbers throughout


def test_directions_of_rounding_nan_and_overflow(tiny, split):
    r = directions().double()
    r[-1, 0] *= 1e-16
    r[-1, 1] = NAN
    r[-1, 2] = 1e300
    table = score_directions(tiny, split, r, positions=[-1]).set_index("layer")
    none, bad = table.loc[0], table.loc[1]
    assert none["kl_div_score"] == pytest.approx(0, abs=1e-9)
    assert none["refusal_score"] == pytest.approx(none["refusal_baseline"], abs=1e-5)
    assert bad[["refusal_score", "steering_score", "kl_div_score"]].isna().all()
    assert bad[["ablation_similarity", "addition_similarity"]].isna().all()
    assert none["ablation_similarity"] == pytest.approx(none["similarity_baseline"], abs=1e-6)
    assert math.isnan(table.loc[2, "steering_score"])
    assert math.isfinite(table.loc[3, "steering_score"])
    chosen = select_direction(table.reset_index(), 4, **NO_FILTERS)
    assert chosen.table["dropped"].tolist() == ["", "a score is NaN", "a score is NaN", ""]
    assert "intervals of" in chosen.why


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"directions": torch.zeros(2, 3, D)}, HookError, r"4 layers.*\(2, 3, 32\)"),
        ({"directions": np.zeros((2, 4, D))}, OtLensTypeError, "ndarray"),
        ({"positions": [-3]}, HookError, "position -3"),
        ({"positions": []}, HookError, "No position"),
        ({"layers": [9]}, HookError, "ayer 9"),
        ({"refusal_tokens": ["elephant"]}, OtLensError, "elephant"),
    ],
)
def test_directions_that_cannot_be_scored_are_named(tiny, split, change, kind, message):
    with pytest.raises(kind, match=message):
        score_directions(tiny, split, **({"directions": directions()} | change))


def test_activations_of_another_hook_are_refused(tiny, split):
    with pytest.raises(HookError, match="resid_post"):
        score_directions(tiny, split, otl.capture(tiny, split, hook="resid_post", layers=[1]))


# Template tokens after the request, at the layers where the embedded models decide.
DECIDING = {"positions": [-2, -1], "layers": [5, 6, 7]}
LOOSE = {"prune_share": None, "induce_threshold": None}


@pytest.fixture(scope="module")
def organism():
    prompts = otl.load_prompts("organism")
    val = Contrast(prompts.val.harmful[:24], prompts.val.harmless[:24])
    test = Contrast(prompts.test.harmful[:48], prompts.test.harmless[:48])
    return prompts.train, val, test


@pytest.fixture(scope="module")
def single(organism):
    """A model with one refusal direction, its activations, and the scores of its directions."""
    return scored("single", organism)


def scored(variant: str, organism):
    model = otl.load_model(f"organism:{variant}")
    acts = otl.capture(model, organism[0], **DECIDING)
    return model, acts, score_directions(model, organism[1], acts)


def permuted(acts: otl.Activations, seed: int) -> otl.Activations:
    both = torch.cat([acts.data["harmful"], acts.data["harmless"]], dim=1)
    order = torch.randperm(both.shape[1], generator=torch.Generator().manual_seed(seed))
    harmful, harmless = both[:, order].chunk(2, dim=1)
    return replace(acts, data={"harmful": harmful, "harmless": harmless})


def refusal_rate(model, prompts, direction: torch.Tensor) -> float:
    unit = (direction / direction.norm()).double()[:, None]
    edit = AffineMap(-unit, unit, torch.zeros(len(unit), dtype=torch.float64))
    with otl.intervene(model, otl.everywhere(edit, range(8))):
        answers = otl.complete(model, prompts, max_new_tokens=20)
    return float(np.mean(refuses(answers, model_phrases(model))))


def test_the_one_direction_is_found_and_its_ablation_ends_refusal(organism, single):
    test, (model, acts, table) = organism[2], single
    with pytest.raises(NoDirectionLeftError, match="layer >= 6 of 8 dropped 4"):
        select_direction(table, 8)  # the eight layers decide in the last two, which are pruned
    chosen = select_direction(table, 8, **LOOSE)
    assert chosen.position in (-2, -1)
    best = table.loc[chosen.table["rank"].eq(0)].iloc[0]
    assert best["refusal_high"] < 0 < best["refusal_baseline"]
    where = (chosen.layer, chosen.position)
    r = acts.harmful(*where).mean(0) - acts.harmless(*where).mean(0)
    before = np.mean(refuses(otl.complete(model, test.harmful, max_new_tokens=20), model_phrases(model)))
    assert before > 0.9
    assert refusal_rate(model, test.harmful, r) < 0.2


def test_cosmic_finds_it_without_refusal_tokens(organism, single):
    test, (model, acts, table) = organism[2], single
    chosen = select_direction(table.assign(refusal_score=NAN, steering_score=NAN), 8, rule="cosmic", **LOOSE)
    where = (chosen.layer, chosen.position)
    r = acts.harmful(*where).mean(0) - acts.harmless(*where).mean(0)
    assert refusal_rate(model, test.harmful, r) < 0.2


def test_directions_of_permuted_labels_bypass_nothing(organism, single):
    model, acts, _ = single
    table = score_directions(model, organism[1], permuted(acts, 0))
    assert (table["refusal_low"] > 0).all()
    similarities = table[["ablation_similarity", "addition_similarity"]]
    assert (similarities.sub(table["similarity_baseline"], axis=0).abs() < 0.1).all(axis=None)
    found = single[2][["ablation_similarity", "addition_similarity"]].max()
    assert (found > table["similarity_baseline"].iloc[0] + 0.3).all()


def test_where_refusal_has_several_directions_none_of_them_bypasses_it(organism):
    _, _, table = scored("multi", organism)
    assert (table["refusal_low"] > 0).all()
    with pytest.raises(NoDirectionLeftError):
        select_direction(table, 8)
