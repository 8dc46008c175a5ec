/* Pieces that several OpenAI answers share: usage, logprobs, token texts. */
#include "call.h"

#include <string.h>

void out_usage(struct sl_buf *b, const struct gen_usage *u)
{
    sl_buf_printf(b,
                  "{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":%u}}",
                  u->prompt_tokens, u->completion_tokens, u->prompt_tokens + u->completion_tokens,
                  u->cached_tokens);
}

/* The token as a JSON string; bytes that are not UTF-8 on their own become U+FFFD. */
void out_token_text(struct sl_buf *b, const struct sl_tokenizer *t, uint32_t token)
{
    struct sl_str s = sl_token_bytes(t, token);
    sl_buf_json_str(b, s.data, s.len);
}

static void out_token_prob(struct sl_buf *b, const struct sl_tokenizer *t, uint32_t token,
                           float logprob)
{
    struct sl_str s = sl_token_bytes(t, token);
    sl_buf_puts(b, "{\"token\":");
    sl_buf_json_str(b, s.data, s.len);
    sl_buf_puts(b, ",\"logprob\":");
    sl_buf_json_f32(b, logprob);
    sl_buf_puts(b, ",\"bytes\":[");
    for (size_t i = 0; i < s.len; i++)
        sl_buf_printf(b, i ? ",%u" : "%u", (unsigned char)s.data[i]);
    sl_buf_putc(b, ']');
}

void out_chat_logprobs(struct sl_buf *items, const struct sl_tokenizer *t,
                       const struct sl_sampled *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (items->len)
            sl_buf_putc(items, ',');
        out_token_prob(items, t, tokens[i].token, tokens[i].logprob);
        sl_buf_puts(items, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < tokens[i].n_top; k++) {
            if (k)
                sl_buf_putc(items, ',');
            out_token_prob(items, t, tokens[i].top[k].token, tokens[i].top[k].logprob);
            sl_buf_putc(items, '}');
        }
        sl_buf_puts(items, "]}");
    }
}

/* The token as a key. Strict parsers refuse NUL there; it becomes U+FFFD, by way of a byte that is
 * never UTF-8. */
static void put_key(struct sl_buf *b, const struct sl_tokenizer *t, uint32_t token)
{
    struct sl_str s = sl_token_bytes(t, token);
    struct sl_buf bytes = {0};
    if (!s.len || !memchr(s.data, 0, s.len)) {
        sl_buf_json_str(b, s.data, s.len);
        return;
    }
    for (size_t i = 0; i < s.len; i++)
        sl_buf_putc(&bytes, (char)(s.data[i] ? s.data[i] : '\xff'));
    sl_buf_json_str(b, bytes.data ? bytes.data : "", bytes.len);
    sl_buf_free(&bytes);
}

/* Several tokens may have one text (bytes that are no UTF-8 are all U+FFFD), but an object has a
 * key once: the likeliest stays. */
void out_text_logprobs(struct sl_buf *b, const struct sl_tokenizer *t, const struct sl_sampled *s)
{
    struct {
        size_t at, len;
    } keys[SL_LOGPROBS_MAX];
    uint32_t n = 0;
    sl_buf_putc(b, '{');
    for (uint32_t k = 0; k < s->n_top; k++) {
        size_t from = b->len;
        if (n)
            sl_buf_putc(b, ',');
        size_t at = b->len;
        put_key(b, t, s->top[k].token);
        size_t len = b->len - at;
        bool again = false;
        for (uint32_t i = 0; i < n && !again; i++)
            again = keys[i].len == len && !memcmp(b->data + keys[i].at, b->data + at, len);
        if (again) {
            b->len = from;
            continue;
        }
        keys[n].at = at;
        keys[n++].len = len;
        sl_buf_putc(b, ':');
        sl_buf_json_f32(b, s->top[k].logprob);
    }
    sl_buf_putc(b, '}');
}
