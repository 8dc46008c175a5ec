/* Each test under several seeds of both parities, on one and three OS threads, and in one order. */
#ifndef SLUICE_TESTS_KERNELS_EMU_ORDERS_H
#define SLUICE_TESTS_KERNELS_EMU_ORDERS_H

#include "report.h"

static void under_every_order(void (*test)(void **), void **state)
{
    for (unsigned threads = 1; threads <= 3; threads += 2)
        for (unsigned seed = 1; seed <= 6; seed++) {
            direct_options = {};
            direct_options.seed = seed;
            direct_options.n_threads = threads;
            test(state);
        }
    direct_options = {};
    direct_options.one_order = true;
    test(state);
}

#define ORDERED(test)                                                                              \
    {                                                                                              \
#test, [](void **state) { under_every_order(test, state); }, nullptr, nullptr, nullptr     \
    }

#define assert_ran(launch)                                                                         \
    do {                                                                                           \
        if ((launch) != cudaSuccess)                                                               \
            fail_msg("%s", direct_report);                                                         \
    } while (0)

#endif
