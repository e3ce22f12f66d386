/* Calls an xdeploy library as a C program would: time from loading it to the first output, peak memory, time by layer.
 *
 * host_caller LIBRARY RUN_SYMBOL HOOK_SYMBOL INPUT_BYTES OUTPUT_BYTES ARENA_BYTES LAYERS ROUNDS -> one JSON object
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 512 };
static int64_t best[MOST], last;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void layer_end(int layer)
{
    const int64_t at = now();
    if (layer < MOST && (best[layer] == 0 || at - last < best[layer])) {
        best[layer] = at - last;
    }
    last = now();
}

static long peak_kb(void) /* of this program alone: getrusage counts what it was forked from */
{
    char line[256];
    long kb = 0;
    FILE *const status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        if (strncmp(line, "VmHWM:", 6) == 0) {
            kb = atol(line + 6);
        }
    }
    if (status) {
        fclose(status);
    }
    return kb;
}

static void *memory(const char *bytes)
{
    const size_t size = ((size_t)atol(bytes) + 64) / 64 * 64;
    return aligned_alloc(64, size);
}

int main(int count, char **words)
{
    if (count != 9) {
        return 2;
    }
    int8_t *const input = memory(words[4]), *const output = memory(words[5]);
    void *const arena = memory(words[6]);
    const int layers = atoi(words[7]), rounds = atoi(words[8]);
    for (long i = 0; i < atol(words[4]); ++i) {
        input[i] = (int8_t)(i * 37);
    }
    const int64_t start = now();
    void *const library = dlopen(words[1], RTLD_NOW);
    int (*const run)(const int8_t *, int8_t *, void *) =
        library ? (int (*)(const int8_t *, int8_t *, void *))dlsym(library, words[2]) : 0;
    if (run == 0 || layers > MOST) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    const int failed = run(input, output, arena);
    const int64_t first = now() - start;
    const long peak = peak_kb();
    void (**const hook)(int) = (void (**)(int))dlsym(library, words[3]);
    if (failed || hook == 0) {
        return 1;
    }
    *hook = layer_end;
    for (int i = 0; i < rounds; ++i) {
        last = now();
        run(input, output, arena);
    }
    printf("{\"first_ns\": %lld, \"peak_kb\": %ld, \"layers_ns\": [", (long long)first, peak);
    for (int i = 0; i < layers; ++i) {
        printf("%s%lld", i ? ", " : "", (long long)best[i]);
    }
    printf("]}\n");
    return 0;
}
