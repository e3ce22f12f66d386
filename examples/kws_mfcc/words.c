#include "words.h"

static XD_KWS_ALIGNED xd_kws_arena arena;
static XD_KWS_ALIGNED xd_kws_input input;
static XD_KWS_ALIGNED xd_kws_output output;
static mfcc_scratch scratch;

/* The build stops where the network is another: it takes the coefficients frame by frame, and says ten words. */
typedef char takes_these_features[(XD_KWS_INPUT_BYTES == MFCC_VALUES) ? 1 : -1];
typedef char says_ten_words[(WORDS == 10) ? 1 : -1];

const char *const words[WORDS] = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"};

void words_listen(const int16_t *samples, uint32_t count)
{
    float frame[MFCC_COEFFICIENTS];
    uint32_t i;

    for (i = 0U; i < MFCC_FRAMES; ++i) {
        mfcc_frame(samples, count, i, frame, &scratch);
        mfcc_codes(frame, MFCC_COEFFICIENTS, XD_KWS_INPUT_SCALE, XD_KWS_INPUT_ZERO_POINT, &input[i * MFCC_COEFFICIENTS]);
    }
}

int words_tell(int *status)
{
    int best = 0;
    int i;

    *status = xd_kws_run(input, output, arena);
    for (i = 1; i < WORDS; ++i) {
        best = (output[i] > output[best]) ? i : best;
    }
    return (*status == XD_KWS_OK) ? best : -1;
}

const int8_t *words_input(void)
{
    return input;
}

const int8_t *words_scores(void)
{
    return output;
}
