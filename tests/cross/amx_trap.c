/* AMX instructions carried out by a signal handler, for machines without the unit: the compiled code of the AMX level
 * runs as it is, and each instruction that the CPU refuses is decoded and done here. It ends the process where the unit
 * would raise a fault: on a bad tile configuration, on tiles whose sizes do not fit, before any configuration.
 *
 * Linked into a program, or preloaded into one as a shared library. Of use on x86-64 Linux only.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED,
 * TDPBF16PS, TDPBSSD, TDPBSUD, TILEZERO, TILERELEASE, and "Intel AMX instruction exception classes".
 */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

static _Thread_local struct {
    int configured;
    uint16_t bytes[TILES];
    uint8_t rows[TILES];
    uint8_t data[TILES][ROWS][ROW_BYTES];
} unit;

static void refuse(const char *why) {
    char line[128];
    const int n = snprintf(line, sizeof line, "AMX: %s\n", why);
    if (write(2, line, (size_t)n) < 0) abort();
    abort();
}

static void need(int holds, const char *why) {
    if (!holds) refuse(why);
}

static void need_tile(int t) {
    need(unit.configured, "a tile is used before the configuration");
    need(t < TILES && unit.rows[t] && unit.bytes[t], "a tile is used that has no size");
}

static void load_configuration(const uint8_t *from) {
    memset(&unit, 0, sizeof unit);
    need(from[0] <= 1, "palette above 1");
    if (from[0] == 0) return;
    for (int i = 2; i < 16; i++) need(from[i] == 0, "a reserved byte of the configuration is set");
    for (int i = 16 + 2 * TILES; i < 48; i++) need(from[i] == 0, "a size is given for a tile above 7");
    for (int i = 48 + TILES; i < 64; i++) need(from[i] == 0, "rows are given for a tile above 7");
    for (int t = 0; t < TILES; t++) {
        memcpy(&unit.bytes[t], from + 16 + 2 * t, 2);
        unit.rows[t] = from[48 + t];
        need(unit.bytes[t] <= ROW_BYTES && unit.rows[t] <= ROWS, "a tile is larger than the palette allows");
        need(!unit.bytes[t] == !unit.rows[t], "a tile has rows without bytes or bytes without rows");
    }
    unit.configured = 1;
}

static void move_tile(int t, uint8_t *memory, int64_t stride, int is_store) {
    need_tile(t);
    for (int r = 0; r < unit.rows[t]; r++)
        if (is_store) {
            memcpy(memory + r * stride, unit.data[t][r], unit.bytes[t]);
        } else {
            memset(unit.data[t][r], 0, ROW_BYTES);
            memcpy(unit.data[t][r], memory + r * stride, unit.bytes[t]);
        }
    if (!is_store)
        for (int r = unit.rows[t]; r < ROWS; r++) memset(unit.data[t][r], 0, ROW_BYTES);
}

static void check_product(int c, int a, int b) {
    need(c != a && c != b && a != b, "a product of tiles that are not three");
    need_tile(a);
    need_tile(b);
    need_tile(c);
    need(unit.bytes[a] % 4 == 0 && unit.bytes[b] % 4 == 0 && unit.bytes[c] % 4 == 0, "a row is no whole number of dwords");
    need(unit.rows[c] == unit.rows[a] && unit.bytes[c] == unit.bytes[b] && unit.bytes[a] / 4 == unit.rows[b],
         "a product of tiles whose sizes do not fit");
}

/* Denormals count as zero, going in and coming out, whatever MXCSR says. */
static float flushed(float x) { return fpclassify(x) == FP_SUBNORMAL ? copysignf(0, x) : x; }

static float bf16(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return flushed(x);
}

static void dot_bf16(int c, int a, int b) {
    check_product(c, a, b);
    const int columns = unit.bytes[c] / 4;
    for (int m = 0; m < unit.rows[c]; m++) {
        float sums[2 * ROW_BYTES / 4] = {0}; /* even and odd k apart, and from zero for each instruction */
        for (int k = 0; k < unit.rows[b]; k++)
            for (int n = 0; n < 2 * columns; n++)
                sums[n] = flushed(fmaf(bf16(unit.data[a][m] + 4 * k + 2 * (n % 2)), bf16(unit.data[b][k] + 2 * n), sums[n]));
        for (int n = 0; n < columns; n++) {
            float old;
            memcpy(&old, unit.data[c][m] + 4 * n, 4);
            const float sum = flushed(flushed(old) + flushed(sums[2 * n] + sums[2 * n + 1]));
            memcpy(unit.data[c][m] + 4 * n, &sum, 4);
        }
    }
}

