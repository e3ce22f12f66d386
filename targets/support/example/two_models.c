/* Two networks in one firmware, with an arena each or with one that they share: nothing is kept in an arena from one
 * call to the next, so networks that do not run at the same time need the larger of the two only. */
#include "console.h"
#include "digits.h"
#include "uart.h"
#include "xd_compact.h"
#include "xd_digits.h"

#ifdef SHARED_ARENA
/* As large as the larger; the alignment of one has to do for both. */
typedef char one_alignment_does[(XD_COMPACT_ARENA_ALIGN <= XD_DIGITS_ARENA_ALIGN) ? 1 : -1];
static XD_DIGITS_ALIGNED union {
    xd_digits_arena digits;
    xd_compact_arena compact;
} arena;
#define DIGITS_ARENA arena.digits
#define COMPACT_ARENA arena.compact
#else
static XD_DIGITS_ALIGNED xd_digits_arena digits_arena;
static XD_COMPACT_ALIGNED xd_compact_arena compact_arena;
#define DIGITS_ARENA digits_arena
#define COMPACT_ARENA compact_arena
#endif

static XD_DIGITS_ALIGNED xd_digits_input digits_input;
static XD_DIGITS_ALIGNED xd_digits_output digits_output;
static XD_COMPACT_ALIGNED xd_compact_input compact_input;
static XD_COMPACT_ALIGNED xd_compact_output compact_output;

typedef char digits_takes_a_digit[(XD_DIGITS_INPUT_BYTES == DIGIT_PIXELS) ? 1 : -1];
typedef char compact_takes_a_digit[(XD_COMPACT_INPUT_BYTES == DIGIT_PIXELS) ? 1 : -1];

static void put_codes(const char *who, uint32_t index, const int8_t *codes, int count)
{
    int i;

    put_text(who);
    put_text(" ");
    put_number((int32_t)index);
    put_text(": codes");
    for (i = 0; i < count; ++i) {
        put_text(" ");
        put_number(codes[i]);
    }
    put_text("\n");
}

static int both(const digit *d)
{
    int status;

    digit_codes(d, XD_DIGITS_INPUT_SCALE, XD_DIGITS_INPUT_ZERO_POINT, digits_input);
    digit_codes(d, XD_COMPACT_INPUT_SCALE, XD_COMPACT_INPUT_ZERO_POINT, compact_input);
    status = xd_digits_run(digits_input, digits_output, DIGITS_ARENA);
    if (status == XD_DIGITS_OK) {
        status = xd_compact_run(compact_input, compact_output, COMPACT_ARENA);
    }
    put_codes("digits", d->index, digits_output, XD_DIGITS_OUTPUT_BYTES);
    put_codes("compact", d->index, compact_output, XD_COMPACT_OUTPUT_BYTES);
    return status;
}

int main(void)
{
    int failed = xd_digits_verify();
    int i;

    xd_uart_init();
    if (failed == XD_DIGITS_OK) {
        failed = xd_compact_verify();
    }
    for (i = 0; (i < DIGITS) && (failed == 0); ++i) {
        failed = both(&digits[i]);
    }
    put_text((failed == 0) ? "ok\n" : "failed\n");
    return failed;
}
