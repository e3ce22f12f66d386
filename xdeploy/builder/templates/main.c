$banner
/* ${name} [OPTION N]... [INPUTS [OUTPUTS]]: int8 codes from a file or stdin, one input behind the other, to a file or
 * stdout.
 *   --repeat N    time N inferences of each input; the mean and the least nanoseconds go to stderr
 *   --loop N      N inferences of each input without a clock, for counters outside of this program
 *   --bursts N    after all inputs, time N bursts of the first one, memory and clock warm; see --times
 *   --times FILE  where the bursts are written: one line "burst <inferences> <nanoseconds>" each, and what else is known
 *   --pin CPU     run on this CPU only
 *   --limit S     end with SIGALRM after S seconds
 *
 * The system is Linux, and no C library is needed: linux.h stands in for it. */
#include "$name.h"

#include "linux.h"

#define BURST_NS 2000000  /* a burst runs at least this long, and a thousand ticks of the clock */
#define WARM_NS 200000000 /* and the bursts begin after this long, when the CPU's governor has seen the load */
#define MOST 1000000000L
#define CPUS 1024
#define EIO_ (-5L) /* what a write that stays short is told as */

static ${upper}_ALIGNED ${name}_input input;
static ${upper}_ALIGNED ${name}_input first;
static ${upper}_ALIGNED ${name}_output output;
static ${upper}_ALIGNED ${name}_arena arena;

struct options {
    long repeat, loop, bursts, pin, limit;
    const char *times, *inputs, *outputs;
};

/* Of the monotonic clock: its time, or with SYS_CLOCK_TICK its resolution. */
static int64_t nanoseconds(long call)
{
    long time[2] = {0, 1};
    (void)xd_system(call, 1L, (long)time, 0L, 0L);
    return (int64_t)time[0] * 1000000000 + time[1];
}

/* A line of a word and up to two numbers, of which a negative second one is left out. */
static int line(long file, const char *word, int64_t one, int64_t two)
{
    int good = write_text(file, word) && write_text(file, " ") && write_number(file, one);
    if (two >= 0) {
        good = good && write_text(file, " ") && write_number(file, two);
    }
    return good && write_text(file, "\n");
}

static int failed(const char *what, long error)
{
    (void)write_text(STANDARD_ERROR, what);
    (void)line(STANDARD_ERROR, ": the system refuses it, error", -error, -1);
    return 2;
}

static int whole(const char *text, long least, long *value)
{
    const char *at = text;
    for (*value = 0; *at >= '0' && *at <= '9' && *value <= MOST / 10; ++at) {
        *value = *value * 10 + (*at - '0');
    }
    return at != text && *at == '\0' && *value >= least;
}

static int parse(int argc, char **argv, struct options *o)
{
    int at = 1, good = 1;
    for (; good && at + 1 < argc && argv[at][0] == '-' && argv[at][1] == '-'; at += 2) {
        const char *key = argv[at], *value = argv[at + 1];
        if (is_equal(key, "--repeat")) {
            good = whole(value, 1, &o->repeat);
        } else if (is_equal(key, "--loop")) {
            good = whole(value, 1, &o->loop);
        } else if (is_equal(key, "--bursts")) {
            good = whole(value, 1, &o->bursts);
        } else if (is_equal(key, "--pin")) {
            good = whole(value, 0, &o->pin);
        } else if (is_equal(key, "--limit")) {
            good = whole(value, 1, &o->limit);
        } else if (is_equal(key, "--times")) {
            o->times = value;
        } else {
            good = 0;
        }
    }
    o->inputs = at < argc ? argv[at] : NULL;
    o->outputs = at + 1 < argc ? argv[at + 1] : NULL;
    return good && argc - at <= 2 && (o->bursts > 0) == (o->times != NULL);
}

static int pin(long cpu)
{
    unsigned long set[CPUS / 8 / sizeof(unsigned long)] = {0};
    const long bits = 8 * (long)sizeof(unsigned long);
    if (cpu < 0 || cpu >= CPUS) {
        return 0;
    }
    set[cpu / bits] = 1UL << (cpu % bits);
    return xd_system(SYS_AFFINITY, 0L, (long)sizeof set, (long)set, 0L) >= 0L;
}

/* Nanoseconds of `count` inferences of the first input; `bad` is set when one returns an error. */
static int64_t burst(long count, int *bad)
{
    int64_t start = nanoseconds(SYS_CLOCK);
    long i;
    for (i = 0; i < count; ++i) {
        *bad |= ${name}_run(first, output, arena);
    }
    return nanoseconds(SYS_CLOCK) - start;
}

