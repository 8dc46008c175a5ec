/* JSON text written straight into a buffer: the path of every streamed event. */
#include "number.h"

#include <sluice/base/mem.h>

#include <math.h>
#include <string.h>

/* Length of the well-formed UTF-8 sequence at s (Unicode 15, table 3-7), or 0. */
static size_t utf8_len(const unsigned char *s, size_t left)
{
    unsigned char lead = s[0];
    size_t len = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (len == 0 || lead > 0xf4 || len > left)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((lead == 0xe0 && s[1] < 0xa0) || (lead == 0xed && s[1] > 0x9f) ||
        (lead == 0xf0 && s[1] < 0x90) || (lead == 0xf4 && s[1] > 0x8f))
        return 0;
    return len;
}

/* What may stand in a string as it is, without looking at its neighbours. */
static bool is_plain(unsigned char c)
{
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

static void put_escape(struct sl_buf *b, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";
    static const char from[] = "\"\\\n\r\t\b\f";
    static const char to[] = "\"\\nrtbf";
    const char *hit = c ? strchr(from, c) : NULL;
    if (hit) {
        const char text[2] = {'\\', to[hit - from]};
        sl_buf_append(b, text, sizeof text);
        return;
    }
    const char text[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
    sl_buf_append(b, text, sizeof text);
}

void sl_buf_json_str(struct sl_buf *b, const char *s, size_t len)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t from = 0, at = 0;
    sl_buf_putc(b, '"');
    while (at < len) {
        size_t n = is_plain(p[at]) ? 1 : p[at] >= 0x80 ? utf8_len(p + at, len - at) : 0;
        if (n) {
            at += n;
            continue;
        }
        sl_buf_append(b, s + from, at - from);
        if (p[at] < 0x80)
            put_escape(b, p[at]);
        else
            sl_buf_append(b, "\xef\xbf\xbd", 3);
        from = ++at;
    }
    if (at > from)
        sl_buf_append(b, s + from, at - from);
    sl_buf_putc(b, '"');
}

void sl_buf_json_f32(struct sl_buf *b, float x)
{
    char text[NUMBER_TEXT_MAX];
    if (isfinite(x))
        sl_buf_append(b, text, number_f32(x, text));
    else
        sl_buf_append(b, "null", 4);
}
