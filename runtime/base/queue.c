/* Bounded queue of pointers between threads: a ring under a mutex, and an eventfd.
 *
 * Invariant under the lock: n > 0 implies `signalled`, and `signalled` is whether the eventfd is
 * readable. So a producer writes it only when it is not yet readable, and it is read back by
 * whoever finds the queue empty: a burst costs one write and one read, and a consumer that leaves
 * items inside is woken again. */
#include <sluice/base/mem.h>
#include <sluice/base/queue.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct sl_queue {
    pthread_mutex_t lock; /* guards everything below but fd and capacity */
    int fd;
    bool signalled;
    size_t capacity, head, n;
    void *ring[];
};

struct sl_queue *sl_queue_open(size_t capacity)
{
    size_t size;
    if (!capacity || !sl_size_mul(capacity, sizeof(void *), &size) ||
        !sl_size_add(size, sizeof(struct sl_queue), &size))
        return NULL;
    struct sl_queue *q = calloc(1, size);
    if (!q)
        return NULL;
    q->capacity = capacity;
    q->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->fd < 0 || pthread_mutex_init(&q->lock, NULL)) {
        if (q->fd >= 0)
            close(q->fd);
        free(q);
        return NULL;
    }
    return q;
}

void sl_queue_close(struct sl_queue *q)
{
    if (!q)
        return;
    close(q->fd);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

/* The counter is 0 or 1, so neither call can block or fail but by EINTR. Lock held. */
static void raise_event(struct sl_queue *q)
{
    const uint64_t one = 1;
    if (q->signalled)
        return;
    while (write(q->fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
    q->signalled = true;
}

static void drop_event(struct sl_queue *q)
{
    uint64_t count;
    if (!q->signalled)
        return;
    while (read(q->fd, &count, sizeof count) < 0 && errno == EINTR)
        ;
    q->signalled = false;
}

bool sl_queue_push(struct sl_queue *q, void *item)
{
    pthread_mutex_lock(&q->lock);
    bool room = q->n < q->capacity;
    if (room) {
        size_t tail = q->head + q->n;
        q->ring[tail < q->capacity ? tail : tail - q->capacity] = item;
        q->n++;
        raise_event(q);
    }
    pthread_mutex_unlock(&q->lock);
    return room;
}

void *sl_queue_pop(struct sl_queue *q)
{
    void *item = NULL;
    pthread_mutex_lock(&q->lock);
    if (q->n) {
        item = q->ring[q->head];
        q->head = q->head + 1 < q->capacity ? q->head + 1 : 0;
        q->n--;
    } else {
        drop_event(q);
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

size_t sl_queue_len(struct sl_queue *q)
{
    pthread_mutex_lock(&q->lock);
    size_t n = q->n;
    pthread_mutex_unlock(&q->lock);
    return n;
}

int sl_queue_fd(struct sl_queue *q)
{
    return q->fd;
}

/* With items inside, the event stays up until the pop that finds none. */
void sl_queue_clear_event(struct sl_queue *q)
{
    pthread_mutex_lock(&q->lock);
    if (!q->n)
        drop_event(q);
    pthread_mutex_unlock(&q->lock);
}

void sl_queue_wait(struct sl_queue *q, int timeout_ms)
{
    struct pollfd p = {.fd = q->fd, .events = POLLIN};
    if (poll(&p, 1, timeout_ms) > 0)
        sl_queue_clear_event(q);
}
