$banner
/* ${name} [--repeat N] [INPUTS [OUTPUTS]]: int8 codes from a file or stdin, one input behind the other, to a file or
 * stdout. --repeat N times N inferences of each input and prints the mean and the least nanoseconds to stderr. */
#define _POSIX_C_SOURCE 199309L
#include "$name.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static ${upper}_ALIGNED ${name}_input input;
static ${upper}_ALIGNED ${name}_output output;
static ${upper}_ALIGNED ${name}_arena arena;

static double nanoseconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

int main(int argc, char **argv)
{
    FILE *from = stdin, *to = stdout;
    long repeat = 1, done = 0;
    double total = 0.0, least = 0.0;
    int at = 1;

    if (argc > 2 && strcmp(argv[1], "--repeat") == 0) {
        repeat = strtol(argv[2], NULL, 10);
        at = 3;
    }
    if (repeat < 1 || argc - at > 2) {
        (void)fprintf(stderr, "usage: %s [--repeat N] [INPUTS [OUTPUTS]]\n", argv[0]);
        return 2;
    }
    if (at < argc && (from = fopen(argv[at], "rb")) == NULL) {
        perror(argv[at]);
        return 2;
    }
    if (at + 1 < argc && (to = fopen(argv[at + 1], "wb")) == NULL) {
        perror(argv[at + 1]);
        return 2;
    }
    while (fread(input, sizeof input, 1, from) == 1) {
        long i;
        for (i = 0; i < repeat; ++i) {
            double start = nanoseconds(), spent;
            int status = ${name}_run(input, output, arena);
            spent = nanoseconds() - start;
            if (status != ${upper}_OK) {
                (void)fprintf(stderr, "${name}_run returned %d\n", status);
                return 1;
            }
            total += spent;
            least = (done == 0 || spent < least) ? spent : least;
            ++done;
        }
        if (fwrite(output, sizeof output, 1, to) != 1) {
            perror("writing outputs");
            return 1;
        }
    }
    if (fclose(to) != 0) {
        perror("writing outputs");
        return 1;
    }
    if (repeat > 1 && done > 0) {
        (void)fprintf(stderr, "%.0f ns per inference, least %.0f\n", total / (double)done, least);
    }
    return 0;
}
