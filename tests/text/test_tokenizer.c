/* Tokenising: text comes back from its tokens; merges equal the plain quadratic rule; special
 * tokens are found leftmost and longest, control ones only when asked; limits and faulty files are
 * clear errors; a word of 16 MiB takes no quadratic time. */
#include "small_vocab.h"

#include <sluice/base/time.h>
#include <pthread.h>
#include <stdlib.h>

static const struct small_vocab plain_vocab = {.model = "gpt2", .pre = "gpt-2", .add_bos = -1};

static void expect_ids(const struct sl_tokenizer *t, const char *text, unsigned flags,
                       const uint32_t *want, size_t n)
{
    struct sl_tokens got = {0};
    struct sl_err err = {0};
    enum sl_status s = sl_tokenize(t, text, strlen(text), flags, SIZE_MAX, &got, &err);
    if (s || !same_ids(&got, want, n)) {
        print_error("'%s' flags %u %s\n", text, flags, err.msg);
        print_ids("  want", want, n);
        print_ids("  got ", got.ids, got.n);
        fail();
    }
    sl_tokens_free(&got);
}

static const char *const nasty[] = {
    "",
    "\n",
    " \t\r\n \r",
    "plain words, and don't I'LL",
    "caf\xc3\xa9 cafe\xcc\x81",
    "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9 \xf0\x9f\x87\xab\xf0\x9f\x87\xb7",
    "\xe4\xbd\xa0\xe5\xa5\xbd\xef\xbc\x8c\xe4\xb8\x96\xe7\x95\x8c",
    "\xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d \xd9\x85\xd8\xb1",
    "\xc2\xa0\xe3\x80\x80\xe2\x80\xa8\xc2\x85\xe1\xa0\x8e|",
    "\xef\xbf\xbf\xef\xbb\xbf\xef\xbf\xbd",
    "\xf0\x90\x80\x80\xed\x9f\xbf\xee\x80\x80",
    "<|im_start|>user\n<|im_end|><|im_end|",
    "1234567890 12 1,234.5e-6",
    "\x01\x02\x03\x05\x7f",
};

/* Random characters of every length, from planes the vocabulary has bytes for. */
static size_t random_text(struct sl_rng *r, char *out, size_t n_chars)
{
    size_t n = 0;
    for (size_t i = 0; i < n_chars; i++) {
        static const uint32_t low[] = {0x20, 0x80, 0x800, 0xe000, 0x10000, 0x20};
        static const uint32_t high[] = {0x7f, 0x800, 0xd800, 0x10000, 0x30000, 0x30};
        uint32_t k = sl_rng_below(r, 6), c = low[k] + sl_rng_below(r, high[k] - low[k]);
        if (c < 0x80) {
            out[n++] = (char)c;
            continue;
        }
        unsigned more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
        static const uint8_t lead[] = {0, 0xc0, 0xe0, 0xf0};
        out[n++] = (char)(lead[more] | c >> (6 * more));
        while (more--)
            out[n++] = (char)(0x80 | (c >> (6 * more) & 0x3f));
    }
    return n;
}

static void expect_round_trip(const struct sl_tokenizer *t, const char *text, size_t len,
                              unsigned flags)
{
    struct sl_tokens ids = {0};
    struct sl_buf back = {0};
    struct sl_detok d = {0};
    struct sl_err err = {0};
    if (sl_tokenize(t, text, len, flags, SIZE_MAX, &ids, &err))
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < ids.n; i++)
        sl_detok_push(&d, t, ids.ids[i], &back);
    sl_detok_finish(&d, &back);
    assert_int_equal(back.len, len);
    assert_memory_equal(back.data ? back.data : "", text, len);
    sl_tokens_free(&ids);
    sl_buf_free(&back);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct sl_tokenizer *t = open_vocab(VOCAB_FILE);
    for (size_t i = 0; i < sizeof nasty / sizeof *nasty; i++) {
        expect_round_trip(t, nasty[i], strlen(nasty[i]), 0);
        expect_round_trip(t, nasty[i], strlen(nasty[i]), SL_TOK_SPECIAL);
    }
    sl_tokenizer_close(t);

    static const char *const names[] = {"smollm", "gpt-2", "llama-bpe", "deepseek-llm", "default"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        struct small_vocab v = plain_vocab;
        static const char *const merges[] = {"a b", "ab c", "\xc4\xa0 a", NULL};
        v.pre = names[k];
        v.merges = merges;
        struct sl_err err = {0};
        if (open_small(&v, &t, &err))
            fail_msg("%s", err.msg);
        struct sl_rng r = {k, 0};
        for (unsigned i = 0; i < 200; i++) {
            char text[400];
            expect_round_trip(t, text, random_text(&r, text, 1 + sl_rng_below(&r, 90)), 0);
        }
        sl_tokenizer_close(t);
    }
}

