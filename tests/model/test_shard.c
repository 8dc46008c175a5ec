/* Promised: a model over any admitted number of ranks gives bit for bit the logits of the whole
 * one, whatever the degrees, the format, heads that do not divide, the instruction set, the mix of
 * a step, its micro-batches and the way partial sums travel; each rank holds only its part, says
 * beforehand how many bytes that is, and a group that cannot be is refused. */
#include "rig.h"

#include <sluice/base/time.h>

#include <math.h>
#include <stdio.h>

#include "ranks.h"
#include "tiny_model.h"

/* --- counting allocations --- */

static _Thread_local bool counting;
static _Thread_local uint32_t n_allocs;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t m);
void *__libc_realloc(void *p, size_t n);

void *malloc(size_t n)
{
    n_allocs += counting;
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t m)
{
    n_allocs += counting;
    return __libc_calloc(n, m);
}
void *realloc(void *p, size_t n)
{
    n_allocs += counting;
    return __libc_realloc(p, n);
}
#else
#define COUNTS_ALLOCATIONS 0
#endif

/* --- a world of sequences, and ranks that run them --- */

enum { N_SEQ = 3, LEN = 45, PAGE = 16, SEQ_PAGES = (LEN + PAGE - 1) / PAGE, ROWS_MAX = 80 };

/* Rows [from, from + n) of a sequence. */
struct span {
    uint32_t seq, from, n;
};
struct script {
    struct {
        struct span spans[N_SEQ];
        bool last_only; /* logits of each span's last row alone */
    } steps[8];
};

/* Prefill alone, a mix of prefill and decode, decode alone; all rows' logits or few. */
static const struct script mixed = {{
    {{{0, 0, 30}}, false},
    {{{0, 30, 1}, {1, 0, 17}}, true},
    {{{2, 0, 45}, {1, 17, 1}, {0, 31, 1}}, false},
    {{{0, 32, 1}, {1, 18, 1}}, true},
    {{{0, 33, 12}, {1, 19, 26}}, true},
}};
/* Everything in two steps. */
static const struct script packed = {{
    {{{1, 0, 1}, {0, 0, 45}}, false},
    {{{1, 1, 2}, {2, 0, 33}}, false},
}};

struct world {
    struct sl_buf file;
    struct sl_gguf *g;
    struct sl_model_config cfg;
    uint32_t tokens[N_SEQ][LEN];
    uint32_t n_vocab;
};

static void world_open(struct world *w, const struct tiny_model *m)
{
    struct sl_err err = {0};
    struct sl_rng rng = {.seed = m->seed};
    *w = (struct world){.n_vocab = tiny_model_n_vocab()};
    rig_must(tiny_model_buf(m, &w->file, &err), &err);
    rig_must(sl_gguf_parse(w->file.data, w->file.len, false, &w->g, &err), &err);
    rig_must(sl_model_read_config(w->g, &w->cfg, &err), &err);
    for (uint32_t i = 0; i < N_SEQ * LEN; i++)
        w->tokens[i / LEN][i % LEN] = sl_rng_below(&rng, w->n_vocab);
}

static void world_close(struct world *w)
{
    sl_gguf_close(w->g);
    sl_buf_free(&w->file);
}

/* Logits of every row a script asks for: [N_SEQ][LEN][n_vocab], NaN where nobody asked. */
static float *no_logits(const struct world *w)
{
    size_t n = (size_t)N_SEQ * LEN * w->n_vocab;
    float *x = malloc(n * sizeof *x);
    memset(x, 0xff, n * sizeof *x);
    return x;
}

struct how {
    bool ref;
    enum sl_isa isa;
    uint32_t n_threads, micro_batches, micro_rows_min, all_to_all_rows;
    enum sl_dtype kv_dtype;
    const struct script *script;
};

struct rank {
    const struct world *w;
    const struct how *how;
    struct rank_end end;
    float *out; /* NULL but for the rank that gets the logits */
    uint32_t n_layer_calls, bad_layer_calls;
    uint32_t layer_rows[16]; /* of the step, per layer */
    uint64_t weight_bytes, planned_bytes, scratch_bytes, planned_scratch;
    enum sl_status status;
    struct sl_err err;
    pthread_t thread;
};

