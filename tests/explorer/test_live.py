"""The live panel's model: right numbers, one edit at a time, nothing left behind, bounds kept."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

import ot_lens as otl
from ot_lens.errors import ModelError, PromptError
from ot_lens.explorer.live import MOST_FURTHER, Asked, LiveModel, live_model
from ot_lens.explorer.runs import OpenRun
from ot_lens.models import backend


@pytest.fixture(scope="module")
def live(opened):
    return live_model(opened.run, None)


@pytest.fixture(scope="module")
def prompt(opened):
    return opened.run.texts["harmful"][0]


def state_of(opened, **fields):
    return opened.read({"layers": "7", "ot": "pca_ot:2", "by": "directional_ablation", **fields})


def asked_of(opened, further=(), together=False, **fields):
    return Asked(state_of(opened, **fields), tuple(further), together)


@pytest.mark.parametrize(("scope", "of_transport", "of_projection"), [("auto", "last", "all"), ("all",) * 3])
def test_the_columns_are_those_of_direct_use(live, opened, prompt, scope, of_transport, of_projection):
    """At the scope asked for; "auto" is the one at which the method was swept."""
    asked = asked_of(opened, strength="0.75", tokens=scope)
    tokens, refusing, (plain, ot, by) = live.next_tokens(prompt, asked)
    assert plain.score == pytest.approx(float(otl.refusal_score(live.model, [prompt])), abs=1e-4)
    columns = ((ot, "pca_ot:2", of_transport), (by, "directional_ablation", of_projection))
    for column, key, used in columns:
        with otl.intervene(live.model, {7: opened.run.map(key, 7).at(0.75)}, used):
            assert column.score == pytest.approx(float(otl.refusal_score(live.model, [prompt])), abs=1e-4)
    assert plain.kl == 0
    assert ot.kl > 0
    assert ot.score < plain.score
    assert any(refusing)
    assert len(tokens) == len(plain.probabilities)
    assert tokens[0] == sorted(zip(plain.probabilities, tokens, strict=True))[-1][1]


def test_rfa_is_its_direction_everywhere_and_several_layers_are_edited_together(live, opened):
    layers = backend(live.model).n_layers
    assert len(live.edits("rfa", state_of(opened))) == 3 * layers
    assert set(live.edits("pca_ot:2", state_of(opened, layers="5,7"))) == {5, 7}
    assert live.edits("", state_of(opened)) == {}


def test_answers_are_side_by_side(live, opened, prompt):
    plain, ot, _ = live.answers(prompt, asked_of(opened))
    assert plain.text == otl.complete(live.model, [prompt], max_new_tokens=16)[0].text
    assert plain.refuses
    assert state_of(opened).tokens == "auto"
    with otl.intervene(live.model, {7: opened.run.map("pca_ot:2", 7)}, "last"):
        assert ot.text == otl.complete(live.model, [prompt], max_new_tokens=16)[0].text


def test_any_registered_method_and_several_edits_at_once_are_tried(live, opened, prompt):
    """Methods without stored maps are fitted to the training activations of the run."""
    assert {"mean_shift", "gaussian_ot"} <= set(live.fitted_here)
    assert "pca_ot" not in live.fitted_here
    asked = asked_of(opened, ["mean_shift"], together=True)
    columns = live.next_tokens(prompt, asked)[2]
    assert [mark.label for mark in live.marks(asked)][3:] == ["Mean shift", "All edits together"]
    shift = otl.fit_all(otl.load_activations(opened.run.path / "activations" / "train"), "mean_shift")[7]
    with otl.intervene(live.model, {7: shift}, "last"):
        assert columns[3].score == pytest.approx(float(otl.refusal_score(live.model, [prompt])), abs=1e-4)
    others = [
        ({7: opened.run.map("pca_ot:2", 7)}, "last"),
        ({7: opened.run.map("directional_ablation", 7)}, "all"),
    ]
    with ExitStack() as stack:
        for sites, scope in [*others, ({7: shift}, "last")]:
            stack.enter_context(otl.intervene(live.model, sites, scope))
        assert columns[4].score == pytest.approx(float(otl.refusal_score(live.model, [prompt])), abs=1e-4)
    assert len(columns) == 5


def test_the_further_edits_of_a_request_are_checked(live, opened):
    state, offered = state_of(opened), live.offered
    assert live.asked({"further": ["mean_shift", "<b>", 3, None], "together": "yes"}, state) == Asked(
        state, ("mean_shift",)
    )
    assert live.asked({"further": "mean_shift", "together": True}, state) == Asked(state, (), True)
    assert len(live.asked({"further": offered}, state).further) == MOST_FURTHER


def test_answers_are_scored_token_by_token_under_their_edit_and_without(live, opened, prompt):
    plain, ot, _ = live.answers(prompt, asked_of(opened))
    assert all(one.log_probability == pytest.approx(one.unedited, abs=1e-4) for one in plain.tokens)
    assert plain.tokens[0].score == pytest.approx(float(otl.refusal_score(live.model, [prompt])), abs=1e-4)
    completion = otl.complete(live.model, [prompt], max_new_tokens=16)
    assert sum(one.unedited for one in plain.tokens) / len(plain.tokens) == pytest.approx(
        -float(otl.answer_nll(live.model, [prompt], completion)[0]), abs=1e-4
    )
    # Greedy under the edit: no token is less likely there than without it by chance alone.
    assert sum(one.log_probability for one in ot.tokens) > sum(one.unedited for one in ot.tokens)


def test_users_at_once_get_their_own_edit_and_leave_the_model_as_it_was(live, opened):
    prompts = opened.run.texts["harmful"][:3]
    before = otl.next_token_logprobs(live.model, prompts)
    states = [asked_of(opened, strength=s, layers=n) for s in ("0", "0.5", "1") for n in ("5", "7", "5,7")]
    alone = {(p, s): live.next_tokens(p, s)[2] for p in prompts for s in states}
    start = threading.Barrier(8)

    def ask(job):
        if job < 8:
            start.wait(30)
        prompt, state = prompts[job % 3], states[job % len(states)]
        return live.next_tokens(prompt, state)[2] == alone[prompt, state]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))
    assert torch.equal(otl.next_token_logprobs(live.model, prompts), before)
    points = [m for m in live.model.modules() if getattr(m, "fwd_hooks", None)]
    assert points == []


@pytest.mark.parametrize("prompt", ["", "  \n", None, 3, "word " * 4000, "ab " * 600])
def test_prompts_out_of_bounds_are_refused(live, prompt):
    with pytest.raises(PromptError):
        live.checked(prompt)


def with_manifest(run, **changes):
    """An opened run whose manifest has other entries."""
    manifest = json.loads((run / "manifest.json").read_text())
    for part, fields in changes.items():
        manifest[part] |= fields
    (run / "manifest.json").write_text(json.dumps(manifest))
    return OpenRun(run)


def test_a_model_of_another_run_is_refused(copied_run):
    with pytest.raises(ModelError, match="d_model"):
        _ = LiveModel(with_manifest(copied_run, model={"d_model": 4096}), "organism").model


def test_only_an_embedded_model_is_loaded_unasked(opened, copied_run):
    assert live_model(opened.run, None).name == "organism"
    other = with_manifest(copied_run, config={"model": "some/model"})
    assert live_model(other, None) is None
    assert live_model(other, "./folder").name == "./folder"
