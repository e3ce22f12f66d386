/* Runs all calls, compares their outputs, tells through port 0xE9 and switches the machine off through port 0x8900. */
#include <stdint.h>

typedef int64_t word;
typedef void (*function)(word, word, word, word, word, word, word, word, word, word, word, word, word, word, word, word,
                         word, word, word, word, word, word, word, word);
struct call {
    char *function;
    word args[24], output, wanted, size;
};
extern const struct call calls[];
extern const int count;

static void put(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void say(uint16_t port, const char *text)
{
    while (*text != '\0') {
        put(port, (uint8_t)*text++);
    }
}

static void number(unsigned long value)
{
    char digits[24] = {0};
    int at = 23;

    do {
        digits[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    say(0xE9, digits + at);
}

__attribute__((section(".text.start"))) void start(void)
{
    unsigned long bad = 0;

    for (int i = 0; i < count; ++i) {
        const struct call *const c = &calls[i];
        const word *const a = c->args;
        const uint8_t *const output = (const uint8_t *)c->output, *const wanted = (const uint8_t *)c->wanted;
        unsigned long wrong = 0;

        ((function)(word)c->function)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
                                      a[13], a[14], a[15], a[16], a[17], a[18], a[19], a[20], a[21], a[22], a[23]);
        for (word k = 0; k < c->size; ++k) {
            wrong += output[k] != wanted[k];
        }
        if (wrong != 0) {
            ++bad;
            say(0xE9, "call ");
            number((unsigned long)i);
            say(0xE9, " differs\n");
        }
    }
    say(0xE9, "calls ");
    number((unsigned long)count);
    say(0xE9, " bad ");
    number(bad);
    say(0xE9, "\n");
    say(0x8900, "Shutdown");
    for (;;) {
        __asm__ volatile("hlt");
    }
}
