/* The node's metrics: names follow vLLM's with the prefix sluice_. */
#include "node.h"

#include <sluice/base/metrics.h>
#include <sluice/base/time.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define COUNTER(var, n, h) static struct sl_metric var = {.name = n, .help = h, .kind = SL_COUNTER}
#define GAUGE(var, n, h)   static struct sl_metric var = {.name = n, .help = h, .kind = SL_GAUGE}

COUNTER(prompt_tokens, "sluice_prompt_tokens_total", "Prompt tokens of finished requests");
COUNTER(generation_tokens, "sluice_generation_tokens_total", "Tokens generated");
COUNTER(cached_tokens, "sluice_prompt_tokens_cached_total",
        "Prompt tokens found in the prefix cache");
GAUGE(running, "sluice_num_requests_running", "Sequences being computed");
GAUGE(waiting, "sluice_num_requests_waiting", "Requests waiting at the router and the workers");
GAUGE(kv_usage, "sluice_kv_cache_usage_perc", "Share of KV pages in use, 0 to 1");
GAUGE(preemptions, "sluice_num_preemptions_total",
      "Sequences preempted by the workers' schedulers");
GAUGE(prefix_queries, "sluice_prefix_cache_queries_total", "Prompt tokens looked up");
GAUGE(prefix_hits, "sluice_prefix_cache_hits_total", "Prompt tokens found");
GAUGE(workers_up, "sluice_workers", "Workers registered and fresh");
GAUGE(routed, "sluice_router_decisions_total", "Requests given to a worker");
GAUGE(moved, "sluice_router_moves_total",
      "Of the retries: moved off a worker that was lost, left or was slow");
GAUGE(denied, "sluice_router_retry_budget_exhausted_total",
      "Requests failed because the retry budget was spent");
GAUGE(ejections, "sluice_router_ejections_total", "Times a slow worker was left out");
GAUGE(ejected, "sluice_workers_ejected", "Workers left out or probed for being slow");
GAUGE(expected, "sluice_router_cached_tokens_expected_total",
      "Prompt tokens expected in the prefix cache of the chosen worker");
GAUGE(index_pages, "sluice_router_kv_index_pages", "Pages of prefix caches the router knows of");
GAUGE(kv_events, "sluice_kv_cache_events_total", "KV events applied");
GAUGE(kv_gaps, "sluice_kv_cache_event_gaps_total", "Gaps in KV events, each asked for again");
GAUGE(kv_forgotten, "sluice_kv_cache_event_resets_total",
      "Times a worker's prefix cache was learned anew since events were gone");
GAUGE(kv_bad, "sluice_kv_cache_events_malformed_total", "Batches of KV events refused");
GAUGE(retried, "sluice_router_retries_total", "Requests moved to another worker");
GAUGE(fenced, "sluice_router_fenced_total",
      "Outputs of an old epoch or a lost worker that were refused");
GAUGE(prefills, "sluice_router_prefills_total", "Prompts given to a worker beside the owner");

/* Sums over the workers, by field of their reports. */
static struct {
    struct sl_metric metric;
    size_t field; /* of struct sl_msg_load, a uint64_t */
} transfers[] = {
    {{.name = "sluice_kv_transfer_pages_sent_total", .help = "KV pages sent to other workers"},
     offsetof(struct sl_msg_load, kv_pages_sent)},
    {{.name = "sluice_kv_transfer_pages_received_total", .help = "KV pages that arrived complete"},
     offsetof(struct sl_msg_load, kv_pages_received)},
    {{.name = "sluice_kv_transfer_bytes_total", .help = "Bytes of KV pages sent"},
     offsetof(struct sl_msg_load, kv_bytes_sent)},
    {{.name = "sluice_kv_transfer_checksum_failures_total", .help = "Rows that arrived damaged"},
     offsetof(struct sl_msg_load, kv_bad)},
    {{.name = "sluice_kv_transfer_fallbacks_total",
      .help = "Requests computed by their owner since pages did not come"},
     offsetof(struct sl_msg_load, kv_fallbacks)},
};
#define N_TRANSFERS (sizeof transfers / sizeof *transfers)

