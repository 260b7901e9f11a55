/* Work that threads share: each takes the next piece until none is left. */
#ifndef PTUNING_KERNELS_H
#define PTUNING_KERNELS_H

#include "ptuning.h"

#define INLINE static inline __attribute__((always_inline))

/* First member of the arguments of every task. */
typedef struct {
    int64_t next;
} work_queue;

INLINE int64_t next_piece(work_queue *queue) { return __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED); }

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Run a task in so many threads at once, its queue from the start on, until all have ended. */
void run_task(task work, void *arguments, parallel pool, int threads);

#endif
