/* Work that threads share: each takes the next piece until none is left. */
#ifndef PTUNING_KERNELS_H
#define PTUNING_KERNELS_H

#include "ptuning.h"

#define INLINE static inline __attribute__((always_inline))

/* First member of the arguments of every task. */
typedef struct {
    int64_t next;    /* piece of work */
    int64_t scratch; /* pieces of memory that threads have taken for themselves */
} work_queue;

INLINE int64_t next_piece(work_queue *queue) { return __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED); }

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Memory of a thread's own, where it needs more than a stack should hold: so many bytes, a multiple of LINE, behind the room
   that all threads share. */
#define LINE 64 /* bytes of a line of the cache */

INLINE void *take_scratch(work_queue *queue, float *behind, int64_t bytes) {
    const uintptr_t first = ((uintptr_t)behind + LINE - 1) / LINE * LINE;
    return (void *)(first + (uintptr_t)(__atomic_fetch_add(&queue->scratch, 1, __ATOMIC_RELAXED) * bytes));
}

/* Floats of room for it. */
INLINE int64_t scratch_room(int threads, int64_t bytes) { return (LINE + threads * bytes) / 4; }

/* Run a task in so many threads at once, its queue from the start on, until all have ended. */
void run_task(task work, void *arguments, parallel pool, int threads);

#endif
