/* Reads of the flash memory behind its caches, by kernel call: what a processor waits for. A cache holds lines, of which
 * single reads are filled; each set replaces the line that was used longest ago. */
#include <stdint.h>

#define XD_LINES 1024U

struct xd_line {
    uint64_t tag;   /* number of the line, plus 1; 0: empty */
    uint64_t reads; /* bit per read of the line that is there */
};

struct xd_flash {
    uint64_t start, end;       /* addresses in flash; empty where none is modelled */
    uint32_t read, line;       /* bytes of one read and of a cache line, powers of two, at most 64 reads a line */
    uint32_t sets[2], ways[2]; /* of the caches for code and for data, together at most XD_LINES lines; no ways for data:
                                  code and data share the first */
    uint64_t follows;          /* number of the read after the last one for code */
    uint64_t *waits;           /* per call three numbers: reads for code after a jump, in sequence, reads for data */
    struct xd_line lines[2][XD_LINES];
};

/* Look one read up, most recently used line first; returns 1 when it has to come from flash. */
static inline int xd_missing(struct xd_flash *f, uint32_t cache, uint64_t number)
{
    const uint64_t line = number / (f->line / f->read);
    const uint64_t bit = (uint64_t)1 << (number % (f->line / f->read));
    struct xd_line *set = &f->lines[cache][(line % f->sets[cache]) * f->ways[cache]];
    struct xd_line found = {0U, 0U};
    uint32_t way = 0U, i;

    while (way < f->ways[cache] - 1U && set[way].tag != line + 1U) {
        ++way;
    }
    if (set[way].tag == line + 1U) {
        found = set[way];
    }
    for (i = way; i > 0U; --i) {
        set[i] = set[i - 1U];
    }
    set[0].tag = line + 1U;
    set[0].reads = found.reads | bit;
    return (found.reads & bit) == 0U;
}

/* Code (cache 0) or data (cache 1) at an address is used by a call. */
static inline void xd_use(struct xd_flash *f, uint32_t cache, uint64_t at, uint32_t size, uint32_t call)
{
    const uint32_t place = (f->ways[cache] != 0U) ? cache : 0U;
    uint64_t number, last;

    if (at < f->start || at >= f->end || size == 0U) {
        return;
    }
    last = (at + size - 1U) / f->read;
    for (number = at / f->read; number <= last; ++number) {
        if (xd_missing(f, place, number)) {
            f->waits[3U * call + ((cache != 0U) ? 2U : (uint32_t)(number == f->follows))]++;
        }
        if (cache == 0U) {
            f->follows = number + 1U;
        }
    }
}
