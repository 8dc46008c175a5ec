/* Fuzz target: what a client gives back. A stored answer as `sluice audit` reads it, and the id of
 * an event as a Last-Event-ID: what is taken for an id prints as the same text. */
#include "audit_file.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHOICES_MAX 64

static void check_id(struct sl_str text)
{
    struct sl_event_choice choices[CHOICES_MAX];
    struct sl_event_id id;
    struct sl_buf b = {0};
    if (sl_event_id_parse(text, &id, choices, CHOICES_MAX, NULL))
        return;
    sl_event_id_print(&b, &id, choices);
    if (b.len != text.len || memcmp(b.data, text.data, b.len) != 0)
        abort();
    sl_buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct audit_file f;
    struct sl_err err = {0};
    struct sl_str text = {(const char *)data, size};
    check_id(text);
    enum sl_status s = audit_file_parse(text.data, text.len, &f, &err);
    if (s && !err.msg[0])
        abort();
    for (uint32_t i = 0; !s && i < f.n_choices; i++) {
        const struct sl_audit_claim *c = &f.choices[i].claim;
        if (!c->n_prompt || !c->n_tokens || c->n_prompt + c->n_tokens > f.longest ||
            c->sampling.n_logprobs > SL_LOGPROBS_MAX)
            abort();
    }
    audit_file_free(&f);
    return 0;
}