/* Normal form C for qwen2, and only there: what it changes, and that long runs of marks stay
 * cheap. */
static void test_normal_form(void **state)
{
    (void)state;
    static const struct {
        const char *text, *normal;
    } rows[] = {
        {"cafe\xcc\x81", "caf\xc3\xa9"},
        {"a\xcc\x88\xcc\xa3", "\xe1\xba\xa1\xcc\x88"}, /* marks are sorted, then composed */
        {"\xe2\x84\xab", "\xc3\x85"},                  /* angstrom sign */
        {"\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", "\xed\x95\x9c"},
        {"plain", "plain"},
    };
    struct sl_tokenizer *q = NULL, *g = NULL;
    struct small_vocab v = plain_vocab;
    assert_int_equal(open_small(&v, &g, NULL), SL_OK);
    v.pre = "qwen2";
    assert_int_equal(open_small(&v, &q, NULL), SL_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_tokens want = {0};
        assert_int_equal(
            sl_tokenize(g, rows[i].normal, strlen(rows[i].normal), 0, SIZE_MAX, &want, NULL),
            SL_OK);
        expect_ids(q, rows[i].text, 0, want.ids, want.n);
        sl_tokens_free(&want);
        expect_round_trip(g, rows[i].text, strlen(rows[i].text), 0);
    }
    size_t n = 1 << 20; /* sorting neighbour by neighbour would take an hour */
    char *marks = malloc(2 * n);
    for (size_t i = 0; i < n; i++)
        memcpy(marks + 2 * i, i % 2 ? "\xcc\xa3" : "\xcc\x88", 2);
    struct sl_tokens ids = {0};
    assert_int_equal(sl_tokenize(q, marks, 2 * n, 0, SIZE_MAX, &ids, NULL), SL_OK);
    assert_int_equal(ids.n, 2 * n);
    assert_int_equal(ids.ids[1], ids.ids[n - 1]); /* all of the lower class first */
    sl_tokens_free(&ids);
    free(marks);
    sl_tokenizer_close(q);
    sl_tokenizer_close(g);
}

/* The rule as it is stated: merge the lowest-ranked pair, leftmost first, until there is none. */
static bool is_merge(const char *merge, struct sl_str a, struct sl_str b)
{
    return strlen(merge) == a.len + 1 + b.len && memcmp(merge, a.data, a.len) == 0 &&
           merge[a.len] == ' ' && memcmp(merge + a.len + 1, b.data, b.len) == 0;
}

static size_t naive_merge(const char *const *merges, struct sl_str *parts, size_t n)
{
    for (;;) {
        size_t best_rank = SIZE_MAX, best = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t r = 0; merges[r] && r < best_rank; r++)
                if (is_merge(merges[r], parts[i], parts[i + 1])) {
                    best_rank = r;
                    best = i;
                }
        if (best_rank == SIZE_MAX)
            return n;
        parts[best].len += parts[best + 1].len; /* they are neighbours in one text */
        memmove(parts + best + 1, parts + best + 2, (n - best - 2) * sizeof *parts);
        n--;
    }
}

