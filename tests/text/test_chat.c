/* Promised: a chat template renders byte for byte what Jinja renders, or fails where Jinja raises;
 * what a hostile template costs is bounded, and its end is an error that names the budget. */
#include <sluice/text/chat.h>
#include <sluice/base/limits.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct sl_json *read_golden(void)
{
    struct sl_buf text = {0};
    struct sl_json *doc = NULL;
    struct sl_err err = {0};
    char chunk[65536];
    FILE *f = fopen(SL_TESTS_DIR "/golden/chat.json", "rb");
    assert_non_null(f);
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;)
        sl_buf_append(&text, chunk, n);
    fclose(f);
    if (sl_json_parse(text.data, text.len, &doc, &err) != SL_OK)
        fail_msg("chat.json: %s", err.msg);
    sl_buf_free(&text);
    return doc;
}

/* Opens and renders; the message is in err on failure. */
static enum sl_status render(struct sl_str source, const struct sl_json *vars, struct sl_buf *out,
                             struct sl_err *err)
{
    struct sl_template *t;
    enum sl_status status = sl_template_open(source.data, source.len, &t, err);
    if (status == SL_OK)
        status = sl_template_render(t, vars, out, err);
    if (status == SL_OK || err->status == SL_INVALID)
        sl_template_close(t);
    return status;
}

static size_t check(const char *what, struct sl_str source, const struct sl_json *vars,
                    const struct sl_json *expected)
{
    struct sl_buf out = {0};
    struct sl_err err = {0};
    bool ok = render(source, vars, &out, &err) == SL_OK;
    bool wanted = sl_json_kind(expected) == SL_JSON_STRING;
    struct sl_str want = wanted ? sl_json_str(expected) : SL_STR("(an error)");
    struct sl_str got = {ok && out.data ? out.data : "", ok ? out.len : 0};
    bool same = ok == wanted && (!ok || sl_str_eq(got, want));
    if (!same)
        print_error("%s: %.*s\n  wanted: %.*s\n  got:    %.*s%s\n", what, (int)source.len,
                    source.data, (int)want.len, want.data, (int)got.len, got.data,
                    ok ? "" : err.msg);
    sl_buf_free(&out);
    return !same;
}

static void templates_render_as_jinja_does(void **state)
{
    struct sl_json *doc = read_golden();
    const struct sl_json *renders = sl_json_get(doc, "renders");
    size_t n_bad = 0;
    (void)state;
    assert_true(sl_json_len(renders) >= 400);
    for (size_t i = 0; i < sl_json_len(renders); i++) {
        const struct sl_json *r = sl_json_at(renders, i);
        char name[64], input[64];
        struct sl_str s = sl_json_str(sl_json_get(r, "template"));
        snprintf(name, sizeof name, "%.*s", (int)s.len, s.data);
        s = sl_json_str(sl_json_get(r, "input"));
        snprintf(input, sizeof input, "%.*s", (int)s.len, s.data);
        const struct sl_json *source = sl_json_get(sl_json_get(doc, "templates"), name);
        const struct sl_json *vars = sl_json_get(sl_json_get(doc, "inputs"), input);
        char what[160];
        snprintf(what, sizeof what, "%s with %s", name, input);
        n_bad += check(what, sl_json_str(source), vars, sl_json_get(r, "out"));
    }
    sl_json_free(doc);
    assert_int_equal(n_bad, 0);
}

static void probes_render_as_jinja_does(void **state)
{
    struct sl_json *doc = read_golden();
    const struct sl_json *probes = sl_json_get(doc, "probes");
    const struct sl_json *vars = sl_json_get(doc, "probe_vars");
    size_t n_bad = 0;
    (void)state;
    assert_true(sl_json_len(probes) >= 600);
    for (size_t i = 0; i < sl_json_len(probes); i++) {
        const struct sl_json *p = sl_json_at(probes, i);
        n_bad += check("probe", sl_json_str(sl_json_get(p, "source")), vars, sl_json_get(p, "out"));
    }
    sl_json_free(doc);
    assert_int_equal(n_bad, 0);
}

/* What goes beyond Jinja's sandbox, or differs from it on purpose; NULL out: an error that says
 * `why`. */
