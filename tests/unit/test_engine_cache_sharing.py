"""The engine with a model of tuples: what a sequence reads through its block table is exactly its own past.

The fake runner keeps in each slot a digest of the whole beginning up to that position, made from the digest that the
block table names for the position before. A block that is shared wrongly, freed too early or written twice therefore
changes every later token. The next token is a function of the last digest, so that the right answer for any prompt is
a pure function of its ids.
"""

import hashlib
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm.engine import llm_engine
from nanovllm.engine.limits import Limits
from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams

SIZE = 4  # instead of 32, so that short sequences have many blocks
VOCAB_SIZE = 6
EOS = 5


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm_engine, "BLOCK_SIZE", SIZE)
        yield


def digest(before, token_id):
    return hashlib.blake2b(before + bytes([token_id]), digest_size=8).digest()


def next_token(state):
    """EOS about once in 40, else mostly one of two ids, so that sequences often share long beginnings."""
    value = int.from_bytes(state, "little")
    return EOS if value % 40 == 0 else value % 2 if value % 3 else value % EOS


def expected_completion(prompt, max_tokens, stop_ids, max_model_len):
    state = b""
    for token_id in prompt:
        state = digest(state, token_id)
    completion = []
    while True:
        completion.append(next_token(state))
        if completion[-1] in stop_ids:
            return completion, "stop"
        if len(completion) == max_tokens or len(prompt) + len(completion) == max_model_len:
            return completion, "length"
        state = digest(state, completion[-1])


class FakeRunner:
    """Computes a step as a model would, layer by layer: a row sees what this very step wrote before it."""

    def __init__(self, num_blocks):
        self.slots = [b"never written"] * (num_blocks * SIZE)
        self.fail_next = False

    def run(self, batch):
        if self.fail_next:
            self.fail_next = False
            raise KeyboardInterrupt
        assert len(set(batch.slot_mapping.tolist())) == len(batch.slot_mapping), "two rows write one slot"
        owner = [i for i in range(len(batch.block_tables)) for _ in range(*batch.cu_seqlens_q[i : i + 2])]
        for row in sorted(range(len(owner)), key=lambda row: batch.positions[row]):
            position, table = int(batch.positions[row]), batch.block_tables[owner[row]]
            before = self.slots[table[(position - 1) // SIZE] * SIZE + (position - 1) % SIZE] if position else b""
            self.slots[batch.slot_mapping[row]] = digest(before, int(batch.token_ids[row]))
        return [next_token(self.slots[batch.slot_mapping[row]]) for row in batch.sample_rows]


def make(num_blocks, max_num_seqs, budget, caching=True, max_model_len=40):
    spec = SimpleNamespace(vocab_size=VOCAB_SIZE)
    limits = Limits(max_model_len, max_num_seqs, budget, num_blocks, 0)
    return llm_engine.LLMEngine(spec, FakeRunner(num_blocks), limits, caching)


def request(prompt, max_tokens, stop_ids=(EOS,)):
    return Sequence("", list(prompt), SamplingParams(max_tokens=max_tokens), stop_ids=frozenset(stop_ids))


def run(engine):
    for _ in range(5000):
        if not engine.has_unfinished:
            engine.block_manager.check([])
            return
        engine.step()
        engine.block_manager.check(engine.scheduler.running)
    raise AssertionError("the engine does not come to an end")


BEGINNINGS = ([0] * 24, [0, 1] * 12, [0] * 8 + [1] * 16, [1, 2, 3, 4] * 6)
PROMPTS = st.builds(
    lambda beginning, length, end: (beginning[:length] + end)[:30] or [0],
    st.sampled_from(BEGINNINGS), st.integers(0, 24), st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=9),
)  # fmt: skip
# (steps before it arrives, prompt, max_tokens, aborted after so many steps or never)
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 4), PROMPTS, st.integers(1, 12), st.one_of(st.none(), st.none(), st.integers(0, 6))),
    min_size=1, max_size=10,
)  # fmt: skip


@given(
    arrivals=ARRIVALS,
    num_blocks=st.integers(10, 30),
    max_num_seqs=st.integers(1, 6),
    budget=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 64]),
    caching=st.booleans(),
)
@settings(max_examples=300)
def test_any_mix_gives_what_each_request_gives_alone(arrivals, num_blocks, max_num_seqs, budget, caching):
    engine = make(num_blocks, max_num_seqs, budget, caching)
    waiting, live, finished, aborted = list(arrivals), [], [], []
    for step in range(5000):
        while waiting and (waiting[0][0] <= step or not live):
            _, prompt, max_tokens, abort_after = waiting.pop(0)
            engine.check_prompt(prompt)
            live.append((request(prompt, max_tokens), step, abort_after))
            engine.add(live[-1][0])
        for entry in [e for e in live if e[2] is not None and step - e[1] >= e[2]]:
            engine.abort(entry[0])
            live.remove(entry)
            aborted.append(entry[0])
        advanced = engine.step()
        engine.block_manager.check(engine.scheduler.running)
        assert len(engine.scheduler.running) <= max_num_seqs
        for entry in [e for e in live if e[0] in advanced and e[0].finish_reason]:
            live.remove(entry)
            finished.append(entry[0])
        if not waiting and not live:
            break
    assert not engine.has_unfinished
    assert len(finished) + len(aborted) == len(arrivals)
    engine.block_manager.check([])
    for seq in finished:
        prompt = seq.token_ids[: seq.num_prompt]
        expected = expected_completion(prompt, seq.params.max_tokens, {EOS}, 40)
        assert (seq.completion_ids, seq.finish_reason) == expected
    for seq in aborted:
        whole, _ = expected_completion(seq.token_ids[: seq.num_prompt], seq.params.max_tokens, {EOS}, 40)
        assert seq.completion_ids == whole[: seq.num_completion]
        assert seq.finish_reason == "abort"


