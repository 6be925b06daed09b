"""Log probabilities of rows of raw logits by the whole thread team: a token's own, the best ones and those asked for.

Each row is scored by one thread. Must not know where the rows come from or what becomes of the numbers.
"""

import numpy as np

from libc.math cimport isfinite
from libc.stdint cimport int32_t

from nanovllm.kernels.isa cimport kernels
from nanovllm.kernels.team cimport Team, nv_fetch_add, team_run

# So many logits are compared with the worst of the best ones at once.
cdef enum:
    GROUP = 64


cdef struct score_job_t:
    const float *logits       # [.., vocab_size]
    Py_ssize_t vocab_size
    Py_ssize_t num_rows
    Py_ssize_t width
    const int32_t *rows       # [num_rows]
    const int32_t *own_ids    # [num_rows]
    const int32_t *num_best   # [num_rows]
    const int32_t *asked_ids
    const int32_t *cu_asked   # [num_rows + 1]
    int32_t *ids              # [num_rows, width], like logprobs and ranks
    float *logprobs
    int32_t *ranks
    int32_t *counts           # [num_rows], like is_best
    unsigned char *is_best
    Py_ssize_t next_row


cdef int32_t num_larger(const float *logits, Py_ssize_t n, float bound) noexcept nogil:
    cdef Py_ssize_t i
    cdef int32_t count = 0
    for i in range(n):
        count += logits[i] > bound
    return count


cdef bint is_first(const float *logits, Py_ssize_t token_id) noexcept nogil:
    """Whether no lower id has the same logit."""
    cdef Py_ssize_t i
    cdef int32_t count = 0
    for i in range(token_id):
        count += logits[i] >= logits[token_id]
    return count == 0


cdef Py_ssize_t find_best(const float *logits, Py_ssize_t n, Py_ssize_t wanted, int32_t *ids) noexcept nogil:
    """The ids of the `wanted` largest logits, best first, of equal ones the lowest id first; returns how many."""
    cdef Py_ssize_t count = 0, begin, end = 0, i, at
    while end < n:
        begin, end = end, min(end + GROUP, n)
        if count == wanted and num_larger(logits + begin, end - begin, logits[ids[count - 1]]) == 0:
            continue
        for i in range(begin, end):
            if count == wanted and not logits[i] > logits[ids[count - 1]]:
                continue
            at = count - 1 if count == wanted else count
            while at > 0 and logits[i] > logits[ids[at - 1]]:
                ids[at] = ids[at - 1]
                at -= 1
            ids[at] = <int32_t>i
            count += count < wanted
    return count


cdef bint holds(const int32_t *ids, Py_ssize_t count, int32_t token_id) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        if ids[i] == token_id:
            return True
    return False


cdef void score_row(const score_job_t *job, Py_ssize_t row) noexcept nogil:
    cdef const float *logits = job.logits + job.rows[row] * job.vocab_size
    cdef int32_t *ids = job.ids + row * job.width
    cdef int32_t *ranks = job.ranks + row * job.width
    cdef int32_t own = job.own_ids[row]
    cdef Py_ssize_t n = job.vocab_size, wanted = min(<Py_ssize_t>job.num_best[row], n), count, i, kept = 1
    cdef float top
    cdef double log_sum
    kernels().log_sum_exp(logits, n, &top, &log_sum)
    ids[0] = own
    if not (isfinite(top) and isfinite(log_sum)):
        job.counts[row] = 0
        return
    ranks[0] = 1 + num_larger(logits, n, logits[own])
    job.is_best[row] = ranks[0] == 1 and is_first(logits, own)
    if wanted > 0:
        count = find_best(logits, n, wanted, ids + 1)
        for i in range(1, count + 1):  # equal logits have equal ranks; the own token stays at the front alone
            ranks[i] = ranks[i - 1] if i > 1 and logits[ids[i]] == logits[ids[i - 1]] else <int32_t>i
        for i in range(1, count + 1):
            if ids[i] != own:
                ids[kept], ranks[kept] = ids[i], ranks[i]
                kept += 1
    for i in range(job.cu_asked[row], job.cu_asked[row + 1]):
        if not holds(ids, kept, job.asked_ids[i]):
            ids[kept] = job.asked_ids[i]
            ranks[kept] = 1 + num_larger(logits, n, logits[ids[kept]])
            kept += 1
    for i in range(kept):  # the difference in double, then one rounding
        job.logprobs[row * job.width + i] = <float>(logits[ids[i]] - log_sum)
    job.counts[row] = <int32_t>kept


