/* What a static Linux program needs of the system, without a C library: system calls, files, numbers as text.
 *
 * The program defines `int program(int count, char **words)` and includes this once. Without it a C library would have
 * to be compiled for each kind of CPU before the first program of a machine is there, a minute or two of work. Numbers of
 * system calls: arch/{x86,arm64,arm} of Linux; they never change. */
#ifndef XD_LINUX_H
#define XD_LINUX_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
enum { SYS_READ = 0, SYS_WRITE = 1, SYS_CLOSE = 3, SYS_SETITIMER = 38, SYS_EXIT = 231, SYS_GETRUSAGE = 98,
       SYS_AFFINITY = 203, SYS_CLOCK = 228, SYS_CLOCK_TICK = 229, SYS_OPENAT = 257 };
__asm__(".text\n.globl xd_entry\nxd_entry:\n xorl %ebp, %ebp\n movq %rsp, %rdi\n andq $-64, %rsp\n call xd_begin\n"
        ".globl xd_system\nxd_system:\n movq %rdi, %rax\n movq %rsi, %rdi\n movq %rdx, %rsi\n movq %rcx, %rdx\n"
        " movq %r8, %r10\n syscall\n ret\n");
#elif defined(__aarch64__)
enum { SYS_READ = 63, SYS_WRITE = 64, SYS_CLOSE = 57, SYS_SETITIMER = 103, SYS_EXIT = 94, SYS_GETRUSAGE = 165,
       SYS_AFFINITY = 122, SYS_CLOCK = 113, SYS_CLOCK_TICK = 114, SYS_OPENAT = 56 };
__asm__(".text\n.globl xd_entry\nxd_entry:\n mov x29, #0\n mov x0, sp\n and sp, x0, #-64\n bl xd_begin\n"
        ".globl xd_system\nxd_system:\n mov x8, x0\n mov x0, x1\n mov x1, x2\n mov x2, x3\n mov x3, x4\n svc #0\n ret\n");
#elif defined(__arm__)
enum { SYS_READ = 3, SYS_WRITE = 4, SYS_CLOSE = 6, SYS_SETITIMER = 104, SYS_EXIT = 248, SYS_GETRUSAGE = 77,
       SYS_AFFINITY = 241, SYS_CLOCK = 263, SYS_CLOCK_TICK = 264, SYS_OPENAT = 322 };
__asm__(".text\n.arm\n.p2align 2\n.globl xd_entry\n.type xd_entry, %function\nxd_entry:\n mov r11, #0\n mov r0, sp\n"
        " bic sp, sp, #63\n bl xd_begin\n"
        ".globl xd_system\n.type xd_system, %function\nxd_system:\n push {r4, r7}\n mov r7, r0\n mov r0, r1\n mov r1, r2\n"
        " mov r2, r3\n ldr r3, [sp, #8]\n svc #0\n pop {r4, r7}\n bx lr\n");
#else
#error "the numbers of this CPU's system calls are not known here"
#endif

enum { STANDARD_INPUT = 0, STANDARD_OUTPUT = 1, STANDARD_ERROR = 2 };

/* The call's result, or minus its error number. */
long xd_system(long number, long a, long b, long c, long d);
void xd_begin(long *stack);
static int program(int count, char **words);

/* What the system tells of the CPU, by the numbers of <sys/auxv.h>; 0: nothing. Pairs up to the number 0. */
unsigned long getauxval(unsigned long number);
static const unsigned long *xd_told;

unsigned long getauxval(unsigned long number)
{
    const unsigned long *at = xd_told;
    while (at[0] != 0UL && at[0] != number) {
        at += 2;
    }
    return at[0] == number ? at[1] : 0UL;
}

/* Functions that run before the program; the linker tells where their addresses lie. */
typedef void (*xd_constructor)(void);
extern const xd_constructor __init_array_start[] __attribute__((weak, visibility("hidden")));
extern const xd_constructor __init_array_end[] __attribute__((weak, visibility("hidden")));

/* stack: as the system leaves it: the number of words, their addresses, 0, those of the environment, 0, what it tells. */
void xd_begin(long *stack)
{
    const long *at = &stack[1L + stack[0] + 1L];
    const xd_constructor *each;
    long code;

    while (*at != 0L) {
        ++at;
    }
    xd_told = (const unsigned long *)&at[1];
    for (each = __init_array_start; each != __init_array_end; ++each) {
        (*each)();
    }
    code = program((int)stack[0], (char **)&stack[1]);
    for (;;) {
        (void)xd_system(SYS_EXIT, code, 0L, 0L, 0L);
    }
}

static inline int is_equal(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b) {
        ++a;
        ++b;
    }
    return *a == *b;
}

/* ----------------------------------------------------------------------------------------------------- files */
static inline long open_to_read(const char *path)
{
    return xd_system(SYS_OPENAT, -100L, (long)path, 0L, 0L); /* AT_FDCWD, O_RDONLY */
}

static inline long open_to_write(const char *path)
{
    const long create = 01L | 0100L | 01000L; /* O_WRONLY | O_CREAT | O_TRUNC */
    return xd_system(SYS_OPENAT, -100L, (long)path, create, 0644L);
}

/* All `size` bytes by SYS_READ or SYS_WRITE, or as many as come before an end or an error. */
static inline size_t transfer(long call, long file, void *bytes, size_t size)
{
    size_t done = 0;
    while (done < size) {
        long now = xd_system(call, file, (long)((char *)bytes + done), (long)(size - done), 0L);
        if (now <= 0L) {
            break;
        }
        done += (size_t)now;
    }
    return done;
}

/* ------------------------------------------------------------------------------------------------------ text */
/* Whether all of it was written. */
static inline int write_text(long file, const char *text)
{
    size_t size = 0;
    while (text[size] != '\0') {
        ++size;
    }
    return transfer(SYS_WRITE, file, (void *)(uintptr_t)text, size) == size;
}

static inline int write_number(long file, int64_t value)
{
    char text[24];
    size_t at = sizeof text - 1U;
    uint64_t left = value < 0 ? 0U - (uint64_t)value : (uint64_t)value;
    text[at] = '\0';
    do {
        text[--at] = (char)('0' + (char)(left % 10U));
        left /= 10U;
    } while (left != 0U);
    if (value < 0) {
        text[--at] = '-';
    }
    return write_text(file, &text[at]);
}

#endif
