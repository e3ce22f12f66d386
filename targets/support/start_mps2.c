/* Start-up of a firmware for QEMU's MPS2 and MPS3 boards; serial.ld says where things lie. QEMU loads initialised
 * variables in place and its memory is zero, so there is nothing to copy. Every exception ends in xd_fault. */
#include "uart.h"

extern uint32_t xd_stack_top;
int main(void);
void xd_fault(void);
__attribute__((noreturn)) void xd_reset(void);

__attribute__((used)) void xd_fault(void)
{
    const char *text = "\r\ne-[The processor has faulted]\r\n";
    for (; *text != '\0'; ++text) {
        xd_uart_put(*text);
    }
    for (;;) {
    }
}

__attribute__((used)) void xd_reset(void)
{
    *(volatile uint32_t *)0xE000ED88U |= 0xFU << 20; /* CPACR: floating point and vector unit on */
    __asm__ volatile("dsb\n\tisb" : : : "memory");
    (void)main();
    for (;;) {
    }
}

typedef struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} xd_vector_table;

__attribute__((section(".vectors"), used)) const xd_vector_table xd_vectors = {
    &xd_stack_top, {xd_reset, xd_fault, xd_fault, xd_fault, xd_fault, xd_fault, xd_fault, xd_fault},
};
