/* Handwritten digits to try a network on: 8x8 pixels in 0..16, as the sensor of a device would give them. */
#ifndef DIGITS_H
#define DIGITS_H

#include <stdint.h>

#define DIGITS 10
#define DIGIT_PIXELS 64

typedef struct {
    uint32_t index; /* in the data set, see digits.c */
    uint32_t label;
    uint8_t pixels[DIGIT_PIXELS]; /* row by row */
} digit;

extern const digit digits[DIGITS];

/* What a network takes: every pixel as the value 0..1 that it was trained on, rounded to the code that stands for it,
 * value = scale * (code - zero_point). */
void digit_codes(const digit *d, float scale, int zero_point, int8_t codes[DIGIT_PIXELS]);

#endif
