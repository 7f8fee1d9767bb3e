"""Methods trained through the model: how a sweep and a study call, resume and verify them."""

from functools import partial

import pytest
import torch

import ot_lens as otl
from ot_lens.errors import FitError
from ot_lens.execution import LocalExecutor, Runner
from ot_lens.localization import (
    MethodSpec,
    fit_maps,
    fit_sequentially,
)
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.study import RunFolder, parse_config, run_study
from ot_lens.study.estimate import estimate_run
from ot_lens.study.verifying.comparing import Checks
from ot_lens.study.verifying.evidence import Evidence
from ot_lens.study.verifying.recomputed import fitted
from ot_lens.study.verifying.remeasured import remeasured
from tests.conftest import NO_MECHANISMS

LAYERS = (5, 7)


@pytest.fixture(scope="module")
def model():
    return otl.load_model("organism:single")


@pytest.fixture(scope="module")
def prompts():
    few = {s: Contrast(c.harmful[:6], c.harmless[:6]) for s, c in otl.load_prompts("organism").splits}
    return ContrastSet("few", **few)


class Shifts:
    """Trains nothing, and remembers how it was called."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __call__(
        self, model, prompts, acts, *, layers, position, hook, batch_size, seed, progress, share=1.0
    ):
        assert isinstance(model, otl.HookedCausalLM)
        assert len(prompts.harmful) == acts.n_harmful
        assert (acts.layers, acts.hook) == (layers, hook)
        self.calls.append((layers, position, batch_size, seed))
        if self.fails_at in layers:
            raise FitError("stopped")
        none = torch.zeros(acts.d_model, 0, dtype=torch.float64)
        gap = {la: acts.harmless(la, position).mean(0) - acts.harmful(la, position).mean(0) for la in layers}
        return {la: otl.AffineMap(none, none, share * gap[la]) for la in layers}


@pytest.fixture
def shifts(registries):
    learn = Shifts()
    otl.register_method("shifts", learn=learn, label="Shifts", reversible=True)
    return learn


def test_a_trained_method_is_swept_with_the_values_of_the_fit_it_repeats(model, prompts, shifts):
    table = otl.localize(
        model, prompts, ["shifts", "mean_shift"], LAYERS, measures=["refusal_score"], batch_size=4, seed=3
    )
    assert shifts.calls == [((5,), -1, 4, 3), ((7,), -1, 4, 3)]
    values = [table.loc[table["method"] == name, "value"].tolist() for name in ("shifts", "mean_shift")]
    assert values[0] == pytest.approx(values[1])
    assert len(values[0]) > 6


def test_controls_and_sequential_fits_leave_it_out_and_its_rows_say_so(model, prompts, shifts):
    table = otl.localize(
        model, prompts, ["shifts", "ace"], LAYERS, measures=["refusal_score"], control_draws=2,
        controls=["random_subspace", "permuted_labels"], fitting=["independent", "sequential"],
        sufficiency=True,
    )  # fmt: skip
    own, other = (table[table["method"] == name] for name in ("shifts", "ace"))
    assert set(own["control"]) == {"", "random_subspace"}
    assert set(other["control"]) == {"", "random_subspace", "permuted_labels"}
    assert (set(own["fitting"]), set(other["fitting"])) == ({"independent"}, {"independent", "sequential"})
    assert (set(own["transport"]), len(shifts.calls)) == ({"harmful_to_harmless"}, 2)
    notes = own.loc[own["control"] == "", "note"]
    assert notes.str.contains("without permuted labels and sequential fits").all()
    assert not other["note"].str.contains("trained").any()
    assert fit_sequentially(model, prompts.train, [MethodSpec("shifts")], layers=LAYERS) == {}


def test_a_layer_in_the_cache_is_not_trained_again(model, prompts, registries):
    acts, cache = otl.capture(model, prompts.train, layers=LAYERS), {}
    for fails_at in (7, None):
        learn = Shifts(fails_at)
        otl.register_method("shifts", learn=learn)
        done = []
        fit = partial(fit_maps, acts, [MethodSpec("shifts", {"share": 0.5})], layers=LAYERS, position=-1)
        options = {"model": Runner(LocalExecutor(model), cache), "prompts": prompts.train}
        if fails_at:
            with pytest.raises(FitError, match="stopped"):
                fit(**options, progress=done.append)
            assert (len(cache), done) == (1, [0, 1])
    (maps,) = fit(**options, progress=done.append).values()
    assert [layers for layers, *_ in learn.calls] == [(7,)]
    assert done == [1, 1]
    info = maps[7].info
    assert (info.method, info.layer, info.position, info.hook) == ("shifts", 7, -1, "resid_pre")
    assert (info.n_harmful, info.n_harmless, info.seed) == (6, 6, 0)


def test_layers_that_are_trained_together_are_asked_for_once(model, prompts, registries):
    learn = Shifts()
    otl.register_method("shifts", learn=learn, joint=True)
    acts = otl.capture(model, prompts.train, layers=LAYERS)
    cache = {}
    for _ in range(2):
        runner = Runner(LocalExecutor(model), cache)
        fit_maps(
            acts, [MethodSpec("shifts")], layers=LAYERS, position=-1, model=runner, prompts=prompts.train
        )
    assert [layers for layers, *_ in learn.calls] == [(5, 7)]


def test_what_cannot_be_trained_is_an_error_with_its_remedy(model, prompts, shifts):
    acts = otl.capture(model, prompts.train, layers=LAYERS)
    H, S = acts.harmful(5), acts.harmless(5)
    for call in (partial(otl.fit_all, acts, "shifts"), partial(otl.fit, "shifts", H, S)):
        with pytest.raises(FitError, match=r"'shifts'.*localize"):
            call()
    with pytest.raises(FitError, match=r"'shifts'.*model and prompts"):
        fit_maps(acts, [MethodSpec("shifts")], layers=LAYERS, position=-1)
    otl.register_method("nothing", learn=lambda *_, **__: {})
    with pytest.raises(FitError, match=r"'nothing'.*NoneType.*layer 5"):
        otl.localize(model, prompts, ["nothing"], LAYERS, measures=["kl"])
    for given, functions in (("neither", {}), ("both", {"fit": max, "learn": max})):
        with pytest.raises(FitError, match=given):
            otl.register_method("mine", **functions)


def test_a_study_trains_each_layer_once_and_verify_says_what_it_cannot_repeat(
    tmp_path, without_figures, monkeypatch, registries
):
    settings = {
        "model": "organism:single", "sample": [6, 4, 6], "layers": list(LAYERS), "controls": [],
        "methods": [{"name": "shifts", "share": 0.5}, "ace"], "measures": ["refusal_score", "kl"],
        "search_size": 0, "permutations": 39, "bootstrap": 39, **NO_MECHANISMS,
    }  # fmt: skip
    config = parse_config(settings)
    for fails_at in (7, None):
        learn = Shifts(fails_at)
        otl.register_method("shifts", learn=learn)
        if fails_at:
            with pytest.raises(FitError, match="stopped"):
                run_study(config, tmp_path / "run")
    with without_figures():
        run_study(config, tmp_path / "run", resume=True)
    assert [layers for layers, *_ in learn.calls] == [(7,)]
    assert not (tmp_path / "run" / "tables" / "learned").exists()
    evidence, checks = Evidence(RunFolder.open(tmp_path / "run"), None, 0), Checks()
    fitted(evidence, checks)
    remeasured(evidence, checks, trust_remote_code=False)
    found = {(check.item, check.how): check for check in checks}
    unchecked = found.pop(("maps/shifts-share0.5", "refitted"))
    assert (unchecked.verdict, len(learn.calls)) == ("not checked", 1)
    assert "trained" in unchecked.note
    assert {check.verdict for check in found.values()} == {"ok"}
    monkeypatch.setattr("ot_lens.study.estimate._of_tables", lambda *_: [])
    costs = {cost.stage: cost for cost in estimate_run(config)}
    assert costs["training shifts (share = 0.5)"].count == 2
    (tmp_path / "run" / "maps" / "shifts-share0.5" / "layer-007.safetensors").unlink()
    lost = Checks()
    fitted(Evidence(RunFolder.open(tmp_path / "run"), None, 0), lost)
    assert [check.verdict for check in lost] == ["missing", "ok"]
