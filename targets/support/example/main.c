/* Handwritten digits through the network of a package, results over the serial port. */
#include "board.h"
#include "console.h"
#include "digits.h"
#include "uart.h"
#include "xd_digits.h"

static XD_DIGITS_ALIGNED xd_digits_arena arena;
static XD_DIGITS_ALIGNED xd_digits_input input;
static XD_DIGITS_ALIGNED xd_digits_output output;

/* The build stops where these do not hold: another network, or a stack that its calls do not fit into. */
typedef char takes_a_digit[(XD_DIGITS_INPUT_BYTES == DIGIT_PIXELS) ? 1 : -1];
typedef char stack_is_large_enough[(STACK_BYTES >= XD_DIGITS_STACK_BYTES + 1024) ? 1 : -1];

static int check(const char *what, int status)
{
    put_text(what);
    put_text(": ");
    if (status == XD_DIGITS_OK) {
        put_text("ok\n");
    } else {
        put_text("error ");
        put_number(status);
        put_text("\n");
    }
    return status;
}

static int best_class(void)
{
    int best = 0;
    int i;

    for (i = 1; i < XD_DIGITS_OUTPUT_BYTES; ++i) {
        if (output[i] > output[best]) {
            best = i;
        }
    }
    return best;
}

static void put_output(void)
{
    int i;

    put_text("  codes");
    for (i = 0; i < XD_DIGITS_OUTPUT_BYTES; ++i) {
        put_text(" ");
        put_number(output[i]);
    }
    put_text("\n  scores");
    for (i = 0; i < XD_DIGITS_OUTPUT_BYTES; ++i) {
        put_text(" ");
        put_decimal(XD_DIGITS_OUTPUT_SCALE * (float)(output[i] - XD_DIGITS_OUTPUT_ZERO_POINT));
    }
    put_text("\n");
}

/* One digit: whether its class is its label; `status` is what the network returned. */
static int classify(const digit *d, int *status)
{
    uint32_t start;
    uint32_t end;
    int found;

    digit_codes(d, XD_DIGITS_INPUT_SCALE, XD_DIGITS_INPUT_ZERO_POINT, input);
    start = xd_time_us();
    *status = xd_digits_run(input, output, arena);
    end = xd_time_us();
    if (*status != XD_DIGITS_OK) {
        return 0;
    }
    found = best_class();
    put_text("image ");
    put_number((int32_t)d->index);
    put_text(": label ");
    put_number((int32_t)d->label);
    put_text(", class ");
    put_number(found);
    put_text(", ");
    put_number((int32_t)(end - start));
    put_text(" us\n");
    put_output();
    return (found == (int)d->label) ? 1 : 0;
}

int main(void)
{
    int failed;
    int right = 0;
    int i;

    xd_uart_init();
    put_text("digits for " XD_DIGITS_TARGET ", xdeploy " XD_DIGITS_XDEPLOY_VERSION "\n");
    failed = check("verify", xd_digits_verify());
    failed |= check("selftest", xd_digits_selftest(arena));
    if (failed == 0) {
        for (i = 0; (i < DIGITS) && (failed == 0); ++i) {
            right += classify(&digits[i], &failed);
        }
        (void)check("run", failed);
        put_number(right);
        put_text(" of ");
        put_number(DIGITS);
        put_text(" right\n");
    }
    return failed;
}
