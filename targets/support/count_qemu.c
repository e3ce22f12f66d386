/* TCG plugin for QEMU: counts by kernel call, for every run of the network. Arguments: spec=FILE (numbers in
 * hexadecimal: run, its end, harness, its end, number of calls, entries), out=FILE and, where the deepest use of the
 * stack is wanted, floor=ADDRESS (hexadecimal): during runs, what is stored at or above it lies on the stack. A run
 * ends in the harness or where it returns to. With flash=FILE (numbers: start, end, bytes of a read and of a line, then
 * sets and ways of the code's and the data's cache) the reads of flash in the first run are counted too. The declarations repeat the few functions of QEMU's plugin interface
 * that are used, so that no header of QEMU is needed. */
#include "count.h"
#include "flash.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern unsigned qemu_plugin_mem_size_shift(uint32_t);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
                                             void (*)(unsigned, uint32_t, uint64_t, void *), int, int, void *);
#define LOADS 1  /* QEMU_PLUGIN_MEM_R */
#define STORES 2 /* QEMU_PLUGIN_MEM_W */

#define PAGE 4096U
#define LONGEST 15U /* bytes of an x86 instruction */
#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = XD_PLUGIN_VERSION;

struct list {
    uint64_t address;
    uint32_t size, instructions;
    uint32_t last; /* bytes of the last instruction where it can reach into the next page, else 0 */
    struct xd_tally *tally; /* per call, and at [layers] the executor's own */
    struct list *next;
};

static struct xd_counter counter;
static struct xd_flash flash;
static struct list *blocks;
static FILE *out;
static struct list *previous; /* the block before */
static int pending, runs;
static uint64_t before, back;               /* end of the block before; where the run returns to */
static uint64_t stack_floor, lowest = UINT64_MAX; /* of the addresses stored to at or above stack_floor */

static void print_run(void)
{
    uint32_t i;
    if (pending) {
        (void)fprintf(out, "run");
        for (i = 0U; i <= counter.layers; ++i) {
            (void)fprintf(out, " %" PRIu64, counter.counts[i]);
        }
        (void)fprintf(out, "\n");
    }
    pending = 0;
}

/* QEMU lists an x86 instruction that crosses a page twice: cut off at the end of a block that stops before it, and as
 * the first of the next block, which is the one that executes it. */
static void drop_cut_instruction(struct list *e, uint64_t next)
{
    if (e == NULL || e->last == 0U || e->instructions < 2U || next != e->address + e->size - e->last) {
        return;
    }
    if (counter.active) {
        counter.counts[counter.where]--;
        counter.last_end = next;
    }
    e->instructions--;
    e->size -= e->last;
    e->last = 0U;
}

static void on_execution(unsigned cpu, void *user)
{
    struct list *block = (struct list *)user;
    int begins;
    (void)cpu;
    drop_cut_instruction(previous, block->address);
    previous = block;
    if (block->address == counter.run) {
        print_run(); /* the counts of the run before, which are cleared now */
        back = before;
    } else if (counter.active && block->address == back) {
        counter.active = 0U;
        counter.last = 0;
    }
    before = block->address + block->size;
    begins = xd_locate(&counter, block->address);
    pending |= begins;
    runs += begins;
    if (counter.active) {
        if (runs == 1) {
            xd_use(&flash, 0U, block->address, block->size, counter.where);
        }
        xd_count(&counter, block->address, block->size, block->instructions, &block->tally[counter.where]);
    }
}

static void on_load(unsigned cpu, uint32_t info, uint64_t address, void *user)
{
    (void)cpu;
    (void)user;
    if (counter.active && runs == 1) {
        xd_use(&flash, 1U, address, 1U << qemu_plugin_mem_size_shift(info), counter.where);
    }
}

