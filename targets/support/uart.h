/* The few functions a firmware needs from its board: a serial port and a clock. uart_mps2.c has them for QEMU's MPS2 and
 * MPS3 boards; on another board write these four, e.g. over the vendor's drivers. None of them may be called from an
 * interrupt. */
#ifndef XD_UART_H
#define XD_UART_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Turn the port (115200 baud, 8 bits, no parity, 1 stop bit) and the clock on; once, before the others. */
void xd_uart_init(void);

/* Send one character, waiting for room. */
void xd_uart_put(char c);

/* The next received character, 0 to 255, or -1 if there is none; it does not wait. */
int xd_uart_get(void);

/* Microseconds since some moment; wraps around after 2^32. */
uint32_t xd_time_us(void);

#ifdef __cplusplus
}
#endif

#endif
