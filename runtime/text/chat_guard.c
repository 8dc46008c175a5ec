/* Keeps the caller's text from becoming special tokens on its way through a chat template. */
#include <sluice/text/chat.h>

#include <string.h>

static const char breaker[] = "\xEF\xB7\x90";
#define BREAKER_LEN 3

void sl_chat_guard(const struct sl_tokenizer *t, struct sl_str text, struct sl_buf *out)
{
    for (size_t i = 0; i < text.len; i++) {
        sl_buf_putc(out, text.data[i]);
        if (sl_token_special_at(t, text.data + i, text.len - i))
            sl_buf_append(out, breaker, BREAKER_LEN);
    }
}

enum sl_status sl_chat_unguard(struct sl_buf *text, struct sl_arena *mem, size_t **places,
                               size_t *n, struct sl_err *err)
{
    size_t count = 0, to = 0;
    for (size_t i = 0; i + BREAKER_LEN <= text->len; i++)
        count += !memcmp(text->data + i, breaker, BREAKER_LEN);
    *places = SL_ARENA_ARRAY(mem, size_t, count + 1);
    *n = 0;
    if (!*places)
        return sl_fail(err, SL_NO_MEMORY, "no memory for the prompt");
    for (size_t i = 0; i < text->len;) {
        if (text->len - i >= BREAKER_LEN && !memcmp(text->data + i, breaker, BREAKER_LEN)) {
            (*places)[(*n)++] = to;
            i += BREAKER_LEN;
        } else {
            text->data[to++] = text->data[i++];
        }
    }
    text->len = to;
    return SL_OK;
}
