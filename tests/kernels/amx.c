/* AMX-int8 on CPUs without it: a handler of SIGILL that does what the instruction would have done.
 *
 * amx_begin installs it, amx_end brings back what was there. Operands follow the Intel SDM volume 2 (LDTILECFG, TILELOADD,
 * TILESTORED, TILEZERO, TILERELEASE, TDPBSSD and its kin); what would raise an exception there ends the process with a
 * message. It counts what it did, so that a test can tell that it ran.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };

static __thread struct {
    int configured;
    uint8_t rows[TILES];
    uint16_t bytes[TILES]; /* of a row */
    uint8_t data[TILES][ROWS][BYTES];
} unit;

uint64_t amx_products = 0; /* TDP* instructions of all threads */
uint64_t amx_releases = 0;

static void refuse(const char *why)
{
    fprintf(stderr, "amx: %s\n", why);
    abort();
}

static void check(int condition, const char *why)
{
    if (!condition) {
        refuse(why);
    }
}

static uint64_t *registers_of(ucontext_t *context, unsigned number)
{
    static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (uint64_t *)&context->uc_mcontext.gregs[places[number]];
}

/* A memory operand: its address, the stride of its SIB byte, and where the instruction ends. */
struct operand {
    uint8_t *base;
    int64_t stride;
    const uint8_t *end;
};

static struct operand memory_of(ucontext_t *context, const uint8_t *modrm, unsigned inverted)
{
    const unsigned mod = modrm[0] >> 6, low = modrm[0] & 7;
    struct operand found = {0, 0, modrm + 1};
    uint64_t address = 0;
    int32_t far = 0;
    int near = 0;

    if (low == 4) {
        const uint8_t sib = *found.end++;
        const unsigned base = (sib & 7) | ((inverted & 0x20) ? 0 : 8);
        const unsigned index = ((sib >> 3) & 7) | ((inverted & 0x40) ? 0 : 8);

        if (index != 4) {
            found.stride = (int64_t)(*registers_of(context, index) << (sib >> 6));
        }
        if ((sib & 7) == 5 && mod == 0) {
            near = 4;
        } else {
            address = *registers_of(context, base);
        }
    } else if (low == 5 && mod == 0) {
        near = 4; /* relative to the next instruction */
        address = (uint64_t)(found.end + 4);
    } else {
        address = *registers_of(context, low | ((inverted & 0x20) ? 0 : 8));
    }
    near = (mod == 1) ? 1 : ((mod == 2) ? 4 : near);
    if (near == 1) {
        far = (int8_t)*found.end;
    } else if (near == 4) {
        memcpy(&far, found.end, 4);
    }
    found.end += near;
    found.base = (uint8_t *)(address + (uint64_t)(int64_t)far);
    return found;
}

static void configure(const uint8_t *from)
{
    check(from[0] == 1, "palette is not 1");
    check(from[1] == 0, "start_row is not 0");
    memset(&unit, 0, sizeof unit);
    unit.configured = 1;
    for (int t = 0; t < TILES; ++t) {
        memcpy(&unit.bytes[t], from + 16 + 2 * t, 2);
        unit.rows[t] = from[48 + t];
        check(unit.rows[t] <= ROWS && unit.bytes[t] <= BYTES, "a tile is too large");
        check((unit.rows[t] == 0) == (unit.bytes[t] == 0), "a tile has rows or bytes alone");
    }
}

static void check_tile(unsigned t)
{
    check(unit.configured, "tiles are not configured");
    check(t < TILES && unit.rows[t] != 0, "a tile is not configured");
}

static int32_t product(uint8_t a, uint8_t b, int signed_a, int signed_b)
{
    return (signed_a ? (int32_t)(int8_t)a : (int32_t)a) * (signed_b ? (int32_t)(int8_t)b : (int32_t)b);
}

