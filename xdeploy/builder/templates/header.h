$banner
#ifndef ${upper}_H
#define ${upper}_H

#include <limits.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ${upper}_XDEPLOY_VERSION "$version"
#define ${upper}_ABI_VERSION 1 /* raised when a function, a type or an error changes its meaning */
#define ${upper}_MODEL_NAME $model_name
#define ${upper}_MODEL_SHA256 "$sha256"
#define ${upper}_RECIPE_SHA256 "$recipe_sha256"
#define ${upper}_TARGET "$target"

/* Memory: the arena is the caller's and may be reused between calls; nothing is kept in it. Input and output are the
 * caller's own and not part of it; they must not overlap. All three pointers are multiples of ${upper}_ARENA_ALIGN. */
#define ${upper}_ARENA_BYTES $arena
#define ${upper}_ARENA_USED $arena_used
#define ${upper}_ARENA_ALIGN ${align}U
#define ${upper}_STACK_BYTES $stack /* $stack_note */
#define ${upper}_WEIGHT_BYTES $weight_bytes
#define ${upper}_WEIGHTS_CRC32 ${crc}U /* IEEE 802.3, of all packed constants */
#define ${upper}_MACS $macs /* of one inference */

/* Input: int8 codes, real = SCALE * (code - ZERO_POINT); images are stored height, width, channel. */
#define ${upper}_INPUT_NAME $input_name
#define ${upper}_INPUT_TYPE int8_t
#define ${upper}_INPUT_DTYPE "int8"
#define ${upper}_INPUT_LAYOUT "$input_layout"
#define ${upper}_INPUT_BYTES $input_bytes
#define ${upper}_INPUT_DIMS $input_dims
#define ${upper}_INPUT_SHAPE { $input_shape }
#define ${upper}_INPUT_SCALE ${input_scale}f
#define ${upper}_INPUT_ZERO_POINT ($input_zero)

#define ${upper}_OUTPUT_NAME $output_name
#define ${upper}_OUTPUT_TYPE int8_t
#define ${upper}_OUTPUT_DTYPE "int8"
#define ${upper}_OUTPUT_LAYOUT "$output_layout"
#define ${upper}_OUTPUT_BYTES $output_bytes
#define ${upper}_OUTPUT_DIMS $output_dims
#define ${upper}_OUTPUT_SHAPE { $output_shape }
#define ${upper}_OUTPUT_SCALE ${output_scale}f
#define ${upper}_OUTPUT_ZERO_POINT ($output_zero)

/* The kernel calls, numbered from 0 as the hooks are told; names for a profiler, e.g.
 * `static const char *const names[] = ${upper}_LAYER_NAMES;` */
#define ${upper}_LAYERS $layers
$layer_names#define ${upper}_LABELS_COUNT $labels_count
$labels
/* What the functions return. */
#define ${upper}_OK 0
#define ${upper}_ERROR_POINTER 1   /* a pointer is null */
#define ${upper}_ERROR_ALIGNMENT 2 /* a pointer is not a multiple of ${upper}_ARENA_ALIGN */
#define ${upper}_ERROR_WEIGHTS 3   /* verify, self-test: the weights in memory are not those that were built */
#define ${upper}_ERROR_OUTPUT 4    /* self-test: the outputs are not those of the reference */
#define ${upper}_ERROR_SIZE 5      /* the arena has fewer bytes than ${upper}_ARENA_BYTES */

/* Alignment of a buffer, e.g. `static ${upper}_ALIGNED ${name}_input x;` */
#ifndef ${prefix_upper}_ALIGN
#if defined(__GNUC__) || defined(__clang__)
#define ${prefix_upper}_ALIGN(n) __attribute__((aligned(n)))
#elif defined(__ICCARM__)
#define ${prefix_upper}_ALIGN(n) _Pragma("data_alignment=" #n)
#else
#error "define ${prefix_upper}_ALIGN(n) for this compiler"
#endif
#endif
#define ${upper}_ALIGNED ${prefix_upper}_ALIGN($align)

/* A function that stays one: copied into all its calls it would take several times the flash. */
#ifndef ${prefix_upper}_NOINLINE
#if defined(__GNUC__) || defined(__clang__)
#define ${prefix_upper}_NOINLINE __attribute__((noinline))
#else
#define ${prefix_upper}_NOINLINE
#endif
#endif

#ifndef ${upper}_API
#define ${upper}_API
#endif

typedef ${upper}_INPUT_TYPE ${name}_input[${upper}_INPUT_BYTES];
typedef ${upper}_OUTPUT_TYPE ${name}_output[${upper}_OUTPUT_BYTES];
typedef uint8_t ${name}_arena[${upper}_ARENA_BYTES];

/* The code relies on these; the build stops where they do not hold. */
typedef char ${name}_bytes_have_8_bits[(CHAR_BIT == 8) ? 1 : -1];
typedef char ${name}_int_has_32_bits[(sizeof(int) >= 4) ? 1 : -1];
typedef char ${name}_alignment_is_a_power_of_two[((${upper}_ARENA_ALIGN & (${upper}_ARENA_ALIGN - 1U)) == 0U) ? 1 : -1];
typedef char ${name}_input_has_its_shape[(${upper}_INPUT_BYTES == $input_product) ? 1 : -1];
typedef char ${name}_output_has_its_shape[(${upper}_OUTPUT_BYTES == $output_product) ? 1 : -1];
typedef char ${name}_arena_is_large_enough[(${upper}_ARENA_USED <= ${upper}_ARENA_BYTES) ? 1 : -1];
typedef char ${name}_right_shift_is_arithmetic[((-3 >> 1) == -2) ? 1 : -1];
#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the packed weights are little-endian"
#endif
#endif

/* One inference: ${upper}_OK or an error. Re-entrant: it writes to output, arena and its stack only. */
${upper}_API int ${name}_run(const int8_t *input, int8_t *output, void *arena);

/* The same for an arena of `arena_bytes` bytes: an error, and nothing written, where they are too few. */
static inline int ${name}_run_sized(const int8_t *input, int8_t *output, void *arena, uint32_t arena_bytes)
{
    return (arena_bytes < (uint32_t)${upper}_ARENA_BYTES) ? ${upper}_ERROR_SIZE : ${name}_run(input, output, arena);
}

/* Whether the weights in memory are those that were built: their CRC-32, which no change of up to 32 neighbouring bits
 * escapes. It covers every constant that the kernels are handed, not the instructions. A linker that drops what is not
 * called leaves it out. Re-entrant. */
${upper}_API int ${name}_verify(void);
$threads
#ifdef ${upper}_SELFTEST
/* ${name}_verify, then the reference's outputs for built-in inputs; not re-entrant. */
${upper}_API int ${name}_selftest(void *arena);
#endif

#ifdef __cplusplus
}
#endif

#endif
