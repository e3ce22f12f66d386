/* Calls several xdeploy libraries of equal inputs and outputs in turns, with their weights in one of three states.
 *
 * lowbit_caller ROUNDS INPUT_BYTES OUTPUT_BYTES ARENA_BYTES (LIBRARY RUN_SYMBOL)... -> one JSON object of nanoseconds,
 * state -> library -> round. resident: BURST inferences one behind the other, after one that is not timed; evicted:
 * one, after a buffer larger than a core's own caches was read; flushed: one, its constants in memory only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <immintrin.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BURST = 20, WALK = 16 << 20, LINE = 64, MOST = 16, STATES = 3 };
typedef int (*runs)(const int8_t *, int8_t *, void *);
static const char *const state_names[STATES] = {"resident", "evicted", "flushed"};
static volatile uint64_t seen;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void walk(const uint8_t *buffer)
{
    uint64_t sum = 0;
    for (int i = 0; i < WALK; i += LINE) {
        sum += buffer[i];
    }
    seen += sum;
}

static int flush(struct dl_phdr_info *info, size_t size, void *library)
{
    (void)size;
    if (strcmp(info->dlpi_name, library) != 0) {
        return 0;
    }
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const ElfW(Phdr) *const part = &info->dlpi_phdr[i];
        if (part->p_type == PT_LOAD && (part->p_flags & (PF_W | PF_X)) == 0) {
            const char *const start = (const char *)(info->dlpi_addr + part->p_vaddr);
            for (size_t at = 0; at < part->p_memsz; at += LINE) {
                _mm_clflush(start + at);
            }
        }
    }
    _mm_mfence();
    return 1;
}

int main(int count, char **words)
{
    const int libraries = (count - 5) / 2, rounds = count > 1 ? atoi(words[1]) : 0;
    runs run[MOST];
    if (libraries < 1 || libraries > MOST || rounds < 1) {
        return 2;
    }
    void *memory[3];
    for (int i = 0; i < 3; ++i) {
        const size_t size = ((size_t)atol(words[2 + i]) + 64) / 64 * 64;
        memory[i] = aligned_alloc(64, size);
        memset(memory[i], 37, size);
    }
    uint8_t *const buffer = malloc(WALK);
    memset(buffer, 1, WALK);
    for (int k = 0; k < libraries; ++k) {
        void *const library = dlopen(words[5 + 2 * k], RTLD_NOW);
        run[k] = library ? (runs)dlsym(library, words[6 + 2 * k]) : 0;
        if (run[k] == 0 || run[k](memory[0], memory[1], memory[2])) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
    }
    int64_t *const times = malloc(sizeof(int64_t) * STATES * libraries * rounds);
    for (int r = 0; r < rounds; ++r) {
        for (int s = 0; s < STATES; ++s) {
            for (int i = 0; i < libraries; ++i) {
                const int k = (i + r) % libraries; /* none is always the first */
                const int turns = s == 0 ? BURST : 1;
                run[k](memory[0], memory[1], memory[2]);
                if (s == 1) {
                    walk(buffer);
                } else if (s == 2) {
                    dl_iterate_phdr(flush, words[5 + 2 * k]);
                }
                const int64_t start = now();
                for (int turn = 0; turn < turns; ++turn) {
                    run[k](memory[0], memory[1], memory[2]);
                }
                times[(s * libraries + k) * rounds + r] = (now() - start) / turns;
            }
        }
    }
    for (int s = 0; s < STATES; ++s) {
        printf("%s\"%s\": [", s ? ", " : "{", state_names[s]);
        for (int i = 0; i < libraries * rounds; ++i) {
            const int64_t ns = times[s * libraries * rounds + i];
            printf("%s%lld", i == 0 ? "[" : i % rounds ? ", " : "], [", (long long)ns);
        }
        printf("]]");
    }
    printf("}\n");
    return 0;
}
