/* Shortest round-trip decimals. The float32 path is on the way of every logprob: a candidate with n
 * digits is D / 10^k with D < 2^30, so for k <= 22 both are exact doubles, one division rounds it
 * correctly, and narrowing that is correct too unless it fell on the border between two floats.
 * Everything else asks strtof, which is slow and always right. */
#include "number.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define F32_DIGITS    9
#define F64_DIGITS    17
#define POSITIONAL_LO (-5) /* exponents from here on are written as 0.00001234 */

static const double p10[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                               1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                               1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* Digits d[0].d[1]d[2]... times 10^exp10, without trailing zeros. */
struct decimal {
    char d[F64_DIGITS + 2];
    int n, exp10;
};

static uint32_t f32_bits(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static void decimal_of(uint64_t digits, int n, int exp10, struct decimal *out)
{
    while (digits && digits % 10 == 0) {
        digits /= 10;
        n--;
    }
    out->n = n;
    out->exp10 = exp10;
    for (int i = n - 1; i >= 0; i--, digits /= 10)
        out->d[i] = (char)('0' + digits % 10);
}

enum answer { NO, YES, UNSURE };

/* Whether digits / 10^k reads as x. */
static enum answer reads_as(uint64_t digits, int k, float x)
{
    double v = (double)digits / p10[k];
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    if ((bits & 0x1fffffffu) == 0x10000000u) /* on the border between two floats */
        return UNSURE;
    return (float)v == x ? YES : NO;
}

/* False when it cannot tell; then *out is not set. x > 0. */
static bool shortest_fast(float x, struct decimal *out)
{
    if (x < 1e-12f || x >= 1e9f)
        return false;
    double v = (double)x;
    int exp10 = 0;
    while (v >= p10[exp10 + 1])
        exp10++;
    while (exp10 <= 0 && v * p10[-exp10] < 1)
        exp10--;
    for (int n = exp10 > 0 ? exp10 + 1 : 1; n <= F32_DIGITS; n++) {
        int k = n - 1 - exp10;
        uint64_t digits = (uint64_t)(v * p10[k] + 0.5);
        enum answer answer = reads_as(digits, k, x);
        if (answer == UNSURE)
            return false;
        if (answer == NO)
            continue;
        bool carried = (double)digits >= p10[n];
        decimal_of(digits, n + carried, exp10 + carried, out);
        return true;
    }
    return false;
}

/* The digits and the exponent of "%.*e" text; its decimal point is the locale's and is skipped. */
static void parse_scientific(const char *text, struct decimal *out)
{
    const char *e = strchr(text, 'e');
    out->n = 0;
    for (const char *p = text; p < e; p++)
        if (*p >= '0' && *p <= '9')
            out->d[out->n++] = *p;
    while (out->n > 1 && out->d[out->n - 1] == '0')
        out->n--;
    out->exp10 = (int)strtol(e + 1, NULL, 10);
}

/* The n-digit decimal one step above `text`'s. A power of two has twice the room above as below, so
 * this one may read back where the nearest does not: true of 2^-96, 2^87 and 2^90 alone. */
static void step_up(char *text)
{
    char *p = strchr(text, 'e');
    while (p-- > text) {
        if (*p < '0' || *p > '9')
            continue;
        if (*p != '9') {
            ++*p;
            return;
        }
        *p = '0';
    }
}

static void shortest_slow_f32(float x, struct decimal *out)
{
    char text[NUMBER_TEXT_MAX];
    bool lopsided = (f32_bits(x) & 0x7fffffu) == 0;
    for (int n = 1; n <= F32_DIGITS; n++) {
        snprintf(text, sizeof text, "%.*e", n - 1, (double)x);
        if (f32_bits(strtof(text, NULL)) == f32_bits(x))
            break;
        if (!lopsided)
            continue;
        step_up(text);
        if (f32_bits(strtof(text, NULL)) == f32_bits(x))
            break;
    }
    parse_scientific(text, out);
}

static void shortest_f64(double x, struct decimal *out)
{
    char text[NUMBER_TEXT_MAX];
    for (int n = 1; n <= F64_DIGITS; n++) {
        snprintf(text, sizeof text, "%.*e", n - 1, x);
        if (!(strtod(text, NULL) < x) && !(strtod(text, NULL) > x))
            break;
    }
    parse_scientific(text, out);
}

static size_t zeros(char *out, int n)
{
    if (n <= 0)
        return 0;
    memset(out, '0', (size_t)n);
    return (size_t)n;
}

/* Positional from 10^POSITIONAL_LO up to `exp_max` digits before the point, else 1.5e-9. */
static size_t write_decimal(const struct decimal *d, int exp_max, char *out)
{
    char *p = out;
    size_t n = (size_t)d->n;
    if (d->exp10 < POSITIONAL_LO || d->exp10 >= exp_max) {
        *p++ = d->d[0];
        if (n > 1) {
            *p++ = '.';
            memcpy(p, d->d + 1, n - 1);
            p += n - 1;
        }
        p += snprintf(p, 6, "e%d", d->exp10);
        return (size_t)(p - out);
    }
    if (d->exp10 < 0) {
        *p++ = '0';
        *p++ = '.';
        p += zeros(p, -d->exp10 - 1);
        memcpy(p, d->d, n);
        return (size_t)(p - out) + n;
    }
    size_t whole = (size_t)d->exp10 + 1;
    if (n <= whole) {
        memcpy(p, d->d, n);
        return n + zeros(p + n, (int)(whole - n));
    }
    memcpy(p, d->d, whole);
    p[whole] = '.';
    memcpy(p + whole + 1, d->d + whole, n - whole);
    return n + 1;
}

static size_t write_zero(bool real, char *out)
{
    memcpy(out, real ? "0.0" : "0", real ? 4 : 2);
    return real ? 3 : 1;
}

size_t number_f32(float x, char out[NUMBER_TEXT_MAX])
{
    size_t sign = signbit(x) ? 1 : 0;
    float mag = fabsf(x);
    out[0] = '-';
    if (f32_bits(mag) == 0) /* "-0" would be read as an integer and lose its sign */
        return sign + write_zero(sign, out + sign);
    struct decimal d;
    if (!shortest_fast(mag, &d))
        shortest_slow_f32(mag, &d);
    size_t n = sign + write_decimal(&d, F32_DIGITS, out + sign);
    out[n] = 0;
    return n;
}

size_t number_f64(double x, char out[NUMBER_TEXT_MAX])
{
    size_t sign = signbit(x) ? 1 : 0;
    double mag = fabs(x);
    out[0] = '-';
    if (!(mag > 0))
        return sign + write_zero(true, out + sign);
    struct decimal d;
    shortest_f64(mag, &d);
    size_t n = sign + write_decimal(&d, F64_DIGITS, out + sign);
    if (!memchr(out, '.', n) && !memchr(out, 'e', n)) {
        memcpy(out + n, ".0", 2);
        n += 2;
    }
    out[n] = 0;
    return n;
}