static void on_layer(void *ctx, uint32_t layer, uint32_t n_rows)
{
    struct rank *r = ctx;
    r->n_layer_calls++;
    if (layer >= 16 || n_rows <= r->layer_rows[layer])
        r->bad_layer_calls++;
    else
        r->layer_rows[layer] = n_rows;
}

struct stepping {
    struct sl_batch batch;
    uint32_t q_start[N_SEQ + 1], page_start[N_SEQ + 1], pages[N_SEQ * SEQ_PAGES];
    uint32_t tokens[ROWS_MAX], pos[ROWS_MAX], rows[ROWS_MAX], seqs[ROWS_MAX], n_rows;
};

static void make_step(const struct world *w, const struct script *script, uint32_t i,
                      struct stepping *s)
{
    uint32_t n = 0, n_seq = 0;
    memset(s, 0, sizeof *s);
    for (; n_seq < N_SEQ && script->steps[i].spans[n_seq].n; n_seq++) {
        struct span sp = script->steps[i].spans[n_seq];
        for (uint32_t t = 0; t < sp.n; t++, n++) {
            s->tokens[n] = w->tokens[sp.seq][sp.from + t];
            s->pos[n] = sp.from + t;
            s->seqs[n] = sp.seq;
            if (!script->steps[i].last_only || t == sp.n - 1)
                s->rows[s->n_rows++] = n;
        }
        s->q_start[n_seq + 1] = n;
        for (uint32_t p = 0; p < SEQ_PAGES; p++)
            s->pages[n_seq * SEQ_PAGES + p] = (SEQ_PAGES - 1 - p) * N_SEQ + sp.seq;
        s->page_start[n_seq + 1] = (n_seq + 1) * SEQ_PAGES;
    }
    s->batch = (struct sl_batch){.n_seq = n_seq,
                                 .n_tok = n,
                                 .q_start = s->q_start,
                                 .pos = s->pos,
                                 .page_start = s->page_start,
                                 .pages = s->pages};
}

static enum sl_status rank_step(struct rank *r, struct sl_model *m, struct sl_kv *kv, uint32_t i,
                                float *logits)
{
    struct stepping s;
    make_step(r->w, r->how->script, i, &s);
    struct sl_exchange x = ranks_exchange(&r->end);
    struct sl_model_step step = {.batch = &s.batch,
                                 .tokens = s.tokens,
                                 .logit_rows = s.rows,
                                 .n_logit_rows = s.n_rows,
                                 .logits = r->out ? logits : NULL,
                                 .on_layer = on_layer,
                                 .ctx = r};
    memset(r->layer_rows, 0, sizeof r->layer_rows);
    enum sl_status status = sl_model_forward(m, kv, &step, &x, &r->err);
    uint32_t n_layers = kv->cfg.n_layers;
    for (uint32_t l = 0; l < n_layers && !status; l++)
        r->bad_layer_calls += r->layer_rows[l] != s.batch.n_tok;
    for (uint32_t j = 0; j < s.n_rows && r->out && !status; j++) {
        size_t at = (size_t)s.seqs[s.rows[j]] * LEN + s.pos[s.rows[j]];
        memcpy(r->out + at * r->w->n_vocab, logits + (size_t)j * r->w->n_vocab,
               r->w->n_vocab * sizeof *logits);
    }
    return status;
}

/* One rank's life: opens its shard, runs the script. Nothing here may end the test. */
static enum sl_status rank_live(struct rank *r)
{
    const struct how *how = r->how;
    struct sl_backend *b = NULL;
    struct sl_model *m = NULL;
    struct sl_kv kv = {0};
    struct sl_cpu_config cpu = {how->isa, how->n_threads};
    struct sl_model_options o = {.shard = r->end.shard,
                                 .max_batch_tokens = ROWS_MAX,
                                 .max_positions = LEN,
                                 .max_logit_rows = ROWS_MAX,
                                 .micro_batches = how->micro_batches,
                                 .micro_rows_min = how->micro_rows_min,
                                 .all_to_all_rows = how->all_to_all_rows};
    float *logits = malloc((size_t)ROWS_MAX * r->w->n_vocab * sizeof *logits);
    enum sl_status status = how->ref ? sl_ref_open(&b, &r->err) : sl_cpu_open(&cpu, &b, &r->err);
    struct sl_model_plan plan = {0};
    if (!status)
        status = sl_model_plan(r->w->g, b, &o, how->kv_dtype, &plan, &r->err);
    if (!status)
        status = sl_model_open(r->w->g, b, &o, &m, &r->err);
    struct sl_kv_config kc =
        sl_model_kv_config(&r->w->cfg, &r->end.shard, PAGE, N_SEQ * SEQ_PAGES, how->kv_dtype);
    if (!status)
        status = b->ops->kv_open(b, &kc, &kv, &r->err);
    for (uint32_t i = 0; !status && how->script->steps[i].spans[0].n; i++)
        status = rank_step(r, m, &kv, i, logits);
    if (m) {
        r->weight_bytes = sl_model_weight_bytes(m);
        r->scratch_bytes = sl_model_scratch_bytes(m);
    }
    r->planned_bytes = plan.weight_bytes;
    r->planned_scratch = plan.scratch_bytes;
    sl_model_close(m);
    if (kv.data)
        b->ops->kv_close(b, &kv);
    if (b)
        b->ops->close(b);
    free(logits);
    return status;
}