static void multiply(unsigned sum, unsigned a, unsigned b, int signed_a, int signed_b)
{
    check_tile(sum);
    check_tile(a);
    check_tile(b);
    check(sum != a && sum != b && a != b, "tiles are not three");
    check(unit.rows[a] == unit.rows[sum] && unit.bytes[b] == unit.bytes[sum], "the sums have other sides");
    check(unit.bytes[a] == 4 * unit.rows[b], "the factors do not meet");
    for (int m = 0; m < unit.rows[sum]; ++m) {
        for (int n = 0; n < unit.bytes[sum] / 4; ++n) {
            uint32_t total;

            memcpy(&total, &unit.data[sum][m][4 * n], 4);
            for (int k = 0; k < unit.bytes[a]; ++k) {
                total += (uint32_t)product(unit.data[a][m][k], unit.data[b][k / 4][4 * n + k % 4], signed_a, signed_b);
            }
            memcpy(&unit.data[sum][m][4 * n], &total, 4);
        }
    }
    __atomic_fetch_add(&amx_products, 1, __ATOMIC_RELAXED);
}

static void move(unsigned t, struct operand at, int store)
{
    check_tile(t);
    for (int r = 0; r < unit.rows[t]; ++r) {
        uint8_t *const row = at.base + r * at.stride;

        memcpy(store ? row : unit.data[t][r], store ? unit.data[t][r] : row, unit.bytes[t]);
    }
}

/* Where the next instruction is; NULL: it is none of AMX. */
static const uint8_t *executed(ucontext_t *context, const uint8_t *at)
{
    if (at[0] != 0xC4 || (at[1] & 0x1F) != 2 || (at[2] & 0x84) != 0) { /* VEX.128.0F38.W0 */
        return NULL;
    }
    const unsigned prefix = at[2] & 3, second = (~at[2] >> 3) & 15, opcode = at[3]; /* prefixes: none, 66, F3, F2 */
    const uint8_t *const modrm = at + 4;
    const unsigned reg = (modrm[0] >> 3) & 7, low = modrm[0] & 7;
    const int registers = (modrm[0] >> 6) == 3;

    if (opcode == 0x5E && registers) {
        multiply(reg, low, second, prefix >= 2, prefix == 1 || prefix == 3);
        return modrm + 1;
    }
    if (opcode == 0x49 && registers) {
        if (prefix == 0 && modrm[0] == 0xC0) {
            memset(&unit, 0, sizeof unit);
            __atomic_fetch_add(&amx_releases, 1, __ATOMIC_RELAXED);
            return modrm + 1;
        }
        check(prefix == 3 && low == 0, "an unknown instruction");
        check_tile(reg);
        memset(unit.data[reg], 0, sizeof unit.data[reg]);
        return modrm + 1;
    }
    if ((opcode == 0x49 || opcode == 0x4B) && !registers) {
        const struct operand operand = memory_of(context, modrm, at[1]);

        if (opcode == 0x49) {
            check(prefix == 0 && reg == 0, "an unknown instruction");
            configure(operand.base);
        } else {
            check(prefix != 0 && low == 4, "an unknown instruction");
            move(reg, operand, prefix == 2);
        }
        return operand.end;
    }
    return NULL;
}

static void handle(int number, siginfo_t *info, void *given)
{
    ucontext_t *const context = given;
    const uint8_t *const next = executed(context, (const uint8_t *)context->uc_mcontext.gregs[REG_RIP]);

    (void)info;
    if (next == NULL) {
        signal(number, SIG_DFL); /* it comes again, and ends the process */
    } else {
        context->uc_mcontext.gregs[REG_RIP] = (greg_t)next;
    }
}

static struct sigaction before;

void amx_begin(void)
{
    struct sigaction action;

    memset(&action, 0, sizeof action);
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    amx_products = 0;
    amx_releases = 0;
    sigaction(SIGILL, &action, &before);
}

void amx_end(void)
{
    sigaction(SIGILL, &before, NULL);
}
