"""The paper's claims as tests: verdicts on tables with a known answer, nulls, and a run of a model."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import ot_lens as otl
from ot_lens.errors import ConfigError, HookError, RunFolderError
from ot_lens.paper_study import frontier, published
from ot_lens.paper_study.claims import claims, printable
from ot_lens.paper_study.depth import depth_grid
from ot_lens.paper_study.frontier import Frontier, gain, reached
from ot_lens.paper_study.verdicts import (
    AGREE,
    CANNOT_TELL,
    MORE,
    NO_LOSS,
    NOT_SUPPORTED,
    SAME,
    SUPPORTED,
    verdict,
)
from ot_lens.statistics import mcnemar, rate_difference, sign_flip
from ot_lens.tables import OUTCOMES, chosen_edits, select

N = 40
EDITS = {
    "rfa": ("single|4|rfa|1|t||||independent", "single", "4", "rfa", pd.NA, "independent"),
    "act": ("all|0-7|linear_act|1|t||||independent", "all", "0-7", "linear_act", pd.NA, "independent"),
    "act one": ("single|4|linear_act|1|t||||independent", "single", "4", "linear_act", pd.NA, "independent"),
    "inside": ("single|4|pca_ot (k = 1)|1|t||||independent", "single", "4", "pca_ot", 1, "independent"),
    "outside": ("single|1|pca_ot (k = 1)|1|t||||independent", "single", "1", "pca_ot", 1, "independent"),
    "late": ("single|7|pca_ot (k = 1)|1|t||||independent", "single", "7", "pca_ot", 1, "independent"),
    "pair": ("search|3,4|pca_ot (k = 1)|1|t||||independent", "search", "3,4", "pca_ot", 1, "independent"),
    "all": ("all|0-7|pca_ot (k = 1)|1|t||||independent", "all", "0-7", "pca_ot", 1, "independent"),
}
COMMON = {"strength": 1.0, "tokens": "all", "control": "", "transport": "harmful_to_harmless"}


def sweep(measured: Mapping[str, float]) -> pd.DataFrame:
    """A sweep with the coherent success of each edit, by which they are chosen."""
    rows = []
    for name, value in measured.items():
        key, layer_set, layers, method, k, fitting = EDITS[name]
        edit = {"key": key, "set": layer_set, "layers": layers, "method": method, "k": k, "fitting": fitting}
        rows.append(
            {**COMMON, **edit, "measure": "coherent_success_rate", "prompts": "harmful", "value": value}
        )
    return pd.DataFrame(rows).astype({"k": "Int64"})


def outcomes(coherent: Mapping[str, np.ndarray], **others: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Outcomes of harmful prompts by edit; refused is the opposite of coherent, unless it is given."""
    parts = []
    for name, flags in coherent.items():
        key = "none" if name == "none" else EDITS[name][0] if name in EDITS else name
        columns = {"coherent": flags, "refused": ~flags, "degenerate": np.zeros(len(flags), bool)}
        columns |= {column: given[name] for column, given in others.items() if name in given}
        harmful = {"key": key, "prompts": "harmful", "prompt": range(len(flags)), **columns}
        parts.append(pd.DataFrame(harmful))
    table = pd.concat(parts, ignore_index=True)
    return table.reindex(columns=list(OUTCOMES)).astype(OUTCOMES)


def harmless(table: pd.DataFrame, nll: Mapping[str, float], tokens: int = 10) -> pd.DataFrame:
    """The table with harmless prompts whose known answers have a loss per token."""
    parts = [table]
    for name, loss in nll.items():
        key = "none" if name == "none" else EDITS[name][0] if name in EDITS else name
        rows = {
            "key": key,
            "prompts": "harmless",
            "prompt": range(N),
            "nll": loss * tokens,
            "n_tokens": tokens,
        }
        parts.append(pd.DataFrame(rows).reindex(columns=list(OUTCOMES)).astype(OUTCOMES))
    return pd.concat(parts, ignore_index=True)


