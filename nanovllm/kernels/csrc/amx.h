/* Tiles of AMX, or the same in plain C so that the code above them can be tested on machines without the unit.
 *
 * Eight tiles of 16 rows of 64 bytes. Numbers of tiles are constants in the instructions, hence macros.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS and TDPBSSD.
 */
#ifndef NV_AMX_H
#define NV_AMX_H

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
static void tile_dot_bf16(int c, int a, int b) {
    for (int m = 0; m < tile_now.rows[c]; m++)
        for (int k = 0; k < tile_now.bytes[a] / 4; k++)
            for (int n = 0; n < tile_now.bytes[c] / 4; n++) {
                float sum;
                memcpy(&sum, tile_data[c][m] + 4 * n, 4);
                for (int half = 0; half < 2; half++) {
                    uint16_t x, y;
                    memcpy(&x, tile_data[a][m] + 4 * k + 2 * half, 2);
                    memcpy(&y, tile_data[b][k] + 4 * n + 2 * half, 2);
                    uint32_t wide[2] = {(uint32_t)x << 16, (uint32_t)y << 16};
                    float factors[2];
                    memcpy(factors, wide, 8);
                    sum += factors[0] * factors[1];
                }
                memcpy(tile_data[c][m] + 4 * n, &sum, 4);
            }
}
static void tile_dot_int8(int c, int a, int b) {
    for (int m = 0; m < tile_now.rows[c]; m++)
        for (int k = 0; k < tile_now.bytes[a] / 4; k++)
            for (int n = 0; n < tile_now.bytes[c] / 4; n++) {
                int32_t sum;
                memcpy(&sum, tile_data[c][m] + 4 * n, 4);
                for (int i = 0; i < 4; i++)
                    sum += (int8_t)tile_data[a][m][4 * k + i] * (int8_t)tile_data[b][k][4 * n + i];
                memcpy(tile_data[c][m] + 4 * n, &sum, 4);
            }
}
#endif

#endif
