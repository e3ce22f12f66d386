/* What the layers of a network take on this machine, and what the machine can do: for a roofline. Called by
 * xdeploy.bench.roofline through ctypes; not part of any package. */
#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define WIDE __attribute__((target("avx2"))) /* the caller asks the machine first */
#define WIDER __attribute__((target("avx512f,avx512vnni")))
#define TILED __attribute__((target("amx-tile,amx-int8")))
#else
#define WIDE
#endif

static int64_t *least, last;
static int most;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void layer_end(int layer)
{
    const int64_t at = now();
    if (layer >= 0 && layer < most && (least[layer] == 0 || at - last < least[layer])) {
        least[layer] = at - last;
    }
    last = now();
}

/* The least nanoseconds of each of `layers` calls over `rounds` inferences, into `found`, which holds zeros; 0, or what
 * the network returned when it failed. `hook` is where the network looks for what it calls after each layer. */
int xd_layer_times(int (*run)(const int8_t *, int8_t *, void *), void (**hook)(int), const int8_t *input,
                   int8_t *output, void *arena, int layers, int rounds, int64_t *found)
{
    int status = 0;
    least = found;
    most = layers;
    *hook = layer_end;
    for (int i = 0; i < rounds && status == 0; ++i) {
        last = now();
        status = run(input, output, arena);
    }
    *hook = 0;
    return status;
}

#if defined(__x86_64__)
enum { CHAINS = 10, LANES = 16, WIDE_LANES = 64 }; /* as many sums as hide the latency; products of one instruction */

/* Multiply-accumulates per second that vpmaddwd reaches on values in registers; `sink` keeps the sums alive. */
WIDE double xd_multiply(int64_t turns, int32_t *sink)
{
    __m256i sums[CHAINS], value = _mm256_set1_epi16(1), weight = _mm256_set1_epi16(1);
    for (int i = 0; i < CHAINS; ++i) {
        sums[i] = _mm256_setzero_si256();
    }
    const int64_t start = now();
    for (int64_t turn = 0; turn < turns; ++turn) {
#pragma clang loop unroll(full)
        for (int i = 0; i < CHAINS; ++i) {
            __asm__("" : "+x"(value)); /* may be another one now: the product is taken again */
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(value, weight));
        }
    }
    const int64_t spent = now() - start;
    for (int i = 1; i < CHAINS; ++i) {
        sums[0] = _mm256_add_epi32(sums[0], sums[i]);
    }
    *sink = _mm256_extract_epi32(sums[0], 0);
    return spent > 0 ? (double)turns * CHAINS * LANES * 1e9 / (double)spent : 0.0;
}

/* The same of vpdpbusd on 512 bits. */
WIDER double xd_multiply_vnni(int64_t turns, int32_t *sink)
{
    __m512i sums[CHAINS], value = _mm512_set1_epi8(1), weight = _mm512_set1_epi8(1);
    for (int i = 0; i < CHAINS; ++i) {
        sums[i] = _mm512_setzero_si512();
    }
    const int64_t start = now();
    for (int64_t turn = 0; turn < turns; ++turn) {
#pragma clang loop unroll(full)
        for (int i = 0; i < CHAINS; ++i) {
            __asm__("" : "+v"(value));
            sums[i] = _mm512_dpbusd_epi32(sums[i], value, weight);
        }
    }
    const int64_t spent = now() - start;
    for (int i = 1; i < CHAINS; ++i) {
        sums[0] = _mm512_add_epi32(sums[0], sums[i]);
    }
    *sink = _mm512_cvtsi512_si32(sums[0]);
    return spent > 0 ? (double)turns * CHAINS * WIDE_LANES * 1e9 / (double)spent : 0.0;
}

/* The same of tdpbusd on full tiles, 16 rows of 64 bytes each; the library that is measured has asked Linux for them. */
TILED double xd_multiply_amx(int64_t turns, int32_t *sink)
{
    enum { TILES = 8, SUMS = 4, ROWS = 16, BYTES = 64 };
    static uint8_t shapes[64], ones[ROWS * BYTES];
    static int32_t sums[ROWS * BYTES / 4];

    shapes[0] = 1;
    for (int t = 0; t < TILES; ++t) {
        shapes[16 + 2 * t] = BYTES;
        shapes[48 + t] = ROWS;
    }
    for (int i = 0; i < ROWS * BYTES; ++i) {
        ones[i] = 1;
    }
    _tile_loadconfig(shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, ones, BYTES);
    _tile_loadd(5, ones, BYTES);
    _tile_loadd(6, ones, BYTES);
    _tile_loadd(7, ones, BYTES);
    const int64_t start = now();
    for (int64_t turn = 0; turn < turns; ++turn) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    const int64_t spent = now() - start;
    _tile_stored(3, sums, BYTES);
    _tile_release();
    *sink = sums[0];
    return spent > 0 ? (double)turns * SUMS * ROWS * (BYTES / 4) * BYTES * 1e9 / (double)spent : 0.0;
}
#endif

typedef uint64_t line_t __attribute__((vector_size(32)));

/* Bytes per second of reading `bytes` (a multiple of 256) at `data` (aligned to 32) `turns` times. */
WIDE double xd_read(const uint8_t *data, int64_t bytes, int64_t turns, uint64_t *sink)
{
    line_t sums[4] = {{0}};
    const int64_t start = now();
    for (int64_t turn = 0; turn < turns; ++turn) {
        __asm__("" : "+r"(data) : : "memory"); /* may hold other values now: all is read again */
        for (int64_t i = 0; i < bytes; i += 256) {
            const line_t *const at = (const line_t *)(const void *)(data + i);
            sums[0] += at[0] ^ at[4];
            sums[1] += at[1] ^ at[5];
            sums[2] += at[2] ^ at[6];
            sums[3] += at[3] ^ at[7];
        }
    }
    const int64_t spent = now() - start;
    const line_t all = sums[0] + sums[1] + sums[2] + sums[3];
    *sink = all[0] + all[1] + all[2] + all[3];
    return spent > 0 ? (double)bytes * (double)turns * 1e9 / (double)spent : 0.0;
}