static void *rank_thread(void *ctx)
{
    struct rank *r = ctx;
    r->status = rank_live(r);
    if (r->status)
        net_break(r->end.net);
    return NULL;
}

struct group {
    struct net net;
    struct rank ranks[RANKS_MAX];
    uint32_t n;
};

static void group_run(struct group *g, const struct world *w, const struct how *how, uint32_t tp,
                      uint32_t pp, float *out)
{
    g->n = tp * pp;
    net_open(&g->net);
    for (uint32_t r = 0; r < g->n; r++) {
        g->ranks[r] = (struct rank){.w = w, .how = how, .out = r == 0 ? out : NULL};
        g->ranks[r].end = (struct rank_end){.net = &g->net, .shard = sl_shard_of_rank(r, tp, pp)};
        assert_int_equal(pthread_create(&g->ranks[r].thread, NULL, rank_thread, &g->ranks[r]), 0);
    }
    for (uint32_t r = 0; r < g->n; r++)
        pthread_join(g->ranks[r].thread, NULL);
    net_close(&g->net);
    for (uint32_t r = 0; r < g->n; r++) {
        const struct rank *k = &g->ranks[r];
        if (k->status)
            fail_msg("rank %u of %u x %u: %s", r, tp, pp, k->err.msg);
        assert_int_equal(k->weight_bytes, k->planned_bytes);
        assert_int_equal(k->scratch_bytes, k->planned_scratch);
        assert_int_equal(k->bad_layer_calls, 0);
        assert_true(k->end.n_progress > 0);
    }
}

/* The first row that differs, in words. */
static void must_be_same(const struct world *w, const float *want, const float *got,
                         const char *what)
{
    for (uint32_t i = 0; i < N_SEQ * LEN; i++)
        if (memcmp(want + (size_t)i * w->n_vocab, got + (size_t)i * w->n_vocab,
                   w->n_vocab * sizeof *want) != 0)
            fail_msg("%s: sequence %u differs at position %u", what, i / LEN, i % LEN);
}

/* Rows the script does not ask for are taken out of `want`. */
static void keep_asked(const struct world *w, const struct script *script, float *want)
{
    bool asked[N_SEQ * LEN] = {false};
    for (uint32_t i = 0; i < 8 && script->steps[i].spans[0].n; i++) {
        struct stepping s;
        make_step(w, script, i, &s);
        for (uint32_t j = 0; j < s.n_rows; j++)
            asked[s.seqs[s.rows[j]] * LEN + s.pos[s.rows[j]]] = true;
    }
    for (uint32_t i = 0; i < N_SEQ * LEN; i++)
        if (!asked[i])
            memset(want + (size_t)i * w->n_vocab, 0xff, w->n_vocab * sizeof *want);
}

/* Every row of every sequence by a whole model on scalar code, one sequence after the other. */
static float *whole_logits(const struct world *w, const struct how *how)
{
    struct rig r;
    struct rig_config c = {.ref = how->ref,
                           .isa = SL_ISA_AUTO,
                           .n_threads = 1,
                           .max_batch = LEN,
                           .max_pos = LEN,
                           .max_rows = LEN,
                           .kv_dtype = how->kv_dtype};
    float *out = malloc((size_t)N_SEQ * LEN * w->n_vocab * sizeof *out);
    rig_open(&r, w->g, &c);
    for (uint32_t s = 0; s < N_SEQ; s++)
        rig_run(&r, w->tokens[s], LEN, LEN, 0, out + (size_t)s * LEN * w->n_vocab);
    rig_close(&r);
    return out;
}