static int write_times(const struct options *o, int pinned)
{
    long to = open_to_write(o->times), usage[36] = {0}, count = 1, i;
    int64_t tick = nanoseconds(SYS_CLOCK_TICK), warm = nanoseconds(SYS_CLOCK), spent = 0;
    int64_t least = tick * 1000 > BURST_NS ? tick * 1000 : BURST_NS;
    int bad = 0, good;

    if (to < 0L) {
        return failed(o->times, to);
    }
    while (bad == 0 && (spent = burst(count, &bad)) < least && count < (1L << 30)) {
        count *= 2;
    }
    while (bad == 0 && nanoseconds(SYS_CLOCK) - warm < WARM_NS) {
        (void)burst(count, &bad);
    }
    good = line(to, "resolution", tick, -1) && line(to, "pinned", pinned ? o->pin : -1L, -1);
    for (i = 0; bad == 0 && i < o->bursts; ++i) {
        spent = burst(count, &bad);
        good = good && line(to, "burst", count, spent);
    }
    if (xd_system(SYS_GETRUSAGE, 0L, (long)usage, 0L, 0L) == 0L) {
        good = good && line(to, "rss", usage[4], -1); /* behind two times of two words each: kilobytes at the most */
    }
    if (xd_system(SYS_CLOSE, to, 0L, 0L, 0L) < 0L || !good) {
        return failed(o->times, EIO_);
    }
    return bad != 0;
}

/* All inferences of `input`; adds to the sum of nanoseconds and lowers the least where they are timed. */
static int infer(const struct options *o, int64_t *total, int64_t *least)
{
    long i;
    for (i = 0; i < o->loop; ++i) {
        int status = ${name}_run(input, output, arena);
        if (status != ${upper}_OK) {
            return status;
        }
    }
    for (i = 0; i < o->repeat; ++i) {
        int64_t start = nanoseconds(SYS_CLOCK), spent;
        int status = ${name}_run(input, output, arena);
        spent = nanoseconds(SYS_CLOCK) - start;
        if (status != ${upper}_OK) {
            return status;
        }
        *total += spent;
        *least = (*least < 0 || spent < *least) ? spent : *least;
    }
    return ${upper}_OK;
}

/* All inputs of a file; the first one is kept. The number of them, or minus the code that the program ends with. */
static long run_all(const struct options *o, long from, long to, int64_t *total, int64_t *least)
{
    long done = 0;
    size_t i;
    for (; transfer(SYS_READ, from, input, sizeof input) == sizeof input; ++done) {
        int status = infer(o, total, least);
        if (status != ${upper}_OK) {
            (void)line(STANDARD_ERROR, "${name}_run returned", status, -1);
            return -1L;
        }
        for (i = 0; done == 0 && i < sizeof first; ++i) {
            first[i] = input[i];
        }
        if (transfer(SYS_WRITE, to, output, sizeof output) != sizeof output) {
            return -failed("writing outputs", EIO_);
        }
    }
    return done;
}

static int program(int argc, char **argv)
{
    struct options o = {0, 0, 0, -1, 0, NULL, NULL, NULL};
    long from = STANDARD_INPUT, to = STANDARD_OUTPUT, done, alarm[4] = {0, 0, 0, 0};
    int64_t total = 0, least = -1;
    int pinned;

    if (!parse(argc, argv, &o)) {
        (void)write_text(STANDARD_ERROR, "usage: ${name} [--repeat N] [--loop N] [--bursts N --times FILE] [--pin CPU] "
                         "[--limit S] [INPUTS [OUTPUTS]]\n");
        return 2;
    }
    o.loop += (o.repeat == 0 && o.loop == 0);
    pinned = o.pin >= 0 && pin(o.pin);
    alarm[2] = o.limit;
    (void)xd_system(SYS_SETITIMER, 0L, (long)alarm, 0L, 0L);
    if (o.inputs != NULL && (from = open_to_read(o.inputs)) < 0L) {
        return failed(o.inputs, from);
    }
    if (o.outputs != NULL && (to = open_to_write(o.outputs)) < 0L) {
        return failed(o.outputs, to);
    }
    done = run_all(&o, from, to, &total, &least);
    if (done < 0L) {
        return (int)-done;
    }
    if (xd_system(SYS_CLOSE, to, 0L, 0L, 0L) < 0L) {
        return failed("writing outputs", EIO_);
    }
    if (o.repeat > 1 && done > 0) {
        (void)write_number(STANDARD_ERROR, total / ((int64_t)done * o.repeat));
        (void)line(STANDARD_ERROR, " ns per inference, least", least, -1);
    }
    return (o.bursts > 0 && done > 0) ? write_times(&o, pinned) : 0;
}
