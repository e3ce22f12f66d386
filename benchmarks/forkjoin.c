/* What handing a half to the second thread of a package costs: compiled with its src/<name>_threads.c.
 *
 * forkjoin ROUNDS -> one JSON object of nanoseconds, each the 10th, 50th and 90th percentile over ROUNDS:
 * "handed_over": an empty half, from before it is offered until its outcome is known, waiting for the worker to take it;
 * "taken_back": the same, taken back at once, which is what an inference pays where the worker does not come.
 * BEGIN, END, OFFER, DONE, SET_THREADS are the package's functions.
 */
#define _GNU_SOURCE
#include HEADER
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST = 100000 };
static int64_t taken[MOST], back[MOST];
static int seen __attribute__((aligned(128)));

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void nothing(const int8_t *input, int8_t *output, int8_t *arena)
{
    (void)input, (void)output, (void)arena;
    __atomic_store_n(&seen, 1, __ATOMIC_RELEASE);
}

static int compare(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void tell(const char *name, int64_t *times, int count, const char *behind)
{
    qsort(times, (size_t)count, sizeof *times, compare);
    printf("\"%s\": [%lld, %lld, %lld]%s", name, (long long)times[count / 10], (long long)times[count / 2],
           (long long)times[count * 9 / 10], behind);
}

int main(int count, char **words)
{
    const int rounds = count > 1 && atoi(words[1]) < MOST ? atoi(words[1]) : MOST;
    int two;
    if (SET_THREADS(2) != 0) {
        return 77;
    }
    two = BEGIN();
    for (int i = 0; i < rounds; ++i) {
        int64_t start = now();
        OFFER(two, nothing, 0, 0, 0);
        back[i] = DONE(two) == 0 ? now() - start : 0;
        __atomic_store_n(&seen, 0, __ATOMIC_RELEASE);
        start = now();
        OFFER(two, nothing, 0, 0, 0);
        while (__atomic_load_n(&seen, __ATOMIC_ACQUIRE) == 0) {
        }
        (void)DONE(two);
        taken[i] = now() - start;
    }
    END(two);
    SET_THREADS(1);
    printf("{");
    tell("handed_over", taken, rounds, ", ");
    tell("taken_back", back, rounds, "}\n");
    return 0;
}
