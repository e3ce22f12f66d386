/* Start-up of a Cortex-M4 or later: stack, floating-point and vector unit, variables, then main. Where things lie is
 * said by sections.ld. There is no MPU to set up: the stack stands at the start of RAM, so that one that overflows does
 * not get at the variables; it leaves RAM, or on a core with a stack limit ends in `fault`. */
#include "board.h"
#include "console.h"

#include <stdint.h>

#define CCR (*(volatile uint32_t *)0xE000ED14U)
#define CFSR (*(volatile uint32_t *)0xE000ED28U)
#define CCR_LOB (1U << 19) /* Armv8.1-M: the core remembers low-overhead loops */

extern uint32_t data_start[], data_end[], data_load[];
extern uint32_t fast_start[], fast_end[], fast_load[];
extern uint32_t bss_start[], bss_end[];

extern uint64_t stack[];
__attribute__((section(".bss.stack"), used)) uint64_t stack[STACK_BYTES / 8];

__attribute__((noreturn)) void reset(void);
__attribute__((noreturn, used)) void begin(void);
__attribute__((noreturn, used)) void report_fault(void);
void fault(void);

/* Leaves the emulator, if this was compiled for one; a device waits here for its next reset. */
__attribute__((noreturn)) static void finish(int failed)
{
#ifdef END_BY_SEMIHOSTING
    register uint32_t operation __asm__("r0") = 0x18U;                      /* SYS_EXIT */
    register uint32_t reason __asm__("r1") = (failed == 0) ? 0x20026U : 0x20023U; /* application exit, run-time error */

    __asm__ volatile("bkpt 0xab" : "+r"(operation) : "r"(reason) : "memory");
#else
    (void)failed;
#endif
    for (;;) {
        __asm__ volatile("wfi");
    }
}

static void copy(uint32_t *to, const uint32_t *end, const uint32_t *from)
{
    while (to < end) {
        *to = *from;
        ++to;
        ++from;
    }
}

/* Before any code that may use the floating-point registers, so without a line of C in it that could. */
__attribute__((naked)) void reset(void)
{
    __asm__ volatile(
#if defined(__ARM_ARCH) && __ARM_ARCH >= 8
        "ldr r0, =stack\n\t"
        "msr msplim, r0\n\t"
#endif
        "ldr r0, =0xE000ED88\n\t" /* CPACR */
        "ldr r1, [r0]\n\t"
        "orr r1, r1, #0xF00000\n\t" /* CP10 and CP11: floating point and Helium */
        "str r1, [r0]\n\t"
        "dsb\n\t"
        "isb\n\t"
        "b begin\n\t"
        ".ltorg");
}

void begin(void)
{
    uint32_t *at;

#if defined(__ARM_FEATURE_MVE)
    CCR |= CCR_LOB;
#endif
    copy(data_start, data_end, data_load);
    copy(fast_start, fast_end, fast_load);
    for (at = bss_start; at < bss_end; ++at) {
        *at = 0U;
    }
    __asm__ volatile("dsb\n\tisb" : : : "memory"); /* code was written */
    finish(main());
}

/* Every exception: none is expected. The stack may be what is broken, so it begins anew. */
__attribute__((naked)) void fault(void)
{
    __asm__ volatile("ldr r0, =vectors\n\t"
                     "ldr r0, [r0]\n\t"
                     "mov sp, r0\n\t"
                     "b report_fault\n\t"
                     ".ltorg");
}

void report_fault(void)
{
    uint32_t exception;

    __asm__ volatile("mrs %0, ipsr" : "=r"(exception));
    put_text("\nfault: exception ");
    put_number((int32_t)exception);
    put_text(", CFSR ");
    put_hex(CFSR);
    put_text("\n");
    finish(1);
}

typedef struct {
    uint64_t *stack;
    void (*handlers[15])(void);
} vector_table;

/* A program with interrupts adds theirs behind these. */
__attribute__((section(".vectors"), used)) const vector_table vectors = {
    &stack[STACK_BYTES / 8],
    {reset, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault},
};
