#include "mfcc.h"

#define HALF (MFCC_SIZE / 2)

/* The samples of a frame, times the window; silence around the recording, zeros behind the frame. */
static void fill(const int16_t *samples, uint32_t count, uint32_t frame, float *wave)
{
    const uint32_t used = (count < MFCC_RATE) ? count : MFCC_RATE;
    const uint32_t before = (MFCC_RATE - used) / 2U;
    uint32_t i;

    for (i = 0U; i < MFCC_WINDOW; ++i) {
        const uint32_t at = frame * MFCC_STEP + i;

        wave[i] = ((at >= before) && (at - before < used)) ? mfcc_window[i] * (float)samples[at - before] : 0.0f;
    }
    for (; i < MFCC_SIZE; ++i) {
        wave[i] = 0.0f;
    }
}

static void swap(float *a, float *b)
{
    const float kept = *a;

    *a = *b;
    *b = kept;
}

/* HALF complex numbers, place i and the place with i's bits in reverse order exchanged. */
static void reorder(float *z)
{
    uint32_t i;
    uint32_t j = 0U;

    for (i = 0U; i < HALF; ++i) {
        uint32_t bit = HALF >> 1;

        if (i < j) {
            swap(&z[2U * i], &z[2U * j]);
            swap(&z[2U * i + 1U], &z[2U * j + 1U]);
        }
        for (; (j & bit) != 0U; bit >>= 1) {
            j ^= bit;
        }
        j |= bit;
    }
}

/* One pass of butterflies: spectra of `length` points become those of twice as many. */
static void pass(float *z, uint32_t length)
{
    const uint32_t stride = HALF / length; /* in mfcc_turn, whose circle has MFCC_SIZE parts */
    uint32_t k;
    uint32_t start;

    for (k = 0U; k < length; ++k) {
        const float c = mfcc_turn[k * stride][0];
        const float s = mfcc_turn[k * stride][1];

        for (start = k; start < HALF; start += 2U * length) {
            float *a = &z[2U * start];
            float *b = &z[2U * (start + length)];
            const float real = b[0] * c + b[1] * s;
            const float imaginary = b[1] * c - b[0] * s;

            b[0] = a[0] - real;
            b[1] = a[1] - imaginary;
            a[0] += real;
            a[1] += imaginary;
        }
    }
}

/* |X|^2 of the real numbers in `wave`: they are taken as half as many complex ones, even places the real parts; the
 * spectra of even and odd places are then told apart by symmetry. */
static void spectrum(float *wave, float *power)
{
    uint32_t length;
    uint32_t k;

    reorder(wave);
    for (length = 1U; length < HALF; length *= 2U) {
        pass(wave, length);
    }
    wave[MFCC_SIZE] = wave[0]; /* the spectrum is periodic */
    wave[MFCC_SIZE + 1] = wave[1];
    for (k = 0U; k <= HALF; ++k) {
        const float *a = &wave[2U * k];
        const float *b = &wave[2U * (HALF - k)];
        const float c = (k < HALF) ? mfcc_turn[k][0] : -1.0f;
        const float s = (k < HALF) ? mfcc_turn[k][1] : 0.0f;
        const float odd_real = (a[1] + b[1]) * 0.5f;
        const float odd_imaginary = (b[0] - a[0]) * 0.5f;
        const float real = (a[0] + b[0]) * 0.5f + odd_real * c + odd_imaginary * s;
        const float imaginary = (a[1] - b[1]) * 0.5f + odd_imaginary * c - odd_real * s;

        power[k] = real * real + imaginary * imaginary;
    }
}

/* The natural logarithm of a normal number above 0: exponent and mantissa in sqrt(1/2)..sqrt(2), whose logarithm is
 * 2 artanh((m - 1) / (m + 1)); the series' next term is below 1e-9. */
static float logarithm(float value)
{
    union {
        float number;
        uint32_t bits;
    } mantissa;
    int32_t exponent;
    float t;
    float u;

    mantissa.number = value;
    exponent = (int32_t)((mantissa.bits - 0x3f3504f3U) >> 23); /* the bits of sqrt(1/2) */
    exponent = (exponent < 256) ? exponent : exponent - 512;
    mantissa.bits -= (uint32_t)exponent << 23;
    t = (mantissa.number - 1.0f) / (mantissa.number + 1.0f);
    u = t * t;
    u = 2.0f * t * (1.0f + u * (1.0f / 3.0f + u * (1.0f / 5.0f + u * (1.0f / 7.0f + u * (1.0f / 9.0f)))));
    return (float)exponent * 0.69314718f + u;
}

void mfcc_frame(const int16_t *samples, uint32_t count, uint32_t frame, float out[MFCC_COEFFICIENTS], mfcc_scratch *s)
{
    uint32_t band;
    uint32_t i;

    fill(samples, count, frame, s->wave);
    spectrum(s->wave, s->power);
    for (band = 0U; band < MFCC_BANDS; ++band) {
        const mfcc_band *b = &mfcc_bands[band];
        float sum = 1e-6f;

        for (i = 0U; i < b->count; ++i) {
            sum += mfcc_weights[b->weights + i] * s->power[b->first + i];
        }
        s->bands[band] = logarithm(sum);
    }
    for (i = 0U; i < MFCC_COEFFICIENTS; ++i) {
        float sum = 0.0f;

        for (band = 0U; band < MFCC_BANDS; ++band) {
            sum += mfcc_cosines[i][band] * s->bands[band];
        }
        out[i] = (sum - mfcc_mean[i]) * mfcc_inverse[i];
    }
}

/* The nearest whole number, the even one of two, as the reference rounds. A float of this size has no fraction left, so
 * the addition rounds; volatile: the compiler must not take it back, whatever it is allowed to. */
static int nearest(float value)
{
    volatile float whole = value + 12582912.0f; /* 1.5 * 2^23 */

    whole -= 12582912.0f;
    return (int)whole;
}

void mfcc_codes(const float *values, uint32_t count, float scale, int zero_point, int8_t *codes)
{
    uint32_t i;

    for (i = 0U; i < count; ++i) {
        const int code = nearest(values[i] / scale) + zero_point;

        codes[i] = (int8_t)((code < -128) ? -128 : ((code > 127) ? 127 : code));
    }
}
