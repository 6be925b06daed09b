"""Masks of grammars over token ids: what they allow, and how they combine."""

import numpy as np
import pytest

from nanovllm import SamplingParams, Tokenizer
from nanovllm.engine.grammar import StepMasks, TokenGrammar, allows_only
from nanovllm.engine.processors import TokenRules
from nanovllm.kernels.sampling_step import pack_mask
from nanovllm.structured import GrammarMaker

pytest.importorskip("llguidance")


def masks_of(maker, structured, texts=("",)):
    """Masks after each of some texts, as lists of allowed ids."""
    grammars = []
    for text in texts:
        grammars.append(maker.make(SamplingParams(structured_outputs=structured)).copy())
        for token_id in maker._tokenizer.encode(text, add_special_tokens=False) if text else ():
            grammars[-1].accept(token_id)
    found = StepMasks(maker._vocab_size).of([None] * len(texts), grammars)["masks"]
    bits = np.unpackbits(found.view(np.uint8), axis=1, bitorder="little")
    return [np.flatnonzero(row).tolist() for row in bits]


@pytest.mark.parametrize("vocab_size", [487, 500, 512, 10_000, 300])
def test_ids_without_a_token_are_never_allowed(models_dir, vocab_size):
    tokenizer = Tokenizer.from_pretrained(models_dir / "llama-bias")
    assert tokenizer.vocab_size == 487
    maker = GrammarMaker(tokenizer, vocab_size, [2, 99_999])
    start, letters, end = masks_of(maker, {"regex": r"(?s).+"}, ["", "ab", "!"])
    assert 2 not in start and 2 in letters and 2 in end
    assert max(start) < min(487, (vocab_size + 31) // 32 * 32)
    expected = [i for i in range(487) if i not in tokenizer.all_special_ids and i < (vocab_size + 31) // 32 * 32]
    # whole characters and beginnings of them; not what can only continue one
    whole = [i for i in expected if "\ufffd" not in tokenizer.decode([i])]
    assert set(whole) <= set(start) <= set(expected)


def test_tokens_have_the_bytes_that_the_tokenizer_decodes(models_dir):
    for case in ("llama-f32", "llama-odd", "llama-bf16-llama3rope", "qwen2-bf16-tied"):
        tokenizer = Tokenizer.from_pretrained(models_dir / case)
        table = GrammarMaker(tokenizer, tokenizer.vocab_size, [2])._filler.tokenizer
        never = tokenizer.token_to_id("ÿ")  # the byte 0xFF, which no text has
        for token_id in set(range(tokenizer.vocab_size)) - tokenizer.all_special_ids - {never}:
            assert table.decode_bytes([token_id]).decode("utf-8", "replace") == tokenizer.decode([token_id])


class Fixed(TokenGrammar):
    """Allows the same ids for ever."""

    def __init__(self, *ids):
        self.ids = ids

    def accept(self, token_id):
        pass

    def fill(self, grammars, masks):
        for row, grammar in enumerate(grammars):
            masks[row] = pack_mask(grammar.ids, 70)


def test_masks_of_a_step_combine_grammars_and_allowed_ids():
    masks = StepMasks(70)
    rules = [None, TokenRules(pack_mask([1, 33], 70)), None, TokenRules(pack_mask([1, 33], 70)), TokenRules()]
    found = masks.of(rules, [Fixed(0, 69), Fixed(33, 34), None, None, Fixed(2)])
    assert found["masks"].tolist()[:3] == [[1, 0, 32], [0, 2, 0], [4, 0, 0]]
    assert found["mask_rows"].tolist()[:3] == [0, 1, -1] and found["mask_rows"][4] == 2
    assert found["masks"][found["mask_rows"][3]].tolist() == [2, 2, 0]
    again = masks.of([None], [Fixed(31)])
    assert again["masks"].tolist() == [[2**31, 0, 0]]
    assert np.shares_memory(again["masks"], found["masks"])


@pytest.mark.parametrize(
    ("allowed", "ids", "only"),
    [([], [1], True), ([1], [1], True), ([1, 69], [69, 1, 5], True), ([1, 31], [1], False), ([69], [68], False)],
)
def test_whether_a_mask_leaves_only_some_ids(allowed, ids, only):
    mask = pack_mask(allowed, 70)
    assert allows_only(mask, ids) is only
    assert mask.tolist() == pack_mask(allowed, 70).tolist()
