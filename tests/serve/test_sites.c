/* Weights of sites, as people write them. */
#include "sites.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static uint32_t weight(const char *text, const char *site)
{
    return sites_weight_percent(text, sl_str_of(site));
}

static void test_weights(void **state)
{
    (void)state;
    static const struct {
        const char *text, *site;
        uint32_t percent;
    } rows[] = {
        {NULL, "a", 100},       {"", "a", 100},
        {"a=2", "a", 200},      {"a=2", "b", 100},
        {"a=2", "", 100},       {"a=2", "aa", 100},
        {"aa=2", "a", 100},     {"a=2,b=0.5", "a", 200},
        {"a=2,b=0.5", "b", 50}, {"a=2,b=0.5,c=3", "c", 300},
        {"a=2,a=3", "a", 200}, /* the first counts */
        {"a=0.01", "a", 1},     {"a=100", "a", 10000},
        {"a=0.015", "a", 2},    {"a=0.014", "a", 1},
        {"a=1e1", "a", 1000},   {"x=y=2", "x", 100}, /* none: the check says so */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (weight(rows[i].text, rows[i].site) != rows[i].percent)
            fail_msg("'%s' gives %s %u percent, not %u", rows[i].text, rows[i].site,
                     weight(rows[i].text, rows[i].site), rows[i].percent);
}

static void test_check(void **state)
{
    (void)state;
    static const char *const good[] = {NULL,     "",      "a=1",     "a=1,b=2",
                                       "a=0.01", "a=100", "a-b.c=7", "a=1,"};
    static const char *const bad[] = {
        "a",     "a=",    "=1",      "=",       ",",     "a=1,,b=2", "a=1,b",   "a=1;b=2",
        "a=0",   "a=-1",  "a=+1",    "a= 1",    "a=1 ",  "a=.5",     "a=0.009", "a=100.1",
        "a=inf", "a=nan", "a=1,b=x", "a=1,b=0", "a=1=2", "a=1x"};
    struct sl_err err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        if (sites_check(good[i], &err))
            fail_msg("'%s': %s", good[i], err.msg);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&err, 0, sizeof err);
        if (sites_check(bad[i], &err) != SL_USAGE)
            fail_msg("'%s' is taken", bad[i]);
        assert_string_equal(err.param, "site-weights");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_weights),
                                       cmocka_unit_test(test_check)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
