/* Promised: command line over environment over file over default; numbers strict and in range; an
 * unknown flag or key names the nearest known one; help, manual page and completion come from the
 * table. */
#include <sluice/base/options.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

struct opts {
    const char *host, *config, *isa, *key;
    int64_t port, kv_bytes, n;
    double rate;
    bool prefix, quiet;
};

#define AT(field) offsetof(struct opts, field)
static const struct sl_option table[] = {
    {"host", SL_OPT_STRING, AT(host), "127.0.0.1", 0, 0, NULL, "ADDRESS", "listen here"},
    {"port", SL_OPT_INT, AT(port), "8080", 1, 65535, NULL, "N", "listen on this port"},
    {"kv-cache-bytes", SL_OPT_BYTES, AT(kv_bytes), "0", 4096, 1e15, NULL, "BYTES", "KV memory"},
    {"n-any", SL_OPT_INT, AT(n), NULL, 0, 0, NULL, NULL, "unbounded"},
    {"rate", SL_OPT_REAL, AT(rate), "0.5", 0, 2, NULL, "R", "requests a second"},
    {"prefix-caching", SL_OPT_FLAG, AT(prefix), "true", 0, 0, NULL, NULL, "reuse prefixes"},
    {"quiet", SL_OPT_FLAG, AT(quiet), NULL, 0, 0, NULL, NULL, "say less"},
    {"isa", SL_OPT_CHOICE, AT(isa), NULL, 0, 0, "scalar|avx2|avx512", NULL, "instruction set"},
    {"api-key-file", SL_OPT_STRING, AT(key), NULL, 0, 0, NULL, "FILE",
     "a help text long enough that it has to be broken into more than one line of the column"},
    {"config", SL_OPT_STRING, AT(config), NULL, 0, 0, NULL, "FILE", "YAML file"},
};
#define N_TABLE  (sizeof table / sizeof *table)
#define ARGS_MAX 8

struct run {
    struct opts o;
    struct sl_arena arena;
    const char *operands[2];
    size_t n_operands;
    struct sl_err err;
    enum sl_status status;
};

static void run_options(struct run *r, const char *const *args, const char *const *env)
{
    char *argv[ARGS_MAX + 2] = {(char *)(uintptr_t) "verb"}, *envp[ARGS_MAX + 1] = {0};
    int argc = 1;
    for (; args && *args; args++)
        argv[argc++] = (char *)(uintptr_t)*args;
    for (size_t i = 0; env && env[i]; i++)
        envp[i] = (char *)(uintptr_t)env[i];
    memset(r, 0, sizeof *r);
    memset(&r->o, 0xa5, sizeof r->o); /* every field is set by the reader */
    sl_arena_init(&r->arena, 1 << 20);
    r->status = sl_options_read(table, N_TABLE, argc, argv, envp, &r->arena, &r->o, r->operands, 2,
                                &r->n_operands, &r->err);
}

/* The file of the last config_file(): in memory, reached by a name. */
static char path[64];
static int file = -1;

static const char *config_file(const char *text, size_t len)
{
    static char arg[96];
    file = memfd_create("config", MFD_CLOEXEC);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, len), (ssize_t)len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    snprintf(arg, sizeof arg, "--config=%s", path);
    return arg;
}

static void defaults(void **state)
{
    (void)state;
    struct run r;
    run_options(&r, NULL, NULL);
    assert_int_equal(r.status, SL_OK);
    assert_string_equal(r.o.host, "127.0.0.1");
    assert_int_equal(r.o.port, 8080);
    assert_int_equal(r.o.kv_bytes, 0); /* a default may lie outside the range: "choose for me" */
    assert_int_equal(r.o.n, 0);
    assert_true(r.o.rate == 0.5);
    assert_true(r.o.prefix);
    assert_false(r.o.quiet);
    assert_null(r.o.isa);
    assert_null(r.o.config);
    sl_arena_free(&r.arena);
}