static void check_layout(const struct world *w, const struct how *how, uint32_t tp, uint32_t pp,
                         const float *whole)
{
    size_t bytes = (size_t)N_SEQ * LEN * w->n_vocab * sizeof(float);
    float *want = malloc(bytes), *got = no_logits(w);
    struct group *g = calloc(1, sizeof *g);
    char what[128];
    memcpy(want, whole, bytes);
    keep_asked(w, how->script, want);
    group_run(g, w, how, tp, pp, got);
    snprintf(what, sizeof what, "tp %u, pp %u, %s, %u micro-batches, all to all from %u", tp, pp,
             sl_isa_name(how->isa), how->micro_batches, how->all_to_all_rows);
    must_be_same(w, want, got, what);
    free(g);
    free(want);
    free(got);
}

struct shape {
    const char *name;
    uint32_t dim, n_heads, n_kv_heads, head_dim, ffn, n_layers;
    bool tied, bias;
    uint32_t tp[5], pp[3]; /* ended by 0 */
};

static const struct shape shapes[] = {
    {"9 on 3", 288, 9, 3, 32, 320, 3, true, false, {1, 2, 3, 4, 8}, {1, 2, 3}},
    {"8 on 2", 256, 8, 2, 32, 512, 2, false, false, {2, 4, 8}, {1, 2}},
    {"16 on 1", 128, 16, 1, 32, 352, 2, false, true, {2, 3, 8}, {1, 2}},
    {"6 on 6", 96, 6, 6, 32, 192, 3, false, true, {2, 3, 6}, {1, 3}},
    {"10 on 5 of 16", 160, 10, 5, 16, 224, 2, true, true, {2, 3, 5}, {1, 2}},
};
#define N_SHAPES (sizeof shapes / sizeof *shapes)
static const enum sl_dtype types[] = {SL_Q8_0, SL_Q4_1, SL_Q4_0, SL_F16, SL_F32, SL_BF16};
#define N_TYPES (sizeof types / sizeof *types)
/* Sanitised builds look for faults of memory and threads: some formats of each shape will do. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { TYPE_STEP = 4, FIRST_ISA = SL_ISA_AVX2 };
#else
enum { TYPE_STEP = 1, FIRST_ISA = SL_ISA_SCALAR };
#endif

static struct tiny_model model_of(const struct shape *s, enum sl_dtype type)
{
    struct tiny_model m = tiny_model_default();
    m.seed = 7;
    m.dtype = type;
    m.dim = s->dim;
    m.n_heads = s->n_heads;
    m.n_kv_heads = s->n_kv_heads;
    m.head_dim = s->head_dim;
    m.ffn_dim = s->ffn;
    m.n_layers = s->n_layers;
    m.tied = s->tied;
    m.bias = s->bias;
    return m;
}

/* All degrees of all shapes; formats, instruction sets, scripts and ways of exchange go round. */
static void every_layout_gives_the_bits_of_the_whole(void **state)
{
    (void)state;
    static const struct how ways[] = {
        {.micro_batches = 1},
        {.micro_batches = 3, .micro_rows_min = 1, .all_to_all_rows = 1},
        {.micro_batches = 4, .micro_rows_min = 2, .all_to_all_rows = 7},
        {.all_to_all_rows = 1000},
    };
    uint32_t n = 0;
    for (size_t s = 0; s < N_SHAPES; s++) {
        for (size_t t = s % TYPE_STEP; t < N_TYPES; t += TYPE_STEP) {
            struct tiny_model m = model_of(&shapes[s], types[t]);
            struct world w;
            struct how plain = {.kv_dtype = t % 2 ? SL_F16 : SL_F32};
            world_open(&w, &m);
            float *whole = whole_logits(&w, &plain);
            for (uint32_t d = 0; d < 5 && shapes[s].tp[d]; d++) {
                uint32_t pp = shapes[s].pp[(d + t) % 3] ? shapes[s].pp[(d + t) % 3] : 1;
                struct how how = ways[(d + t + s) % 4];
                static const enum sl_isa isas[] = {SL_ISA_AVX2, SL_ISA_AVX512, SL_ISA_AVX2,
                                                   SL_ISA_AVX512, SL_ISA_SCALAR};
                how.isa = isas[n++ % 5];
                how.isa = sl_cpu_has_isa(how.isa) ? how.isa : SL_ISA_AUTO;
                how.n_threads = 1 + n % 2;
                how.kv_dtype = plain.kv_dtype;
                how.script = n % 3 ? &mixed : &packed;
                check_layout(&w, &how, shapes[s].tp[d], pp, whole);
            }
            free(whole);
            world_close(&w);
        }
    }
}