static struct sl_metric finished[] = {
    {.name = "sluice_request_success_total", .labels = "finished_reason=\"stop\""},
    {.name = "sluice_request_success_total", .labels = "finished_reason=\"length\""},
    {.name = "sluice_request_success_total", .labels = "finished_reason=\"abort\""},
    {.name = "sluice_request_success_total", .labels = "finished_reason=\"error\""},
};
static const char *const reasons[] = {"stop", "length", "abort", "error"};

static struct sl_metric ttft = {.name = "sluice_time_to_first_token_seconds",
                                .help = "From the request to its first token",
                                .kind = SL_HISTOGRAM};
static struct sl_metric itl = {.name = "sluice_inter_token_latency_seconds",
                               .help = "Between tokens of one request",
                               .kind = SL_HISTOGRAM};
static struct sl_metric e2e = {.name = "sluice_e2e_request_latency_seconds",
                               .help = "From the request to its end",
                               .kind = SL_HISTOGRAM};

void metrics_open(void)
{
    struct sl_metric *all[] = {
        &prompt_tokens, &generation_tokens, &cached_tokens, &running,    &waiting,     &kv_usage,
        &preemptions,   &prefix_queries,    &prefix_hits,   &workers_up, &routed,      &retried,
        &fenced,        &prefills,          &ttft,          &itl,        &e2e,         &moved,
        &denied,        &ejections,         &ejected,       &expected,   &index_pages, &kv_events,
        &kv_gaps,       &kv_forgotten,      &kv_bad};
    preemptions.kind = prefix_queries.kind = prefix_hits.kind = SL_COUNTER;
    prefills.kind = routed.kind = retried.kind = fenced.kind = SL_COUNTER;
    moved.kind = denied.kind = ejections.kind = expected.kind = SL_COUNTER;
    kv_events.kind = kv_gaps.kind = kv_forgotten.kind = kv_bad.kind = SL_COUNTER;
    bus_metrics_open();
    ttft.bounds = sl_buckets_ttft, ttft.n_bounds = sl_n_buckets_ttft;
    itl.bounds = sl_buckets_itl, itl.n_bounds = sl_n_buckets_itl;
    e2e.bounds = sl_buckets_e2e, e2e.n_bounds = sl_n_buckets_e2e;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        sl_metric_register(all[i]);
    for (size_t i = 0; i < 4; i++) {
        finished[i].help = "Finished requests by reason";
        sl_metric_register(&finished[i]);
    }
    for (size_t i = 0; i < N_TRANSFERS; i++) {
        transfers[i].metric.kind = SL_COUNTER;
        sl_metric_register(&transfers[i].metric);
    }
}

/* --- sites ------------------------------------------------------------------------------------ */

#define SITES_MAX 32 /* further ones are counted nowhere */

static struct site {
    char name[65], labels[80];
    struct sl_metric workers, running;
} sites[SITES_MAX];
static uint32_t n_sites;

/* A label's text: what would need an escape becomes '_'. */
static void label_site(struct site *s)
{
    size_t n = (size_t)snprintf(s->labels, sizeof s->labels, "site=\"");
    for (const char *c = s->name; *c; c++)
        s->labels[n++] = *c == '"' || *c == '\\' || (unsigned char)*c < ' ' ? '_' : *c;
    s->labels[n++] = '"';
    s->labels[n] = 0;
}

static struct site *site_of(struct sl_str name)
{
    for (uint32_t i = 0; i < n_sites; i++)
        if (sl_str_eqz(name, sites[i].name))
            return &sites[i];
    if (!name.len || name.len >= sizeof sites->name || n_sites == SITES_MAX)
        return NULL;
    struct site *s = &sites[n_sites++];
    memcpy(s->name, name.data, name.len);
    label_site(s);
    s->workers = (struct sl_metric){.name = "sluice_site_workers",
                                    .help = "Workers and sites registered, by site",
                                    .kind = SL_GAUGE,
                                    .labels = s->labels};
    s->running = (struct sl_metric){.name = "sluice_site_requests_running",
                                    .help = "Sequences being computed, by site",
                                    .kind = SL_GAUGE,
                                    .labels = s->labels};
    sl_metric_register(&s->workers);
    sl_metric_register(&s->running);
    return s;
}