static void test_merges(void **state)
{
    (void)state;
    static const char *const merges[] = {"a b",  "b a", "a a",   "ab a",  "c c",    "b b", "cc c",
                                         "aa b", "b c", "ab ab", "aa aa", "aba ba", NULL};
    struct small_vocab v = plain_vocab;
    struct sl_tokenizer *t = NULL;
    v.merges = merges;
    assert_int_equal(open_small(&v, &t, NULL), SL_OK);
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct sl_rng r = {seed, 0};
        size_t len = 1 + sl_rng_below(&r, seed % 4 ? 40 : 90); /* both sides of "short" */
        char text[128];
        struct sl_str parts[128];
        for (size_t i = 0; i < len; i++) {
            text[i] = (char)('a' + sl_rng_below(&r, 3));
            parts[i] = (struct sl_str){text + i, 1};
        }
        size_t n = naive_merge(merges, parts, len);
        struct sl_tokens got = {0};
        assert_int_equal(sl_tokenize(t, text, len, 0, SIZE_MAX, &got, NULL), SL_OK);
        if (got.n != n)
            fail_msg("seed %llu: %zu tokens, want %zu", (unsigned long long)seed, got.n, n);
        for (size_t i = 0; i < n; i++) {
            struct sl_str s = sl_token_bytes(t, got.ids[i]);
            if (!sl_str_eq(s, parts[i]))
                fail_msg("seed %llu: token %zu is '%.*s', want '%.*s'", (unsigned long long)seed, i,
                         (int)s.len, s.data, (int)parts[i].len, parts[i].data);
        }
        sl_tokens_free(&got);
    }
    sl_tokenizer_close(t);
}

