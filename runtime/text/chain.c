/* The hash chain, and event ids as text. */
#include <sluice/text/chain.h>

#include <sluice/base/containers.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "arrays are hashed as they lie in memory");
_Static_assert(sizeof(struct sl_logit_bias) == 8, "no padding is hashed");

static const char magic[] = "sluice-chain-1"; /* its NUL counts */

struct head {
    uint8_t bytes[sizeof magic + 5 * SL_CHAIN_BYTES + 7 * 4 + 4 + 8 + 5 * 4];
    size_t len;
};

static void put(struct head *h, const void *data, size_t len)
{
    memcpy(h->bytes + h->len, data, len);
    h->len += len;
}

static void put_hash(struct head *h, const void *data, size_t len)
{
    sl_sha256(len ? data : "", len, h->bytes + h->len);
    h->len += SL_CHAIN_BYTES;
}

void sl_chain_start(struct sl_chain *c, struct sl_str class_name, const uint32_t *prompt,
                    uint32_t n_prompt, const struct sl_sampling *s, uint32_t choice)
{
    const float reals[] = {s->temperature,
                           s->top_p,
                           s->min_p,
                           s->typical_p,
                           s->presence_penalty,
                           s->frequency_penalty,
                           s->repetition_penalty};
    int32_t top_k = s->top_k > 0 ? s->top_k : 0;
    const uint32_t counts[] = {s->min_tokens, s->max_tokens, choice, s->ignore_eos, n_prompt};
    struct head h = {.len = 0};
    put(&h, magic, sizeof magic);
    put_hash(&h, class_name.data, class_name.len);
    put_hash(&h, prompt, n_prompt * sizeof *prompt);
    put_hash(&h, s->stop_ids, s->n_stop_ids * sizeof *s->stop_ids);
    put_hash(&h, s->bias, s->n_bias * sizeof *s->bias);
    put_hash(&h, NULL, 0);
    put(&h, reals, sizeof reals);
    put(&h, &top_k, sizeof top_k);
    put(&h, &s->seed, sizeof s->seed);
    put(&h, counts, sizeof counts);
    sl_assert(h.len == sizeof h.bytes);
    sl_sha256(h.bytes, h.len, c->link);
    c->n_tokens = 0;
}

void sl_chain_add(struct sl_chain *c, uint32_t token)
{
    uint8_t in[SL_CHAIN_BYTES + sizeof token];
    memcpy(in, c->link, SL_CHAIN_BYTES);
    memcpy(in + SL_CHAIN_BYTES, &token, sizeof token);
    sl_sha256(in, sizeof in, c->link);
    c->n_tokens++;
}

/* --- event ids -------------------------------------------------------------------------------- */

#define ID_VERSION '1'

void sl_event_id_print(struct sl_buf *b, const struct sl_event_id *id,
                       const struct sl_event_choice *choices)
{
    static const char *const phases[] = {"", "f", "e"};
    sl_buf_printf(b, "%c.%llx.%016llx.%08x", ID_VERSION, (unsigned long long)id->seed,
                  (unsigned long long)id->class_hash, id->shape);
    for (uint32_t i = 0; i < id->n_choices; i++) {
        char hex[2 * SL_EVENT_LINK_BYTES + 1];
        sl_hex(choices[i].link, SL_EVENT_LINK_BYTES, hex);
        if (choices[i].n_tokens)
            sl_buf_printf(b, ".%u%s-%s", choices[i].n_tokens, phases[choices[i].phase], hex);
        else
            sl_buf_puts(b, ".0");
    }
}

/* Reads from the front of `s`; `bad` stays set. */
struct reader {
    struct sl_str s;
    bool bad;
};

static bool next_is(struct reader *r, char c)
{
    if (!r->s.len || r->s.data[0] != c)
        return false;
    r->s.data++;
    r->s.len--;
    return true;
}

static void want(struct reader *r, char c)
{
    r->bad |= !next_is(r, c);
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

static uint64_t digits(struct reader *r, unsigned base, size_t n_max, size_t *n)
{
    uint64_t x = 0;
    for (*n = 0; *n < n_max && *n < r->s.len; (*n)++) {
        int value = digit_value(r->s.data[*n]);
        if (value >= (int)base)
            break;
        x = x * base + (uint64_t)value;
    }
    r->s.data += *n;
    r->s.len -= *n;
    return x;
}

/* Up to n_max digits without leading zeros. */
static uint64_t number(struct reader *r, unsigned base, size_t n_max)
{
    bool zero_first = r->s.len && r->s.data[0] == '0';
    size_t n;
    uint64_t x = digits(r, base, n_max, &n);
    r->bad |= n == 0 || (zero_first && n > 1);
    return x;
}

static uint64_t fixed_hex(struct reader *r, size_t n_digits)
{
    size_t n;
    uint64_t x = digits(r, 16, n_digits, &n);
    r->bad |= n != n_digits;
    return x;
}

static void read_choice(struct reader *r, struct sl_event_choice *c)
{
    *c = (struct sl_event_choice){0};
    uint64_t n = number(r, 10, 9);
    c->n_tokens = (uint32_t)n;
    if (!n)
        return;
    if (next_is(r, 'f'))
        c->phase = SL_EVENT_TEXT_DONE;
    else if (next_is(r, 'e'))
        c->phase = SL_EVENT_ENDED;
    want(r, '-');
    for (size_t i = 0; i < SL_EVENT_LINK_BYTES; i++)
        c->link[i] = (uint8_t)fixed_hex(r, 2);
}

enum sl_status sl_event_id_parse(struct sl_str text, struct sl_event_id *id,
                                 struct sl_event_choice *choices, uint32_t choices_max,
                                 struct sl_err *err)
{
    struct reader r = {.s = text};
    *id = (struct sl_event_id){0};
    want(&r, ID_VERSION);
    want(&r, '.');
    id->seed = number(&r, 16, 16);
    want(&r, '.');
    id->class_hash = fixed_hex(&r, 16);
    want(&r, '.');
    id->shape = (uint32_t)fixed_hex(&r, 8);
    do {
        want(&r, '.');
        if (r.bad || id->n_choices == choices_max)
            break;
        read_choice(&r, &choices[id->n_choices++]);
    } while (!r.bad && r.s.len);
    if (r.bad || r.s.len)
        return sl_fail_param(err, SL_INVALID, "Last-Event-ID",
                             "Last-Event-ID is not the id of an event of this server");
    return SL_OK;
}