def no_variants(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[:0].assign(of="", axis="", level="")


def share(rate: float, n: int = N) -> np.ndarray:
    return np.arange(n) < round(rate * n)


def claimed(
    rates: Mapping[str, float], validation: Mapping[str, float] | None = None, **given: Any
) -> pd.DataFrame:
    """The claims on a table of coherent success rates."""
    table = sweep(rates)
    made = outcomes({"none": share(0.0), **{name: share(rate) for name, rate in rates.items()}})
    by = given.pop("outcomes", made)
    variants = given.pop("variants", no_variants(table))
    options = {"model": "x", "n_layers": 8} | given
    return claims(table, sweep(validation or rates), variants, by, **options)


def verdicts(table: pd.DataFrame, claim: str, **criteria: Any) -> set[str]:
    return set(select(table, claim=claim, **criteria)["verdict"])


# ------------------------------------------------------------------------------------------- verdicts
@pytest.mark.parametrize(
    ("kind", "low", "high", "p", "said"),
    [
        (MORE, 0.01, 0.3, 0.01, SUPPORTED),
        (MORE, 0.01, 0.3, 0.2, CANNOT_TELL),
        (MORE, -0.2, 0.04, 1.0, NOT_SUPPORTED),
        (MORE, -0.2, 0.2, 1.0, CANNOT_TELL),
        (MORE, float("nan"), float("nan"), 1.0, CANNOT_TELL),
        (NO_LOSS, -0.04, 0.1, 1.0, SUPPORTED),
        (NO_LOSS, -0.3, -0.01, 0.01, NOT_SUPPORTED),
        (NO_LOSS, -0.3, 0.1, 1.0, CANNOT_TELL),
        (SAME, -0.04, 0.04, 1.0, SUPPORTED),
        (SAME, -0.4, -0.1, 0.01, NOT_SUPPORTED),
        (SAME, -0.4, -0.1, 0.2, CANNOT_TELL),
        (AGREE, 0.7, 0.9, float("nan"), SUPPORTED),
        (AGREE, 0.1, 0.5, float("nan"), NOT_SUPPORTED),
        (AGREE, 0.5, 0.7, float("nan"), CANNOT_TELL),
    ],
)
def test_verdicts_by_hand(kind, low, high, p, said):
    assert verdict(kind, low, high, p) == said


# ------------------------------------------------------------------------- differences of paired rates
def test_the_paired_interval_is_newcombe_s():
    """His method 10 on its own example, of 56 pairs (36, 12, 2, 0), worked out with his formulas."""
    a = [True] * 36 + [True] * 12 + [False] * 2 + [False] * 6
    b = [True] * 36 + [False] * 12 + [True] * 2 + [False] * 6
    found = rate_difference(a, b)
    assert found.value == pytest.approx(10 / 56)
    assert (found.low, found.high) == pytest.approx(reference_interval(36, 12, 2, 6), abs=1e-12)
    assert rate_difference(b, a).low == pytest.approx(-found.high)
    with pytest.raises(otl.errors.ActivationError, match="56 and 1"):
        rate_difference(a, [True])


def reference_interval(both: int, one: int, other: int, neither: int) -> tuple[float, float]:
    """Newcombe 1998, method 10, written out from the paper."""
    n, z = both + one + other + neither, 1.959963984540054
    p, q = (both + one) / n, (both + other) / n

    def wilson(x: float) -> tuple[float, float]:
        root = z * np.sqrt(z * z + 4 * n * x * (1 - x))
        return (2 * n * x + z * z - root) / (2 * (n + z * z)), (2 * n * x + z * z + root) / (2 * (n + z * z))

    (l1, u1), (l2, u2) = wilson(p), wilson(q)
    product = both * neither - one * other
    corrected = max(product - n / 2, 0) if product > 0 else product
    phi = corrected / np.sqrt(float((both + one) * (other + neither) * (both + other) * (one + neither)))
    d = p - q
    low = d - np.sqrt((p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2)
    high = d + np.sqrt((u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2)
    return low, high


@pytest.mark.parametrize("cells", [(0.45, 0.25, 0.1, 0.2), (0.85, 0.1, 0.0, 0.05), (0.1, 0.8, 0.05, 0.05)])
def test_the_paired_interval_covers_at_small_n(cells):
    """Of 400 samples of 24 pairs, 380 +- 4.4 are expected to cover; below 366 is 3.2 standard errors."""
    rng, truth, covered = np.random.default_rng(1), cells[1] - cells[2], 0
    for counts in rng.multinomial(24, cells, size=400):
        both, one, other, neither = (int(n) for n in counts)
        a = [True] * both + [True] * one + [False] * other + [False] * neither
        b = [True] * both + [False] * one + [True] * other + [False] * neither
        found = rate_difference(a, b)
        covered += found.low <= truth <= found.high
    assert covered >= 366


def test_exchanging_the_sides_of_flags_is_mcnemar_s_test():
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 30)) < [[0.7], [0.4]]
    assert sign_flip(a.astype(float) - b, seed=0) == pytest.approx(mcnemar(a.tolist(), b.tolist()), abs=0.02)
    assert sign_flip(np.zeros(5), seed=0) == 1.0
    assert sign_flip(np.ones(12), seed=0) < 0.002
    with pytest.raises(otl.errors.ActivationError):
        sign_flip(np.zeros(0), seed=0)


# --------------------------------------------------------------------------------- curves over strengths
def curve(rates: list[float], costs: list[float], n: int = N) -> Frontier:
    success = np.array([share(rate, n) for rate in rates], dtype=float)
    cost = np.log(np.array(costs))[:, None] * np.ones((1, 20))
    return Frontier(success, cost, np.ones(20), log=True)


def test_what_is_reached_at_a_cost_is_interpolated_along_the_strengths():
    success, cost = np.array([[0.0, 0.4, 0.8]]), np.array([[1.0, 2.0, 4.0]])
    for limit, best in ((0.5, 0.0), (1.0, 0.0), (1.5, 0.2), (2.0, 0.4), (3.0, 0.6), (9.0, 0.8)):
        assert reached(success, cost, np.array([limit]))[0] == pytest.approx(best)
    falls = np.array([[0.0, 0.9, 0.1]])
    assert reached(falls, cost, np.array([9.0]))[0] == pytest.approx(0.9)


def test_the_gain_is_taken_at_equal_cost_by_hand():
    """The other edit reaches 0.8 at twice the cost, and half of the way there 0.4."""
    edit, other = curve([0.0, 0.5, 0.9], [1.0, 1.5, 2.0]), curve([0.0, 0.8], [1.0, 3.0])
    found, p = gain(edit, other, seed=0)
    assert found.value == pytest.approx(0.9 - 0.4)
    assert found.low <= found.value <= found.high
    assert p < 0.01
    whole, _ = gain(edit, other, seed=0, whole=True)
    assert whole.value == pytest.approx(np.mean([0.5 - 0.2, 0.9 - 0.4]))


def test_an_edit_gains_nothing_over_itself():
    edit = curve([0.0, 0.5, 0.9], [1.0, 1.5, 2.0])
    found, p = gain(edit, edit, seed=0)
    assert found.value == pytest.approx(0.0)
    assert found.low < 0 < found.high
    assert p > 0.5


# -------------------------------------------------------------------------------------------- the claims
HIGH, LOW = 0.9, 0.3


def test_few_layers_against_all():
    assert verdicts(claimed({"inside": HIGH, "pair": HIGH, "all": LOW}), "layers") == {SUPPORTED}
    assert verdicts(claimed({"inside": LOW, "pair": LOW, "all": HIGH}), "layers") == {NOT_SUPPORTED}
    assert verdicts(claimed({"inside": 0.5, "pair": 0.5, "all": 0.45}), "layers") == {CANNOT_TELL}


def test_the_depth_and_the_collapse_beyond_it():
    supported = claimed({"inside": HIGH, "outside": LOW, "late": 0.0})
    assert verdicts(supported, "depth") == {SUPPORTED}
    assert verdicts(supported, "collapse", quantity="coherent success") == {SUPPORTED}
    turned = claimed({"inside": LOW, "outside": 0.1, "late": HIGH})
    assert verdicts(turned, "depth") == {NOT_SUPPORTED}
    assert verdicts(turned, "collapse", quantity="coherent success") == {NOT_SUPPORTED}
    level = claimed({"inside": 0.5, "outside": 0.45, "late": 0.45})
    assert verdicts(level, "depth") == {CANNOT_TELL}


def test_layers_are_chosen_on_validation_prompts_and_measured_on_others():
    """The outside layer that is best on the test prompts was not best on the validation prompts."""
    table = claimed(
        {"inside": 0.5, "outside": 0.2, "late": HIGH}, {"inside": 0.5, "outside": 0.6, "late": 0.4}
    )
    row = select(table, claim="depth", quantity="coherent success").iloc[0]
    assert row["reference"] == "PCA-OT (k = 1), layer 1"
    assert row["value"] == pytest.approx(0.3)


def test_gain_at_equal_perplexity():
    rates = {"inside": HIGH, "rfa": LOW, "act": LOW}
    flags = outcomes({"none": share(0.0), **{name: share(rate) for name, rate in rates.items()}})
    cheap = harmless(flags, {"none": 0.1, "inside": 0.2, "rfa": 0.2, "act": 0.2})
    assert verdicts(claimed(rates, outcomes=cheap), "gain", quantity="coherent success") == {SUPPORTED}
    turned = {"inside": LOW, "rfa": HIGH, "act": HIGH}
    flags = outcomes({"none": share(0.0), **{name: share(rate) for name, rate in turned.items()}})
    same = harmless(flags, {"none": 0.1, "inside": 0.2, "rfa": 0.2, "act": 0.2})
    assert verdicts(claimed(turned, outcomes=same), "gain", quantity="coherent success") == {NOT_SUPPORTED}
    assert select(claimed(rates), claim="gain").empty, "no cost was measured"


def test_sensitivity_to_a_variant():
    table = sweep({"inside": 0.5})
    row = table.assign(key="other", of=EDITS["inside"][0], axis="k", level="8")
    for other, said in ((np.roll(share(0.5), 2), CANNOT_TELL), (share(0.0), NOT_SUPPORTED)):
        flags = outcomes({"none": share(0.0), "inside": share(0.5), "other": other})
        found = claimed({"inside": 0.5}, outcomes=flags, variants=row)
        assert verdicts(found, "sensitivity") == {said}
    many = {"none": share(0.0, 400), "inside": share(1.0, 400), "other": share(1.0, 400)}
    found = claimed({"inside": 1.0}, outcomes=outcomes(many), variants=row)
    assert verdicts(found, "sensitivity") == {SUPPORTED}


def test_capability_item_by_item():
    def items(after: float) -> pd.DataFrame:
        scores = {"none": share(0.8, 400), EDITS["inside"][0]: share(after, 400)}
        named = {"task": "mmlu", "part": "mmlu_law", "measure": "acc", "filter": "none"}
        parts = [
            pd.DataFrame({**named, "key": k, "item": range(400), "value": v * 1.0}) for k, v in scores.items()
        ]
        return pd.concat(parts, ignore_index=True)

    for after, said in ((0.8, SUPPORTED), (0.5, NOT_SUPPORTED), (0.78, SUPPORTED)):
        assert verdicts(claimed({"inside": 0.5}, capability=items(after)), "capability") == {said}
    few = items(0.7).query("item % 8 == 0")
    assert verdicts(claimed({"inside": 0.5}, capability=few), "capability") <= {CANNOT_TELL, NOT_SUPPORTED}
    shuffled = items(0.8).sample(frac=1.0, random_state=1)
    value = select(claimed({"inside": 0.5}, capability=shuffled), claim="capability")["value"].item()
    assert value == pytest.approx(0.0)


def test_success_and_agreement():
    refused, judged = {"inside": np.zeros(N, bool)}, {"inside": share(1.0)}
    flags = outcomes({"none": share(0.0), "inside": share(0.2)}, refused=refused, judged=judged)
    found = claimed({"inside": 0.2}, outcomes=flags)
    assert verdicts(found, "success") == {SUPPORTED}
    assert verdicts(found, "agreement") == {CANNOT_TELL}, "both always say yes"
    half = share(0.5)
    for verdict_of, said in ((half, SUPPORTED), (~half, NOT_SUPPORTED)):
        judged = {"inside": verdict_of}
        flags = outcomes({"none": share(0.0), "inside": half}, judged=judged)
        assert verdicts(claimed({"inside": 0.5}, outcomes=flags), "agreement") == {said}


@pytest.mark.trust
def test_two_edits_that_do_the_same_are_not_told_apart_more_often_than_by_chance():
    """Independent prompts of equal rates, 40 seeds: at most 5 % of comparisons may be supported."""
    rng, said = np.random.default_rng(3), []
    for _ in range(40):
        rates = {"inside": 0.5, "pair": 0.5, "all": 0.5, "outside": 0.5, "late": 0.5}
        flags = {"none": share(0.0), **{name: rng.random(N) < 0.5 for name in rates}}
        found = claimed(rates, outcomes=outcomes(flags))
        said += select(found, claim=("layers", "depth", "collapse"))["verdict"].tolist()
    assert np.mean([word == SUPPORTED for word in said]) <= 0.05


def test_the_gain_of_an_edit_over_an_equal_one_is_rarely_supported(monkeypatch):
    """Two edits of the same true success and cost, 200 seeds."""
    monkeypatch.setattr(frontier, "DRAWS", 1999)
    rng, said = np.random.default_rng(5), []
    for seed in range(200):
        edit, other = (noisy_curve(rng) for _ in range(2))
        found, p = gain(edit, other, seed=seed)
        said.append(verdict(MORE, found.low, found.high, p))
    assert np.mean([word == SUPPORTED for word in said]) <= 0.05


def noisy_curve(rng: np.random.Generator) -> Frontier:
    """An edit that succeeds in 30 and 60 % at two strengths, in 40 prompts, at a cost read from 20."""
    success = np.vstack([np.zeros(N), rng.random((2, N)) < [[0.3], [0.6]]]).astype(float)
    cost = np.vstack([np.full(20, 0.1), rng.normal([[0.2], [0.3]], 0.05, (2, 20))])
    return Frontier(success, cost, np.ones(20), log=True)


# ---------------------------------------------------------------------------------------- what is published
def test_published_numbers_change_nothing_else(monkeypatch):
    rates = {"inside": HIGH, "pair": HIGH, "all": LOW, "outside": LOW, "late": 0.0}
    before = claimed(rates, model=published.LLAMA_13B)
    assert set(before["source"]) <= {"P", "S", ""}
    assert (before.loc[before["claim"] == "layers", "source"] == "P").all()
    monkeypatch.setattr(published, "OF_ANY_MODEL", {("layers", ""): ("the opposite", "S")})
    monkeypatch.setattr(published, "OF_MODEL", {})
    after = claimed(rates, model="another")
    assert set(after["published"]) == {"the opposite", ""}
    own = ["published", "source"]
    pd.testing.assert_frame_equal(before.drop(columns=own), after.drop(columns=own))


def test_a_table_for_people_has_no_gap(tmp_path):
    shown = printable(claimed({"inside": HIGH, "pair": HIGH, "all": LOW, "outside": LOW, "late": 0.0}))
    assert not shown.isin(["nan", "<NA>", "None"]).any().any()
    assert "60.0 (" in shown["difference (points)"].iloc[0]


# ---------------------------------------------------------------------------------------------- choices
def test_the_grid_covers_the_depth_and_all_of_the_band():
    assert depth_grid(32) == list(range(32))
    grid = depth_grid(64)
    assert {0, 63} <= set(grid)
    assert set(range(25, 40)) <= set(grid)
    assert len(grid) < 35


def test_ties_on_validation_prompts_go_to_the_cheaper_edit():
    table = sweep({"inside": 0.5, "outside": 0.5, "all": 0.1})
    kl = table.assign(measure="kl", prompts="harmless", value=[0.3, 0.1, 0.0])
    chosen = chosen_edits(pd.concat([table, kl], ignore_index=True))
    assert chosen[["role", "layers"]].to_numpy().tolist() == [["single", "1"], ["all", "0-7"]]
    only = chosen_edits(pd.concat([table, kl], ignore_index=True), layers=[4])
    assert only["layers"].tolist() == ["4"]


@pytest.mark.parametrize(
    ("named", "settings"),
    [
        ("outcomes", {"outcomes": False}),
        ("claims", {"claims": False, "variants": {"k": [1]}}),
        ("'rank'", {"variants": {"rank": [1]}}),
        ("0.5", {"variants": {"k": [0.5]}}),
        ("'whole'", {"variants": {"lift": ["whole"]}}),
        ("2", {"variants": {"strength": [2]}}),
        ("'last'", {"capability": ["mmlu"], "tokens": "last"}),
    ],
)
def test_settings_that_do_not_go_together_are_named(named, settings, tmp_path):
    config = otl.paper_study("organism:single", **settings)
    with pytest.raises((ConfigError, HookError), match=named):
        otl.run_study(config, tmp_path / "run")


def test_a_run_without_claims_says_so(finished_run: Path):
    with pytest.raises(RunFolderError, match="claims: true"):
        otl.paper_claims(finished_run)


# ------------------------------------------------------------------------------------------ a complete run
SMALL = {
    "sample": [48, 8, 16],
    "layers": [3, 4, 7],
    "plane_layer": 4,
    "methods": ["linear_act", {"name": "pca_ot", "k": 1, "mean_shift": "full"}],
    "variants": {"strength": [0.5], "k": [4], "tokens": ["last"]},
    "max_new_tokens": 12,
    "permutations": 39,
    "bootstrap": 39,
    **dict.fromkeys(("localizers", "contributions", "interchange", "readout"), 0),
}


class StoppedError(Exception):
    """Raised where a test stops a run."""


@pytest.fixture(scope="module")
def config(language_task) -> otl.StudyConfig:
    return otl.paper_study("organism:single", **SMALL, capability=[language_task], capability_limit=6)


@pytest.fixture(scope="module")
def tested_run(config, tmp_path_factory: pytest.TempPathFactory, without_figures) -> Path:
    """The paper's study of an embedded model, small, in one go."""
    folder = tmp_path_factory.mktemp("claims") / "run"
    with without_figures():
        otl.run_study(config, folder)
    return folder


def test_the_embedded_model_refutes_the_claim_about_depth(tested_run: Path):
    """Refusal of organism:single flips at its last layer: there alone do edits let it answer correctly."""
    sweep = pd.read_parquet(tested_run / "tables" / "localization.parquet")
    correct = select(sweep, measure="exact_answer_rate", prompts="harmful", method="pca_ot", set="single")
    by_layer = correct.set_index("layer")["value"]
    assert by_layer.idxmax() == 7, "what is known of the model"
    assert by_layer[7] > by_layer[[3, 4]].max() + 0.3
    found = otl.paper_claims(tested_run)
    assert set(select(found, claim=("depth", "collapse"), method="pca_ot")["verdict"]) == {NOT_SUPPORTED}
    row = select(found, claim="depth", method="pca_ot", quantity="coherent success").iloc[0]
    assert row["reference"] == "PCA-OT (k = 1), layer 7"
    assert {"layers", "sensitivity", "success"} <= set(found["claim"])


def test_capability_is_scored_under_the_chosen_edits_item_by_item(tested_run: Path, language_task):
    items = pd.read_parquet(tested_run / "tables" / "capability.parquet")
    accuracy = select(items, measure="acc")
    own = otl.capability(otl.load_model("organism:single"), [language_task], limit=6)
    assert select(accuracy, key="none")["value"].mean() == select(own, measure="acc")["value"].item()
    assert set(accuracy.groupby("key")["item"].nunique()) == {6}
    found = select(otl.paper_claims(tested_run), claim="capability")
    assert {*found["edit_key"]} == {*accuracy["key"]} - {"none"}
    for row in select(found, comparison="embedded_language, acc").itertuples():
        means = accuracy.groupby("key")["value"].mean()
        assert row.value == pytest.approx(means[row.edit_key] - means["none"])


def test_outcomes_are_what_the_rates_of_the_sweep_are_of(tested_run: Path):
    tables = {
        name: pd.read_parquet(tested_run / "tables" / f"{name}.parquet")
        for name in ("localization", "outcomes")
    }
    sweep, prompts = tables["localization"], tables["outcomes"]
    for measure, column in (("refusal_rate", "refused"), ("coherent_success_rate", "coherent"), ("kl", "kl")):
        for label in ("harmful", "harmless"):
            rows = select(sweep, measure=measure, prompts=label).set_index("key")["value"]
            own = select(prompts, prompts=label).groupby("key")[column].mean()[rows.index].astype(float)
            np.testing.assert_allclose(own, rows, atol=1e-9)
    own = select(prompts, prompts="harmless").groupby("key")[["nll", "n_tokens"]].sum()
    rows = select(sweep, measure="perplexity", prompts="harmless").set_index("key")["value"]
    np.testing.assert_allclose(np.exp(own["nll"] / own["n_tokens"])[rows.index].astype(float), rows)


@pytest.mark.trust
def test_a_run_with_claims_is_verified_and_an_altered_outcome_is_found(
    tested_run: Path, tmp_path, monkeypatch
):
    monkeypatch.setattr("ot_lens.study.verify.shown", lambda *_, **__: None)  # no figure was drawn
    checks = otl.verify_run(tested_run, sample=20)
    own = checks[
        checks["item"].isin(["claims", "validation", "variants", "outcomes", "localization", "capability"])
    ]
    assert set(own["verdict"]) == {"ok"}
    assert {"validation", "variants", "outcomes", "claims", "capability"} <= set(own["item"])
    run = Path(shutil.copytree(tested_run, tmp_path / "run"))
    path = run / "tables" / "outcomes.parquet"
    table = pd.read_parquet(path)
    harmful = (table["prompts"] == "harmful") & (table["key"] != "none")
    table.loc[harmful, "coherent"] = ~table.loc[harmful, "coherent"]
    table.to_parquet(path, index=False)
    checks = otl.verify_run(run, sample=20, model=False)
    assert "claims" in set(checks.loc[checks["verdict"] == "differs", "item"])


@pytest.mark.campaign
def test_a_run_stopped_twice_goes_on_to_the_same_tables(
    config, tested_run: Path, tmp_path, monkeypatch, without_figures
):
    def stopping(stage: str) -> Any:
        @contextmanager
        def following(name: str, _count: int | None) -> Iterator[Callable[[int], None]]:
            left = iter([1, 2])

            def step(_done: int) -> None:
                if name == stage and next(left, None) is None:
                    raise StoppedError

            yield step

        return following

    monkeypatch.setattr("ot_lens.study.run.write_page", lambda *_: None)  # made from the tables alone
    with without_figures():
        for resume, stage in enumerate(("choice on validation prompts", "variants of the chosen edits")):
            with pytest.raises(StoppedError):
                otl.run_study(config, tmp_path / "run", resume=bool(resume), stage=stopping(stage))
        otl.run_study(config, tmp_path / "run", resume=True)
    for name in ("localization", "validation", "variants", "outcomes", "claims"):
        file = f"tables/{name}.parquet"
        assert (tmp_path / "run" / file).read_bytes() == (tested_run / file).read_bytes(), name
