/* Two threads in a C program: one scene by name, 0 if all is as it should be, 77 where there is no second thread.
 * golden.bin holds an input and the output that belongs to it. */
#define _GNU_SOURCE
#include "xd_net.h"
#include "xd_net_threads.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static XD_NET_ALIGNED int8_t input[XD_NET_INPUT_BYTES], expected[XD_NET_OUTPUT_BYTES];

static int many(int count)
{
    void *const arena = aligned_alloc(64, (XD_NET_ARENA_BYTES + 63) / 64 * 64);
    int8_t *const output = aligned_alloc(64, (XD_NET_OUTPUT_BYTES + 63) / 64 * 64);
    int wrong = 0;
    for (int i = 0; i < count; ++i) {
        memset(output, i, XD_NET_OUTPUT_BYTES);
        wrong += xd_net_run(input, output, arena) != 0 || memcmp(output, expected, sizeof expected) != 0;
    }
    free(arena);
    free(output);
    return wrong;
}

static void *caller(void *count) { return (void *)(intptr_t)many((int)(intptr_t)count); }

static pthread_t who;
static void note(const int8_t *i, int8_t *o, int8_t *a) { (void)i; (void)o; (void)a; who = pthread_self(); }

static double cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int together(int count, int toggles)
{
    pthread_t others[2];
    void *wrong = 0;
    int sum = 0;
    for (int i = 0; i < 2; ++i) pthread_create(&others[i], 0, caller, (void *)(intptr_t)count);
    for (int i = 0; i < toggles; ++i) xd_net_set_threads(1 + i % 2);
    for (int i = 0; i < 2; ++i) { pthread_join(others[i], &wrong); sum += (int)(intptr_t)wrong; }
    return sum;
}

static int forked(void)
{
    int status = 0;
    if (fork() == 0) {
        int wrong = xd_net_threads() != 1 || many(20) != 0;
        wrong |= xd_net_set_threads(2) != 0 || xd_net_threads() != 2 || many(100) != 0;
        exit(wrong); /* the destructor ends the child's worker */
    }
    wait(&status);
    return status != 0 || many(100) != 0;
}

/* The worker takes an offer in time, on its own thread, and an offer that was taken back is not computed. */
static int taken(void)
{
    int two = xd_net_begin(), took = 0;
    if (two != 2) return 1;
    for (int i = 0; i < 5000 && !took; ++i) {
        xd_net_offer(two, note, 0, 0, 0);
        usleep(100);
        took = xd_net_done(two);
    }
    xd_net_end(two);
    return !took || pthread_equal(who, pthread_self());
}

static int idle(void)
{
    double before;
    many(10);
    usleep(50000);
    before = cpu();
    usleep(400000);
    return cpu() - before > 0.02;
}

int main(int count, char **words)
{
    FILE *const file = fopen("golden.bin", "rb");
    const char *const scene = count > 1 ? words[1] : "";
    if (!file || fread(input, sizeof input, 1, file) != 1 || fread(expected, sizeof expected, 1, file) != 1) return 2;
    if (many(1)) return 3;
    if (xd_net_set_threads(2) != 0) return 77;
    if (!strcmp(scene, "many")) return many(2000) != 0;
    if (!strcmp(scene, "together")) return together(500, 0) != 0;
    if (!strcmp(scene, "toggled")) return together(500, 200) != 0;
    if (!strcmp(scene, "forked")) return forked();
    if (!strcmp(scene, "taken")) return taken();
    if (!strcmp(scene, "idle")) return idle();
    return 4;
}
