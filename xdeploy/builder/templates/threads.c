$banner
/* The second thread. There is one for the whole library. It takes halves of layers from one place, `job`: whoever offers
 * one works on the other half, and takes the offer back if nobody has taken it by then. So an inference waits for work
 * that is being done, and never for a thread to wake up.
 *
 * A thread that waits spins for at most ${upper}_SPIN_NS, then sleeps. Where something else keeps the CPUs busy, one
 * thread is faster than two; so inferences are timed in blocks of ${upper}_BLOCK, and the faster way is taken, the other
 * one tried again ever more rarely.
 *
 * The word `state` is all that both sides change:
 *   IDLE -> OFFERED -> TAKEN -> IDLE       an offer, taken and done
 *   OFFERED -> IDLE                        taken back
 *   IDLE -> ASLEEP -> OFFERED or IDLE      the worker sleeps until it is woken
 *   TAKEN -> AWAITED -> IDLE               the caller sleeps until it is done
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity, syscall */
#endif
#include "$name.h"
#include "${name}_threads.h"

#ifdef ${upper}_WORKER

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef ${upper}_SPIN_NS
#define ${upper}_SPIN_NS 50000
#endif
#ifndef ${upper}_BLOCK
#define ${upper}_BLOCK 16
#endif
#define MOST_BLOCKS 64 /* between two trials of the slower way */
#define LINE 128 /* bytes: two cache lines, which some CPUs fetch together */

enum { IDLE, ASLEEP, OFFERED, TAKEN, AWAITED };

/* What is offered, and where it stands: one transfer between caches. */
static struct {
    int state;
    ${name}_half half;
    const int8_t *input;
    int8_t *output;
    int8_t *arena;
} job __attribute__((aligned(LINE)));

/* The inference that may have the worker, and what is known of those before; its own while `taken` is 1. */
static struct {
    int taken;
    int two;         /* whether this block's inferences have the second thread: 1 or 0 */
    int best;        /* which way was faster when both were tried last; a block that goes the other one is a trial */
    int runs;        /* of this block so far */
    int left;        /* blocks until the other way is tried */
    int pause;       /* blocks that this was the last time */
    int64_t begun;   /* when the inference began, in ns */
    int64_t sum;     /* of this block's, in ns, but for the first one, which wakes the worker */
    int64_t mean[2]; /* of the last block without and with it, in ns */
} runs __attribute__((aligned(LINE))) = {0, 1, 1, 0, 0, 0, 0, 0, {0, 0}};

/* Read by all, changed by set_threads. Processes are told apart because a fork has the memory and not the worker. */
static struct {
    int owner; /* the process that has a worker, or 0 */
    int quit;
    int changing; /* the process that is inside set_threads, or 0 */
    int process; /* the last one that started a worker */
    pthread_t worker;
} common __attribute__((aligned(LINE)));

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

static int64_t now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + (int64_t)t.tv_nsec;
}

static int become(int from, int to)
{
    return __atomic_compare_exchange_n(&job.state, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) ? 1 : 0;
}

static int state(void)
{
    return __atomic_load_n(&job.state, __ATOMIC_ACQUIRE);
}

