/* Reads weights of sites. */
#include "sites.h"

#include <stdlib.h>
#include <string.h>

/* One NAME=WEIGHT off the front; 0 percent when it is none. */
static uint32_t next_weight(const char **text, struct sl_str *name)
{
    size_t len = strcspn(*text, ",");
    const char *item = *text, *eq = memchr(item, '=', len);
    *text += len + (item[len] == ',');
    if (!eq || eq == item || eq + 1 == item + len)
        return 0;
    char *end;
    double weight = strtod(eq + 1, &end);
    *name = (struct sl_str){item, (size_t)(eq - item)};
    bool plain = eq[1] >= '0' && eq[1] <= '9' && end == item + len;
    return plain && weight >= 0.01 && weight <= 100 ? (uint32_t)(weight * 100 + 0.5) : 0;
}

uint32_t sites_weight_percent(const char *text, struct sl_str site)
{
    struct sl_str name;
    while (text && *text) {
        uint32_t percent = next_weight(&text, &name);
        if (percent && sl_str_eq(name, site))
            return percent;
    }
    return 100;
}

enum sl_status sites_check(const char *text, struct sl_err *err)
{
    struct sl_str name;
    while (text && *text)
        if (!next_weight(&text, &name))
            return sl_fail_param(err, SL_USAGE, "site-weights",
                                 "--site-weights is a list of NAME=WEIGHT, weights 0.01 to 100");
    return SL_OK;
}
