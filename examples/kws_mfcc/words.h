/* One recording to a word: features by mfcc.c, then the network of the package, whose name is kws. */
#ifndef WORDS_H
#define WORDS_H

#include "mfcc.h"
#include "xd_kws.h"

#define WORDS XD_KWS_OUTPUT_BYTES

typedef struct {
    uint32_t count; /* of samples */
    uint32_t digit; /* what was said, 0..9 */
    const int16_t *samples;
} recording;

extern const uint32_t recordings_count; /* recordings.c, written by mfcc_tables.py */
extern const recording recordings[];
extern const char *const words[WORDS];

/* The input codes of one second of sound. */
void words_listen(const int16_t *samples, uint32_t count);

/* The word of what was listened to, 0..WORDS-1, or -1 with the network's error in `status`. */
int words_tell(int *status);

/* After words_listen: the codes. After words_tell: the scores' codes. */
const int8_t *words_input(void);
const int8_t *words_scores(void);

#endif
