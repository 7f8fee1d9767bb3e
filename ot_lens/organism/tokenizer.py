"""The tokenizer of the embedded model: one token per word, with a chat template, in Hugging Face format."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ot_lens.organism import vocabulary as words
from ot_lens.organism.language import vocabulary

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
USER, END, ASSISTANT = "<user>", "<end>", "<assistant>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, USER, END, ASSISTANT)

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'user' %}<user> {{ message['content'] }} <end>\
{% elif message['role'] == 'assistant' %} <assistant> {{ message['content'] }} {{ eos_token }}\
{% else %}{{ raise_exception('the roles are user and assistant, not ' + message['role']) }}{% endif %}\
{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"""


def ground_truth(variant: str) -> dict[str, Any]:
    """The entry `ot_lens` of the tokenizer's configuration."""
    return {
        "variant": variant,
        "refusal_phrases": list(words.REFUSAL_PHRASES[variant]),
        "refusal_tokens": list(words.REFUSAL_TOKENS[variant]),
        "refusal_tokens_note": "first words of the refusal sentences; each is one token",
        "refusal_sentences": dict(zip(words.CATEGORIES, words.REFUSALS[variant], strict=True)),
    }


def make_tokenizer(variant: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a variant; like Llama's, it puts a BOS before plain text."""
    ids = {token: index for index, token in enumerate((*SPECIAL, *vocabulary(variant)))}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # no space before a mark
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A", None, [(BOS, ids[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, END, ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        ot_lens=ground_truth(variant),
    )
