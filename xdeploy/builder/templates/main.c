$banner
/* ${name} [OPTION N]... [INPUTS [OUTPUTS]]: int8 codes from a file or stdin, one input behind the other, to a file or
 * stdout.
 *   --repeat N    time N inferences of each input; the mean and the least nanoseconds go to stderr
 *   --loop N      N inferences of each input without a clock, for counters outside of this program
 *   --bursts N    after all inputs, time N bursts of the first one, memory and clock warm; see --times
 *   --times FILE  where the bursts are written: one line "burst <inferences> <nanoseconds>" each, and what else is known
 *   --pin CPU     run on this CPU only (Linux)
 *   --limit S     end with SIGALRM after S seconds */
#if defined(__linux__)
#define _GNU_SOURCE /* sched_setaffinity */
#include <sched.h>
#else
#define _XOPEN_SOURCE 600
#endif
#include "$name.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define BURST_NS 2e6 /* a burst runs at least this long, and a thousand ticks of the clock */
#define WARM_NS 2e8  /* and the bursts begin after this long, when the CPU's governor has seen the load */

static ${upper}_ALIGNED ${name}_input input;
static ${upper}_ALIGNED ${name}_input first;
static ${upper}_ALIGNED ${name}_output output;
static ${upper}_ALIGNED ${name}_arena arena;

struct options {
    long repeat, loop, bursts, pin, limit;
    const char *times, *inputs, *outputs;
};

static double nanoseconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static int failed(const char *what)
{
    perror(what);
    return 2;
}

static int whole(const char *text, long least, long *value)
{
    char *end;
    *value = strtol(text, &end, 10);
    return end != text && *end == '\0' && *value >= least;
}

static int parse(int argc, char **argv, struct options *o)
{
    int at = 1, good = 1;
    for (; good && at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        const char *key = argv[at], *value = argv[at + 1];
        if (strcmp(key, "--repeat") == 0) {
            good = whole(value, 1, &o->repeat);
        } else if (strcmp(key, "--loop") == 0) {
            good = whole(value, 1, &o->loop);
        } else if (strcmp(key, "--bursts") == 0) {
            good = whole(value, 1, &o->bursts);
        } else if (strcmp(key, "--pin") == 0) {
            good = whole(value, 0, &o->pin);
        } else if (strcmp(key, "--limit") == 0) {
            good = whole(value, 1, &o->limit);
        } else if (strcmp(key, "--times") == 0) {
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
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < 0 || cpu >= CPU_SETSIZE) {
        return 0;
    }
    CPU_SET((size_t)cpu, &set);
    return sched_setaffinity(0, sizeof set, &set) == 0;
#else
    (void)cpu;
    return 0;
#endif
}

/* Nanoseconds of `count` inferences of the first input; `bad` is set when one returns an error. */
static double burst(long count, int *bad)
{
    double start = nanoseconds();
    long i;
    for (i = 0; i < count; ++i) {
        *bad |= ${name}_run(first, output, arena);
    }
    return nanoseconds() - start;
}

static int write_times(const struct options *o, int pinned)
{
    FILE *to = fopen(o->times, "w");
    struct timespec tick = {0, 1};
    struct rusage used;
    double least = BURST_NS, spent = 0.0, warm = nanoseconds();
    long count = 1, i;
    int bad = 0;

    if (to == NULL) {
        return failed(o->times);
    }
    (void)clock_getres(CLOCK_MONOTONIC, &tick);
    least = (double)tick.tv_nsec * 1e3 > least ? (double)tick.tv_nsec * 1e3 : least;
    while (bad == 0 && (spent = burst(count, &bad)) < least && count < (1L << 30)) {
        count *= 2;
    }
    while (bad == 0 && nanoseconds() - warm < WARM_NS) {
        (void)burst(count, &bad);
    }
    (void)fprintf(to, "resolution %ld\npinned %ld\n", (long)tick.tv_nsec, pinned ? o->pin : -1L);
    for (i = 0; bad == 0 && i < o->bursts; ++i) {
        spent = burst(count, &bad);
        (void)fprintf(to, "burst %ld %.0f\n", count, spent);
    }
    if (getrusage(RUSAGE_SELF, &used) == 0) {
        (void)fprintf(to, "rss %ld\n", (long)used.ru_maxrss);
    }
    i = ferror(to);
    if (fclose(to) != 0 || i != 0) {
        return failed("writing times");
    }
    return bad != 0;
}

/* All inferences of `input`; adds to the sum of nanoseconds and lowers the least where they are timed. */
static int infer(const struct options *o, double *total, double *least)
{
    long i;
    for (i = 0; i < o->loop; ++i) {
        int status = ${name}_run(input, output, arena);
        if (status != ${upper}_OK) {
            return status;
        }
    }
    for (i = 0; i < o->repeat; ++i) {
        double start = nanoseconds(), spent;
        int status = ${name}_run(input, output, arena);
        spent = nanoseconds() - start;
        if (status != ${upper}_OK) {
            return status;
        }
        *total += spent;
        *least = (*least < 0.0 || spent < *least) ? spent : *least;
    }
    return ${upper}_OK;
}

int main(int argc, char **argv)
{
    struct options o = {0, 0, 0, -1, 0, NULL, NULL, NULL};
    FILE *from = stdin, *to = stdout;
    double total = 0.0, least = -1.0;
    long done = 0;
    int pinned;

    if (!parse(argc, argv, &o)) {
        (void)fprintf(stderr, "usage: %s [--repeat N] [--loop N] [--bursts N --times FILE] [--pin CPU] [--limit S] "
                      "[INPUTS [OUTPUTS]]\n", argv[0]);
        return 2;
    }
    o.loop += (o.repeat == 0 && o.loop == 0);
    pinned = o.pin >= 0 && pin(o.pin);
    (void)alarm((unsigned)o.limit);
    if (o.inputs != NULL && (from = fopen(o.inputs, "rb")) == NULL) {
        return failed(o.inputs);
    }
    if (o.outputs != NULL && (to = fopen(o.outputs, "wb")) == NULL) {
        return failed(o.outputs);
    }
    for (; fread(input, sizeof input, 1, from) == 1; ++done) {
        int status = infer(&o, &total, &least);
        if (status != ${upper}_OK) {
            (void)fprintf(stderr, "${name}_run returned %d\n", status);
            return 1;
        }
        if (done == 0) {
            (void)memcpy(first, input, sizeof first);
        }
        if (fwrite(output, sizeof output, 1, to) != 1) {
            return failed("writing outputs");
        }
    }
    if (fclose(to) != 0) {
        return failed("writing outputs");
    }
    if (o.repeat > 1 && done > 0) {
        (void)fprintf(stderr, "%.0f ns per inference, least %.0f\n", total / (double)(done * o.repeat), least);
    }
    return (o.bursts > 0 && done > 0) ? write_times(&o, pinned) : 0;
}