static void test_specials(void **state)
{
    (void)state;
    static const char *const specials[] = {"c<s>", "c<s>>", "c<sep>",   "u<think>", "u[[",
                                           "u[[[", "c<s",   "nun used", NULL};
    struct small_vocab v = plain_vocab;
    struct sl_tokenizer *t = NULL;
    v.specials = specials;
    assert_int_equal(open_small(&v, &t, NULL), SL_OK);
    enum { S = 256, S2, SEP, THINK, B2, B3, S0, NORMAL };
    static const struct {
        const char *text;
        unsigned flags;
        uint32_t ids[12];
        size_t n;
    } rows[] = {
        {"<s>", SL_TOK_SPECIAL, {S}, 1},
        {"<s>>", SL_TOK_SPECIAL, {S2}, 1},
        {"<s<sep>", SL_TOK_SPECIAL, {S0, SEP}, 2},
        {"<<s>", SL_TOK_SPECIAL, {'<', S}, 2},
        {"a<s>b<sep>", SL_TOK_SPECIAL, {'a', S, 'b', SEP}, 4},
        {"<think>[[[[", SL_TOK_SPECIAL, {THINK, B3, '['}, 3},
        {"<s><think>[[", 0, {'<', 's', '>', THINK, B2}, 5},
        {"[[[[[", 0, {B3, B2}, 2},
        {"<se", SL_TOK_SPECIAL, {S0, 'e'}, 2},
        {"<se", 0, {'<', 's', 'e'}, 3},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        expect_ids(t, rows[i].text, rows[i].flags, rows[i].ids, rows[i].n);
    assert_true(sl_token_is_special(t, S) && sl_token_is_special(t, THINK));
    assert_false(sl_token_is_special(t, 'a') || sl_token_is_special(t, NORMAL) ||
                 sl_token_is_special(t, 100000));
    assert_true(sl_str_eqz(sl_token_bytes(t, NORMAL), "un used")); /* a plain space is kept */
    assert_int_equal(sl_token_bytes(t, 100000).len, 0);
    sl_tokenizer_close(t);
}

/* No special token across a break: what a caller wrote cannot complete what a template began. A
 * shorter one that ends at the break is still one, and ordinary words go across. */
static void test_guards(void **state)
{
    (void)state;
    static const char *const specials[] = {"c<s>", "c<s>>", "u[[", NULL};
    static const char *const merges[] = {"a b", NULL};
    enum { AB = 256, S, S2, B2 };
    static const struct {
        const char *text;
        size_t breaks[3], n_breaks;
        uint32_t ids[8];
        size_t n;
    } rows[] = {
        {"<s>", {0}, 0, {S}, 1},
        {"<s>", {0, 3}, 2, {S}, 1},
        {"<s>", {1}, 1, {'<', 's', '>'}, 3},
        {"<s>", {2}, 1, {'<', 's', '>'}, 3},
        {"<s>>", {3}, 1, {S, '>'}, 2},
        {"<s>>", {2, 3}, 2, {'<', 's', '>', '>'}, 4},
        {"<s><s>", {3, 4}, 2, {S, '<', 's', '>'}, 4},
        {"[[[", {1}, 1, {'[', B2}, 2},
        {"ab<s>ab", {1, 6, 99}, 3, {AB, S, AB}, 3},
    };
    struct small_vocab v = plain_vocab;
    struct sl_tokenizer *t = NULL;
    v.specials = specials;
    v.merges = merges;
    assert_int_equal(open_small(&v, &t, NULL), SL_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_tokens got = {0};
        assert_int_equal(sl_tokenize_guarded(t, rows[i].text, strlen(rows[i].text), SL_TOK_SPECIAL,
                                             rows[i].breaks, rows[i].n_breaks, SIZE_MAX, &got,
                                             NULL),
                         SL_OK);
        if (!same_ids(&got, rows[i].ids, rows[i].n)) {
            print_ids("want", rows[i].ids, rows[i].n);
            print_ids("got ", got.ids, got.n);
            fail_msg("row %zu", i);
        }
        sl_tokens_free(&got);
    }
    assert_int_equal(sl_token_special_at(t, "<s>>x", 5), 4);
    assert_int_equal(sl_token_special_at(t, "<s>>x", 3), 3);
    assert_int_equal(sl_token_special_at(t, "x<s>", 4), 0);
    assert_int_equal(sl_token_special_at(t, "", 0), 0);
    sl_tokenizer_close(t);
}

static void test_bos_and_stops(void **state)
{
    (void)state;
    static const char *const specials[] = {"c<s>", "c<|eot_id|>", "n<|im_end|>", NULL};
    static const struct {
        const char *pre;
        int add_bos;
        size_t n;
    } rows[] = {{"gpt-2", -1, 1},     {"gpt-2", 1, 2},     {"gpt-2", 0, 1},
                {"llama-bpe", -1, 2}, {"llama-bpe", 0, 1}, {"deepseek-llm", -1, 2}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct small_vocab v = {.model = "gpt2",
                                .pre = rows[i].pre,
                                .add_bos = rows[i].add_bos,
                                .specials = specials,
                                .extra_key = "tokenizer.ggml.bos_token_id",
                                .extra = 256};
        struct sl_tokenizer *t = NULL;
        assert_int_equal(open_small(&v, &t, NULL), SL_OK);
        const uint32_t with[] = {256, 'a'};
        expect_ids(t, "a", SL_TOK_ADD_BOS, with + 2 - rows[i].n, rows[i].n);
        expect_ids(t, "a", 0, with + 1, 1);
        expect_ids(t, "", SL_TOK_ADD_BOS, with, rows[i].n - 1);
        size_t n;
        const uint32_t *stops = sl_tokenizer_stops(t, &n);
        assert_int_equal(n, 1); /* the one of that name that is a control token */
        assert_int_equal(stops[0], 257);
        assert_int_equal(sl_tokenizer_bos(t), 256);
        assert_int_equal(sl_tokenizer_eos(t), SL_NO_TOKEN);
        assert_int_equal(sl_tokenizer_template(t).len, 0);
        sl_tokenizer_close(t);
    }
    struct sl_tokenizer *t = open_vocab(VOCAB_FILE);
    size_t n;
    const uint32_t *stops = sl_tokenizer_stops(t, &n);
    assert_int_equal(n, 2);
    assert_int_equal(stops[0], 2); /* <|im_end|> */
    assert_int_equal(stops[1], 0); /* <|endoftext|> */
    assert_int_equal(sl_tokenizer_eos(t), 2);
    assert_int_equal(sl_tokenizer_bos(t), 1);
    assert_int_equal(sl_tokenizer_n_vocab(t), 49152);
    assert_non_null(strstr(sl_tokenizer_template(t).data, "<|im_start|>"));
    sl_tokenizer_close(t);
}

/* Names that a file gives for whole words, and bytes it has no token for. */
static void test_whole_words_and_missing_bytes(void **state)
{
    (void)state;
    static const char *const specials[] = {"nabcd", NULL}; /* no merge leads to it */
    struct small_vocab v = {.model = "gpt2", .add_bos = -1, .specials = specials};
    struct sl_tokenizer *t = NULL;
    const uint32_t whole[] = {256}, parts[] = {'a', 'b', 'c', 'd'};
    v.pre = "llama-bpe";
    assert_int_equal(open_small(&v, &t, NULL), SL_OK);
    expect_ids(t, "abcd", 0, whole, 1);
    sl_tokenizer_close(t);
    v.pre = "gpt-2";
    assert_int_equal(open_small(&v, &t, NULL), SL_OK);
    expect_ids(t, "abcd", 0, parts, 4);
    expect_ids(t, "abcd", 0, parts, 4);
    sl_tokenizer_close(t);

    static const char *const merges[] = {"a b", NULL};
    v = (struct small_vocab){
        .model = "gpt2", .pre = "gpt-2", .add_bos = -1, .merges = merges, .skip_bytes = "xyz"};
    assert_int_equal(open_small(&v, &t, NULL), SL_OK);
    const uint32_t ab[] = {253};
    expect_ids(t, "axyb", 0, ab, 1); /* what has no token is not there */
    expect_ids(t, "xyz", 0, NULL, 0);
    sl_tokenizer_close(t);
}

static void test_faulty_files(void **state)
{
    (void)state;
    static const char *const no_pair[] = {"ab", NULL}, *const unknown[] = {"a b", "q \xe2\x82\xac",
                                                                           NULL};
    static const struct {
        struct small_vocab v;
        const char *says;
    } rows[] = {
        {{.model = "llama", .pre = "gpt-2"}, "type 'llama'"},
        {{.pre = "gpt-2"}, "type ''"},
        {{.model = "gpt2", .pre = "tekken"}, "pre-tokenizer 'tekken'"},
        {{.model = "gpt2", .pre = ""}, "pre-tokenizer ''"},
        {{.model = "gpt2", .merges = no_pair}, "merge 0"},
        {{.model = "gpt2", .merges = unknown, .skip_bytes = "q"}, "merge 1"},
        {{.model = "gpt2", .n_types_less = 1}, "255 entries for 256"},
        {{.model = "gpt2", .extra_key = "tokenizer.ggml.eos_token_id", .extra = 256},
         "eos_token_id"},
        {{.model = "gpt2", .extra_key = "tokenizer.ggml.add_bos_token", .extra = 1, .add_bos = -1},
         "not a bool"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_tokenizer *t = NULL;
        struct sl_err err = {0};
        assert_int_equal(open_small(&rows[i].v, &t, &err), SL_MODEL);
        assert_null(t);
        if (!strstr(err.msg, rows[i].says))
            fail_msg("row %zu: '%s' does not say '%s'", i, err.msg, rows[i].says);
    }
    struct small_vocab no_pre = {.model = "gpt2", .add_bos = -1};
    struct sl_tokenizer *t = NULL;
    assert_int_equal(open_small(&no_pre, &t, NULL), SL_OK); /* no name: "default" */
    sl_tokenizer_close(t);
}

static void test_bad_text_and_limits(void **state)
{
    (void)state;
    static const char *const bad[] = {"\x80",
                                      "a\xc3",
                                      "\xc0\x80",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xff",
                                      "\xf5\x80\x80\x80",
                                      "\xe2\x82"};
    struct sl_tokenizer *t = open_vocab(VOCAB_FILE);
    struct sl_tokens ids = {0};
    sl_tokens_push(&ids, 7);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct sl_err err = {0};
        assert_int_equal(sl_tokenize(t, bad[i], strlen(bad[i]), 0, SIZE_MAX, &ids, &err),
                         SL_INVALID);
        assert_int_equal(ids.n, 1);
    }
    static const struct {
        const char *text;
        size_t max;
        enum sl_status want;
    } rows[] = {{"", 0, SL_OK},          {"a", 0, SL_TOO_LONG},     {"a", 1, SL_OK},
                {"a b c", 3, SL_OK},     {"a b c", 2, SL_TOO_LONG}, {"<|im_end|>", 0, SL_TOO_LONG},
                {"<|im_end|>", 1, SL_OK}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        ids.n = 1;
        assert_int_equal(sl_tokenize(t, rows[i].text, strlen(rows[i].text), SL_TOK_SPECIAL,
                                     rows[i].max, &ids, NULL),
                         rows[i].want);
        assert_int_equal(ids.ids[0], 7);
        if (rows[i].want)
            assert_int_equal(ids.n, 1);
    }
    sl_tokens_free(&ids);
    sl_tokenizer_close(t);
}

/* Texts that would be quadratic done naively: hours, and ctest's timeout with them. */
static void test_long_words(void **state)
{
    (void)state;
    struct sl_tokenizer *t = open_vocab(VOCAB_FILE);
    size_t n = (size_t)16 << 20;
    char *text = malloc(n);
    assert_non_null(text);
    static const char *const fills[] = {"a", "ab", " ", "<", "\n", "  5", "<|im_"};
    for (size_t k = 0; k < sizeof fills / sizeof *fills; k++) {
        size_t len = k ? n / 64 : n;
        for (size_t i = 0; i < len; i++)
            text[i] = fills[k][i % strlen(fills[k])];
        struct sl_tokens ids = {0};
        size_t bytes = 0;
        assert_int_equal(sl_tokenize(t, text, len, SL_TOK_SPECIAL, SIZE_MAX, &ids, NULL), SL_OK);
        for (size_t i = 0; i < ids.n; i++)
            bytes += sl_token_bytes(t, ids.ids[i]).len;
        assert_int_equal(bytes, len);
        /* With a limit the answer comes without merging. */
        assert_int_equal(sl_tokenize(t, text, len, 0, 1000, &ids, NULL), SL_TOO_LONG);
        sl_tokens_free(&ids);
    }
    free(text);
    sl_tokenizer_close(t);
}

/* No pattern takes quadratic time or meets PCRE2's limits on runs of what it has to go back over.
 */
static void test_long_runs_for_every_pattern(void **state)
{
    (void)state;
    static const char *const names[] = {"smollm", "gpt-2",        "llama-bpe",
                                        "qwen2",  "deepseek-llm", "default"};
    static const struct {
        const char *fill, *end;
    } runs[] = {{" ", "5"},   {" ", "\n"}, {" \t", "x"},
                {"\n", " x"}, {"1", ""},   {"\xe3\x80\x80", "5"},
                {"!", "\n"},  {"'", "s"},  {"\r\n ", "\xe4\xbd\xa0"}};
    size_t n = (size_t)1 << 18;
    char *text = malloc(n + 8);
    assert_non_null(text);
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        struct small_vocab v = {.model = "gpt2", .pre = names[k], .add_bos = -1};
        struct sl_tokenizer *t = NULL;
        assert_int_equal(open_small(&v, &t, NULL), SL_OK);
        for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
            size_t step = strlen(runs[i].fill), len = 0;
            for (; len + step <= n; len += step)
                memcpy(text + len, runs[i].fill, step);
            memcpy(text + len, runs[i].end, strlen(runs[i].end));
            len += strlen(runs[i].end);
            struct sl_tokens ids = {0};
            struct sl_err err = {0};
            if (sl_tokenize(t, text, len, 0, SIZE_MAX, &ids, &err))
                fail_msg("%s, run %zu: %s", names[k], i, err.msg);
            assert_int_equal(ids.n, len);
            sl_tokens_free(&ids);
        }
        sl_tokenizer_close(t);
    }
    free(text);
}

