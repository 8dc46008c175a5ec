/* The tokenizer gives the ids of the golden vectors, all of them, with special tokens parsed and
 * with special tokens as plain text. */
#include "rig.h"

#include <sluice/base/json.h>
#include <stdlib.h>

static char *read_file(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *data = malloc(1 << 20);
    assert_non_null(data);
    *len = fread(data, 1, 1 << 20, f);
    fclose(f);
    return data;
}

/* Our JSON refuses NUL in strings, one vector has it: it travels as U+E000, which none has. */
static void hide_nul(char *data, size_t len)
{
    for (size_t i = 0; i + 6 <= len; i++) {
        assert_memory_not_equal(data + i, "\\ue000", 6);
        if (memcmp(data + i, "\\u0000", 6) == 0)
            memcpy(data + i, "\\ue000", 6);
    }
}

static size_t unhide_nul(char *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++, n++) {
        bool hidden = len - i >= 3 && memcmp(text + i, "\xee\x80\x80", 3) == 0;
        text[n] = hidden ? 0 : text[i];
        i += hidden ? 2 : 0;
    }
    return n;
}

static unsigned check(const struct sl_tokenizer *t, const struct sl_json *vector, const char *key,
                      unsigned flags)
{
    struct sl_str json = sl_json_str(sl_json_get(vector, "text"));
    struct sl_buf text = {0};
    sl_buf_append(&text, json.data, json.len);
    text.len = unhide_nul(text.data, text.len);
    const struct sl_json *ids = sl_json_get(vector, key);
    struct sl_tokens want = {0}, got = {0};
    for (size_t i = 0; i < sl_json_len(ids); i++)
        sl_tokens_push(&want, (uint32_t)sl_json_int(sl_json_at(ids, i)));
    struct sl_err err = {0};
    enum sl_status s = sl_tokenize(t, text.data, text.len, flags, SIZE_MAX, &got, &err);
    bool good = !s && same_ids(&got, want.ids, want.n);
    if (!good) {
        print_error("%s of '%.*s' %s\n", key, (int)text.len, text.data, err.msg);
        print_ids("  want", want.ids, want.n);
        print_ids("  got ", got.ids, got.n);
    }
    sl_tokens_free(&want);
    sl_tokens_free(&got);
    sl_buf_free(&text);
    return !good;
}

static void test_vectors(void **state)
{
    (void)state;
    size_t len;
    char *data = read_file(SL_TESTS_DIR "/golden/tokens.json", &len);
    hide_nul(data, len);
    struct sl_json *root = NULL;
    struct sl_err err = {0};
    if (sl_json_parse(data, len, &root, &err))
        fail_msg("%s", err.msg);
    struct sl_tokenizer *t = open_vocab(VOCAB_FILE);
    const struct sl_json *cases = sl_json_get(root, "cases");
    unsigned bad = 0;
    for (size_t i = 0; i < sl_json_len(cases); i++) {
        bad += check(t, sl_json_at(cases, i), "parse_special", SL_TOK_SPECIAL);
        bad += check(t, sl_json_at(cases, i), "plain", 0);
    }
    assert_int_equal(sl_json_len(cases), 60);
    assert_int_equal(bad, 0);
    sl_tokenizer_close(t);
    sl_json_free(root);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_vectors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
