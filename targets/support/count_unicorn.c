/* Hooks for unicorn; the table of blocks is a hash table that Python reads afterwards. */
#include "count.h"
#include "flash.h"

#define BLOCKS 65536U

struct xd_block {
    uint64_t address;
    uint32_t size, instructions, call, pad;
    struct xd_tally tally;
};

struct xd_hook {
    struct xd_counter counter;
    const uint8_t *code; /* the loaded code, to count Thumb instructions */
    uint64_t code_at, code_size;
    uint32_t thumb, lost, waits, pad; /* waits: reads of flash are counted */
    struct xd_flash flash;
    struct xd_block blocks[BLOCKS];
};

uint64_t xd_hook_size(void) { return sizeof(struct xd_hook); }

static uint32_t instructions_of(const struct xd_hook *h, uint64_t at, uint32_t size)
{
    uint32_t n = 0U, i = 0U;
    if (!h->thumb) {
        return size / 4U;
    }
    if (at < h->code_at || at + size > h->code_at + h->code_size) {
        return size / 2U;
    }
    for (; i < size; ++n) {
        i += (h->code[at - h->code_at + i + 1U] >> 3) >= 0x1DU ? 4U : 2U;
    }
    return n;
}

void xd_on_block(void *engine, uint64_t at, uint32_t size, void *user)
{
    struct xd_hook *h = (struct xd_hook *)user;
    uint32_t i, tries;
    (void)engine;
    (void)xd_locate(&h->counter, at);
    if (!h->counter.active) {
        return;
    }
    if (h->waits) {
        xd_use(&h->flash, 0U, at, size, h->counter.where);
    }
    i = (uint32_t)(((at >> 1) + ((uint64_t)h->counter.where << 24)) * 2654435761U);
    for (tries = 0U; tries < BLOCKS; ++tries, ++i) {
        struct xd_block *b = &h->blocks[i % BLOCKS];
        if (b->size == 0U) {
            b->address = at;
            b->size = size;
            b->instructions = instructions_of(h, at, size);
            b->call = h->counter.where;
        }
        if (b->address == at && b->size == size && b->call == h->counter.where) {
            xd_count(&h->counter, at, size, b->instructions, &b->tally);
            return;
        }
    }
    h->lost = 1U;
}

void xd_on_load(void *engine, int type, uint64_t at, int size, int64_t value, void *user)
{
    struct xd_hook *h = (struct xd_hook *)user;
    (void)engine;
    (void)type;
    (void)value;
    if (h->waits && h->counter.active) {
        xd_use(&h->flash, 1U, at, (uint32_t)size, h->counter.where);
    }
}
