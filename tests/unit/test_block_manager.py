"""The KV cache's books: sharing, eviction, refusals that change nothing, and balance under any order of calls."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nanovllm.engine.block_manager import BlockManager
from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams

SIZE = 4


def sequence(token_ids):
    return Sequence("", list(token_ids), SamplingParams())


def computed(manager, token_ids):
    """A sequence admitted whole, its blocks registered and computed."""
    seq = sequence(token_ids)
    assert manager.admit(seq, len(token_ids)) is not None
    manager.register(seq, len(token_ids))
    seq.num_computed = len(token_ids)
    return seq


@pytest.mark.parametrize("tokens, blocks", [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_blocks_for(tokens, blocks):
    assert BlockManager(4, SIZE).blocks_for(tokens) == blocks


def test_a_new_sequence_gets_only_the_blocks_of_its_first_chunk():
    manager = BlockManager(8, SIZE)
    seq = sequence(range(10))
    assert manager.admit(seq, 5) == 0
    assert seq.block_table == [0, 1]
    assert manager.grow(seq, 10)
    assert seq.block_table == [0, 1, 2]
    assert manager.grow(seq, 3)  # never shrinks
    assert (len(seq.block_table), manager.num_free) == (3, 5)
    manager.check([seq])


def test_equal_beginnings_share_full_blocks():
    manager = BlockManager(8, SIZE)
    first = computed(manager, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = sequence([1, 2, 3, 4, 5, 6, 7, 8, 99])
    assert manager.admit(second, 9) == 8
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    assert (second.num_computed, second.num_registered, manager.num_free) == (8, 2, 4)
    manager.check([first, second])


def test_a_block_is_shared_only_behind_an_equal_beginning():
    manager = BlockManager(8, SIZE)
    computed(manager, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert manager.admit(sequence([0, 2, 3, 4, 5, 6, 7, 8, 9]), 9) == 0
    # Equal from the second block on: what attends to other tokens has other keys and values.
    assert manager.admit(sequence([5, 6, 7, 8, 1]), 5) == 0


def test_token_ids_do_not_run_together_in_the_hash():
    manager = BlockManager(8, 2)
    computed(manager, [1, 256, 0])
    assert manager.admit(sequence([257, 0, 0]), 3) == 0
    assert manager.admit(sequence([1, 256, 7]), 3) == 2


def test_the_last_token_is_always_left_to_compute():
    manager = BlockManager(8, SIZE)
    computed(manager, range(8))
    assert manager.admit(sequence(range(8)), 8) == 4
    assert manager.admit(sequence(range(9)), 9) == 8


def test_blocks_that_are_not_full_or_not_registered_are_not_shared():
    manager = BlockManager(8, SIZE)
    seq = sequence(range(10))
    manager.admit(seq, 10)
    assert manager.admit(sequence(range(10)), 10) == 0
    manager.register(seq, 7)  # one full block so far
    assert manager.admit(sequence(range(10)), 1) == 4


def test_two_copies_of_one_content_do_not_replace_each_other():
    manager = BlockManager(8, SIZE)
    first, second = sequence(range(5)), sequence(range(5))
    manager.admit(first, 5), manager.admit(second, 5)
    manager.register(first, 5), manager.register(second, 5)
    manager.release(second)  # the copy that was registered second is blank again
    manager.check([first])
    third = sequence(range(5))
    assert manager.admit(third, 5) == 4
    assert third.block_table[0] == first.block_table[0]


def test_released_content_is_found_again():
    manager = BlockManager(4, SIZE)
    seq = computed(manager, range(9))
    table = seq.block_table
    manager.release(seq)
    assert (seq.block_table, seq.num_computed, seq.num_registered, manager.num_free) == ([], 0, 0, 4)
    again = sequence(range(9))
    assert manager.admit(again, 9) == 8
    assert again.block_table[:2] == table[:2]
    manager.check([again])


def test_blank_blocks_are_taken_before_cached_ones():
    manager = BlockManager(4, SIZE)
    manager.release(computed(manager, range(5)))
    other = computed(manager, range(100, 112))  # three blocks: the three blank ones
    manager.release(other)
    assert manager.admit(sequence(range(5)), 5) == 4


def test_the_least_recently_used_content_goes_first_and_of_a_sequence_its_end():
    manager = BlockManager(4, SIZE)
    old, new = computed(manager, range(8)), computed(manager, range(100, 108))
    manager.release(old)
    manager.release(new)
    computed(manager, [7] * 4)  # takes one block
    assert manager._prefix(sequence([*range(8), 0])) == [0]  # the end of the older one is gone
    assert len(manager._prefix(sequence([*range(100, 108), 0]))) == 2
    computed(manager, [8] * 4)
    assert manager._prefix(sequence([*range(8), 0])) == []
    assert len(manager._prefix(sequence([*range(100, 108), 0]))) == 2


def test_use_makes_content_recent():
    manager = BlockManager(3, SIZE)
    for tokens in (range(4), range(100, 104), range(200, 204)):
        manager.release(computed(manager, tokens))
    user = sequence([*range(4), 9])
    assert manager.admit(user, 1) == 4  # evicts the oldest other: 100
    manager.release(user)
    assert len(manager._prefix(sequence([*range(4), 0]))) == 1
    assert len(manager._prefix(sequence([*range(100, 104), 0]))) == 0
    assert len(manager._prefix(sequence([*range(200, 204), 0]))) == 1


def test_a_sequence_that_does_not_fit_changes_nothing():
    manager = BlockManager(4, SIZE)
    held = computed(manager, range(8))
    seq = sequence(range(100, 112))
    assert manager.admit(seq, 1) is None  # one token would fit, the whole sequence does not
    assert (seq.block_table, seq.num_computed, manager.num_free) == ([], 0, 2)
    assert not manager.grow(held, 20)
    assert (len(held.block_table), manager.num_free) == (2, 2)
    manager.check([held])


def test_reviving_cached_blocks_counts_as_taking_them():
    manager = BlockManager(4, SIZE)
    manager.release(computed(manager, range(8)))
    held = computed(manager, range(100, 104))
    assert manager.num_free == 3
    # Two cached blocks are revived, one free block is left, and two new ones are wanted.
    assert manager.admit(sequence(range(16)), 16) is None
    manager.check([held])
    assert manager.admit(sequence(range(12)), 12) == 8


def test_without_prefix_caching_nothing_is_shared():
    manager = BlockManager(8, SIZE, enable_prefix_caching=False)
    first = computed(manager, range(9))
    second = sequence(range(9))
    assert manager.admit(second, 9) == 0
    assert not set(first.block_table) & set(second.block_table)
    manager.release(first)
    manager.check([second])


def test_forgetting_empties_the_prefix_cache_and_nothing_else():
    manager = BlockManager(6, SIZE)
    held = computed(manager, range(5))
    manager.release(computed(manager, range(100, 109)))
    manager.forget()
    manager.check([held])
    assert manager.num_free == 4
    assert manager.admit(sequence(range(5)), 1) == manager.admit(sequence(range(100, 105)), 1) == 0
    manager.release(held)
    assert manager.admit(sequence(range(5)), 1) == 0


def test_check_finds_unbalanced_books():
    manager = BlockManager(4, SIZE)
    seq = computed(manager, range(5))
    with pytest.raises(AssertionError, match="block 0: counted 1, held 0 times"):
        manager.check([])
    seq.block_table.append(3)
    with pytest.raises(AssertionError, match="block 3: counted 0, held 1 times"):
        manager.check([seq])


class Books(RuleBasedStateMachine):
    """Any order of calls that a scheduler could make, over sequences with common beginnings."""

    @initialize(num_blocks=st.integers(1, 12), caching=st.booleans())
    def start(self, num_blocks, caching):
        self.manager = BlockManager(num_blocks, SIZE, caching)
        self.live = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20), chunk=st.integers(1, 20))
    def admit(self, tokens, chunk):
        seq, free = sequence(tokens), self.manager.num_free
        cached = self.manager.admit(seq, chunk)
        if cached is None:
            assert self.manager.num_free == free and seq.block_table == []
            return
        self.live.append(seq)
        assert cached % SIZE == 0 and cached < len(tokens)
        assert len(seq.block_table) == self.manager.blocks_for(min(len(tokens), cached + chunk))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), more=st.integers(1, 9))
    def compute(self, data, more):
        seq = data.draw(st.sampled_from(self.live))
        end = min(seq.num_tokens, seq.num_computed + more)
        table, free = list(seq.block_table), self.manager.num_free
        if self.manager.grow(seq, end):
            self.manager.register(seq, end)
            seq.num_computed = end
            assert seq.block_table[: len(table)] == table
        else:
            assert (seq.block_table, self.manager.num_free) == (table, free)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.integers(0, 1))
    def append(self, data, token):
        data.draw(st.sampled_from(self.live)).token_ids.append(token)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data):
        seq = data.draw(st.sampled_from(self.live))
        self.live.remove(seq)
        self.manager.release(seq)
        assert seq.block_table == []

    @invariant()
    def balanced(self):
        if hasattr(self, "manager"):
            self.manager.check(self.live)
            held = {block for seq in self.live for block in seq.block_table}
            assert self.manager.num_free == self.manager.num_blocks - len(held)

    @invariant()
    def shared_blocks_hold_equal_beginnings(self):
        owners = {}
        for seq in getattr(self, "live", []):
            for i, block in enumerate(seq.block_table):
                full = (i + 1) * SIZE <= seq.num_computed
                beginning = (i, tuple(seq.token_ids[: (i + 1) * SIZE]) if full else id(seq))
                assert owners.setdefault(block, beginning) == beginning

    def teardown(self):
        for seq in getattr(self, "live", []):
            self.manager.release(seq)
        if hasattr(self, "manager"):
            self.manager.check([])
            assert self.manager.num_free == self.manager.num_blocks


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=80, stateful_step_count=40)
