/* What a row's settings do to its logits before anything is measured: the mask, n-grams and DRY; and the spread of a row.
 *
 * Every loop runs in a fixed order over the row and the row's own ids, so a row does not depend on its neighbours.
 */
#ifndef NANOVLLM_SAMPLING_EDIT_H
#define NANOVLLM_SAMPLING_EDIT_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define SAMPLING_MAX_PENALTY 1e30 /* stays finite beside any logit: a row that is all -inf would have no distribution */

/* Bit i % 32 of mask[i / 32] set: id i stays. The others get -inf. */
static inline void sampling_mask(float *logits, ptrdiff_t vocab_size, const uint32_t *mask) {
    for (ptrdiff_t start = 0; start < vocab_size; start += 32) {
        uint32_t word = mask[start / 32];
        ptrdiff_t stop = start + 32 < vocab_size ? start + 32 : vocab_size;
        if (word == 0xFFFFFFFFu) continue;
        for (ptrdiff_t i = start; i < stop; i++) logits[i] = word >> (i - start) & 1 ? logits[i] : -INFINITY;
    }
}

/* -inf for each id that would end an n-gram which the history already has. */
static inline void sampling_ban_ngrams(float *logits, const int *history, ptrdiff_t num_history, ptrdiff_t size) {
    const int *tail = history + num_history - (size - 1);
    for (ptrdiff_t i = 0; i + size <= num_history; i++) {
        ptrdiff_t k = size - 2; /* compared from the end: neighbours of a frequent id differ soonest there */
        while (k >= 0 && history[i + k] == tail[k]) k--;
        if (k < 0) logits[history[i + size - 1]] = -INFINITY;
    }
}

/* DRY: an id that would prolong a repetition of `length` ids loses multiplier * base ** (length - allowed_length).
 *
 * window: the newest num_window ids, oldest first. limit: longest repetition that counts, which is how many ids came
 * after the newest sequence breaker. breakers: bits of the ids that are one by themselves and lose nothing, or NULL.
 * longest: one entry for each id of the vocabulary, zero on entry and on return. Returns 0 if there is no memory. Linear in the window by the Z algorithm over the reversed ids (Gusfield 1997, 1.4).
 */
static inline int sampling_dry(float *logits, const int *window, ptrdiff_t num_window, double multiplier, double base,
                        ptrdiff_t allowed_length, ptrdiff_t limit, const uint32_t *breakers, int *longest) {
    if (num_window < 2 || limit < allowed_length) return 1;
    ptrdiff_t *match = malloc((size_t)num_window * sizeof *match);
    if (match == NULL) return 0;
    const int *newest = window + num_window - 1; /* newest[-i]: the id i places back */
    ptrdiff_t left = 0, right = 0;               /* the match that reaches furthest back: [left, right) */
    for (ptrdiff_t i = 1; i < num_window; i++) {
        ptrdiff_t length = 0;
        if (i < right) length = match[i - left] < right - i ? match[i - left] : right - i;
        while (i + length < num_window && newest[-(i + length)] == newest[-length]) length++;
        if (i + length > right) {
            left = i;
            right = i + length;
        }
        match[i] = length;
    }
    for (ptrdiff_t i = 1; i < num_window; i++) {
        ptrdiff_t length = match[i] < limit ? match[i] : limit;
        int *known = &longest[newest[-(i - 1)]];
        if (length >= allowed_length && length > *known) *known = (int)length;
    }
    for (ptrdiff_t i = 1; i < num_window; i++) {
        int token_id = newest[-(i - 1)];
        if (longest[token_id] == 0) continue;
        double penalty = multiplier * pow(base, (double)(longest[token_id] - allowed_length));
        if (!(penalty < SAMPLING_MAX_PENALTY)) penalty = SAMPLING_MAX_PENALTY;
        if (breakers != NULL && breakers[token_id / 32] >> token_id % 32 & 1) penalty = 0;
        logits[token_id] = (float)(logits[token_id] - penalty);
        longest[token_id] = 0;
    }
    free(match);
    return 1;
}

/* Standard deviation of the logits that are not -inf; the row has at least one, and neither NaN nor +inf. */
static inline double sampling_deviation(const float *logits, ptrdiff_t n, float row_max) {
    double sum = 0, squares = 0;
    ptrdiff_t count = 0;
    /* Measured from the maximum, so that one pass in float64 is exact enough however large the logits are. */
    for (ptrdiff_t i = 0; i < n; i++) {
        int present = logits[i] > -INFINITY;
        double below = present ? (double)row_max - logits[i] : 0.0;
        sum += below;
        squares += below * below;
        count += present;
    }
    double mean = sum / (double)count, variance = squares / (double)count - mean * mean;
    return variance > 0 ? sqrt(variance) : 0.0;
}

#endif
