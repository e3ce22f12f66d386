$banner
#include "$name.h"
#include "${name}_internal.h"

/* CRC-32 (IEEE 802.3, reflected), four bits at a time; the memory itself is read, whatever the compiler knows of it. */
static ${prefix_upper}_NOINLINE uint32_t checksum(uint32_t before, const void *start, uint32_t size)
{
    static const uint32_t table[16] = {
        0x00000000U, 0x1DB71064U, 0x3B6E20C8U, 0x26D930ACU, 0x76DC4190U, 0x6B6B51F4U, 0x4DB26158U, 0x5005713CU,
        0xEDB88320U, 0xF00F9344U, 0xD6D6A3E8U, 0xCB61B38CU, 0x9B64C2B0U, 0x86D3D2D4U, 0xA00AE278U, 0xBDBDF21CU
    };
    const volatile uint8_t *bytes = (const volatile uint8_t *)start;
    uint32_t crc = before;
    uint32_t i;

    for (i = 0U; i < size; ++i) {
        crc ^= bytes[i];
        crc = (crc >> 4) ^ table[crc & 15U];
        crc = (crc >> 4) ^ table[crc & 15U];
    }
    return crc;
}

int ${name}_verify(void)
{
    uint32_t crc = 0xFFFFFFFFU;

$steps
    return ((crc ^ 0xFFFFFFFFU) == ${upper}_WEIGHTS_CRC32) ? ${upper}_OK : ${upper}_ERROR_WEIGHTS;
}
