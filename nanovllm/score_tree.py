"""The pairs of one prompt as a tree: what several of them begin with is computed once, and scored once.

Owns which pair takes over what from which other. Must not know texts, requests or steps.

The row of logits after the last token that two pairs have in common scores the next token of both. The one that
computes it is asked for the other's token too (`Sequence.asked`), and the other forks behind it; a pair that ends there
needs no sequence at all.
"""

from __future__ import annotations

from nanovllm.engine.sequence import Sequence
from nanovllm.sampling_params import SamplingParams

_NO_SAMPLING = SamplingParams(temperature=0.0, max_tokens=1)


def scoring_sequence(ids: list[int], num_scored: int) -> Sequence:
    """Return a sequence that scores the ids from `num_scored + 1` on; the last one is never computed itself."""
    return Sequence("", ids[:-1], _NO_SAMPLING, targets=ids[1:], num_scored=num_scored, samples_next=False)


class Branch:
    """A pair of context and continuation, and those that go on from it.

    Attributes:
        index: the caller's number of the pair.
        ids: context and continuation, at least one id each. num_context: how many are context.
        num_shared: leading ids whose keys and values are the parent's; 0 without a parent.
        children: pairs that fork from this one.
        seq: what computes the pair's own part, from `start` on; None where nothing is left to compute.
        scores: (log probability, whether a greedy request takes it) of each id behind the context of the tree's root.
    """

    def __init__(self, index: int, ids: list[int], num_context: int):
        self.index, self.ids, self.num_context = index, ids, num_context
        self.num_shared = 0
        self.children: list[Branch] = []
        self.seq: Sequence | None = None
        self.scores: list[tuple[float, bool]] = []
        self._origin = num_context  # the root's, where scores begin; no reference to it, which would be a cycle
        self._next: dict[tuple[int, int], Branch] = {}  # children by where they part and with which id
        self._asked: dict[int, list[int]] = {}

    @property
    def is_computed(self) -> bool:
        """Whether any position is left to compute behind what is shared."""
        return self.num_shared < len(self.ids) - 1

    @property
    def own_scores(self) -> list[tuple[float, bool]]:
        """The scores of the continuation."""
        return self.scores[self.num_context - self._origin :]

    def graft(self, other: Branch) -> bool:
        """Hang a pair under the one of this tree that it shares most with.

        Returns:
            False where it shares too little: its first scored row is not among those that the root scores.
        """
        last = other.num_context - 1
        if not self.num_context <= other.num_context < len(self.ids) or self.ids[last] != other.ids[last]:
            return False  # found out cheaply: trees may be many where contexts are truncated
        shared = _num_common(self.ids, other.ids)
        if shared < other.num_context:
            return False
        parent = self
        while shared < len(other.ids) and (closer := parent._next.get((shared, other.ids[shared]))):
            if not closer.is_computed:  # it has nothing to share
                break
            parent, shared = closer, _num_common(closer.ids, other.ids)
        if shared < len(other.ids):
            parent._next[shared, other.ids[shared]] = other
            parent._asked.setdefault(shared - 1, []).append(other.ids[shared])
        other.num_shared, other._origin = shared, self.num_context
        parent.children.append(other)
        return True

    def start(self, parent: Branch | None = None) -> Sequence:
        """Return the sequence that computes this branch."""
        self.seq = scoring_sequence(self.ids, max(self.num_shared, self.num_context - 1))
        self.seq.asked = self._asked
        self.seq.num_forks = sum(child.is_computed for child in self.children)
        self.seq.fork_of = None if parent is None else parent.seq
        return self.seq

    def finish(self) -> list[Branch]:
        """Take the ended sequence's scores, and hand on to the children what is theirs; returns the children."""
        rows = self.seq.prompt_logprobs
        self.scores += [(row.logprobs[0], row.is_best) for row in rows]
        first = len(self.ids) - 1 - len(rows)  # the position of the first row
        for child in self.children:
            child.scores = self.scores[: child.num_shared - self._origin]
            if child.num_shared < len(child.ids):
                row, token_id = rows[child.num_shared - 1 - first], child.ids[child.num_shared]
                child.scores.append((row.logprobs[row.token_ids.index(token_id)], token_id == row.best_id))
        return self.children

    def scatter(self) -> list[Branch]:
        """Return the pairs under this one as trees of their own, which share nothing."""
        trees, pending = [], list(self.children)
        while pending:  # a tree may be deeper than Python's stack
            branch = pending.pop()
            trees.append(Branch(branch.index, branch.ids, branch.num_context))
            pending += branch.children
        return trees


def _num_common(computed: list[int], ids: list[int]) -> int:
    """Return how many leading ids two pairs share, of those that the first computes: not its last."""
    most = min(len(computed) - 1, len(ids))
    if computed[:most] == ids[:most]:
        return most
    return next(i for i in range(most) if computed[i] != ids[i])
