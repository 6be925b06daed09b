"""The oracle of scores: sums taken by hand, one position at a time, from raw logits."""

import numpy as np
import pytest

TOLERANCE = 1e-4
LONG = [(7 * i) % 400 + 3 for i in range(90)]


def by_hand(llm, context, ids):
    """(log probabilities, whether each id has the largest logit), each position computed by itself."""
    logprobs, greedy = [], True
    for end, token_id in enumerate(ids):
        logits = llm.engine.next_token_logits(context + ids[:end]).astype(np.float64)
        logprobs.append(logits[token_id] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        greedy &= int(logits.argmax()) == token_id
    return logprobs, greedy


def assert_score(llm, output, context, ids):
    assert output.error is None
    assert (output.prompt_token_ids, output.token_ids) == (context, ids)
    logprobs, greedy = by_hand(llm, context, ids)
    np.testing.assert_allclose(output.logprobs, logprobs, atol=TOLERANCE, rtol=0)
    assert output.logprob == pytest.approx(sum(logprobs), abs=TOLERANCE)
    assert output.is_greedy is greedy
