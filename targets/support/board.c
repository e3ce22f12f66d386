/* Start-up and harness for QEMU's Cortex-M boards. Inputs are loaded into memory beforehand, one slot each; outputs
 * and the stack's high-water mark are written to a file by semihosting. All of this lies in the section .harness, so
 * that an instruction counter can leave it out. The blob: count (32 bit), padding up to XD_SLOT, then the inputs. */
#include XD_HEADER

#define HARNESS __attribute__((section(".harness"), noinline, used))
#define SLOT(n) (((n) + 63U) / 64U * 64U)
#define PAINT 0xA5C3F01EU
#define STACK_CHECKED 65536U

extern uint32_t xd_stack_limit, xd_stack_top;

static XD_UPPER(ALIGNED) XD(arena) arena;
static XD_UPPER(ALIGNED) XD(output) output;

HARNESS static int semihost(int operation, const void *block)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

HARNESS static void put(int file, const void *data, uint32_t size)
{
    uint32_t block[3];
    block[0] = (uint32_t)file;
    block[1] = (uint32_t)data;
    block[2] = size;
    (void)semihost(5, block); /* SYS_WRITE */
}

HARNESS static uint32_t *stack_low(void)
{
    uint32_t *top = &xd_stack_top, *low = &xd_stack_limit;
    return ((uint32_t)top - (uint32_t)low > STACK_CHECKED) ? top - STACK_CHECKED / 4U : low;
}

HARNESS static int run_once(const int8_t *input, uint32_t *deepest)
{
    uint32_t *sp, *at;
    int status;
    __asm__ volatile("mov %0, sp" : "=r"(sp));
    for (at = stack_low(); at < sp; ++at) {
        *(volatile uint32_t *)at = PAINT;
    }
    status = XD(run)(input, output, arena);
    for (at = stack_low(); at < sp && *(volatile uint32_t *)at == PAINT; ++at) {
    }
    if ((uint32_t)sp - (uint32_t)at > *deepest) {
        *deepest = (uint32_t)sp - (uint32_t)at;
    }
    return status;
}

HARNESS void xd_main(void)
{
    static const char name[] = "outputs.bin";
    const int8_t *blob = (const int8_t *)XD_BLOB;
    uint32_t count = *(const uint32_t *)XD_BLOB, i, open[3], deepest = 0U;
    int file, status = 0;

    open[0] = (uint32_t)name;
    open[1] = 5U; /* "wb" */
    open[2] = sizeof name - 1U;
    file = semihost(1, open); /* SYS_OPEN */
    for (i = 0U; i < count && status == 0; ++i) {
        status = run_once(blob + 64U + i * SLOT(XD_UPPER(INPUT_BYTES)), &deepest);
        put(file, output, XD_UPPER(OUTPUT_BYTES));
    }
    put(file, &status, 4U);
    put(file, &deepest, 4U);
    open[0] = (uint32_t)file;
    (void)semihost(2, open);                    /* SYS_CLOSE */
    (void)semihost(0x18, (const void *)0x20026); /* SYS_EXIT, ADP_Stopped_ApplicationExit */
    for (;;) {
    }
}

HARNESS void xd_fault(void)
{
    (void)semihost(0x18, (const void *)0x20023); /* ADP_Stopped_RunTimeError */
    for (;;) {
    }
}

HARNESS void xd_reset(void)
{
    *(volatile uint32_t *)0xE000ED88U |= 0xFU << 20; /* CPACR: floating point and vector unit on */
    __asm__ volatile("dsb\n\tisb" : : : "memory");
    xd_main();
}

/* The stack pointer and reset, then every exception ends the run. */
__attribute__((section(".vectors"), used)) void *const xd_vectors[16] = {
    &xd_stack_top, (void *)xd_reset, (void *)xd_fault, (void *)xd_fault,
    (void *)xd_fault, (void *)xd_fault, (void *)xd_fault, (void *)xd_fault,
};
