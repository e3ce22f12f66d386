$banner
/* The model behind a serial port, with the MLPerf Tiny protocol of mlperf.h. On another board write the four functions
 * of uart.h and leave uart_mps2.c and start_mps2.c out. The macros may be defined otherwise, e.g. -DXD_FORM=1U. */
#include "$name.h"

#include "mlperf.h"
#include "uart.h"

#ifndef XD_NAME
#define XD_NAME "xdeploy-$target"
#endif
#ifndef XD_MODEL
#define XD_MODEL "$model" /* kws01, ic01, vww01 or ad01 choose one of mlcommons' scripts */
#endif
#ifndef XD_FORM
#define XD_FORM XD_MLPERF_INT8 /* what the bytes of db are, see mlperf.h */
#endif
#ifndef XD_SCORE
#define XD_SCORE 0U /* 1 with float32: the result is the mean squared difference of output and input */
#endif

static ${upper}_ALIGNED ${name}_input input;
static ${upper}_ALIGNED ${name}_output output;
static ${upper}_ALIGNED ${name}_arena arena;
static uint8_t buffer[(XD_FORM == XD_MLPERF_FLOAT32 ? 4U : 1U) * ${upper}_INPUT_BYTES];
static xd_mlperf device;

static int run(void)
{
    return ${name}_run(input, output, arena);
}

static const xd_mlperf_model model = {
    XD_NAME,
    XD_MODEL,
    "$build",
    input,
    output,
    buffer,
    ${upper}_INPUT_BYTES,
    ${upper}_OUTPUT_BYTES,
    ${upper}_INPUT_SCALE,
    ${upper}_OUTPUT_SCALE,
    ${upper}_INPUT_ZERO_POINT,
    ${upper}_OUTPUT_ZERO_POINT,
    XD_FORM,
    XD_SCORE,
    run,
};

int main(void)
{
    xd_uart_init();
    xd_mlperf_start(&device, &model);
    for (;;) {
        const int c = xd_uart_get();
        if (c >= 0) {
            xd_mlperf_receive(&device, (char)(unsigned char)c);
        }
    }
}