static void all_forms(void **state)
{
    (void)state;
    struct run r;
    run_options(&r,
                (const char *const[]){"model.gguf", "--port", "1", "--port=65535",
                                      "--no-prefix-caching", "--quiet", "--", "--x", NULL},
                NULL);
    assert_int_equal(r.status, SL_OK);
    assert_int_equal(r.o.port, 65535);
    assert_false(r.o.prefix);
    assert_true(r.o.quiet);
    assert_int_equal(r.n_operands, 2);
    assert_string_equal(r.operands[0], "model.gguf");
    assert_string_equal(r.operands[1], "--x");
    sl_arena_free(&r.arena);
    run_options(&r,
                (const char *const[]){"--n-any", "-5", "--kv-cache-bytes=16G", "--rate", "1e-1",
                                      "--isa=avx2", "--quiet=false", "-", NULL},
                NULL);
    assert_int_equal(r.status, SL_OK);
    assert_int_equal(r.o.n, -5);
    assert_int_equal(r.o.kv_bytes, (int64_t)16 << 30);
    assert_true(r.o.rate == 0.1);
    assert_string_equal(r.o.isa, "avx2");
    assert_false(r.o.quiet);
    assert_string_equal(r.operands[0], "-");
    sl_arena_free(&r.arena);
    run_options(&r, (const char *const[]){"--host=--odd", "--api-key-file=", NULL}, NULL);
    assert_int_equal(r.status, SL_OK);
    assert_string_equal(r.o.host, "--odd");
    assert_string_equal(r.o.key, "");
    sl_arena_free(&r.arena);
}

