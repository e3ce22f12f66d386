/* Mel-frequency cepstral coefficients of one second of sound, as the network's training had them. C99 in single precision,
 * without a library: the transform and the logarithm are its own. The tables are written by mfcc_tables.py. */
#ifndef MFCC_H
#define MFCC_H

#include <stdint.h>

#define MFCC_RATE 8000  /* samples of one second */
#define MFCC_WINDOW 320 /* samples of a frame */
#define MFCC_STEP 160   /* samples between the starts of two frames */
#define MFCC_SIZE 512   /* of the transform: a frame, then zeros */
#define MFCC_BINS (MFCC_SIZE / 2 + 1)
#define MFCC_BANDS 40
#define MFCC_COEFFICIENTS 15
#define MFCC_FRAMES 49
#define MFCC_VALUES (MFCC_FRAMES * MFCC_COEFFICIENTS)

typedef struct {
    uint16_t first;   /* bin of the power spectrum that the band begins with */
    uint16_t count;   /* of its bins */
    uint16_t weights; /* where theirs begin in mfcc_weights */
} mfcc_band;

extern const float mfcc_window[MFCC_WINDOW];        /* includes 1 / 32768: samples are int16 */
extern const float mfcc_turn[MFCC_SIZE / 2][2];     /* cos and sin of 2 pi k / MFCC_SIZE */
extern const mfcc_band mfcc_bands[MFCC_BANDS];
extern const float mfcc_weights[];
extern const float mfcc_cosines[MFCC_COEFFICIENTS][MFCC_BANDS];
extern const float mfcc_mean[MFCC_COEFFICIENTS];    /* of the training's frames */
extern const float mfcc_inverse[MFCC_COEFFICIENTS]; /* 1 / standard deviation */

typedef struct {
    float wave[MFCC_SIZE + 2]; /* a frame; then its spectrum, real and imaginary parts in turn */
    float power[MFCC_BINS];
    float bands[MFCC_BANDS];
} mfcc_scratch;

/* Coefficients of frame 0..MFCC_FRAMES-1 of a recording of `count` samples at MFCC_RATE. One that is shorter than a second
 * lies in its middle, a longer one is cut. */
void mfcc_frame(const int16_t *samples, uint32_t count, uint32_t frame, float out[MFCC_COEFFICIENTS], mfcc_scratch *s);

/* What the network takes: each value the nearest code, value = scale * (code - zero_point). */
void mfcc_codes(const float *values, uint32_t count, float scale, int zero_point, int8_t *codes);

#endif
