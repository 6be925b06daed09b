/* Tiles of AMX, or the same in plain C so that the code above them can be tested on machines without the unit.
 *
 * Eight tiles of 16 rows of 64 bytes. Numbers of tiles are constants in the instructions, hence macros.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS, TDPBSSD and TDPBSUD.
 */
#ifndef NV_AMX_H
#define NV_AMX_H

#include <float.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) tile_config_t;

#ifndef NV_AMX_EMULATED
#include <immintrin.h>
static inline void tile_configure(const tile_config_t *config) {
    /* gcc 12 believes that the instruction reads 8 of the 64 bytes and drops the stores to the others. */
    __asm__ volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
}
#define tile_done() _tile_release()
#define tile_clear(t) _tile_zero(t)
#define tile_read(t, base, stride) _tile_loadd(t, base, stride)
#define tile_stream(t, base, stride) _tile_loadd(t, base, stride)
#define tile_write(t, base, stride) _tile_stored(t, base, stride)
#define tile_dot_bf16(c, a, b) _tile_dpbf16ps(c, a, b)
#define tile_dot_int8(c, a, b) _tile_dpbssd(c, a, b)
#define tile_dot_mixed(c, a, b) _tile_dpbsud(c, a, b)
/* gcc does not know that tile_read reads memory: what was written before is so only from here on. */
#define tile_wait() __asm__ volatile("" ::: "memory")
#else
static _Thread_local tile_config_t tile_now;
static _Thread_local uint8_t tile_data[8][16][64];

static void tile_configure(const tile_config_t *config) {
    tile_now = *config;
    memset(tile_data, 0, sizeof tile_data);
}
static void tile_done(void) { memset(&tile_now, 0, sizeof tile_now); }
static void tile_clear(int t) { memset(tile_data[t], 0, sizeof tile_data[t]); }
static void tile_read(int t, const void *base, ptrdiff_t stride) {
    memset(tile_data[t], 0, sizeof tile_data[t]);
    for (int r = 0; r < tile_now.rows[t]; r++)
        memcpy(tile_data[t][r], (const char *)base + r * stride, tile_now.bytes[t]);
}
#define tile_stream tile_read
static void tile_write(int t, void *base, ptrdiff_t stride) {
    for (int r = 0; r < tile_now.rows[t]; r++) memcpy((char *)base + r * stride, tile_data[t][r], tile_now.bytes[t]);
}
#define tile_wait() ((void)0)

/* The unit takes denormals for zero, going in and coming out. */
static inline float tile_flushed(float x) { return __builtin_fabsf(x) < FLT_MIN ? __builtin_copysignf(0, x) : x; }

static inline float tile_bf16(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return tile_flushed(x);
}

/* The arithmetic touches tiles and nothing else; under the sanitizers it would take minutes. */
#define TILE_ARITHMETIC __attribute__((no_sanitize("address", "undefined", "thread")))

/* Two sums in each instruction, of the even and of the odd k, from zero; then both are added to what was there. */
TILE_ARITHMETIC static void tile_dot_bf16(int c, int a, int b) {
    const int depth = tile_now.bytes[a] / 4, columns = tile_now.bytes[c] / 4;
    float weights[16][2][16], sums[2][16], out[16];
    for (int k = 0; k < depth; k++)
        for (int n = 0; n < columns; n++)
            for (int half = 0; half < 2; half++) weights[k][half][n] = tile_bf16(tile_data[b][k] + 4 * n + 2 * half);
    for (int m = 0; m < tile_now.rows[c]; m++) {
        memset(sums, 0, sizeof sums);
        for (int k = 0; k < depth; k++)
            for (int half = 0; half < 2; half++) {
                const float x = tile_bf16(tile_data[a][m] + 4 * k + 2 * half);
                for (int n = 0; n < columns; n++)
                    sums[half][n] = tile_flushed(__builtin_fmaf(x, weights[k][half][n], sums[half][n]));
            }
        memcpy(out, tile_data[c][m], sizeof out);
        for (int n = 0; n < columns; n++)
            out[n] = tile_flushed(tile_flushed(out[n]) + tile_flushed(sums[0][n] + sums[1][n]));
        memcpy(tile_data[c][m], out, (size_t)columns * 4);
    }
}

TILE_ARITHMETIC static void tile_dot_bytes(int c, int a, int b, int is_signed) {
    for (int m = 0; m < tile_now.rows[c]; m++)
        for (int k = 0; k < tile_now.bytes[a] / 4; k++)
            for (int n = 0; n < tile_now.bytes[c] / 4; n++) {
                int32_t sum;
                memcpy(&sum, tile_data[c][m] + 4 * n, 4);
                for (int i = 0; i < 4; i++) {
                    const uint8_t w = tile_data[b][k][4 * n + i];
                    sum += (int8_t)tile_data[a][m][4 * k + i] * (is_signed ? (int8_t)w : w);
                }
                memcpy(tile_data[c][m] + 4 * n, &sum, 4);
            }
}
TILE_ARITHMETIC static void tile_dot_int8(int c, int a, int b) { tile_dot_bytes(c, a, b, 1); }
TILE_ARITHMETIC static void tile_dot_mixed(int c, int a, int b) { tile_dot_bytes(c, a, b, 0); } /* signed a, unsigned b */
#endif

#endif
