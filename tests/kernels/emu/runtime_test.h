/* What the tests of the emulated runtime share: a fresh runtime per seed, and checks that name the
 * report they expect. */
#ifndef SLUICE_TESTS_EMU_RUNTIME_TEST_H
#define SLUICE_TESTS_EMU_RUNTIME_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "emu/control.h"
#include "runtime_kernels.h"

#define ok(call)         assert_int_equal((call), cudaSuccess)
#define fails(call, why) assert_int_equal((call), why)

/* 0: in order and at once; odd: mostly eager; even: mostly late. */
enum { SEEDS = 7 };

static struct emu_config test_config(uint64_t seed)
{
    struct emu_config c = emu_config_default();
    c.seed = seed;
    c.keep_reports = true;
    c.n_devices = 2;
    c.memory = 1 << 20;
    return c;
}

static uint32_t fresh(uint64_t seed)
{
    struct emu_config c = test_config(seed);
    uint32_t n = emu_restart(&c, NULL);
    ok(cudaSetDevice(0));
    return n;
}

/* There is one report, and it says this. */
static inline void assert_reported(const char *what)
{
    if (emu_report_count() != 1 || !strstr(emu_report_text(0), what))
        print_error("%u reports, first '%s', not '%s'\n", emu_report_count(), emu_report_text(0),
                    what);
    assert_int_equal(emu_report_count(), 1);
    assert_non_null(strstr(emu_report_text(0), what));
    emu_reports_clear();
}

static inline void assert_no_report(void)
{
    if (emu_report_count())
        print_error("%s\n", emu_report_text(0));
    assert_int_equal(emu_report_count(), 0);
}

/* One thread, two devices whose kernels wait for each other: no launch holds the caller. */
static inline void two_devices_meet(void)
{
    uint32_t *flags[2];
    for (int i = 0; i < 2; i++) {
        ok(cudaSetDevice(i));
        ok(cudaDeviceEnablePeerAccess(!i, 0));
        ok(cudaMalloc((void **)&flags[i], 4));
        ok(cudaMemset(flags[i], 0, 4));
        ok(cudaDeviceSynchronize());
    }
    for (int i = 0; i < 2; i++) {
        ok(cudaSetDevice(i));
        ok(launch_meet(NULL, flags[i], flags[!i], 5));
    }
    for (int i = 0; i < 2; i++) {
        ok(cudaSetDevice(i));
        ok(cudaDeviceSynchronize());
    }
    ok(cudaFree(flags[0]));
    ok(cudaFree(flags[1]));
    assert_no_report();
}

#define EACH_SEED(seed) for (uint64_t seed = 0; seed < SEEDS && (fresh(seed), true); seed++)

#endif
