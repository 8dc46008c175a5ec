/* Counts of launches by kernel, one list for the process. */
#include "cuda/count.h"

#include <pthread.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct dev_counts all;
static __thread struct dev_counts *into;

static void add(struct dev_counts *c, const char *name, uint64_t n)
{
    uint32_t i = 0;
    while (i < c->n && c->of[i].name != name && strcmp(c->of[i].name, name) != 0)
        i++;
    if (i == DEV_KERNELS_MAX)
        return;
    if (i == c->n) {
        c->of[i].name = name;
        c->of[i].n = 0;
        c->n++;
    }
    c->of[i].n += n;
}

void dev_count_launch(const char *name)
{
    if (into) {
        add(into, name, 1);
        return;
    }
    pthread_mutex_lock(&lock);
    add(&all, name, 1);
    pthread_mutex_unlock(&lock);
}

void dev_count_into(struct dev_counts *tally)
{
    into = tally;
}

void dev_count_add(const struct dev_counts *tally)
{
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < tally->n; i++)
        add(&all, tally->of[i].name, tally->of[i].n);
    pthread_mutex_unlock(&lock);
}

void dev_count_read(struct dev_counts *out)
{
    pthread_mutex_lock(&lock);
    *out = all;
    pthread_mutex_unlock(&lock);
}