def test_the_mixes_do_preempt_share_and_chunk():
    """The property above would be worth little if its examples were all easy."""
    engine = make(num_blocks=10, max_num_seqs=6, budget=7)
    seqs = [request([0] * 20 + [i % 3], 12, ()) for i in range(6)]
    for seq in seqs:
        engine.add(seq)
    run(engine)
    assert engine.scheduler.num_preemptions > 0
    assert engine.stats.cached_tokens > 0
    assert engine.stats.completion_tokens == 6 * 12
    for seq in seqs:
        assert seq.completion_ids == expected_completion(seq.token_ids[:21], 12, (), 40)[0]


def test_the_fake_model_notices_a_wrong_block():
    engine = make(num_blocks=10, max_num_seqs=2, budget=64)
    seq = request([0] * 9, 4, ())
    engine.add(seq)
    engine.step()
    seq.block_table[0], seq.block_table[1] = seq.block_table[1], seq.block_table[0]
    engine.runner.slots[seq.block_table[2] * SIZE] = b"somebody else's"
    run(engine)
    assert seq.completion_ids != expected_completion([0] * 9, 4, (), 40)[0]


def test_a_second_run_is_served_from_the_cache():
    engine = make(num_blocks=20, max_num_seqs=2, budget=64)
    prompt = [0, 1] * 9
    for cached in (0, 16):
        seq = request(prompt, 5, ())
        engine.add(seq)
        run(engine)
        assert seq.num_cached == cached
        assert seq.completion_ids == expected_completion(prompt, 5, (), 40)[0]
    assert engine.stats.cached_tokens == 16
    assert engine.stats.prompt_tokens == 36


def test_a_longer_prompt_reuses_what_an_answer_left():
    engine = make(num_blocks=20, max_num_seqs=2, budget=64)
    first = request([0, 1] * 4, 8, ())
    engine.add(first)
    run(engine)
    follow_up = request([*first.token_ids, 3, 3], 4, ())
    engine.add(follow_up)
    run(engine)
    assert follow_up.num_cached == 12  # of 16 tokens; the last one's key was never computed
    assert follow_up.completion_ids == expected_completion([*first.token_ids, 3, 3], 4, (), 40)[0]


def test_the_length_limit_of_the_engine_ends_a_sequence():
    engine = make(num_blocks=20, max_num_seqs=2, budget=64, max_model_len=12)
    for max_tokens in (None, 100):
        seq = request([0] * 9, max_tokens, ())
        engine.add(seq)
        run(engine)
        assert (seq.num_tokens, seq.finish_reason) == (12, "length")


def test_logits_that_are_not_numbers_end_one_sequence_alone():
    engine = make(num_blocks=20, max_num_seqs=4, budget=64)
    good, bad = request([0] * 9, 6, ()), request([1] * 9, 6, ())
    engine.add(good), engine.add(bad)
    honest = engine.runner.run

    def run_with_a_fault(batch):
        ids = honest(batch)
        faulty = [part.seq is bad and bad.num_completion == 2 for part in batch.samples]
        return [-1 if fault else token_id for fault, token_id in zip(faulty, ids, strict=True)]

    engine.runner.run = run_with_a_fault
    run(engine)
    assert (bad.finish_reason, bad.num_completion) == ("error", 2)
    assert good.completion_ids == expected_completion([0] * 9, 6, (), 40)[0]


def test_an_interrupted_step_leaves_no_unwritten_blocks_in_the_prefix_cache():
    engine = make(num_blocks=20, max_num_seqs=4, budget=64)
    lost, kept = request([0, 1] * 6, 6, ()), request([1] * 9, 6, ())
    engine.add(lost), engine.add(kept)
    engine.runner.fail_next = True
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.abort(lost)
    engine.block_manager.check(engine.scheduler.running)
    again = request([0, 1] * 6, 6, ())
    engine.add(again)
    run(engine)
    assert again.completion_ids == expected_completion([0, 1] * 6, 6, (), 40)[0]
    assert kept.completion_ids == expected_completion([1] * 9, 6, (), 40)[0]