static void refresh_sites(const struct node *n)
{
    for (uint32_t i = 0; i < n_sites; i++) {
        sl_metric_set(&sites[i].workers, 0);
        sl_metric_set(&sites[i].running, 0);
    }
    for (const struct sl_list *l = n->peers.next; l != &n->peers; l = l->next) {
        const struct peer *p = SL_ENTRY(l, struct peer, link);
        struct site *s = p->joined ? site_of(p->hello.site) : NULL;
        if (!s)
            continue;
        sl_metric_set(&s->workers, sl_metric_value(&s->workers) + 1);
        sl_metric_set(&s->running, sl_metric_value(&s->running) + p->load.running);
    }
}

static double seconds(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

void metrics_first_token(struct gen *g, uint64_t now)
{
    sl_metric_observe(&ttft, seconds(g->started_ns, now));
    sl_metric_add(&generation_tokens, 1);
    sl_metric_add(&cached_tokens, g->usage.cached_tokens);
}

void metrics_next_tokens(struct gen *g, uint32_t n_tokens, uint64_t now)
{
    sl_metric_observe(&itl, seconds(g->last_token_ns, now));
    sl_metric_add(&generation_tokens, n_tokens);
}

void metrics_end(struct gen *g, const char *reason, uint64_t now)
{
    sl_metric_observe(&e2e, seconds(g->started_ns, now));
    sl_metric_add(&prompt_tokens, g->usage.prompt_tokens);
    for (size_t i = 0; i < 4; i++)
        if (!strcmp(reasons[i], reason))
            sl_metric_add(&finished[i], 1);
}

static void refresh_transfers(struct node *n)
{
    for (size_t i = 0; i < N_TRANSFERS; i++) {
        uint64_t sum = 0, x;
        for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next) {
            const struct sl_msg_load *w = &SL_ENTRY(l, struct peer, link)->load;
            memcpy(&x, (const char *)w + transfers[i].field, sizeof x);
            sum += x;
        }
        sl_metric_set(&transfers[i].metric, (double)sum);
    }
}

static void refresh_kv(const struct node *n)
{
    uint64_t gaps = n->kv_gaps, forgotten = n->kv_forgotten;
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next) {
        const struct peer *p = SL_ENTRY(l, struct peer, link);
        gaps += p->has_feed ? p->feed.n_gaps : 0;
        forgotten += p->has_feed ? p->feed.n_forgotten : 0;
    }
    sl_metric_set(&kv_events, (double)n->kv_events);
    sl_metric_set(&kv_gaps, (double)gaps);
    sl_metric_set(&kv_forgotten, (double)forgotten);
    sl_metric_set(&kv_bad, (double)n->kv_bad);
}

void node_refresh_metrics(struct node *n)
{
    struct sl_router_stats r;
    uint64_t run = 0, wait = 0, total = 0, free_pages = 0, preempted = 0, queries = 0, hits = 0;
    refresh_sites(n);
    sl_router_stats(n->router, &r);
    for (struct sl_list *l = n->peers.next; l != &n->peers; l = l->next) {
        const struct sl_msg_load *w = &SL_ENTRY(l, struct peer, link)->load;
        run += w->running;
        wait += w->waiting;
        total += w->pages_total;
        free_pages += w->pages_free;
        preempted += w->preempted;
        queries += w->prefix_queries;
        hits += w->prefix_hits;
    }
    sl_metric_set(&running, (double)run);
    sl_metric_set(&waiting, (double)(wait + r.waiting));
    sl_metric_set(&kv_usage, total ? 1 - (double)free_pages / (double)total : 0);
    sl_metric_set(&preemptions, (double)preempted);
    sl_metric_set(&prefix_queries, (double)queries);
    sl_metric_set(&prefix_hits, (double)hits);
    sl_metric_set(&workers_up, r.ready_workers);
    sl_metric_set(&routed, (double)r.n_routed);
    sl_metric_set(&retried, (double)r.n_retried);
    sl_metric_set(&fenced, (double)(r.n_fenced + n->n_stale_outs));
    sl_metric_set(&prefills, (double)r.n_prefills);
    bus_metrics_set(n->bus);
    refresh_transfers(n);
    sl_metric_set(&moved, (double)r.n_moved);
    sl_metric_set(&denied, (double)r.n_retries_denied);
    sl_metric_set(&ejections, (double)r.n_ejected);
    sl_metric_set(&ejected, r.ejected);
    sl_metric_set(&expected, (double)r.n_cached_expected);
    sl_metric_set(&index_pages, r.kv_keys);
    refresh_kv(n);
}
