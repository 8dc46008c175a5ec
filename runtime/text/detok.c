/* Incremental detokeniser: token bytes to whole UTF-8 characters.
 *
 * What can never become valid is replaced by one U+FFFD per longest valid beginning (Unicode
 * Standard, section 3.9, "maximal subparts"), so the text does not depend on how it was cut. */
#include "tokenizer_priv.h"
#include "text_utf8.h"

#define REPLACEMENT "\xef\xbf\xbd"

static void give_up_held(struct sl_detok *d, struct sl_buf *out)
{
    if (d->n_held)
        sl_buf_append(out, REPLACEMENT, 3);
    d->n_held = 0;
}

static void push_byte(struct sl_detok *d, uint8_t b, struct sl_buf *out)
{
    if (d->n_held && !text_utf8_follows(d->held[0], d->n_held, b))
        give_up_held(d, out);
    if (!d->n_held && !text_utf8_len(b)) {
        sl_buf_append(out, REPLACEMENT, 3);
        return;
    }
    d->held[d->n_held++] = b;
    if (d->n_held == text_utf8_len(d->held[0])) {
        sl_buf_append(out, d->held, d->n_held);
        d->n_held = 0;
    }
}

void sl_detok_push(struct sl_detok *d, const struct sl_tokenizer *t, uint32_t id,
                   struct sl_buf *out)
{
    struct sl_str s = sl_token_bytes(t, id);
    /* User-defined tokens are text that the model writes, such as markers of its reasoning. */
    if (!s.len || (d->skip_special && t->vocab.kind[id] == TOKEN_CONTROL))
        return;
    if (!d->n_held && text_utf8_check(s.data, s.len) == s.len) {
        sl_buf_append(out, s.data, s.len);
        return;
    }
    for (size_t i = 0; i < s.len; i++)
        push_byte(d, (uint8_t)s.data[i], out);
}

void sl_detok_finish(struct sl_detok *d, struct sl_buf *out)
{
    give_up_held(d, out);
}