/* Signed bytes of a times bytes of b, signed or not. */
static void dot_bytes(int c, int a, int b, int is_signed) {
    check_product(c, a, b);
    for (int m = 0; m < unit.rows[c]; m++)
        for (int k = 0; k < unit.rows[b]; k++)
            for (int n = 0; n < unit.bytes[c] / 4; n++) {
                uint32_t sum; /* wraps round */
                memcpy(&sum, unit.data[c][m] + 4 * n, 4);
                for (int i = 0; i < 4; i++) {
                    const uint8_t w = unit.data[b][k][4 * n + i];
                    sum += (uint32_t)((int8_t)unit.data[a][m][4 * k + i] * (is_signed ? (int8_t)w : w));
                }
                memcpy(unit.data[c][m] + 4 * n, &sum, 4);
            }
}

/* An instruction's fields: VEX prefix of three bytes, opcode, ModRM, and where there is one the address in memory. */
typedef struct {
    int prefix;  /* 0: none, 1: 66, 2: F3, 3: F2 */
    int opcode, reg, rm, third, has_memory;
    uint8_t *address;
    int64_t index; /* the value of SIB's index register: a tile's stride */
    int length;
} instruction_t;

static int64_t register_value(const ucontext_t *context, int number) {
    static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[order[number]];
}

static instruction_t decode(const ucontext_t *context) {
    const uint8_t *at = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP];
    if (at[0] != 0xc4 || (at[1] & 0x1f) != 2 || at[2] & 0x84) refuse("an illegal instruction that is not of AMX");
    const int r = !(at[1] & 0x80), x = !(at[1] & 0x40), b = !(at[1] & 0x20), mod = at[4] >> 6;
    instruction_t out = {.prefix = at[2] & 3, .opcode = at[3], .third = ~at[2] >> 3 & 15, .length = 5};
    out.reg = (at[4] >> 3 & 7) | r << 3;
    out.rm = at[4] & 7;
    out.has_memory = mod != 3;
    if (!out.has_memory) return out;
    int64_t base = 0;
    int displacement = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    if (out.rm == 4) {
        const uint8_t sib = at[out.length++];
        const int index = (sib >> 3 & 7) | x << 3, base_number = (sib & 7) | b << 3;
        out.index = index == 4 ? 0 : register_value(context, index) * (1 << (sib >> 6));
        if ((sib & 7) == 5 && mod == 0)
            displacement = 4;
        else
            base = register_value(context, base_number);
    } else if (out.rm == 5 && mod == 0) {
        displacement = 4; /* from the end of the instruction */
        base = (int64_t)at + out.length + 4;
    } else {
        base = register_value(context, out.rm | b << 3);
    }
    int32_t offset = 0;
    if (displacement == 1) offset = (int8_t)at[out.length];
    if (displacement == 4) memcpy(&offset, at + out.length, 4);
    out.length += displacement;
    out.address = (uint8_t *)(base + offset);
    return out;
}

static void on_illegal(int number, siginfo_t *info, void *raw) {
    (void)number, (void)info;
    ucontext_t *context = raw;
    const instruction_t in = decode(context);
    const int what = in.opcode << 4 | in.prefix << 1 | in.has_memory;
    if (what == 0x491 && in.reg == 0)
        load_configuration(in.address);
    else if (what == 0x490 && in.reg == 0 && in.rm == 0)
        memset(&unit, 0, sizeof unit);
    else if (what == 0x496) {
        need_tile(in.reg);
        memset(unit.data[in.reg], 0, sizeof unit.data[0]);
    } else if (what == 0x4b7 || what == 0x4b3 || what == 0x4b5)
        move_tile(in.reg, in.address, in.index, in.prefix == 2);
    else if (what == 0x5c4)
        dot_bf16(in.reg, in.rm, in.third);
    else if (what == 0x5e6 || what == 0x5e4)
        dot_bytes(in.reg, in.rm, in.third, what == 0x5e6);
    else
        refuse("an illegal instruction that is not one of those here");
    context->uc_mcontext.gregs[REG_RIP] += in.length;
}

__attribute__((constructor)) static void trap(void) {
    struct sigaction action = {.sa_flags = SA_SIGINFO};
    action.sa_sigaction = on_illegal;
    if (sigaction(SIGILL, &action, NULL) != 0) abort();
}