/* The default model's heads, every degree beside every number of stages, every instruction set. */
static void degrees_times_stages_times_isas(void **state)
{
    (void)state;
    struct tiny_model m = model_of(&shapes[0], SL_Q4_1);
    struct world w;
    struct how how = {.kv_dtype = SL_I8, .n_threads = 1, .script = &mixed, .micro_rows_min = 1};
    world_open(&w, &m);
    float *whole = whole_logits(&w, &how);
    for (unsigned isa = FIRST_ISA; isa < SL_N_ISA; isa++) {
        if (!sl_cpu_has_isa((enum sl_isa)isa)) {
            print_message("[  SKIP  ] %s: not on this machine\n", sl_isa_name((enum sl_isa)isa));
            continue;
        }
        for (uint32_t tp = 1; tp <= 3; tp++)
            for (uint32_t pp = 1; pp <= 3; pp++) {
                how.isa = (enum sl_isa)isa;
                how.all_to_all_rows = tp == 2 ? 5 : 0;
                check_layout(&w, &how, tp, pp, whole);
            }
    }
    free(whole);
    world_close(&w);
}

/* Both ways to add up were really taken, and the one for many rows moves fewer floats. */
static void many_rows_travel_all_to_all(void **state)
{
    (void)state;
    struct tiny_model m = model_of(&shapes[1], SL_F16);
    struct world w;
    struct how how = {.kv_dtype = SL_F16, .n_threads = 1, .script = &packed};
    struct group *g = calloc(1, sizeof *g);
    world_open(&w, &m);
    float *out = no_logits(&w);
    unsigned long floats[2], scatters[2];
    for (int i = 0; i < 2; i++) {
        how.all_to_all_rows = i ? 1 : 1000;
        group_run(g, &w, &how, 4, 1, out);
        floats[i] = g->net.n_floats;
        scatters[i] = g->net.n_scatters;
    }
    assert_int_equal(scatters[0], 0);
    assert_true(scatters[1] > 0);
    assert_true(floats[1] * 3 < floats[0] * 2);
    free(out);
    free(g);
    world_close(&w);
}

static void the_reference_agrees(void **state)
{
    (void)state;
    for (size_t s = 0; s < N_SHAPES; s++) {
        struct tiny_model m = model_of(&shapes[s], s % 2 ? SL_F16 : SL_Q8_0);
        struct world w;
        struct how how = {.ref = true, .kv_dtype = SL_F32, .script = &packed, .micro_rows_min = 1};
        world_open(&w, &m);
        float *want = whole_logits(&w, &how), *got = no_logits(&w);
        struct group *g = calloc(1, sizeof *g);
        keep_asked(&w, how.script, want);
        group_run(g, &w, &how, 3, 2, got);
        double diff = 0, norm = 0;
        for (size_t i = 0; i < (size_t)N_SEQ * LEN * w.n_vocab; i++) {
            assert_int_equal(isnan(want[i]), isnan(got[i]));
            if (isnan(want[i]))
                continue;
            diff += pow((double)got[i] - (double)want[i], 2);
            norm += pow((double)want[i], 2);
        }
        assert_true(sqrt(diff / norm) < 1e-5);
        free(g);
        free(want);
        free(got);
        world_close(&w);
    }
}

static uint64_t planned(const struct world *w, struct sl_backend *b, struct sl_shard shard)
{
    struct sl_err err = {0};
    struct sl_model_plan plan;
    struct sl_model_options o = {
        .shard = shard, .max_batch_tokens = 8, .max_positions = LEN, .max_logit_rows = 8};
    rig_must(sl_model_plan(w->g, b, &o, SL_F16, &plan, &err), &err);
    assert_int_equal(plan.mapped_bytes != 0, shard.pp_rank == 0);
    assert_int_equal(plan.kv_token_bytes, sl_model_kv_token_bytes(&w->cfg, &shard, SL_F16));
    return plan.weight_bytes;
}