/* Sleep while the state is `seen`. */
static void sleep_in(int seen)
{
    while (state() == seen) {
        (void)syscall(SYS_futex, &job.state, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    }
}

static void wake(void)
{
    (void)syscall(SYS_futex, &job.state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Spin until the state is OFFERED (offered = 1), or until it is not TAKEN (offered = 0); 0 after a while. */
static int spun(int offered)
{
    const int64_t until = now() + ${upper}_SPIN_NS;
    unsigned turns = 0U;

    for (;;) {
        const int seen = state();

        if ((offered != 0) ? (seen == OFFERED) : (seen != TAKEN)) {
            return 1;
        }
        pause_briefly();
        turns += 1U;
        if (((turns % 32U) == 0U) && (now() > until)) {
            return 0;
        }
    }
}

static void *work(void *unused)
{
    while (__atomic_load_n(&common.quit, __ATOMIC_SEQ_CST) == 0) {
        if (spun(1) != 0) {
            if (become(OFFERED, TAKEN) != 0) {
                job.half(job.input, job.output, job.arena);
                if (__atomic_exchange_n(&job.state, IDLE, __ATOMIC_ACQ_REL) == AWAITED) {
                    wake();
                }
            }
        } else if (become(IDLE, ASLEEP) != 0) {
            if (__atomic_load_n(&common.quit, __ATOMIC_SEQ_CST) == 0) {
                sleep_in(ASLEEP);
            }
        }
    }
    (void)become(ASLEEP, IDLE);
    return unused;
}

/* One more inference is done: at the end of a block, which way the next one goes. */
static void learn(int64_t took)
{
    runs.sum += (runs.runs > 0) ? took : 0;
    runs.runs += 1;
    if (runs.runs < ${upper}_BLOCK) {
        return;
    }
    runs.mean[runs.two] = runs.sum;
    runs.runs = 0;
    runs.sum = 0;
    if (runs.two == runs.best) {
        runs.left -= 1;
        runs.two = (runs.left > 0) ? runs.best : (1 - runs.best);
        return;
    }
    if (runs.mean[runs.two] < runs.mean[runs.best]) {
        runs.best = runs.two;
        runs.pause = 2;
    } else {
        runs.two = runs.best;
        runs.pause = (runs.pause < (MOST_BLOCKS / 2)) ? ((2 * runs.pause) + 2) : MOST_BLOCKS;
    }
    runs.left = runs.pause;
}

int ${name}_begin(void)
{
    const int owner = __atomic_load_n(&common.owner, __ATOMIC_ACQUIRE);

    if ((owner == 0) || (owner != (int)getpid()) || (__atomic_exchange_n(&runs.taken, 1, __ATOMIC_ACQUIRE) != 0)) {
        return 0;
    }
    runs.begun = now();
    if ((runs.two != 0) && (become(ASLEEP, IDLE) != 0)) {
        wake();
    }
    return (runs.two != 0) ? 2 : 1;
}

void ${name}_end(int threads)
{
    if (threads != 0) {
        learn(now() - runs.begun);
        __atomic_store_n(&runs.taken, 0, __ATOMIC_RELEASE);
    }
}

void ${name}_offer(int threads, ${name}_half half, const int8_t *input, int8_t *output, int8_t *arena)
{
    if (threads == 2) {
        job.half = half;
        job.input = input;
        job.output = output;
        job.arena = arena;
        if (__atomic_exchange_n(&job.state, OFFERED, __ATOMIC_ACQ_REL) == ASLEEP) {
            wake();
        }
    }
}

int ${name}_done(int threads)
{
    if ((threads != 2) || (become(OFFERED, IDLE) != 0)) {
        return 0;
    }
    if ((spun(0) == 0) && (become(TAKEN, AWAITED) != 0)) {
        sleep_in(AWAITED);
    }
    return 1;
}

/* How many CPUs this thread may run on. */
static int cpus(void)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    return (sched_getaffinity(0, sizeof set, &set) == 0) ? CPU_COUNT(&set) : 1;
}

static int start(void)
{
    const int self = (int)getpid();
    sigset_t all, before;
    int failed;

    if (cpus() < 2) {
        return -1;
    }
    __atomic_store_n(&common.quit, 0, __ATOMIC_SEQ_CST);
    if (common.process != self) {
        /* what a fork found here is of inferences that go on in the parent only */
        __atomic_store_n(&runs.taken, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&job.state, IDLE, __ATOMIC_SEQ_CST);
        common.process = self;
    }
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the program's business */
    failed = pthread_create(&common.worker, NULL, work, NULL);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed != 0) {
        return -1;
    }
    __atomic_store_n(&common.owner, self, __ATOMIC_RELEASE);
    return 0;
}

/* The worker finishes what it has begun; what it has not is taken back by whoever offered it. */
static void stop(void)
{
    __atomic_store_n(&common.owner, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&common.quit, 1, __ATOMIC_SEQ_CST);
    if (become(ASLEEP, IDLE) != 0) {
        wake();
    }
    (void)pthread_join(common.worker, NULL);
}

int ${name}_set_threads(int threads)
{
    const int self = (int)getpid();
    int status = 0;
    int holder = 0;
    int owns;

    if ((threads < 1) || (threads > ${upper}_THREADS)) {
        return -1;
    }
    /* one at a time; a holder that is another process is what this one was forked from */
    while (!__atomic_compare_exchange_n(&common.changing, &holder, self, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        if (holder == self) {
            (void)sched_yield();
            holder = 0;
        }
    }
    owns = (__atomic_load_n(&common.owner, __ATOMIC_ACQUIRE) == self) ? 1 : 0;
    if ((threads == 2) && (owns == 0)) {
        status = start();
    } else if ((threads == 1) && (owns != 0)) {
        stop();
    }
    __atomic_store_n(&common.changing, 0, __ATOMIC_RELEASE);
    return status;
}

int ${name}_threads(void)
{
    return (__atomic_load_n(&common.owner, __ATOMIC_ACQUIRE) == (int)getpid()) ? 2 : 1;
}

/* When the library is unloaded, and when the program ends. */
__attribute__((destructor)) static void unload(void)
{
    (void)${name}_set_threads(1);
}

#else

int ${name}_set_threads(int threads)
{
    return (threads == 1) ? 0 : -1;
}

int ${name}_threads(void)
{
    return 1;
}

#endif
