/* Block hook for unicorn; the table of blocks is a hash table that Python reads afterwards. */
#include "count.h"

#define BLOCKS 65536U

struct xd_hook {
    struct xd_counter counter;
    const uint8_t *code; /* the loaded code, to count Thumb instructions */
    uint64_t code_at, code_size;
    uint32_t thumb, lost;
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
    uint32_t i = (uint32_t)((at >> 1) * 2654435761U), tries;
    (void)engine;
    for (tries = 0U; tries < BLOCKS; ++tries, ++i) {
        struct xd_block *b = &h->blocks[i % BLOCKS];
        if (b->size == 0U) {
            b->address = at;
            b->size = size;
            b->instructions = instructions_of(h, at, size);
        }
        if (b->address == at && b->size == size) {
            (void)xd_enter(&h->counter, b);
            return;
        }
    }
    h->lost = 1U;
}