cdef void score_member(void *arg, int tid, int num_threads) noexcept nogil:
    cdef score_job_t *job = <score_job_t *>arg
    cdef Py_ssize_t row = nv_fetch_add(&job.next_row)
    while row < job.num_rows:
        score_row(job, row)
        row = nv_fetch_add(&job.next_row)


cdef check_ids(str name, ids, Py_ssize_t bound):
    if len(ids) and not (0 <= ids.min() and ids.max() < bound):
        raise ValueError(f"{name} are {ids.min()} to {ids.max()}, expected 0 to {bound - 1}")


def score_rows(Team team, const float[:, ::1] logits, rows, own_ids, num_best, asked_ids, cu_asked):
    """Return (ids, logprobs, ranks), [num_rows, width], and (counts, is_best), [num_rows], of rows of raw logits.

    Of each row the first `counts` entries are valid: the own token, then the best others, best first and of equal ones
    the lowest id first, then those asked for that were not among these. A rank is 1 + the number of larger logits;
    is_best says whether the own token is the lowest id of the largest logit. A row with NaN or +inf has the count 0.

    Args:
        logits: [n, vocab_size] float32; only read.
        rows: [num_rows] int32, rows of logits.
        own_ids: [num_rows] int32.
        num_best: [num_rows] int32, how many of the largest.
        asked_ids: int32, further ids of each row, joined.
        cu_asked: [num_rows + 1] int32, where each row's begin and end.

    Raises:
        ValueError: lengths do not fit together, or an id or a row is out of range.
    """
    cdef Py_ssize_t count = len(rows)
    cdef score_job_t job
    if not len(own_ids) == len(num_best) == len(cu_asked) - 1 == count:
        raise ValueError(f"{count} rows, {len(own_ids)} own ids, {len(num_best)} numbers of best ids and "
                         f"{len(cu_asked)} offsets do not fit together")
    asked = np.diff(cu_asked)
    if cu_asked[0] != 0 or cu_asked[count] != len(asked_ids) or (asked < 0).any():
        raise ValueError(f"cu_asked must rise from 0 to {len(asked_ids)}")
    check_ids("rows", rows, logits.shape[0])
    check_ids("own ids", own_ids, logits.shape[1])
    check_ids("asked ids", asked_ids, logits.shape[1])
    best = np.clip(num_best, 0, logits.shape[1])
    width = 1 + int((best + asked).max(initial=0))
    ids, ranks = np.zeros((count, width), np.int32), np.zeros((count, width), np.int32)
    logprobs = np.zeros((count, width), np.float32)
    counts, is_best = np.zeros(count, np.int32), np.zeros(count, np.uint8)
    if count == 0:
        return ids, logprobs, ranks, counts, is_best
    cdef const int32_t[::1] rows_view = rows, own_view = own_ids, best_view = best.astype(np.int32), cu_view = cu_asked
    # One unused entry keeps the address valid when there are no ids.
    cdef const int32_t[::1] asked_view = np.append(asked_ids, 0).astype(np.int32)
    cdef int32_t[:, ::1] ids_view = ids, ranks_view = ranks
    cdef float[:, ::1] logprobs_view = logprobs
    cdef int32_t[::1] counts_view = counts
    cdef unsigned char[::1] is_best_view = is_best
    job.logits, job.vocab_size, job.num_rows, job.width = &logits[0, 0], logits.shape[1], count, width
    job.rows, job.own_ids, job.num_best, job.cu_asked = &rows_view[0], &own_view[0], &best_view[0], &cu_view[0]
    job.asked_ids, job.next_row = &asked_view[0], 0
    job.ids, job.ranks, job.logprobs = &ids_view[0, 0], &ranks_view[0, 0], &logprobs_view[0, 0]
    job.counts, job.is_best = &counts_view[0], &is_best_view[0]
    team.check_process()
    with nogil:
        team_run(team.ptr, score_member, &job)
    return ids, logprobs, ranks, counts, is_best
