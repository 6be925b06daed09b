/* Philox4x32-10, a counter-based generator: the same (key, counter) gives the same words on every machine.
 *
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, sections 3.3 and 4.3.
 */
#ifndef NANOVLLM_SAMPLING_PHILOX_H
#define NANOVLLM_SAMPLING_PHILOX_H

#include <stdint.h>

#define PHILOX_ROUNDS 10

/* words: the counter on entry, the random words on return. */
static inline void philox4x32(uint32_t words[4], uint32_t key0, uint32_t key1) {
    const uint64_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
    const uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t product0 = multiplier0 * words[0];
        uint64_t product1 = multiplier1 * words[2];
        words[0] = (uint32_t)(product1 >> 32) ^ words[1] ^ key0;
        words[1] = (uint32_t)product1;
        words[2] = (uint32_t)(product0 >> 32) ^ words[3] ^ key1;
        words[3] = (uint32_t)product0;
        key0 += weyl0;
        key1 += weyl1;
    }
}

/* The uniform of one draw: 53 bits, in [0, 1). The last counter word is a purpose; 0 is drawing a token. */
static inline double sampling_uniform(uint64_t seed, uint32_t sample_index, uint64_t position) {
    uint32_t words[4] = {(uint32_t)position, (uint32_t)(position >> 32), sample_index, 0};
    philox4x32(words, (uint32_t)seed, (uint32_t)(seed >> 32));
    uint64_t bits = ((uint64_t)(words[0] >> 5) << 26) | (words[1] >> 6);
    return (double)bits * 0x1.0p-53;
}

#endif
