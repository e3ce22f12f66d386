$banner
#include "$name.h"
#include "${name}_internal.h"

typedef int ${name}_selftest_is_optional; /* a file must not be empty in C99 */

#ifdef ${upper}_SELFTEST

static const ${upper}_ALIGNED int8_t inputs[$count][$input_slot] = {
$inputs
};
static const int8_t outputs[$count][${upper}_OUTPUT_BYTES] = {
$outputs
};

/* CRC-32 (IEEE 802.3, reflected), one bit at a time: small, not fast. */
static uint32_t crc32_of(const void *start, uint32_t size, uint32_t crc)
{
    const uint8_t *bytes = (const uint8_t *)start;
    uint32_t i;

    for (i = 0U; i < size; ++i) {
        int bit;
        crc ^= bytes[i];
        for (bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ (0xEDB88320U & (0U - (crc & 1U)));
        }
    }
    return crc;
}

int ${name}_selftest(void *arena)
{
    static ${upper}_ALIGNED ${name}_output result;
    uint32_t crc = 0xFFFFFFFFU;
    int sample, i, status;

$crcs
    if ((crc ^ 0xFFFFFFFFU) != ${crc}U) {
        return ${upper}_ERROR_WEIGHTS;
    }
    for (sample = 0; sample < $count; ++sample) {
        status = ${name}_run(inputs[sample], result, arena);
        if (status != ${upper}_OK) {
            return status;
        }
        for (i = 0; i < ${upper}_OUTPUT_BYTES; ++i) {
            const int apart = result[i] - outputs[sample][i];

            if (apart > $tolerance || apart < -$tolerance) {
                return ${upper}_ERROR_OUTPUT;
            }
        }
    }
    return ${upper}_OK;
}

#endif
