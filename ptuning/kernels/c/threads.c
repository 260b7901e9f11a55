/* Threads of the caller's pool, or threads that are started for one task. */
#include <pthread.h>

#include "kernels.h"

enum { MAX_STARTED = 64 };

void run_task(task work, void *arguments, parallel pool, int threads) {
    pthread_t started[MAX_STARTED];
    int count = 0;
    ((work_queue *)arguments)->next = 0;
    if (threads > 1 && pool) {
        pool(work, arguments, (unsigned)threads, 0);
        return;
    }
    for (; count < threads - 1 && count < MAX_STARTED; count++)
        if (pthread_create(&started[count], 0, work, arguments)) break;
    work(arguments);
    while (count) pthread_join(started[--count], 0);
}
