/* Chooses how many rows a step may have so that it stays near its target time. */
#include "engine.h"

#define ROWS_FIRST 64 /* before anything was measured */
#define ROWS_STEP  16

void sl_pacer_init(struct pacer *p, uint32_t target_ms, uint32_t rows_max, uint32_t fixed)
{
    *p = (struct pacer){.target_ms = target_ms,
                        .rows_min = rows_max < ROWS_STEP ? rows_max : ROWS_STEP,
                        .rows_max = rows_max,
                        .fixed = fixed};
}

uint32_t sl_pacer_budget(const struct pacer *p)
{
    if (p->fixed)
        return p->fixed < p->rows_max ? p->fixed : p->rows_max;
    double rows = ROWS_FIRST;
    if (p->ns_per_row > 0)
        rows = (double)p->target_ms * 1e6 / p->ns_per_row;
    if (rows >= p->rows_max)
        return p->rows_max;
    uint32_t n = (uint32_t)rows / ROWS_STEP * ROWS_STEP;
    return n < p->rows_min ? p->rows_min : n;
}

/* A slower step is believed at once, a faster one by and by: a step that is too long is what hurts.
 */
static void follow(double *average, double measured)
{
    if (*average <= 0 || measured > *average)
        *average = measured;
    else
        *average += (measured - *average) / 4;
}

/* Small steps are bound by reading the weights and say nothing about the cost of a row. */
void sl_pacer_observe(struct pacer *p, uint32_t rows, uint64_t ns)
{
    if (rows < ROWS_STEP)
        follow(&p->small_ns, (double)ns);
    else
        follow(&p->ns_per_row, (double)ns / rows);
}

uint64_t sl_pacer_expect(const struct pacer *p, uint32_t rows)
{
    double ns = p->ns_per_row * rows;
    return (uint64_t)(ns > p->small_ns ? ns : p->small_ns);
}
