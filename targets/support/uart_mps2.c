/* uart.h on Arm's MPS2 and MPS3 boards, real or in QEMU: mps2-an385, -an386, -an500 (Cortex-M3, M4, M7), mps2-an505 (M33)
 * and mps3-an547 (M55). The port is the first CMSDK UART, the clock the counter of the FPGA's I/O block, which counts
 * microseconds by itself. In QEMU that is virtual time: without -icount it follows this machine's clock, with
 * -icount shift=S every instruction takes 2^S ns. The board is told by the core that this is compiled for; for another
 * define XD_UART, XD_FPGAIO and XD_CLOCK_MHZ (and XD_COUNTER_MHZ, if the counter has another). */
#include "uart.h"

#ifndef XD_UART
#if defined(__ARM_FEATURE_MVE) || defined(__ARM_ARCH_8_1M_MAIN__) /* mps3-an547 */
#define XD_UART 0x59303000U
#define XD_FPGAIO 0x59302000U
#define XD_CLOCK_MHZ 32U
#define XD_COUNTER_MHZ 20U /* as QEMU has it: beside the others its counter does not follow the board's clock */
#elif defined(__ARM_ARCH) && __ARM_ARCH >= 8 /* mps2-an505 */
#define XD_UART 0x50200000U
#define XD_FPGAIO 0x50302000U
#define XD_CLOCK_MHZ 20U
#else /* mps2-an385, -an386, -an500 */
#define XD_UART 0x40004000U
#define XD_FPGAIO 0x40028000U
#define XD_CLOCK_MHZ 25U
#endif
#endif

#ifndef XD_COUNTER_MHZ
#define XD_COUNTER_MHZ XD_CLOCK_MHZ
#endif

#ifndef XD_BAUD
#define XD_BAUD 115200U
#endif

#define REGISTER(base, offset) (*(volatile uint32_t *)((base) + (offset)))
#define DATA REGISTER(XD_UART, 0x0U)
#define STATE REGISTER(XD_UART, 0x4U)    /* bit 0: no room to send; bit 1: a character has come */
#define CONTROL REGISTER(XD_UART, 0x8U)  /* bit 0: sending on; bit 1: receiving on */
#define BAUD_DIVIDER REGISTER(XD_UART, 0x10U)
#define COUNTER REGISTER(XD_FPGAIO, 0x18U)
#define PRESCALER REGISTER(XD_FPGAIO, 0x1CU) /* the counter's clock is divided by this plus one */

void xd_uart_init(void)
{
    BAUD_DIVIDER = XD_CLOCK_MHZ * 1000000U / XD_BAUD;
    CONTROL = 3U;
    PRESCALER = XD_COUNTER_MHZ - 1U;
}

void xd_uart_put(char c)
{
    while ((STATE & 1U) != 0U) {
    }
    DATA = (uint8_t)c;
}

int xd_uart_get(void)
{
    return (STATE & 2U) != 0U ? (int)(DATA & 0xFFU) : -1;
}

uint32_t xd_time_us(void)
{
    return COUNTER;
}