/* Ranks hold the whole model together and little twice: norms, biases, KV heads that several ranks
 * read, padding of packed rows. */
static void weights_are_divided(void **state)
{
    (void)state;
    for (size_t s = 0; s < N_SHAPES; s++) {
        struct tiny_model m = model_of(&shapes[s], SL_Q8_0);
        struct world w;
        struct sl_backend *b;
        struct sl_err err = {0};
        struct sl_cpu_config cpu = {SL_ISA_AUTO, 1};
        world_open(&w, &m);
        rig_must(sl_cpu_open(&cpu, &b, &err), &err);
        uint64_t whole = planned(&w, b, (struct sl_shard){0});
        for (uint32_t d = 0; d < 5 && shapes[s].tp[d]; d++) {
            uint32_t tp = shapes[s].tp[d], pp = 2;
            uint64_t sum = 0, most = 0, kv_heads = 0;
            for (uint32_t r = 0; r < tp * pp; r++) {
                struct sl_shard shard = sl_shard_of_rank(r, tp, pp);
                uint64_t bytes = planned(&w, b, shard);
                sum += bytes;
                most = bytes > most ? bytes : most;
                kv_heads += sl_shard_part(&w.cfg, &shard).kv_heads.n;
            }
            uint64_t kv_again = kv_heads / pp - w.cfg.n_kv_heads;
            uint64_t again = kv_again * w.cfg.head_dim * 2 * w.cfg.dim * 34 / 32 * w.cfg.n_layers;
            uint64_t small = (uint64_t)tp * w.cfg.n_layers * (6 * w.cfg.dim * 4 + 64 * w.cfg.dim);
            assert_true(sum >= whole && sum <= whole + again + small);
            assert_true(tp > 3 || most < whole * 3 / (tp * pp) + small);
        }
        b->ops->close(b);
        world_close(&w);
    }
}

/* The runs of all ranks cover everything once; a rank has the KV heads that its query heads read.
 */
static void parts_cover_the_model(void **state)
{
    (void)state;
    for (size_t s = 0; s < N_SHAPES; s++) {
        struct tiny_model m = model_of(&shapes[s], SL_F16);
        struct world w;
        world_open(&w, &m);
        const struct sl_model_config *c = &w.cfg;
        for (uint32_t tp = 1; tp <= sl_shard_tp_max(c); tp++)
            for (uint32_t pp = 1; pp <= sl_shard_pp_max(c); pp++) {
                uint32_t head = 0, ffn = 0, vocab = 0, layer = 0,
                         group = c->n_heads / c->n_kv_heads;
                for (uint32_t r = 0; r < tp * pp; r++) {
                    struct sl_shard shard = sl_shard_of_rank(r, tp, pp);
                    struct sl_shard_part p = sl_shard_part(c, &shard);
                    if (shard.tp_rank == 0)
                        head = ffn = vocab = 0;
                    assert_true(p.heads.first == head && p.heads.n > 0);
                    assert_true(p.ffn.first == ffn && p.ffn.n > 0);
                    assert_true(p.kv_heads.first == head / group);
                    head += p.heads.n;
                    ffn += p.ffn.n;
                    assert_true(p.kv_heads.first + p.kv_heads.n == (head - 1) / group + 1);
                    assert_true(p.layers.first == layer && p.layers.n > 0);
                    assert_int_equal(p.vocab.n > 0, shard.pp_rank == pp - 1);
                    assert_true(p.vocab.n == 0 || p.vocab.first == vocab);
                    vocab += p.vocab.n;
                    if (shard.tp_rank == tp - 1) {
                        layer += p.layers.n;
                        assert_true(head == c->n_heads && ffn == c->ffn_dim);
                        assert_true(shard.pp_rank < pp - 1 || vocab == c->n_vocab);
                    }
                }
                assert_int_equal(layer, c->n_layers);
            }
        world_close(&w);
    }
}

