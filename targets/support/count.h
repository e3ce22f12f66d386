/* Counts executed instructions by kernel call, block by block. The calls of a program are known in order, so a call
 * begins where the executor reaches the entry of the next kernel; all up to the executor's next block is its own. */
#include <stdint.h>

struct xd_tally {
    uint64_t runs, taken; /* taken: how often another block than the following one came next */
};

struct xd_counter {
    uint64_t run, run_end;         /* the executor */
    uint64_t harness, harness_end; /* code that is not counted and ends a run; empty where there is none */
    uint32_t layers, next, where, active;
    const uint64_t *entries; /* of the kernel of each call */
    uint64_t *counts;        /* per call, and at [layers] the executor's own */
    struct xd_tally *last;
    uint64_t last_end;
};

/* Find the call that a block belongs to, `where`, as long as the counter is active; returns 1 when it begins a run. */
static inline int xd_locate(struct xd_counter *c, uint64_t at)
{
    int begins = 0;

    if (at >= c->harness && at < c->harness_end) {
        c->active = 0U;
        c->last = 0;
        return 0;
    }
    if (at == c->run) {
        uint32_t i;
        for (i = 0U; i <= c->layers; ++i) {
            c->counts[i] = 0U;
        }
        c->next = 0U;
        c->active = 1U;
        c->last = 0;
        begins = 1;
    }
    if (!c->active) {
        return begins;
    }
    if (at >= c->run && at < c->run_end) {
        c->where = c->layers;
    } else if (c->where == c->layers && c->next < c->layers && at == c->entries[c->next]) {
        c->where = c->next++;
    }
    return begins;
}

/* Count a block of the call that was found; the tally is the block's own in this call. */
static inline void xd_count(struct xd_counter *c, uint64_t at, uint32_t size, uint32_t instructions, struct xd_tally *tally)
{
    c->counts[c->where] += instructions;
    tally->runs++;
    if (c->last != 0 && c->last_end != at) {
        c->last->taken++;
    }
    c->last = tally;
    c->last_end = at + size;
}
