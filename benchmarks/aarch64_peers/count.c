/* TCG plugin for QEMU's user mode: instructions between marks. The program marks by getppid(), a system call that does
 * nothing; at each mark a line goes to out=FILE: all instructions so far, those outside the program's own binary (the
 * Python interpreter), and those of each kind that tells which kernels run; all of the thread that marks. The
 * declarations repeat the few functions of QEMU's plugin interface that are used. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t,
                                                 void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t,
                                                          uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern uint64_t qemu_plugin_start_code(void);
extern uint64_t qemu_plugin_end_code(void);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = XD_PLUGIN_VERSION;

#define GETPPID 173 /* of AArch64 Linux */
enum { KINDS = 7, THREADS = 64 };

/* Encodings of Arm's architecture reference manual (C4, data processing of SIMD; SVE and SME apart). */
static const struct {
    const char *name;
    uint32_t mask, value[4];
} kinds[KINDS] = {
    {"i8mm", 0xffe0fc00U, {0x4e80a400U, 0x6e80a400U, 0x4e80ac00U, 0U}},       /* smmla, ummla, usmmla */
    {"dot", 0xbfe0fc00U, {0x0e809400U, 0x2e809400U, 0x0e809c00U, 0U}},        /* sdot, udot, usdot by vector */
    {"dot_element", 0xbfc0f400U, {0x0f80e000U, 0x2f80e000U, 0U, 0U}},         /* sdot, udot by element */
    {"multiply_long", 0x9f20fc00U, {0x0e208000U, 0x0e20c000U, 0U, 0U}},       /* [su]mlal, [su]mull by vector */
    {"multiply_long_element", 0x9f00f400U, {0x0f002000U, 0x0f00a000U, 0U, 0U}}, /* the same by element */
    {"float_multiply_add", 0xbfa0fc00U, {0x0e20cc00U, 0U, 0U, 0U}},           /* fmla by vector */
    {"float_multiply_add_element", 0xbf80f400U, {0x0f801000U, 0U, 0U, 0U}},   /* fmla by element */
};

struct block {
    uint64_t instructions, outside;
    uint64_t kind[KINDS];
    int any;
};

static struct block totals[THREADS]; /* the last is of all threads beyond */
static FILE *out;

static void on_execution(unsigned cpu, void *user)
{
    const struct block *b = user;
    struct block *total = &totals[cpu < THREADS ? cpu : THREADS - 1U];
    size_t i;
    total->instructions += b->instructions;
    total->outside += b->outside;
    for (i = 0U; b->any && i < KINDS; ++i) {
        total->kind[i] += b->kind[i];
    }
}

static void classify(struct block *b, uint32_t word)
{
    size_t i, k;
    for (i = 0U; i < KINDS; ++i) {
        for (k = 0U; kinds[i].value[k] != 0U; ++k) {
            if ((word & kinds[i].mask) == kinds[i].value[k]) {
                b->kind[i]++;
                b->any = 1;
            }
        }
    }
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    const size_t n = qemu_plugin_tb_n_insns(tb);
    const uint64_t at = qemu_plugin_tb_vaddr(tb);
    struct block *b = calloc(1U, sizeof *b); /* lives as long as QEMU may run the block: to the end */
    size_t i;
    (void)id;
    if (b == NULL) {
        abort();
    }
    b->instructions = n;
    b->outside = at < qemu_plugin_start_code() || at >= qemu_plugin_end_code() ? n : 0U;
    for (i = 0U; i < n; ++i) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), sizeof word);
        classify(b, word);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execution, 0, b);
}

static void on_call(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                    uint64_t e, uint64_t f, uint64_t g, uint64_t h)
{
    const struct block *total = &totals[cpu < THREADS ? cpu : THREADS - 1U];
    size_t i;
    (void)id, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != GETPPID) {
        return;
    }
    (void)fprintf(out, "%" PRIu64 " %" PRIu64, total->instructions, total->outside);
    for (i = 0U; i < KINDS; ++i) {
        (void)fprintf(out, " %" PRIu64, total->kind[i]);
    }
    (void)fprintf(out, "\n");
    (void)fflush(out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    size_t i;
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4U) != 0 || (out = fopen(argv[0] + 4, "w")) == NULL) {
        return -1;
    }
    (void)fprintf(out, "all outside");
    for (i = 0U; i < KINDS; ++i) {
        (void)fprintf(out, " %s", kinds[i].name);
    }
    (void)fprintf(out, "\n");
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_call);
    return 0;
}
