$banner
/* Many inferences per call, for tests and accuracy measurements on this machine. */
#include "$name.h"

#include <stdint.h>
#include <string.h>

#define ROUND(n) (((n) + ${upper}_ARENA_ALIGN - 1U) / ${upper}_ARENA_ALIGN * ${upper}_ARENA_ALIGN)
#define INPUT_AT ROUND((uint32_t)${upper}_ARENA_BYTES)
#define OUTPUT_AT (INPUT_AT + ROUND((uint32_t)${upper}_INPUT_BYTES))

/* Told after every layer if it is set, e.g. to look at the arena; one for all threads. */
extern ${upper}_API void (*${name}_layer_end)(int layer);
${upper}_API void (*${name}_layer_end)(int layer) = 0;

${upper}_API int ${name}_batch_arena_bytes(void);
${upper}_API int ${name}_run_batch(const int8_t *inputs, int8_t *outputs, void *arena, int n);

/* Bytes of the arena of ${name}_run_batch. */
${upper}_API int ${name}_batch_arena_bytes(void)
{
    return (int)(OUTPUT_AT + ROUND((uint32_t)${upper}_OUTPUT_BYTES));
}

/* n inputs and outputs one behind the other, of any alignment; stops at the first error. */
${upper}_API int ${name}_run_batch(const int8_t *inputs, int8_t *outputs, void *arena, int n)
{
    int8_t *const input = (int8_t *)arena + INPUT_AT;
    int8_t *const output = (int8_t *)arena + OUTPUT_AT;
    int i;

    for (i = 0; i < n; ++i) {
        int status;
        (void)memcpy(input, inputs + (size_t)i * ${upper}_INPUT_BYTES, ${upper}_INPUT_BYTES);
        status = ${name}_run(input, output, arena);
        if (status != ${upper}_OK) {
            return status;
        }
        (void)memcpy(outputs + (size_t)i * ${upper}_OUTPUT_BYTES, output, ${upper}_OUTPUT_BYTES);
    }
    return ${upper}_OK;
}
