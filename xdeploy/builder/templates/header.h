$banner
#ifndef ${upper}_H
#define ${upper}_H

#include <limits.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ${upper}_XDEPLOY_VERSION "$version"
#define ${upper}_ABI_VERSION 1
#define ${upper}_MODEL_NAME $model_name
#define ${upper}_MODEL_SHA256 "$sha256"

/* Memory: the arena is the caller's and may be reused between calls; nothing is kept in it. Input and output are the
 * caller's own and not part of it; they must not overlap. All three pointers are multiples of ${upper}_ARENA_ALIGN. */
#define ${upper}_ARENA_BYTES $arena
#define ${upper}_ARENA_USED $arena_used
#define ${upper}_ARENA_ALIGN ${align}U
#define ${upper}_STACK_BYTES $stack /* $stack_note */
#define ${upper}_WEIGHT_BYTES $weight_bytes
#define ${upper}_MACS $macs

/* Input: int8 codes, real = SCALE * (code - ZERO_POINT); images are stored height, width, channel. */
#define ${upper}_INPUT_NAME $input_name
#define ${upper}_INPUT_BYTES $input_bytes
#define ${upper}_INPUT_DIMS $input_dims
#define ${upper}_INPUT_SHAPE { $input_shape }
#define ${upper}_INPUT_SCALE ${input_scale}f
#define ${upper}_INPUT_ZERO_POINT ($input_zero)

#define ${upper}_OUTPUT_NAME $output_name
#define ${upper}_OUTPUT_BYTES $output_bytes
#define ${upper}_OUTPUT_DIMS $output_dims
#define ${upper}_OUTPUT_SHAPE { $output_shape }
#define ${upper}_OUTPUT_SCALE ${output_scale}f
#define ${upper}_OUTPUT_ZERO_POINT ($output_zero)

#define ${upper}_LAYERS $layers
#define ${upper}_LABELS_COUNT $labels_count
$labels
/* What the functions return. */
#define ${upper}_OK 0
#define ${upper}_ERROR_POINTER 1   /* a pointer is null */
#define ${upper}_ERROR_ALIGNMENT 2 /* a pointer is not a multiple of ${upper}_ARENA_ALIGN */
#define ${upper}_ERROR_WEIGHTS 3   /* self-test: the weights in memory are not those that were built */
#define ${upper}_ERROR_OUTPUT 4    /* self-test: the outputs are not those of the reference */
#define ${upper}_ERROR_SIZE 5      /* the arena has fewer bytes than ${upper}_ARENA_BYTES */

/* Alignment of a buffer, e.g. `static ${upper}_ALIGNED ${name}_input x;` */
#ifndef XD_ALIGN
#if defined(__GNUC__) || defined(__clang__)
#define XD_ALIGN(n) __attribute__((aligned(n)))
#elif defined(__ICCARM__)
#define XD_ALIGN(n) _Pragma("data_alignment=" #n)
#else
#error "define XD_ALIGN(n) for this compiler"
#endif
#endif
#define ${upper}_ALIGNED XD_ALIGN($align)

#ifndef ${upper}_API
#define ${upper}_API
#endif

typedef int8_t ${name}_input[${upper}_INPUT_BYTES];
typedef int8_t ${name}_output[${upper}_OUTPUT_BYTES];
typedef uint8_t ${name}_arena[${upper}_ARENA_BYTES];

/* The code relies on these; the build stops where they do not hold. */
typedef char ${name}_bytes_have_8_bits[(CHAR_BIT == 8) ? 1 : -1];
typedef char ${name}_int_has_32_bits[(sizeof(int) >= 4) ? 1 : -1];
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
    return arena_bytes < ${upper}_ARENA_BYTES ? ${upper}_ERROR_SIZE : ${name}_run(input, output, arena);
}

#ifdef ${upper}_SELFTEST
/* Check the weights' CRC-32 and the reference's outputs for built-in inputs; not re-entrant. */
${upper}_API int ${name}_selftest(void *arena);
#endif

#ifdef __cplusplus
}
#endif

#endif
