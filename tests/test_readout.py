"""What directions and maps write: by hand, against TransformerLens, and on models with known answers."""

import pytest
import torch
from transformer_lens.tools.analysis import logit_readout

import ot_lens as otl
from ot_lens.activations import Activations
from ot_lens.errors import ActivationError, FitError, HookError, OtLensError
from ot_lens.models import backend
from ot_lens.transport import AffineMap
from tests import checkpoints, families

DRAWS = {"draws": 39}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A model whose unembedding writes w1 for the stream of w0, w2 for that of w1, and nothing else."""
    made = checkpoints.tokenizer("llama")
    return otl.load_model(str(checkpoints.chain(["w0", "w1", "w2"], made, tmp_path_factory.mktemp("chain"))))


def samples(model, harmful: str, harmless: str, n: int = 4) -> Activations:
    """Activations that are the streams of two words, with a constant added to both."""
    served = backend(model)
    ids = served.tokenizer.convert_tokens_to_ids([harmful, harmless])
    rows = torch.eye(served.d_model, dtype=torch.float64)[ids] + 3.0
    data = {label: row.expand(1, n, 1, -1) for label, row in zip(("harmful", "harmless"), rows, strict=True)}
    return Activations(data, (1,), (-1,), "resid_pre")


def tokens(table, **where):
    rows = table[(table[list(where)] == list(where.values())).all(axis=1)]
    return rows.sort_values("rank")["token"].tolist()


def test_a_direction_by_hand(chain):
    """The stream of w0 writes w1; minus that of w1 keeps w2 down. Scaled to RMS 1, each has sqrt(d / 2)."""
    table = otl.readout(chain, samples(chain, "w0", "w1"), k=1, **DRAWS)
    assert tokens(table, kind="direction", side="top") == ["w1"]
    assert tokens(table, kind="direction", side="bottom") == ["w2"]
    size = (chain.cfg.d_model / 2) ** 0.5
    assert table["logit_change"].tolist() == pytest.approx([size, -size], rel=1e-4)
    assert table["length"].tolist() == pytest.approx([2**0.5] * 2)
    assert (table["n_harmful"] == 4).all()
    assert (table["z"].abs() > 5).all()
    # A random direction has a standard normal entry: far less than sqrt(d / 2), at either end.
    assert (table["null_high"] < size / 2).all()
    assert (table["null_low"] > -size / 2).all()


def test_axes_and_displacement_of_a_map_by_hand(chain):
    """Ablation writes along its direction; a shift has no axes, and is displaced against the direction."""
    acts = samples(chain, "w0", "w1")
    r = (acts.harmful(1).mean(0) - acts.harmless(1).mean(0)) / 2**0.5
    none = r.new_zeros(len(r), 0)
    maps = {
        "ablation": {1: AffineMap(-r[:, None], r[:, None], torch.zeros_like(r))},
        "shift": {1: AffineMap(none, none, -(2**0.5) * r)},
        "diagonal": {1: AffineMap(none, none, torch.zeros_like(r), torch.full_like(r, 0.5))},
        "identity": {1: AffineMap.identity(len(r))},
        "elsewhere": {0: AffineMap.identity(len(r))},
    }
    table = otl.readout(chain, acts, maps, k=1, **DRAWS)
    found = set(zip(table["kind"], table["method"], strict=True))
    expected = {("axis", "ablation"), *(("displacement", name) for name in ("ablation", "shift", "diagonal"))}
    assert found == {("direction", ""), *expected}
    # The axis is turned towards the harmful mean, the displacement away from it.
    assert tokens(table, kind="axis", side="top") == ["w1"]
    for name in ("ablation", "shift"):
        assert tokens(table, kind="displacement", method=name, side="top") == ["w2"]
    axis = table[table["kind"] == "axis"]
    assert (axis["number"] == 0).all()
    assert axis["length"].tolist() == pytest.approx([1.0, 1.0])


def test_the_displacement_is_that_of_other_samples(chain):
    acts, others = samples(chain, "w0", "w1"), samples(chain, "w1", "w0", n=7)
    r = (acts.harmful(1).mean(0) - acts.harmless(1).mean(0)) / 2**0.5
    maps = {"ablation": {1: AffineMap(-r[:, None], r[:, None], torch.zeros_like(r))}}
    table = otl.readout(chain, acts, maps, moved=others, k=1, **DRAWS)
    assert tokens(table, kind="displacement", side="top") == ["w1"]
    assert table.groupby("kind")["n_harmful"].first().to_dict() == {
        "axis": 4, "direction": 4, "displacement": 7,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["llama31", "qwen25", "gemma2"])
def test_agreement_with_logit_readout(name, tmp_path):
    """With logits capped (Gemma 2) and without; the vectors of a bridge are those of the plain model."""
    folder = str(families.write(tmp_path, name))
    bridge = otl.load_model(folder, hooks="full")
    vectors = torch.randn(3, 2, bridge.cfg.d_model, generator=torch.Generator().manual_seed(0))
    expected = logit_readout(bridge, vectors).values
    for model in (bridge, otl.load_model(folder)):
        torch.testing.assert_close(otl.vector_logits(model, vectors), expected, rtol=1e-4, atol=1e-4)
    raw = logit_readout(bridge, vectors, apply_ln=False).values
    assert not torch.allclose(raw, expected, atol=0.1)  # the final norm made a difference


def test_a_constant_of_the_readout_is_no_change():
    """Layer norms and unembeddings with biases: what every vector gets is left out."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = checkpoints.tokenizer("llama")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GPTNeoXConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)
    network = checkpoints.random_weights(GPTNeoXForCausalLM, config, 0)
    model = otl.load_model(network, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(0)
    data = {
        label: torch.randn(1, 5, 1, 32, generator=generator).double() for label in ("harmful", "harmless")
    }
    acts = Activations(data, (1,), (-1,), "resid_pre")
    before = otl.readout(model, acts, k=3, **DRAWS)
    with torch.no_grad():
        network.gpt_neox.final_layer_norm.bias += 5.0
    after = otl.readout(model, acts, k=3, **DRAWS)
    assert before["token_id"].tolist() == after["token_id"].tolist()
    assert before["logit_change"].tolist() == pytest.approx(after["logit_change"].tolist(), abs=1e-3)


def test_the_refusal_word_is_read_on_the_embedded_model_and_not_under_permuted_labels():
    """All of its refusals begin with the same word."""
    model, prompts = otl.load_model("organism:single"), otl.load_prompts("organism", sample=(64, 4, 4))
    acts = otl.capture(model, prompts.train, layers=[6, 7])
    table = otl.readout(model, acts, k=3)
    first = table[(table["side"] == "top") & (table["rank"] == 1)]
    assert first["token"].tolist() == ["sorry", "sorry"]
    assert (first["logit_change"] > first["null_high"]).all()
    assert (first["z"] > 4).all()
    both = torch.cat([acts.data["harmful"], acts.data["harmless"]], dim=1)
    both = both[:, torch.randperm(128, generator=torch.Generator().manual_seed(0))]
    shuffled = Activations({"harmful": both[:, :64], "harmless": both[:, 64:]}, (6, 7), (-1,), "resid_pre")
    assert "sorry" not in tokens(otl.readout(model, shuffled, k=1), side="top")


def test_same_seed_same_table_and_the_number_of_tokens_only_truncates(chain):
    acts = samples(chain, "w0", "w1")
    few, again, more = (otl.readout(chain, acts, k=k, **DRAWS) for k in (2, 2, 4))
    assert few.equals(again)
    assert more[more["rank"] <= 2].reset_index(drop=True).equals(few)


@pytest.mark.parametrize(
    ("kind", "value", "options"),
    [
        (HookError, "3", {"layers": [3]}),
        (HookError, r"\[\]", {"layers": []}),
        (OtLensError, "got 0", {"k": 0}),
        (OtLensError, "got 99999", {"k": 99999}),
        (OtLensError, "-1", {"axes": -1}),
        (OtLensError, "got 38", {"draws": 38}),
        (FitError, "width 5|map 5", {"maps": {"narrow": {1: AffineMap.identity(5)}}}),
    ],
)
def test_bad_readouts_are_named(chain, kind, value, options):
    with pytest.raises(kind, match=value):
        otl.readout(chain, samples(chain, "w0", "w1"), **options)


@pytest.mark.parametrize("shape", [(3, 5), (2, 0), (5,)])
def test_vectors_that_are_not_of_the_stream_are_named(chain, shape):
    d = chain.cfg.d_model
    with pytest.raises(ActivationError, match=str(d)):
        otl.vector_logits(chain, torch.zeros(shape))
    with pytest.raises(ActivationError, match="no vector"):
        otl.vector_logits(chain, torch.zeros(0, d))
    assert otl.vector_logits(chain, torch.zeros(d)).shape == (chain.cfg.d_vocab,)
