/* TCG plugin for qemu-system-arm: counts by kernel call, for every run of the network. Arguments: spec=FILE (numbers
 * in hexadecimal: run, its end, harness, its end, number of calls, entries) and out=FILE. The declarations repeat the
 * few functions of QEMU's plugin interface that are used, so that no header of QEMU is needed. */
#include "count.h"

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
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = XD_PLUGIN_VERSION;

struct list {
    struct xd_block block;
    struct list *next;
};

static struct xd_counter counter;
static struct list *blocks;
static FILE *out;
static int pending;

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

static void on_execution(unsigned cpu, void *user)
{
    struct xd_block *block = (struct xd_block *)user;
    (void)cpu;
    if (block->address == counter.run) {
        print_run(); /* the counts of the run before, which are cleared now */
    }
    pending |= xd_enter(&counter, block);
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    const size_t n = qemu_plugin_tb_n_insns(tb);
    struct qemu_plugin_insn *last = qemu_plugin_tb_get_insn(tb, n - 1U);
    struct list *entry = calloc(1U, sizeof *entry);
    (void)id;
    if (entry == NULL) {
        abort();
    }
    entry->block.address = qemu_plugin_tb_vaddr(tb);
    entry->block.instructions = (uint32_t)n;
    entry->block.size = (uint32_t)(qemu_plugin_insn_vaddr(last) + qemu_plugin_insn_size(last) - entry->block.address);
    entry->next = blocks;
    blocks = entry;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execution, 0, &entry->block);
}

static void at_exit(qemu_plugin_id_t id, void *user)
{
    const struct list *e;
    (void)id;
    (void)user;
    print_run();
    for (e = blocks; e != NULL; e = e->next) {
        if (e->block.runs != 0U) {
            (void)fprintf(out, "block %" PRIx64 " %" PRIu32 " %" PRIu64 " %" PRIu64 "\n", e->block.address, e->block.size,
                          e->block.runs, e->block.taken);
        }
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
    }
    if (out == NULL || counter.counts == NULL) {
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}
