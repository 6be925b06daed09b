"""Which sequences run: budgets, order, chunks, preemption of the youngest, and ends of every kind."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.scheduler import Scheduler
from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams

SIZE = 4
fresh_ids = itertools.count(1000)


def make(num_blocks=16, max_num_seqs=8, max_num_batched_tokens=32, caching=False, reorder=True):
    return Scheduler(BlockManager(num_blocks, SIZE, caching), max_num_seqs, max_num_batched_tokens, reorder)


def add(scheduler, prompt, max_total=1000):
    """Queue a sequence; an int stands for a prompt of that length that shares nothing."""
    tokens = [next(fresh_ids) for _ in range(prompt)] if isinstance(prompt, int) else prompt
    seq = Sequence("", list(tokens), SamplingParams(), max_total=max_total)
    scheduler.add(seq)
    return seq


def step(scheduler, token=0):
    """One step with every sampled token being `token`; what was scheduled as (sequence, start, count)."""
    parts = scheduler.schedule()
    for part in parts:
        if part.is_last_chunk:
            part.seq.append(token)
    scheduler.finish_step(parts)
    scheduler.block_manager.check(scheduler.running)
    return [(part.seq, part.start, part.count) for part in parts]


def test_nothing_to_do_is_an_empty_step():
    assert step(make()) == []


def test_prompts_then_one_token_each():
    scheduler = make()
    a, b = add(scheduler, 5), add(scheduler, 3)
    assert step(scheduler) == [(a, 0, 5), (b, 0, 3)]
    assert step(scheduler) == [(a, 5, 1), (b, 3, 1)]
    c = add(scheduler, 2)
    assert step(scheduler) == [(a, 6, 1), (b, 4, 1), (c, 0, 2)]


def test_long_prompts_are_cut_to_the_budget_and_decoding_goes_first():
    scheduler = make(max_num_batched_tokens=7)
    a = add(scheduler, 3)
    assert step(scheduler) == [(a, 0, 3)]
    b, c = add(scheduler, 10), add(scheduler, 2)
    assert step(scheduler) == [(a, 3, 1), (b, 0, 6)]
    assert step(scheduler) == [(a, 4, 1), (b, 6, 4), (c, 0, 2)]
    assert (b.num_completion, c.num_completion) == (1, 1)


def test_a_chunk_in_the_middle_samples_nothing():
    scheduler = make(max_num_batched_tokens=4)
    seq = add(scheduler, 9)
    assert [len(step(scheduler)) and seq.num_completion for _ in range(3)] == [0, 0, 1]


def test_no_more_than_max_num_seqs_run():
    scheduler = make(max_num_seqs=2)
    a, b, c = (add(scheduler, 1, max_total=length) for length in (2, 9, 9))
    assert [part[0] for part in step(scheduler)] == [a, b]
    assert a.finish_reason == "length"
    assert [part[0] for part in step(scheduler)] == [b, c]


def test_more_sequences_than_the_budget_take_turns_by_age():
    scheduler = make(max_num_batched_tokens=2)
    a, b, c = (add(scheduler, 1, max_total=3) for _ in range(3))
    assert [part[0] for part in step(scheduler)] == [a, b]
    assert [part[0] for part in step(scheduler)] == [a, b]
    assert [part[0] for part in step(scheduler)] == [c]


def test_the_youngest_is_preempted_and_computed_again():
    scheduler = make(num_blocks=4)
    a, b = add(scheduler, 8), add(scheduler, 7)
    assert step(scheduler) == [(a, 0, 8), (b, 0, 7)]
    # Now a needs a third block and all four are taken: b gives its two back, and nobody is admitted in that step.
    assert step(scheduler) == [(a, 8, 1)]
    assert (b.num_preemptions, scheduler.num_preemptions, list(scheduler.waiting)) == (1, 1, [b])
    assert (b.block_table, b.num_computed, b.token_ids[-1]) == ([], 0, 0)
    assert step(scheduler) == [(a, 9, 1)]  # b's 8 tokens need two blocks, one is free
    scheduler.abort(a, "abort")
    assert step(scheduler) == [(b, 0, 8)]  # its completion so far is recomputed as if it were prompt
    assert b.num_completion == 2


def test_a_preempted_sequence_goes_before_those_that_wait():
    scheduler = make(num_blocks=4, max_num_seqs=2)
    a, b, c = add(scheduler, 8), add(scheduler, 8), add(scheduler, 1)
    step(scheduler)
    step(scheduler)
    assert scheduler.running == [a]
    assert list(scheduler.waiting) == [b, c]


def test_a_sequence_may_preempt_itself():
    scheduler = make(num_blocks=3)
    a, b = add(scheduler, 6), add(scheduler, 4)
    step(scheduler)
    assert step(scheduler) == [(a, 6, 1)]  # b is the youngest and wants the block that is missing
    assert list(scheduler.waiting) == [b]


def test_the_head_of_the_queue_is_not_overtaken():
    scheduler = make(num_blocks=4)
    a = add(scheduler, 9)
    step(scheduler)
    add(scheduler, 8), add(scheduler, 1)
    assert step(scheduler) == [(a, 9, 1)]


def test_a_prompt_is_shared_within_the_very_step_that_computes_it():
    scheduler = make(caching=True)
    prompt = list(range(9))
    a, b = add(scheduler, prompt), add(scheduler, prompt)
    assert step(scheduler) == [(a, 0, 9), (b, 8, 1)]
    assert b.block_table[:2] == a.block_table[:2]
    assert (a.num_cached, b.num_cached) == (0, 8)


def test_cached_tokens_are_those_of_the_first_admission():
    scheduler = make(num_blocks=4, caching=True)
    a, b = add(scheduler, 8), add(scheduler, 7)
    step(scheduler), step(scheduler)
    assert scheduler.running == [a]
    scheduler.abort(a, "abort")
    step(scheduler)
    assert (b.num_preemptions, b.num_cached) == (1, 0)


@pytest.mark.parametrize("when", ["waiting", "running", "prefill"])
def test_aborting_gives_everything_back(when):
    scheduler = make(max_num_batched_tokens=4)
    seq = add(scheduler, 6)
    for _ in range({"waiting": 0, "prefill": 1, "running": 2}[when]):
        step(scheduler)
    scheduler.abort(seq, "abort")
    assert (seq.finish_reason, scheduler.running, list(scheduler.waiting)) == ("abort", [], [])
    scheduler.block_manager.check([])
    assert step(scheduler) == []


# ---- order of admission


def test_blocks_are_kept_until_the_last_fork_has_them():
    scheduler = make(max_num_seqs=1)
    parent = Sequence("", list(range(6)), SamplingParams(), max_total=7, num_forks=2)
    scheduler.add(parent)
    other = add(scheduler, 3)
    parts = scheduler.schedule()
    parent.append(0)
    scheduler.finish_step(parts)
    assert (parent.finish_reason, scheduler.kept, len(parent.block_table)) == ("length", [parent], 2)
    shared = parent.block_table[0]
    forks = [Sequence("", list(range(6)), SamplingParams(), max_total=length, fork_of=parent) for length in (7, 8)]
    for fork in forks[::-1]:
        scheduler.add(fork)
    assert list(scheduler.waiting) == [*forks, other]  # blocks are kept for them, so they go first
    for fork, kept in zip(forks, ([parent], []), strict=True):
        parts = scheduler.schedule()
        assert [(part.seq, part.start, part.count) for part in parts] == [(fork, 5, 1)]
        assert fork.block_table[0] == shared and scheduler.kept == kept
        assert scheduler.block_manager.copies[-1][1] == fork.block_table[1]  # its own copy of the block they part in
        fork.append(0)
        scheduler.finish_step(parts)
        scheduler.block_manager.check([*scheduler.running, *scheduler.kept])
    assert parent.block_table == []


def test_sequences_wait_beside_those_that_share_the_most_blocks():
    scheduler = make(caching=True)
    prompts = [[1] * 9, [2] * 9, [1] * 4 + [3] * 5, [2] * 4 + [4] * 5, [1] * 9, [5, 5, 5], [1] * 4 + [3] * 5, [1] * 4]
    seqs = [add(scheduler, prompt) for prompt in prompts]
    # The last one's only full block holds its newest token, which is computed anyway.
    assert [seqs.index(seq) for seq in scheduler.waiting] == [0, 4, 2, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("settings", [{"caching": True, "reorder": False}, {"caching": False, "reorder": True}])
def test_the_order_of_arrival_is_kept(settings):
    scheduler = make(**settings)
    seqs = [add(scheduler, [i % 2] * 9) for i in range(6)]
    assert list(scheduler.waiting) == seqs


def test_nobody_is_overtaken_without_end(monkeypatch):
    monkeypatch.setattr("nanovllm.engine.scheduler.REORDER_WINDOW", 3)
    scheduler = make(caching=True)
    first, other = add(scheduler, [1] * 9), add(scheduler, [2] * 9)
    seqs = [add(scheduler, [1] * 9) for _ in range(5)]
    assert list(scheduler.waiting) == [first, *seqs[:3], other, *seqs[3:]]


def test_a_preempted_sequence_is_not_overtaken():
    scheduler = make(num_blocks=4, caching=True)
    a, b = add(scheduler, [1] * 8), add(scheduler, [2] * 8)
    step(scheduler)
    step(scheduler)
    assert (list(scheduler.waiting), b.num_preemptions) == ([b], 1)
    c, d = add(scheduler, [3] * 9), add(scheduler, [2] * 9)
    assert list(scheduler.waiting) == [b, d, c]
    assert scheduler.running == [a]


def test_who_joins_in_the_step_of_a_last_chunk_shares_it():
    scheduler = make(max_num_batched_tokens=14, caching=True)
    a = add(scheduler, [1] * 17)
    assert step(scheduler) == [(a, 0, 14)]
    b = add(scheduler, [1] * 16 + [2])
    assert step(scheduler) == [(a, 14, 3), (b, 16, 1)]


@given(
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), min_size=1, max_size=8),
    num_blocks=st.integers(9, 24),
    max_num_seqs=st.integers(1, 5),
    budget=st.integers(1, 40),
    caching=st.booleans(),
    more=st.integers(1, 6),
    reorder=st.booleans(),
)
@settings(max_examples=150)
def test_every_sequence_finishes_within_the_budgets(prompts, num_blocks, max_num_seqs, budget, caching, more, reorder):
    scheduler = make(num_blocks, max_num_seqs, budget, caching, reorder)  # 36 positions hold the longest
    seqs = [add(scheduler, prompt, max_total=len(prompt) + more) for prompt in prompts]
    assert (reorder and caching) or list(scheduler.waiting) == seqs
    age = {seq: i for i, seq in enumerate(scheduler.waiting)}
    for _ in range(10_000):
        oldest = min((s for s in seqs if s.finish_reason is None), key=age.get, default=None)
        if oldest is None:
            break
        parts = step(scheduler, token=len(scheduler.waiting) % 2)
        assert 1 <= len(parts) <= max_num_seqs
        assert sum(count for _, _, count in parts) <= budget
        assert len({seq for seq, _, _ in parts}) == len(parts)
        assert oldest in [seq for seq, _, _ in parts], "the oldest sequence always advances"
        order = [age[seq] for seq in (*scheduler.running, *scheduler.waiting)]
        assert order == sorted(order)
    assert {seq.finish_reason for seq in seqs} == {"length"}
    assert [seq.num_completion for seq in seqs] == [more] * len(seqs)
    scheduler.block_manager.check([])