static void own_rules_hold(void **state)
{
    static const struct {
        const char *source, *out, *why;
    } cases[] = {
        {"{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}", "[1, 2]", NULL},
        {"{{ [].__class__ }}", NULL, "not accessible"},
        {"{{ ''.__class__.__mro__ }}", NULL, "not accessible"},
        {"{{ range.__globals__ }}", NULL, "not accessible"},
        {"{{ cycler.__init__ }}", NULL, "undefined"},
        {"{{ ({'_a': 1})._a }}", "1", NULL},
        {"{{ strftime_now('%Y') }}", NULL, "__now"},
        {"{{ raise_exception('Roles must\nalternate') }}", NULL, "line 1: Roles must alternate"},
        {"a\nb\n{{ x.y }}", NULL, "line 3"},
        {"{{ f(*a) }}", NULL, "spread"},
        {"{% for a in b recursive %}{% endfor %}", NULL, "recursive"},
        {"{% include 'x' %}", NULL, "unknown tag 'include'"},
        {"{% import 'x' as y %}", NULL, "unknown tag 'import'"},
    };
    struct sl_json *vars;
    struct sl_err err;
    (void)state;
    assert_int_equal(sl_json_parse("{}", 2, &vars, &err), SL_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_buf out = {0};
        err = (struct sl_err){0};
        enum sl_status status = render(sl_str_of(cases[i].source), vars, &out, &err);
        if (cases[i].out) {
            assert_int_equal(status, SL_OK);
            assert_string_equal(out.data, cases[i].out);
        } else {
            assert_int_not_equal(status, SL_OK);
            if (!strstr(err.msg, cases[i].why))
                fail_msg("%s: '%s' does not say '%s'", cases[i].source, err.msg, cases[i].why);
            assert_null(strchr(err.msg, '\n'));
            assert_int_equal(out.len, 0);
        }
        sl_buf_free(&out);
    }
    sl_json_free(vars);
}

static void budgets_end_hostile_templates(void **state)
{
    static const struct {
        const char *source, *why;
    } cases[] = {
        {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
         "template_steps"},
        {"{% for a in range(100001) %}{% endfor %}", "range of more"},
        {"{% for a in range(0, 9000000000000000000) %}{% endfor %}", "range of more"},
        {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "template_depth"},
        {"{% macro f(x) %}{{ f(x) ~ f(x) }}{% endmacro %}{{ f(1) }}", "template_depth"},
        {"{% set ns = namespace(s='abcdefgh') %}{% for i in range(99) %}"
         "{% set ns.s = ns.s + ns.s %}{% endfor %}",
         "16 MiB"},
        {"{% set ns = namespace(s='ab') %}{% for i in range(99) %}{{ ns.s }}"
         "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
         "template_output_bytes"},
        {"{{ 'xxxxxxxxxxxxxxxx' * 99999999999 }}", "template_output_bytes"},
        {"{{ [0] * 99999999999 }}", "MiB"},
        {"{{ 'a' | indent(99999999999) }}", "template_steps"},
        {"{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' "
         "}}{% endfor %}",
         "template_output_bytes"},
        {"{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}"
         "{% endfor %}{{ ns.l }}",
         "nested too deep"},
        {"{% set l = [] %}{{ l.append(l) }}{{ l|tojson }}", "nested too deep"},
        {"{% set l = [] %}{{ l.append(l) }}{% set m = [l] %}{{ l == m }}", "nested too deep"},
        {"{% set l = ['map'] %}{{ [[1]]|map('map', 'map', 'map', 'map')|list }}",
         "cannot be iterated"},
        {"{% set ns = namespace(s='a') %}{% for i in range(22) %}{% set ns.s = ns.s ~ ns.s %}"
         "{% endfor %}{{ ns.s.rfind(ns.s[1:2000000] ~ 'b') }}",
         "template_steps"},
        {"{{ (-9223372036854775807 - 1)|abs }}", "abs"},
        {"{{ (-9223372036854775807 - 1) // -1 }}", "too large"},
        {"{{ -(-9223372036854775807 - 1) }}", "too large"},
        {"{{ 3 ** 9999999999 }}", "too large"},
    };
    struct sl_json *vars;
    struct sl_err err;
    (void)state;
    assert_int_equal(sl_json_parse("{}", 2, &vars, &err), SL_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_buf out = {0};
        err = (struct sl_err){0};
        enum sl_status status = render(sl_str_of(cases[i].source), vars, &out, &err);
        if (status != SL_INVALID || !strstr(err.msg, cases[i].why))
            fail_msg("%s: %d '%s', wanted '%s'", cases[i].source, status, err.msg, cases[i].why);
        sl_buf_free(&out);
    }
    sl_json_free(vars);
}

