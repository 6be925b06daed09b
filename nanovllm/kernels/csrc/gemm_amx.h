/* GEMM of the packed bfloat16 and int8 kinds on AMX tiles. Included by gemm.h in the AMX levels.
 *
 * A strip is up to 32 rows: two A tiles, two B tiles (one panel of 32 columns), four C tiles. The packed panels of
 * linear.h are B tiles as they lie: 16 groups of k, 32 columns, 64 bytes each group and half panel. All row counts take
 * this path, so that the order of additions is the unit's own for every row.
 */
#include "amx.h"

#define AMX_STRIP 32

/* Tiles 0-3: C (rows low/high x columns left/right), 4-5: A low/high, 6-7: B left/right. */
static void configure_rows(int rows) {
    const int low = rows < 16 ? rows : 16, high = rows > 16 ? rows - 16 : 1; /* a tile cannot have 0 rows */
    tile_config_t config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.bytes[t] = 64;
        config.rows[t] = (uint8_t)(t >= 6 ? 16 : t == 0 || t == 1 || t == 4 ? low : high);
    }
    tile_configure(&config);
}

#define AMX_MICRO(name, dot)                                                                              \
    static void name(const char *a, ptrdiff_t stride, const char *b, ptrdiff_t steps, int rows, float *tile) { \
        tile_clear(0);                                                                                    \
        tile_clear(1);                                                                                    \
        if (rows <= 16) {                                                                                 \
            for (ptrdiff_t i = 0; i < steps; i++, a += 64, b += 2048) {                                   \
                tile_read(4, a, stride);                                                                  \
                tile_stream(6, b, 128);                                                                   \
                tile_stream(7, b + 64, 128);                                                              \
                dot(0, 4, 6);                                                                             \
                dot(1, 4, 7);                                                                             \
            }                                                                                             \
        } else {                                                                                          \
            const char *high = a + 16 * stride;                                                           \
            tile_clear(2);                                                                                \
            tile_clear(3);                                                                                \
            for (ptrdiff_t i = 0; i < steps; i++, a += 64, high += 64, b += 2048) {                       \
                tile_read(4, a, stride);                                                                  \
                tile_read(5, high, stride);                                                               \
                tile_stream(6, b, 128);                                                                   \
                tile_stream(7, b + 64, 128);                                                              \
                dot(0, 4, 6);                                                                             \
                dot(1, 4, 7);                                                                             \
                dot(2, 5, 6);                                                                             \
                dot(3, 5, 7);                                                                             \
            }                                                                                             \
            tile_write(2, tile + 16 * NV_PANEL, NV_PANEL * 4);                                            \
            tile_write(3, tile + 16 * NV_PANEL + 16, NV_PANEL * 4);                                       \
        }                                                                                                 \
        tile_write(0, tile, NV_PANEL * 4);                                                                \
        tile_write(1, tile + 16, NV_PANEL * 4);                                                           \
    }
AMX_MICRO(amx_bf16, tile_dot_bf16)
AMX_MICRO(amx_int8, tile_dot_int8)

static void gemm_amx(const nv_gemm *g, ptrdiff_t panel_begin, ptrdiff_t panel_end) {
    const nv_linear *w = g->w;
    const ptrdiff_t row_bytes = w->k_padded * element_bytes[w->kind], panel_bytes = row_bytes * NV_PANEL;
    const ptrdiff_t block = nv_block_panels(nv_block_bytes, panel_bytes);
    const ptrdiff_t stride = g->ldx * element_bytes[w->kind];
    float tile[AMX_STRIP * NV_PANEL] __attribute__((aligned(64)));
    int configured = 0;
    for (ptrdiff_t begin = panel_begin; begin < panel_end; begin += block) {
        const ptrdiff_t end = begin + block < panel_end ? begin + block : panel_end;
        for (ptrdiff_t row = 0; row < g->rows; row += AMX_STRIP) {
            const int rows = (int)(g->rows - row < AMX_STRIP ? g->rows - row : AMX_STRIP);
            if (rows != configured) configure_rows(configured = rows);
            for (ptrdiff_t panel = begin; panel < end; panel++) {
                (w->kind == NV_BF16 ? amx_bf16 : amx_int8)((const char *)g->x + row * stride, stride,
                                                           (const char *)w->weight + panel * panel_bytes,
                                                           row_bytes / 64, rows, tile);
                finish_tile(g, row, rows, panel, tile);
            }
        }
    }
    tile_done(); /* tiles that are in use make every context switch dearer */
}
