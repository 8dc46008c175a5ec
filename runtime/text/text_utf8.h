/* UTF-8 by bytes: what may follow what (Unicode Standard, table 3-7). Shared by the tokenizer and
 * the detokeniser. */
#ifndef SLUICE_TEXT_UTF8_H
#define SLUICE_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the sequence that `lead` begins; 0 when no sequence begins with it. */
static inline unsigned text_utf8_len(uint8_t lead)
{
    if (lead < 0x80)
        return 1;
    if (lead < 0xc2 || lead > 0xf4)
        return 0;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* May `b` stand at place `at` (1..3) of a sequence begun by `lead`? Rules out overlong forms,
 * surrogates and numbers above U+10FFFF. */
static inline bool text_utf8_follows(uint8_t lead, unsigned at, uint8_t b)
{
    uint8_t low = 0x80, high = 0xbf;
    if (at == 1) {
        low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : low;
        high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : high;
    }
    return b >= low && b <= high;
}

/* Offset of the first byte that is not part of valid UTF-8; len when all is. */
static inline size_t text_utf8_check(const char *text, size_t len)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t i = 0;
    while (i < len) {
        if (p[i] < 0x80) {
            i++;
            continue;
        }
        unsigned n = text_utf8_len(p[i]);
        if (!n || n > len - i)
            return i;
        for (unsigned k = 1; k < n; k++)
            if (!text_utf8_follows(p[i], k, p[i + k]))
                return i;
        i += n;
    }
    return len;
}

#endif
