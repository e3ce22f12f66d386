/* A firmware that listens to the recordings in its flash; a product has its microphone's samples instead. */
#include "board.h"
#include "console.h"
#include "uart.h"
#include "words.h"

typedef char stack_is_large_enough[(STACK_BYTES >= XD_KWS_STACK_BYTES + 1024) ? 1 : -1];

static void put_codes(const char *name, const int8_t *codes, uint32_t count)
{
    uint32_t i;

    put_text(name);
    for (i = 0U; i < count; ++i) {
        put_text(" ");
        put_number(codes[i]);
    }
    put_text("\n");
}

/* Whether the word that was said is heard. */
static int hear(const recording *r, int *status)
{
    const uint32_t start = xd_time_us();
    uint32_t middle;
    uint32_t end;
    int word;

    words_listen(r->samples, r->count);
    middle = xd_time_us();
    word = words_tell(status);
    end = xd_time_us();
    if (word < 0) {
        return 0;
    }
    put_text("said ");
    put_text(words[r->digit]);
    put_text(", heard ");
    put_text(words[word]);
    put_text(", features ");
    put_number((int32_t)(middle - start));
    put_text(" us, network ");
    put_number((int32_t)(end - middle));
    put_text(" us\n");
#ifdef SHOW_CODES
    put_codes("  input", words_input(), MFCC_VALUES);
#endif
    put_codes("  scores", words_scores(), WORDS);
    return (word == (int)r->digit) ? 1 : 0;
}

int main(void)
{
    int status;
    int32_t right = 0;
    uint32_t i;

    xd_uart_init();
    status = xd_kws_verify();
    for (i = 0U; (i < recordings_count) && (status == XD_KWS_OK); ++i) {
        right += hear(&recordings[i], &status);
    }
    if (status == XD_KWS_OK) {
        put_number(right);
        put_text(" of ");
        put_number((int32_t)recordings_count);
        put_text(" heard as they were said\n");
    } else {
        put_text("error ");
        put_number(status);
        put_text("\n");
    }
    return status;
}
