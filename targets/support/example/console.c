#include "console.h"

#include "uart.h"

static void put_digits(uint32_t value, uint32_t base, uint32_t least)
{
    char digits[10];
    uint32_t count = 0U;

    do {
        digits[count] = "0123456789abcdef"[value % base];
        value /= base;
        ++count;
    } while ((value != 0U) || (count < least));
    while (count > 0U) {
        --count;
        xd_uart_put(digits[count]);
    }
}

/* Puts the sign; the value without it, also of the smallest number. */
static uint32_t put_sign(int32_t value)
{
    if (value < 0) {
        xd_uart_put('-');
    }
    return (value < 0) ? (0U - (uint32_t)value) : (uint32_t)value;
}

void put_text(const char *text)
{
    for (; *text != '\0'; ++text) {
        if (*text == '\n') {
            xd_uart_put('\r');
        }
        xd_uart_put(*text);
    }
}

void put_number(int32_t value)
{
    put_digits(put_sign(value), 10U, 1U);
}

void put_hex(uint32_t value)
{
    put_text("0x");
    put_digits(value, 16U, 8U);
}

void put_decimal(float value)
{
    const uint32_t thousandths = put_sign((int32_t)((value * 1000.0f) + ((value < 0.0f) ? -0.5f : 0.5f)));

    put_digits(thousandths / 1000U, 10U, 1U);
    xd_uart_put('.');
    put_digits(thousandths % 1000U, 10U, 3U);
}
