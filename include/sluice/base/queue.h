/* Bounded queue of pointers between threads, with an eventfd the consumer can poll.
 *
 * Any number of producers, one consumer. A mutex guards the ring: its critical section is a few
 * stores. The eventfd is readable whenever the queue may be non-empty. */
#ifndef SLUICE_BASE_QUEUE_H
#define SLUICE_BASE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

struct sl_queue;

/* Capacity is fixed. NULL when out of memory or descriptors. */
struct sl_queue *sl_queue_open(size_t capacity);
void sl_queue_close(struct sl_queue *q); /* items still inside are the caller's loss: drain first */

bool sl_queue_push(struct sl_queue *q, void *item); /* false when full; never blocks */
void *sl_queue_pop(struct sl_queue *q);             /* NULL when empty; never blocks */
size_t sl_queue_len(struct sl_queue *q);
int sl_queue_fd(struct sl_queue *q);

/* Consumer: blocks until readable or timeout_ms (-1: for ever), then clears the eventfd. */
void sl_queue_wait(struct sl_queue *q, int timeout_ms);
/* Consumer that polls the fd itself calls this once it is readable, before popping. */
void sl_queue_clear_event(struct sl_queue *q);

#endif