/* `n` times `open`, a core, `n` times `close`. */
static enum sl_status open_nested(const char *begin, const char *open, const char *core,
                                  const char *close, const char *end, size_t n, struct sl_err *err)
{
    struct sl_buf s = {0};
    struct sl_template *t = NULL;
    sl_buf_puts(&s, begin);
    for (size_t i = 0; i < n; i++)
        sl_buf_puts(&s, open);
    sl_buf_puts(&s, core);
    for (size_t i = 0; i < n; i++)
        sl_buf_puts(&s, close);
    sl_buf_puts(&s, end);
    enum sl_status status = sl_template_open(s.data, s.len, &t, err);
    sl_template_close(t);
    sl_buf_free(&s);
    return status;
}

static void nesting_is_bounded_and_chains_are_not(void **state)
{
    static const struct {
        const char *begin, *open, *core, *close, *end;
        bool nests;
    } cases[] = {
        {"{{ ", "(", "1", ")", " }}", true},
        {"{{ ", "[", "1", "]", " }}", true},
        {"{{ ", "{1:", "1", "}", " }}", true},
        {"{{ ", "not ", "1", "", " }}", true},
        {"{{ ", "-", "1", "", " }}", true},
        {"{{ ", "a[", "1", "]", " }}", true},
        {"{{ ", "f(", "1", ")", " }}", true},
        {"{{ ", "1 if 1 else ", "1", "", " }}", true},
        {"{{ 1 ", "if 1 ", "", "", " }}", true},
        {"", "{% if 1 %}", "x", "{% endif %}", "", true},
        {"", "{% for a in b %}", "x", "{% endfor %}", "", true},
        {"", "{% macro f() %}", "x", "{% endmacro %}", "", true},
        {"{{ ", "1 + ", "1", "", " }}", false},
        {"{{ ", "a ~ ", "1", "", " }}", false},
        {"{{ ", "1 and ", "1", "", " }}", false},
        {"{{ ", "1 < ", "1", "", " }}", false},
        {"{{ a", "", "", ".b", " }}", false},
        {"{{ a", "", "", "|trim", " }}", false},
        {"{{ a", "", "", "()", " }}", false},
        {"{% if 1 %}", "{% elif 1 %}", "", "", "{% endif %}", false},
        {"", "{{ 1 }}x", "", "", "", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sl_err err = {0};
        enum sl_status status = open_nested(cases[i].begin, cases[i].open, cases[i].core,
                                            cases[i].close, cases[i].end, 20000, &err);
        if (status != (cases[i].nests ? SL_MODEL : SL_OK))
            fail_msg("case %zu: %d %s", i, status, err.msg);
        assert_int_equal(open_nested(cases[i].begin, cases[i].open, cases[i].core, cases[i].close,
                                     cases[i].end, 20, &err),
                         SL_OK);
    }
}

static void bad_sources_are_refused(void **state)
{
    struct sl_template *t;
    struct sl_err err = {0};
    char *big = calloc(1, SL_LIMIT_template_source_bytes + 1);
    (void)state;
    assert_non_null(big);
    memset(big, 'a', SL_LIMIT_template_source_bytes + 1);
    assert_int_equal(sl_template_open(big, SL_LIMIT_template_source_bytes + 1, &t, &err), SL_MODEL);
    assert_non_null(strstr(err.msg, "template_source_bytes"));
    assert_int_equal(sl_template_open(big, SL_LIMIT_template_source_bytes, &t, &err), SL_OK);
    sl_template_close(t);
    free(big);
    assert_int_equal(sl_template_open("a\xff", 2, &t, &err), SL_MODEL);
    assert_int_equal(sl_template_open("a\0b", 3, &t, &err), SL_MODEL);
    assert_null(t);
    sl_template_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_render_as_jinja_does),
        cmocka_unit_test(probes_render_as_jinja_does),
        cmocka_unit_test(own_rules_hold),
        cmocka_unit_test(budgets_end_hostile_templates),
        cmocka_unit_test(nesting_is_bounded_and_chains_are_not),
        cmocka_unit_test(bad_sources_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