static void refusals(void **state)
{
    static const struct {
        const char *args[4];
        const char *says;
    } rows[] = {
        {{"--prot", "1"}, "unknown option '--prot'; did you mean '--port'?"},
        {{"--prefix-cachng"}, "did you mean '--prefix-caching'?"},
        {{"--kv-cash-bites=1"}, "did you mean '--kv-cache-bytes'?"},
        {{"--entirely-unlike-any"}, "unknown option '--entirely-unlike-any'"},
        {{"-p", "1"}, "unknown option '-p'"},
        {{"-port", "1"}, "did you mean '--port'?"},
        {{"--no-port"}, "unknown option '--no-port'"},
        {{"--no-quiet=1"}, "unknown option '--no-quiet=1'"},
        {{"--port"}, "--port needs a value"},
        {{"--host", "--port", "1"}, "--host needs a value"},
        {{"--port", "0"}, "--port: 0 is outside the range from 1 to 65535"},
        {{"--port", "65536"}, "--port: 65536 is outside the range from 1 to 65535"},
        {{"--port", ""}, "--port: '' is not a whole number"},
        {{"--port", "80x"}, "--port: '80x' is not a whole number"},
        {{"--port", " 80"}, "not a whole number"},
        {{"--port", "+80"}, "not a whole number"},
        {{"--port", "80.0"}, "not a whole number"},
        {{"--port", "0x50"}, "not a whole number"},
        {{"--n-any", "9223372036854775808"}, "not a whole number"},
        {{"--kv-cache-bytes", "1"}, "from 4096 to 1e+15"},
        {{"--kv-cache-bytes", "1Q"}, "not a number of bytes"},
        {{"--kv-cache-bytes", "1GB"}, "not a number of bytes"},
        {{"--kv-cache-bytes", "9999999999G"}, "not a number of bytes"},
        {{"--kv-cache-bytes", "K"}, "not a number of bytes"},
        {{"--rate", "nan"}, "not a number"},
        {{"--rate", "inf"}, "not a number"},
        {{"--rate", "1e999"}, "not a number"},
        {{"--rate", "0x1p0"}, "not a number"},
        {{"--rate", "1,5"}, "not a number"},
        {{"--rate", "2.5"}, "--rate: 2.5 is outside the range from 0 to 2"},
        {{"--isa", "avx"}, "--isa: 'avx' is not one of scalar|avx2|avx512"},
        {{"--isa", "scalar|avx2"}, "is not one of"},
        {{"--isa="}, "is not one of"},
        {{"--quiet=maybe"}, "--quiet: 'maybe' is not true or false"},
        {{"a", "b", "c"}, "'c' is operand 3, at most 2 expected"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct run r;
        run_options(&r, rows[i].args, NULL);
        if (r.status != SL_USAGE || !strstr(r.err.msg, rows[i].says))
            fail_msg("row %zu (%s): status %d, '%s'", i, rows[i].args[0], (int)r.status, r.err.msg);
        sl_arena_free(&r.arena);
    }
}

static void environment(void **state)
{
    (void)state;
    struct run r;
    run_options(&r, NULL,
                (const char *const[]){"SLUICE_PORT=9", "SLUICE_KV_CACHE_BYTES=4K", "SLUICE_QUIET=1",
                                      "SLUICE_HOST=", "SLUICE_OTHER_VERB=x", "PORT=3",
                                      "SLUICE_PORTS=4", NULL});
    assert_int_equal(r.status, SL_OK);
    assert_int_equal(r.o.port, 9);
    assert_int_equal(r.o.kv_bytes, 4096);
    assert_true(r.o.quiet);
    assert_string_equal(r.o.host, "127.0.0.1"); /* empty: not given */
    sl_arena_free(&r.arena);
    run_options(&r, NULL, (const char *const[]){"SLUICE_PORT=70000", NULL});
    assert_int_equal(r.status, SL_USAGE);
    assert_string_equal(r.err.msg, "SLUICE_PORT: 70000 is outside the range from 1 to 65535");
    assert_string_equal(r.err.param, "port");
    sl_arena_free(&r.arena);
}

static void precedence(void **state)
{
    static const char yaml[] = "# a comment\nport: 2\nrate: 1.5\nhost: file\nn-any: 3\n"
                               "prefix-caching: no\nisa: ~\n";
    (void)state;
    struct run r;
    const char *arg = config_file(yaml, sizeof yaml - 1);
    run_options(&r, (const char *const[]){"--port=4", arg, NULL},
                (const char *const[]){"SLUICE_PORT=3", "SLUICE_RATE=1.25", NULL});
    assert_int_equal(r.status, SL_OK);
    assert_int_equal(r.o.port, 4);
    assert_true(r.o.rate == 1.25);
    assert_string_equal(r.o.host, "file");
    assert_int_equal(r.o.n, 3);
    assert_false(r.o.prefix);
    assert_null(r.o.isa);
    assert_int_equal(r.o.kv_bytes, 0);
    sl_arena_free(&r.arena);
    char variable[96];
    snprintf(variable, sizeof variable, "SLUICE_CONFIG=%s", path);
    run_options(&r, NULL, (const char *const[]){variable, NULL});
    assert_int_equal(r.status, SL_OK);
    assert_int_equal(r.o.port, 2);
    assert_string_equal(r.o.config, path);
    sl_arena_free(&r.arena);
    run_options(&r, (const char *const[]){"--config=/nowhere/at/all", NULL},
                (const char *const[]){variable, NULL});
    assert_int_equal(r.status, SL_CONFIG); /* the command line's file, not the variable's */
    assert_non_null(strstr(r.err.msg, "/nowhere/at/all: No such file"));
    sl_arena_free(&r.arena);
    close(file);
}

static void files(void **state)
{
    static const struct {
        struct sl_str text;
        const char *says; /* NULL: accepted */
    } rows[] = {
        {SL_STR(""), NULL},
        {SL_STR("# only a comment\n"), NULL},
        {SL_STR("---\nport: 1\n"), NULL},
        {SL_STR("{port: 1, host: \"a b\"}"), NULL},
        {SL_STR("port: '1'\n"), NULL},
        {SL_STR("port: 1\nprot: 2\n"), "line 2: unknown key 'prot'; did you mean 'port'?"},
        {SL_STR("\n\nPORT: 1\n"), "line 3: unknown key 'PORT'"},
        {SL_STR("port: 1\nhost: x\nport: 2\n"), "line 3: key 'port' is given twice"},
        {SL_STR("host: x\nport: 0\n"), "line 2: port: 0 is outside the range from 1 to 65535"},
        {SL_STR("port: 1x\n"), "line 1: port: '1x' is not a whole number"},
        {SL_STR("isa: sse\n"), "line 1: isa: 'sse' is not one of scalar|avx2|avx512"},
        {SL_STR("port: [1]\n"), "line 1"},
        {SL_STR("port: {a: 1}\n"), "line 1"},
        {SL_STR("- port\n"), "line 1"},
        {SL_STR("port\n"), "line 1"},
        {SL_STR("host: 'x\n"), "line "},
        {SL_STR("host: x\n port: 1\n"), "line "},
        {SL_STR("host: &a x\nisa: *a\n"), "aliases are not supported"},
        {SL_STR("port: 1\n---\nhost: x\n"), "line 2: a second document begins"},
        {SL_STR("host: \xff\n"), "line 1"},
        {SL_STR("host: a\0b\n"), "line 1"},
        {SL_STR("? [a]\n: 1\n"), "line 1"},
        {SL_STR("<<: {port: 1}\n"), "unknown key '<<'"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct run r;
        const char *arg = config_file(rows[i].text.data, rows[i].text.len);
        run_options(&r, (const char *const[]){arg, NULL}, NULL);
        close(file);
        if (r.status != (rows[i].says ? SL_CONFIG : SL_OK) ||
            (rows[i].says && !strstr(r.err.msg, rows[i].says)))
            fail_msg("row %zu: status %d, '%s'", i, (int)r.status, r.err.msg);
        sl_arena_free(&r.arena);
    }
}

static void file_limit(void **state)
{
    (void)state;
    struct run r;
    size_t len = ((size_t)1 << 20) + 1;
    char *big = malloc(len);
    memset(big, '#', len);
    const char *arg = config_file(big, len);
    free(big);
    run_options(&r, (const char *const[]){arg, NULL}, NULL);
    close(file);
    assert_int_equal(r.status, SL_CONFIG);
    assert_non_null(strstr(r.err.msg, "more than the limit of 1048576 bytes"));
    sl_arena_free(&r.arena);
}

static void suggestions(void **state)
{
    static const char *const names[] = {"temperature", "top_p",      "top_k",
                                        "seed",        "max_tokens", NULL};
    static const struct {
        const char *word, *near;
    } rows[] = {{"temprature", "temperature"},
                {"temperatuer", "temperature"},
                {"top-p", "top_p"},
                {"maxtokens", "max_tokens"},
                {"sede", "seed"},
                {"x", NULL},
                {"", NULL},
                {"completely_other", NULL},
                {"seed", "seed"},
                {"min_lokemd", NULL}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *got = sl_suggest(rows[i].word, names);
        if (rows[i].near)
            assert_string_equal(got, rows[i].near);
        else
            assert_null(got);
    }
    char endless[5000];
    memset(endless, 't', sizeof endless - 1);
    endless[sizeof endless - 1] = 0;
    assert_null(sl_suggest(endless, names));
    assert_null(sl_suggest("seed", (const char *const[]){NULL}));
}

static void documents(void **state)
{
    static const struct sl_verb_doc docs[] = {
        {"serve", "[MODEL]", "serve a model", ".starts with a dot\n\nSecond - one.", table,
         N_TABLE},
        {"health", "", "probe", NULL, table, 1},
    };
    static const char *const help[] = {
        "  --host ADDRESS                  listen here (default 127.0.0.1)\n",
        "  --[no-]prefix-caching           reuse prefixes\n",
        "  --isa scalar|avx2|avx512        instruction set\n",
        "  --quiet                         say less\n",
    };
    static const char *const man[] = {
        ".TH SLUICE\\-SERVE 1",
        "\nsluice\\-serve \\- serve a model\n",
        "\n\\&.starts with a dot\n.PP\nSecond \\- one.\n",
        ".TP\n.B \\-\\-port N\nlisten on this port (default 8080)\n.br\nEnvironment: SLUICE_PORT\n",
        "\n.SH EXIT STATUS\n",
        ".TP\n.B 6\naddress in use\n",
    };
    static const char *const complete[] = {
        "compgen -W \"serve health\"",
        "'serve --isa') COMPREPLY=($(compgen -W \"scalar avx2 avx512\" -- \"$cur\"))",
        "--prefix-caching --no-prefix-caching --quiet",
        "complete -o filenames -F _sluice sluice\n",
    };
    (void)state;
    struct sl_buf b = {0};
    sl_options_help(table, N_TABLE, &b);
    for (size_t i = 0; i < sizeof help / sizeof *help; i++)
        if (!strstr(b.data, help[i]))
            fail_msg("help lacks: %s\n%s", help[i], b.data);
    for (const char *p = b.data; *p; p += strcspn(p, "\n") + 1)
        assert_true(strcspn(p, "\n") <= 100);
    sl_buf_clear(&b);
    sl_options_man(&docs[0], &b);
    for (size_t i = 0; i < sizeof man / sizeof *man; i++)
        if (!strstr(b.data, man[i]))
            fail_msg("the manual page lacks: %s\n%s", man[i], b.data);
    sl_buf_clear(&b);
    sl_options_complete(docs, 2, &b);
    for (size_t i = 0; i < sizeof complete / sizeof *complete; i++)
        if (!strstr(b.data, complete[i]))
            fail_msg("the completion lacks: %s\n%s", complete[i], b.data);
    sl_buf_free(&b);
    struct sl_buf tiny = {.cap_bytes = 10}; /* a full buffer is a failure to the caller, no more */
    sl_options_man(&docs[0], &tiny);
    assert_true(tiny.failed);
    sl_buf_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),    cmocka_unit_test(all_forms),   cmocka_unit_test(refusals),
        cmocka_unit_test(environment), cmocka_unit_test(precedence),  cmocka_unit_test(files),
        cmocka_unit_test(file_limit),  cmocka_unit_test(suggestions), cmocka_unit_test(documents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
