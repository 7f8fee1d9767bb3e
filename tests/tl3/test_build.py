"""The HookedTransformer of these tests computes what Hugging Face computes."""

import torch
from transformer_lens import HookedTransformer
from transformers import LlamaForCausalLM

from tests.tl3.build import N_WORDS


def padded_batch(model: HookedTransformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Three left-padded prompts of different lengths: tokens and mask [3, 9]."""
    tokenizer = model.tokenizer
    tokenizer.padding_side = "left"
    words = [f"w{i % N_WORDS}" for i in range(30)]
    texts = [" ".join(words[:9]), " ".join(words[9:14]), " ".join(words[14:15])]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    return batch["input_ids"], batch["attention_mask"]


@torch.inference_mode()
def test_logits_equal_hugging_face(hooked: HookedTransformer, llama: LlamaForCausalLM) -> None:
    tokens = torch.randint(len(hooked.tokenizer), (4, 20), generator=torch.Generator().manual_seed(1))
    expected = llama(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(hooked(tokens), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_logits_of_left_padded_prompts_equal_those_of_each_prompt_alone(
    hooked: HookedTransformer, llama: LlamaForCausalLM
) -> None:
    tokens, mask = padded_batch(hooked)
    together = hooked(tokens, attention_mask=mask)[:, -1]
    alone = [llama(row[keep.bool()][None]).logits[0, -1] for row, keep in zip(tokens, mask, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=0)
    unmasked = llama(tokens).logits[:, -1]
    assert (unmasked - together).abs().max() > 1e-2  # the mask matters


@torch.inference_mode()
def test_an_edited_residual_stream_gives_other_logits(hooked: HookedTransformer) -> None:
    tokens = torch.arange(6, 14)[None]
    edited = hooked.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x + 1)])
    assert (edited - hooked(tokens)).abs().max() > 1e-2