static void on_store(unsigned cpu, uint32_t info, uint64_t address, void *user)
{
    (void)cpu;
    (void)info;
    (void)user;
    if (counter.active && address >= stack_floor && address < lowest) {
        lowest = address;
    }
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    const size_t n = qemu_plugin_tb_n_insns(tb);
    struct qemu_plugin_insn *last = qemu_plugin_tb_get_insn(tb, n - 1U);
    struct list *entry = calloc(1U, sizeof *entry);
    size_t i;
    (void)id;
    if (entry == NULL || (entry->tally = calloc(counter.layers + 1U, sizeof *entry->tally)) == NULL) {
        abort();
    }
    entry->address = qemu_plugin_tb_vaddr(tb);
    entry->instructions = (uint32_t)n;
    entry->size = (uint32_t)(qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last) - entry->address);
    if ((entry->address + entry->size + LONGEST - 1U) % PAGE < LONGEST) {
        entry->last = (uint32_t)qemu_plugin_insn_size(last);
    }
    entry->next = blocks;
    blocks = entry;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execution, 0, entry);
    for (i = 0U; i < n && stack_floor != 0U; ++i) {
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_store, 0, STORES, NULL);
    }
    for (i = 0U; i < n && flash.end != 0U; ++i) {
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_load, 0, LOADS, NULL);
    }
}

static void print_block(const struct list *e)
{
    uint32_t i;
    for (i = 0U; i <= counter.layers; ++i) {
        if (e->tally[i].runs != 0U) {
            (void)fprintf(out, "block %" PRIx64 " %" PRIu32 " %" PRIu64 " %" PRIu64 " %" PRIu32 "\n", e->address, e->size,
                          e->tally[i].runs, e->tally[i].taken, i);
        }
    }
}

static void at_exit(qemu_plugin_id_t id, void *user)
{
    const struct list *e;
    uint32_t i;
    (void)id;
    (void)user;
    print_run();
    if (lowest != UINT64_MAX) {
        (void)fprintf(out, "lowest %" PRIx64 "\n", lowest);
    }
    if (counter.active) {
        (void)fprintf(out, "open\n"); /* the last run was never seen to return */
    }
    for (e = blocks; e != NULL; e = e->next) {
        print_block(e);
    }
    for (i = 0U; i <= counter.layers && flash.end != 0U; ++i) {
        const uint64_t *w = &flash.waits[3U * i];
        (void)fprintf(out, "waits %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", w[0], w[1], w[2]);
    }
    (void)fclose(out);
}

static int read_spec(const char *path)
{
    FILE *spec = fopen(path, "r");
    uint64_t *entries;
    uint32_t i;
    if (spec == NULL || fscanf(spec, "%" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx32, &counter.run,
                               &counter.run_end, &counter.harness, &counter.harness_end, &counter.layers) != 5) {
        return -1;
    }
    entries = calloc(counter.layers + 1U, sizeof *entries);
    counter.counts = calloc(counter.layers + 1U, sizeof *counter.counts);
    if (entries == NULL || counter.counts == NULL) {
        return -1;
    }
    for (i = 0U; i < counter.layers; ++i) {
        if (fscanf(spec, "%" SCNx64, &entries[i]) != 1) {
            return -1;
        }
    }
    counter.entries = entries;
    return fclose(spec);
}

static int read_flash(const char *path)
{
    FILE *spec = fopen(path, "r");
    flash.waits = calloc(3U * (counter.layers + 1U), sizeof *flash.waits);
    if (spec == NULL || flash.waits == NULL ||
        fscanf(spec, "%" SCNx64 " %" SCNx64 " %" SCNx32 " %" SCNx32 " %" SCNx32 " %" SCNx32 " %" SCNx32 " %" SCNx32,
               &flash.start, &flash.end, &flash.read, &flash.line, &flash.sets[0], &flash.ways[0], &flash.sets[1],
               &flash.ways[1]) != 8) {
        return -1;
    }
    return fclose(spec);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    int i;
    (void)info;
    for (i = 0; i < argc; ++i) {
        if (strncmp(argv[i], "spec=", 5U) == 0 && read_spec(argv[i] + 5) != 0) {
            return -1;
        }
        if (strncmp(argv[i], "out=", 4U) == 0) {
            out = fopen(argv[i] + 4, "w");
        }
        if (strncmp(argv[i], "flash=", 6U) == 0 && read_flash(argv[i] + 6) != 0) {
            return -1;
        }
        if (strncmp(argv[i], "floor=", 6U) == 0) {
            stack_floor = strtoull(argv[i] + 6, NULL, 16);
        }
    }
    if (out == NULL || counter.counts == NULL) {
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}
