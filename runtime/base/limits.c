/* The table of named limits as rows, for listings. */
#include <sluice/base/limits.h>

const struct sl_limit_row sl_limits[] = {
#define X(name, value, unit, what) {#name, value, unit, what},
    SL_LIMIT_TABLE(X)
#undef X
};
const size_t sl_n_limits = sizeof sl_limits / sizeof *sl_limits;
