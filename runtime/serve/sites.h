/* Private to serve: weights of sites, "a=2,b=0.5". */
#ifndef SLUICE_SERVE_SITES_H
#define SLUICE_SERVE_SITES_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdint.h>

/* The share of a site beside others of its size, in percent; 100 when it is not named. `text` may
 * be NULL. */
uint32_t sites_weight_percent(const char *text, struct sl_str site);
/* SL_USAGE (param "site-weights") for what is no list of NAME=WEIGHT with weights of 0.01 to 100.
 */
enum sl_status sites_check(const char *text, struct sl_err *err);

#endif