static void *tokenize_all(void *tokenizer)
{
    struct sl_tokens *ids = calloc(1, sizeof *ids);
    for (unsigned round = 0; round < 20; round++) {
        ids->n = 0;
        for (size_t i = 0; i < sizeof nasty / sizeof *nasty; i++)
            if (sl_tokenize(tokenizer, nasty[i], strlen(nasty[i]), SL_TOK_SPECIAL, SIZE_MAX, ids,
                            NULL))
                return NULL;
    }
    return ids;
}

static void test_shared_by_threads(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    struct sl_tokenizer *t = open_vocab(VOCAB_FILE);
    pthread_t threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, tokenize_all, t), 0);
    struct sl_tokens *want = tokenize_all(t);
    assert_non_null(want);
    for (unsigned i = 0; i < THREADS; i++) {
        void *ids = NULL;
        pthread_join(threads[i], &ids);
        assert_non_null(ids);
        assert_true(same_ids(want, ((struct sl_tokens *)ids)->ids, ((struct sl_tokens *)ids)->n));
        sl_tokens_free(ids);
        free(ids);
    }
    sl_tokens_free(want);
    free(want);
    sl_tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_normal_form),
        cmocka_unit_test(test_merges),
        cmocka_unit_test(test_specials),
        cmocka_unit_test(test_guards),
        cmocka_unit_test(test_bos_and_stops),
        cmocka_unit_test(test_whole_words_and_missing_bytes),
        cmocka_unit_test(test_faulty_files),
        cmocka_unit_test(test_bad_text_and_limits),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_long_runs_for_every_pattern),
        cmocka_unit_test(test_shared_by_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
