"""The last token of the user's text, under every chat template and with tokenizers that merge."""

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

import ot_lens as otl
from ot_lens.activations import Activations, resolve_positions
from ot_lens.errors import HookError, PromptError
from ot_lens.models import backend, encode, instruction_end, instruction_ends, post_instruction_tokens
from ot_lens.models.instruction import _by_prefix
from ot_lens.prompts import Contrast, Prompt
from tests import checkpoints, families

TEMPLATES = sorted(path.stem for path in families.TEMPLATES.glob("*.jinja"))
TEXTS = ["Hello there!", "was heißt das?", "x", "user", "Name three rivers.", "two\nlines é"]
FRAMED = "U:{{ messages[0]['content'] }}\n\nA:"


@pytest.fixture(scope="module")
def network():
    """With a context that holds the longest template."""
    made = checkpoints.model("llama")
    made.config.max_position_embeddings = 1024
    made.resize_token_embeddings(320, mean_resizing=False)
    return made


def with_template(network, template: str, merges=(), **options):
    """A model with a byte-level tokenizer."""
    letters = [*sorted(ByteLevel.alphabet()), *dict.fromkeys(a + b for a, b in merges)]
    words = Tokenizer(
        BPE({letter: i for i, letter in enumerate(["<pad>", "<s>", "</s>", *letters])}, list(merges))
    )
    words.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = template
    return otl.load_model(network, tokenizer=fast, **options)


@pytest.mark.filterwarnings("ignore:The chat template")  # some of them know of thoughts
@pytest.mark.parametrize("name", TEMPLATES)
def test_under_every_template_it_is_the_token_before_the_template_s_own(network, name):
    source = (families.TEMPLATES / f"{name}.jinja").read_text("utf-8").removesuffix("\n")
    system = {"system_prompt": "Be brief."} if name == "needs_system" else {}
    served = backend(with_template(network, source, **system))
    ends, rows = instruction_ends(served, TEXTS), encode(served, TEXTS)
    for text, end, row in zip(TEXTS, ends, rows, strict=True):
        written = text.encode()
        assert served.tokenizer.decode(row[end + 1 - len(written) : end + 1]) == text
    assert set(ends) == {instruction_end(served)} == {-len(post_instruction_tokens(served)) - 1}
    assert resolve_positions(served.model, "instruction_last") == (ends[0],)
    assert resolve_positions(served.model, [-1, "instruction_last", "first"]) == (-1, ends[0], "first")


def test_white_space_belongs_to_the_text_where_the_template_keeps_it(network):
    kept, stripped = (
        backend(with_template(network, t)) for t in (FRAMED, FRAMED.replace(" }}", " | trim }}"))
    )
    assert instruction_ends(kept, ["x", "x \n"]) == instruction_ends(stripped, ["x", "x \n"]) == [-5, -5]


def test_a_token_that_merges_with_the_template_is_told_for_each_prompt(network):
    """ ".\\n" is one token, so that the text ends two tokens before "\\nA:" unless it ends in a full stop."""
    model = with_template(network, FRAMED, [(".", "Ċ")])
    served = backend(model)
    assert instruction_ends(served, ["Stop.", "Stop", "."]) == [-4, -5, -4]
    assert instruction_end(served) is None
    assert resolve_positions(model, "instruction_last") == ("instruction_last",)
    prompts = Contrast((Prompt("One."), Prompt("Two and three")), (Prompt("Four?"), Prompt("5.")))
    acts = otl.capture(model, prompts, positions=["instruction_last", -4, -5])
    expected = torch.cat([acts.harmful(2, -4)[:1], acts.harmful(2, -5)[1:]])
    assert torch.equal(acts.harmful(2, "instruction_last"), expected)
    assert torch.equal(acts.harmless(2, "instruction_last")[0], acts.harmless(2, -5)[0])
    assert not torch.equal(acts.harmless(2, "instruction_last")[0], acts.harmless(2, -4)[0])


def test_what_depends_on_the_text_after_it_is_an_error(network):
    shouting = FRAMED.replace("A:", "{{ 'A' if 'x' in messages[0]['content'] else 'B' }}:")
    with pytest.raises(PromptError, match=r"Prompt 1: .*depends on the text.*such as -1"):
        instruction_ends(backend(with_template(network, shouting)), ["y", "x"])


class Slow:
    """A tokenizer of characters that joins some pairs and does not tell which characters a token has."""

    is_fast, name_or_path = False, "slow"

    def __init__(self, *pairs):
        self.pairs = pairs

    def __call__(self, text, **_):
        for number, pair in enumerate(self.pairs):
            text = text.replace(pair, chr(0xE000 + number))
        return {"input_ids": list(map(ord, text))}


def test_a_tokenizer_without_offsets_needs_separate_tokens():
    assert _by_prefix(Slow(), "Hi.\nA:", 3) == -4
    with pytest.raises(PromptError, match=r"slow.*fast version"):
        _by_prefix(Slow(".\n"), "Hi.\nA:", 3)


def test_where_it_cannot_be_read_is_named(network):
    model = with_template(network, FRAMED)
    cache = {"blocks.0.hook_resid_pre": torch.zeros(1, 3, 4)}
    with pytest.raises(HookError, match="instruction_last"):
        Activations.from_caches(harmful=cache, harmless=cache, positions="instruction_last")
    thoughtful = Contrast((Prompt("x", thought=(5,)),), (Prompt("y"),))
    with pytest.raises(HookError, match="'instruction_last' before"):
        otl.capture(model, thoughtful, positions=[-1, "instruction_last"])
    with pytest.raises(HookError, match="distinct"):
        otl.capture(model, Contrast((Prompt("x"),), (Prompt("y"),)), positions=[-5, "instruction_last"])
