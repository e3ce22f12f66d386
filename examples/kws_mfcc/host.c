/* The same on a computer: 16-bit samples at 8000 Hz from standard input, the features and the word to standard output. */
#include "words.h"

#include <stdio.h>

int main(void)
{
    static int16_t samples[MFCC_RATE];
    static mfcc_scratch scratch;
    float frame[MFCC_COEFFICIENTS];
    const uint32_t count = (uint32_t)fread(samples, sizeof samples[0], MFCC_RATE, stdin);
    int status;
    int word;
    uint32_t i;
    uint32_t j;

    for (i = 0U; i < MFCC_FRAMES; ++i) {
        mfcc_frame(samples, count, i, frame, &scratch);
        for (j = 0U; j < MFCC_COEFFICIENTS; ++j) {
            printf("%.9g%c", (double)frame[j], (j + 1U < MFCC_COEFFICIENTS) ? ' ' : '\n');
        }
    }
    words_listen(samples, count);
    word = words_tell(&status);
    if (word < 0) {
        fprintf(stderr, "error %d\n", status);
        return 1;
    }
    printf("%s\n", words[word]);
    return 0;
}
