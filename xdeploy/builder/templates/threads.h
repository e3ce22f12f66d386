$banner
/* What lets a second thread compute one half of a layer; ${name}_set_threads in $name.h starts it. It is there under
 * Linux only, and not where ${upper}_ONE_THREAD is defined: then all of this comes to nothing. */
#ifndef ${upper}_THREADS_H
#define ${upper}_THREADS_H

#include <stdint.h>

#if defined(__linux__) && !defined(${upper}_ONE_THREAD)
#define ${upper}_WORKER
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef void (*${name}_half)(const int8_t *input, int8_t *output, int8_t *arena);

#ifdef ${upper}_WORKER
/* An inference begins: 2 where it has the second thread for itself until ${name}_end, else 0 or 1. */
int ${name}_begin(void);
void ${name}_end(int threads);

/* Let the second thread compute a half, if there is one (threads = 2). */
void ${name}_offer(int threads, ${name}_half half, const int8_t *input, int8_t *output, int8_t *arena);

/* 1 when it has done so; 0 where it has not begun: then it does not begin any more, and the half is the caller's. */
int ${name}_done(int threads);
#else
static inline int ${name}_begin(void)
{
    return 0;
}

static inline void ${name}_end(int threads)
{
    (void)threads;
}

static inline void ${name}_offer(int threads, ${name}_half half, const int8_t *input, int8_t *output, int8_t *arena)
{
    (void)threads;
    (void)half;
    (void)input;
    (void)output;
    (void)arena;
}

static inline int ${name}_done(int threads)
{
    (void)threads;
    return 0;
}
#endif

#ifdef __cplusplus
}
#endif

#endif
