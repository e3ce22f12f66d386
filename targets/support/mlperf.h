/* The device's side of the MLPerf Tiny protocol over the serial port of uart.h: C99, no heap, no stdio, nothing of any
 * board. Give it every received character; it answers commands that end with '%'. Input of any kind cannot write beyond
 * the buffers that are named here.
 *
 *   name% profile% help% timestamp%     who it is; microseconds as m-lap-us-N
 *   db load N% db HEX% db print [N [AT]]%   fill the input, N bytes
 *   infer [N [W]]%                      W warm-up runs, then N between two m-lap-us-
 *   results%                            m-results-[0.000,...]: the outputs as real numbers, three decimals
 *
 * and three of its own, with which xdeploy checks bit for bit:
 *
 *   xd info%    m-info-[...]: version of these commands, hash of the build, sizes, form of the input
 *   xd crc%     m-crc-[CRC-32 of the input bytes as loaded]
 *   xd codes%   m-codes-AT-[int8 outputs in hex], 32 a line, and m-codes-crc-[their CRC-32]
 */
#ifndef XD_MLPERF_H
#define XD_MLPERF_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Characters of the longest command, without '%'; the reference has 80. */
#ifndef XD_MLPERF_COMMAND
#define XD_MLPERF_COMMAND 255U
#endif

/* What the bytes of `db` are. The reference's networks differ: keyword spotting sends int8 codes, image classification
 * and person detection pixels 0 to 255 that are codes plus 128, anomaly detection float32 (little-endian). */
#define XD_MLPERF_INT8 0U
#define XD_MLPERF_UINT8 1U
#define XD_MLPERF_FLOAT32 2U

typedef struct {
    const char *name;  /* of the vendor or board, for m-name-dut-[...] */
    const char *model; /* for m-model-[...]: kws01, ic01, vww01 or ad01 for mlcommons' scripts */
    const char *build; /* hash of the package this was built from, for xd info */
    int8_t *input;     /* of run(), `inputs` codes */
    const int8_t *output; /* of run(), `outputs` codes */
    uint8_t *buffer;   /* what db loads: `inputs` bytes, or 4 * inputs for float32; it may be `input` itself for int8 */
    uint32_t inputs, outputs;
    float input_scale, output_scale; /* real = scale * (code - zero point) */
    int32_t input_zero, output_zero;
    uint32_t form; /* XD_MLPERF_INT8, ... */
    uint32_t score; /* 1, with float32: the result is the mean squared difference of output and input */
    int (*run)(void); /* one inference, 0 if it went well */
} xd_mlperf_model;

typedef struct {
    const xd_mlperf_model *model;
    uint32_t length;   /* characters of the unfinished command; XD_MLPERF_COMMAND + 1 when it is too long */
    uint32_t expected; /* bytes announced by db load, 0 before it */
    uint32_t loaded;   /* of them, how many have come */
    uint32_t ran;      /* 1 when the outputs are those of an inference */
    char command[XD_MLPERF_COMMAND + 1U];
} xd_mlperf;

/* Begin, after xd_uart_init(): prints what the protocol asks for at start-up, m-ready last. */
void xd_mlperf_start(xd_mlperf *device, const xd_mlperf_model *model);

/* Take one received character; a '%' runs the command and answers. */
void xd_mlperf_receive(xd_mlperf *device, char c);

#ifdef __cplusplus
}
#endif

#endif