static void groups_that_cannot_be_are_refused(void **state)
{
    (void)state;
    struct tiny_model m = model_of(&shapes[0], SL_F16), uncut = model_of(&shapes[0], SL_F16);
    uncut.ffn_dim = 330; /* no whole blocks: one slice */
    struct world w[2];
    world_open(&w[0], &m);
    world_open(&w[1], &uncut);
    struct sl_backend *b;
    struct sl_err err = {0};
    struct sl_cpu_config cpu = {SL_ISA_AUTO, 1};
    rig_must(sl_cpu_open(&cpu, &b, &err), &err);
    static const struct {
        int world;
        struct sl_shard shard;
        const char *says; /* NULL: fits */
    } rows[] = {
        {0, {0, 9, 0, 1}, NULL},
        {0, {0, 10, 0, 1}, "at most 9"},
        {0, {0, 1, 2, 3}, NULL},
        {0, {0, 1, 0, 4}, "at most 3"},
        {0, {2, 2, 0, 1}, "rank 2 of 2"},
        {0, {0, 1, 2, 2}, "stage 2 of 2"},
        {0, {UINT32_MAX, UINT32_MAX, 0, 1}, "at most 9"},
        {1, {0, 1, 0, 3}, NULL},
        {1, {0, 2, 0, 1}, "at most 1"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_model *model = NULL;
        struct sl_model_options o = {
            .shard = rows[i].shard, .max_batch_tokens = 4, .max_positions = 4, .max_logit_rows = 4};
        enum sl_status status = sl_model_open(w[rows[i].world].g, b, &o, &model, &err);
        assert_int_equal(status, rows[i].says ? SL_CONFIG : SL_OK);
        assert_true(!rows[i].says || strstr(err.msg, rows[i].says));
        sl_model_close(model);
    }
    b->ops->close(b);
    world_close(&w[0]);
    world_close(&w[1]);
}

/* Whichever call of whichever rank fails: its forward ends with that status, and no rank hangs. */
static void a_failed_call_ends_the_step(void **state)
{
    (void)state;
    struct tiny_model m = model_of(&shapes[4], SL_F16);
    struct world w;
    struct how how = {.kv_dtype = SL_F16, .n_threads = 1, .script = &packed, .all_to_all_rows = 30};
    struct group *g = calloc(1, sizeof *g);
    world_open(&w, &m);
    float *out = no_logits(&w);
    group_run(g, &w, &how, 2, 2, out);
    for (uint32_t victim = 0; victim < 4; victim++) {
        uint32_t n_calls = g->ranks[victim].end.n_calls;
        assert_true(n_calls > 5);
        for (uint32_t call = 1; call <= n_calls; call += 1 + n_calls / 7) {
            struct group *f = calloc(1, sizeof *f);
            net_open(&f->net);
            for (uint32_t r = 0; r < 4; r++) {
                f->ranks[r] = (struct rank){.w = &w, .how = &how, .out = r == 0 ? out : NULL};
                f->ranks[r].end = (struct rank_end){.net = &f->net,
                                                    .shard = sl_shard_of_rank(r, 2, 2),
                                                    .fail_at = r == victim ? call : 0};
                pthread_create(&f->ranks[r].thread, NULL, rank_thread, &f->ranks[r]);
            }
            for (uint32_t r = 0; r < 4; r++)
                pthread_join(f->ranks[r].thread, NULL);
            net_close(&f->net);
            assert_int_equal(f->ranks[victim].status, SL_CANCELLED);
            for (uint32_t r = 0; r < 4; r++)
                assert_true(r == victim || f->ranks[r].status == SL_PEER ||
                            f->ranks[r].status == SL_OK);
            free(f);
        }
    }
    free(out);
    free(g);
    world_close(&w);
}

/* Nothing arrives, nothing is sent. */
static enum sl_status idle_collect(void *ctx, const float *mine, float *all, const size_t *counts,
                                   struct sl_err *err)
{
    (void)ctx, (void)mine, (void)all, (void)counts, (void)err;
    return SL_OK;
}
static enum sl_status idle_all_to_all(void *ctx, const float *send, const size_t *n_send,
                                      float *recv, const size_t *n_recv, struct sl_err *err)
{
    (void)ctx, (void)send, (void)n_send, (void)recv, (void)n_recv, (void)err;
    return SL_OK;
}
static enum sl_status idle_send(void *ctx, uint32_t stage, const float *data, size_t n,
                                struct sl_err *err)
{
    (void)ctx, (void)stage, (void)data, (void)n, (void)err;
    return SL_OK;
}
static enum sl_status idle_recv(void *ctx, uint32_t stage, float *data, size_t n,
                                struct sl_err *err)
{
    (void)ctx, (void)stage, (void)err;
    memset(data, 0, n * sizeof *data);
    return SL_OK;
}

static void a_step_allocates_nothing(void **state)
{
    (void)state;
    if (!COUNTS_ALLOCATIONS) {
        print_message("skipped: a sanitizer owns malloc\n");
        skip();
    }
    struct tiny_model m = model_of(&shapes[0], SL_Q8_0);
    struct world w;
    struct sl_err err = {0};
    struct sl_backend *b;
    struct sl_cpu_config cpu = {SL_ISA_AUTO, 2};
    struct sl_exchange x = {.all_gather = idle_collect,
                            .all_to_all = idle_all_to_all,
                            .gather = idle_collect,
                            .send = idle_send,
                            .recv = idle_recv};
    world_open(&w, &m);
    rig_must(sl_cpu_open(&cpu, &b, &err), &err);
    float *logits = calloc((size_t)ROWS_MAX * w.n_vocab, sizeof *logits);
    for (uint32_t r = 0; r < 9; r++) {
        struct sl_model *model;
        struct sl_kv kv;
        struct sl_model_options o = {.shard = sl_shard_of_rank(r, 3, 3),
                                     .max_batch_tokens = ROWS_MAX,
                                     .max_positions = LEN,
                                     .max_logit_rows = ROWS_MAX,
                                     .micro_rows_min = 1,
                                     .all_to_all_rows = 20};
        struct sl_kv_config kc =
            sl_model_kv_config(&w.cfg, &o.shard, PAGE, N_SEQ * SEQ_PAGES, SL_F16);
        rig_must(sl_model_open(w.g, b, &o, &model, &err), &err);
        rig_must(b->ops->kv_open(b, &kc, &kv, &err), &err);
        for (uint32_t i = 0; i < 5; i++) {
            struct stepping s;
            make_step(&w, &mixed, i, &s);
            struct sl_model_step step = {.batch = &s.batch,
                                         .tokens = s.tokens,
                                         .logit_rows = s.rows,
                                         .n_logit_rows = s.n_rows,
                                         .logits = logits};
            counting = true;
            enum sl_status status = sl_model_forward(model, &kv, &step, &x, &err);
            counting = false;
            rig_must(status, &err);
        }
        sl_model_close(model);
        b->ops->kv_close(b, &kv);
    }
    assert_int_equal(n_allocs, 0);
    free(logits);
    b->ops->close(b);
    world_close(&w);
}

/* Workers of different degrees are of one class. */
static void the_class_does_not_depend_on_the_degrees(void **state)
{
    (void)state;
    struct tiny_model m = model_of(&shapes[0], SL_Q8_0);
    struct world w;
    struct sl_backend *b;
    struct sl_err err = {0};
    struct sl_cpu_config cpu = {SL_ISA_AUTO, 1};
    world_open(&w, &m);
    rig_must(sl_cpu_open(&cpu, &b, &err), &err);
    for (uint32_t tp = 1; tp <= 9; tp++) {
        struct sl_model *model;
        struct sl_model_options o = {.shard = {tp - 1, tp, tp % 3, 3},
                                     .max_batch_tokens = 4,
                                     .max_positions = 4,
                                     .max_logit_rows = 4};
        rig_must(sl_model_open(w.g, b, &o, &model, &err), &err);
        struct sl_model_class c = sl_model_class(model);
        assert_int_equal(c.n_attn_slices, 9);
        assert_int_equal(c.n_ffn_slices, 10);
        sl_model_close(model);
    }
    b->ops->close(b);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_gives_the_bits_of_the_whole),
        cmocka_unit_test(degrees_times_stages_times_isas),
        cmocka_unit_test(many_rows_travel_all_to_all),
        cmocka_unit_test(the_reference_agrees),
        cmocka_unit_test(weights_are_divided),
        cmocka_unit_test(parts_cover_the_model),
        cmocka_unit_test(groups_that_cannot_be_are_refused),
        cmocka_unit_test(a_failed_call_ends_the_step),
        cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(the_class_does_not_depend_on_the_degrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
