/* The gateway: authentication, routes, the life of a call, and the endpoints that only report.
 *
 * The key is checked before the route is looked up, so that no route can forget it; only the probes
 * marked open answer without. */
#include "call.h"

#include <sluice/base/log.h>
#include <sluice/base/metrics.h>
#include <sluice/base/time.h>
#include <stdlib.h>
#include <string.h>

#define INLINE_BODY_MAX    65536 /* larger bodies are prepared on a helper thread */
#define KEEP_ALIVE_MS      15000
#define KEEP_ALIVE_TICK_MS 1000

struct gateway {
    struct node *node;
    struct sl_http_server *http;
    struct sl_timer *timer;
    struct sl_list calls;
};

struct route {
    const char *path;
    const char *method;
    const struct dialect *dialect;                     /* POST with a JSON body, or */
    void (*answer)(struct gateway *g, struct call *c); /* at once */
    bool open;                                         /* without a key */
};

/* --- answers ---------------------------------------------------------------------------------- */

void error_json(const struct sl_err *err, struct sl_buf *out)
{
    const struct sl_status_row *row = sl_status_row(err->status);
    sl_buf_puts(out, "{\"error\":{\"message\":");
    sl_buf_json_str(out, err->msg, strlen(err->msg));
    sl_buf_printf(out, ",\"type\":\"%s\",\"param\":", row->type);
    if (err->param[0])
        sl_buf_json_str(out, err->param, strlen(err->param));
    else
        sl_buf_puts(out, "null");
    sl_buf_printf(out, ",\"code\":\"%s\"}}", row->code);
}

static void request_id_header(const struct call *c, struct sl_buf *h)
{
    sl_buf_printf(h, "X-Request-Id: %s\r\n", c->id);
}

void call_answer(struct call *c, int status, const char *type, struct sl_buf *body)
{
    struct sl_buf h = {0};
    if (!c->http || c->answered)
        return;
    c->answered = true;
    request_id_header(c, &h);
    if (body->failed) {
        static const char text[] = "{\"error\":{\"message\":\"no memory for the answer\",\"type\":"
                                   "\"server_error\",\"param\":null,\"code\":\"out_of_memory\"}}";
        sl_http_respond(c->http, 503, "application/json", h.data, text, sizeof text - 1);
    } else {
        sl_http_respond(c->http, status, type, h.data, body->data ? body->data : "", body->len);
    }
    sl_buf_free(&h);
}

void call_error(struct call *c, const struct sl_err *err)
{
    struct sl_buf h = {0}, body = {0};
    if (!c->http || c->answered)
        return;
    c->answered = true;
    const struct sl_status_row *row = sl_status_row(err->status);
    request_id_header(c, &h);
    if (row->http == 429 || row->http == 503)
        sl_buf_puts(&h, "Retry-After: 1\r\nretry-after-ms: 1000\r\n");
    if (row->http == 401)
        sl_buf_puts(&h, "WWW-Authenticate: Bearer\r\n");
    if (err->status == SL_FAILED)
        sl_buf_puts(&h, "x-should-retry: false\r\n");
    error_json(err, &body);
    sl_http_respond(c->http, row->http, "application/json", h.data, body.data, body.len);
    sl_buf_free(&h);
    sl_buf_free(&body);
}

/* --- reports ---------------------------------------------------------------------------------- */

static void answer_health(struct gateway *g, struct call *c)
{
    (void)g;
    sl_buf_puts(&c->out, "{\"status\":\"ok\"}");
    call_answer(c, 200, "application/json", &c->out);
}

static void answer_ready(struct gateway *g, struct call *c)
{
    struct sl_err why;
    if (!node_is_ready(g->node, &why)) {
        call_error(c, &why);
        return;
    }
    sl_buf_puts(&c->out, "{\"status\":\"ready\"}");
    call_answer(c, 200, "application/json", &c->out);
}

static void answer_version(struct gateway *g, struct call *c)
{
    (void)g;
    sl_buf_puts(&c->out, "{\"version\":\"" SLUICE_VERSION "\"}");
    call_answer(c, 200, "application/json", &c->out);
}

static void answer_limits(struct gateway *g, struct call *c)
{
    (void)g;
    sl_buf_puts(&c->out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < sl_n_limits; i++) {
        const struct sl_limit_row *l = &sl_limits[i];
        sl_buf_printf(&c->out,
                      "%s{\"name\":\"%s\",\"value\":%llu,\"unit\":\"%s\",\"what\":", i ? "," : "",
                      l->name, (unsigned long long)l->value, l->unit);
        sl_buf_json_str(&c->out, l->what, strlen(l->what));
        sl_buf_putc(&c->out, '}');
    }
    sl_buf_puts(&c->out, "]}");
    call_answer(c, 200, "application/json", &c->out);
}

static void answer_metrics(struct gateway *g, struct call *c)
{
    struct sl_buf labels = {0}, name = {0};
    node_refresh_metrics(g->node);
    if (node_has_model(g->node)) {
        const char *m = node_model_name(g->node);
        sl_buf_json_str(&name, m, strlen(m));
        sl_buf_printf(&labels, "model_name=%s", name.data ? name.data : "\"\"");
    }
    sl_metrics_print(&c->out, labels.len ? labels.data : NULL);
    sl_buf_free(&labels);
    sl_buf_free(&name);
    call_answer(c, 200, "text/plain; version=0.0.4; charset=utf-8", &c->out);
}

static void answer_ps(struct gateway *g, struct call *c)
{
    node_print_ps(g->node, &c->out);
    call_answer(c, 200, "application/json", &c->out);
}

static void answer_drain(struct gateway *g, struct call *c)
{
    sl_buf_puts(&c->out, "{\"status\":\"draining\"}");
    call_answer(c, 200, "application/json", &c->out);
    node_drain(g->node);
}

static void put_model(struct gateway *g, struct sl_buf *b)
{
    const char *m = node_model_name(g->node);
    sl_buf_puts(b, "{\"id\":");
    sl_buf_json_str(b, m, strlen(m));
    sl_buf_printf(b, ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"sluice\",\"root\":",
                  (unsigned long long)node_model_created(g->node));
    sl_buf_json_str(b, m, strlen(m));
    sl_buf_printf(b, ",\"parent\":null,\"max_model_len\":%u}", node_max_len(g->node));
}

static void answer_models(struct gateway *g, struct call *c)
{
    sl_buf_puts(&c->out, "{\"object\":\"list\",\"data\":[");
    if (node_has_model(g->node))
        put_model(g, &c->out);
    sl_buf_puts(&c->out, "]}");
    call_answer(c, 200, "application/json", &c->out);
}

static void answer_model(struct gateway *g, struct call *c, struct sl_str id)
{
    struct sl_err err;
    if (!node_has_model(g->node) || !sl_str_eqz(id, node_model_name(g->node))) {
        sl_fail_param(&err, SL_NO_MODEL, "model", "the model '%.*s' does not exist",
                      (int)(id.len < 64 ? id.len : 64), id.data);
        call_error(c, &err);
        return;
    }
    put_model(g, &c->out);
    call_answer(c, 200, "application/json", &c->out);
}

static const struct route routes[] = {
    {"/health", "GET", NULL, answer_health, true},
    {"/v1/health", "GET", NULL, answer_health, true},
    {"/ready", "GET", NULL, answer_ready, true},
    {"/version", "GET", NULL, answer_version, false},
    {"/metrics", "GET", NULL, answer_metrics, false},
    {"/v1/limits", "GET", NULL, answer_limits, false},
    {"/v1/models", "GET", NULL, answer_models, false},
    {"/v1/internal/ps", "GET", NULL, answer_ps, false},
    {"/v1/internal/drain", "POST", NULL, answer_drain, false},
    {"/v1/completions", "POST", &dialect_completions, NULL, false},
    {"/v1/chat/completions", "POST", &dialect_chat, NULL, false},
    {"/tokenize", "POST", &dialect_tokenize, NULL, false},
    {"/detokenize", "POST", &dialect_detokenize, NULL, false},
    {"/v1/tokenize", "POST", &dialect_tokenize, NULL, false},
    {"/v1/detokenize", "POST", &dialect_detokenize, NULL, false},
};
#define N_ROUTES (sizeof routes / sizeof *routes)

/* --- the life of a call ----------------------------------------------------------------------- */

static bool id_is_clean(struct sl_str s)
{
    if (!s.len || s.len > 40)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        char ch = s.data[i];
        if (!((ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') ||
              ch == '-' || ch == '_' || ch == '.'))
            return false;
    }
    return true;
}

static void name_call(struct call *c)
{
    struct sl_str given = sl_http_header(c->http, "x-request-id");
    struct sl_buf id = {0};
    if (id_is_clean(given))
        sl_buf_append(&id, given.data, given.len);
    else
        sl_buf_printf(&id, "%016llx%08llx", (unsigned long long)sl_entropy_u64(),
                      (unsigned long long)sl_entropy_u64() & 0xffffffffu);
    size_t n = id.len < sizeof c->id - 1 ? id.len : sizeof c->id - 1;
    if (id.data)
        memcpy(c->id, id.data, n);
    sl_buf_free(&id);
}

static void call_free(struct call *c)
{
    openai_closed(c);
    sl_list_remove(&c->link);
    if (c->json)
        sl_json_free(c->json);
    sl_buf_free(&c->out);
    sl_arena_free(&c->mem);
    free(c);
}

static void call_start(struct call *c)
{
    enum sl_status s = c->prepared;
    if (!s)
        s = c->dialect->start(c, &c->err);
    if (s)
        call_error(c, &c->err);
}

static void prepare(void *ctx)
{
    struct call *c = ctx;
    c->prepared = sl_json_parse(c->body.data, c->body.len, &c->json, &c->err);
    if (!c->prepared)
        c->prepared = c->dialect->prepare(c, &c->err);
}

/* A request whose client left while a helper worked is only freed here. */
static void prepared(void *ctx)
{
    struct call *c = ctx;
    c->busy = false;
    if (c->http)
        call_start(c);
    else
        call_free(c);
}

/* The helper gets a copy: the client may leave while it works. */
static bool prepare_aside(struct gateway *g, struct call *c)
{
    char *copy = sl_arena_strndup(&c->mem, c->body.data, c->body.len);
    if (!copy)
        return false;
    c->body.data = copy;
    c->busy = true;
    if (sl_loop_work(node_loop(g->node), prepare, prepared, c))
        return true;
    c->busy = false;
    return false;
}

static enum sl_status check_media_type(struct call *c, struct sl_err *err)
{
    struct sl_str type = sl_http_header(c->http, "content-type");
    static const char json[] = "application/json";
    size_t n = sizeof json - 1;
    if (type.len >= n && !strncasecmp(type.data, json, n) &&
        (type.len == n || type.data[n] == ';' || type.data[n] == ' '))
        return SL_OK;
    return sl_fail(err, SL_MEDIA_TYPE, "Content-Type must be application/json");
}

static void dispatch(struct gateway *g, struct call *c, const struct route *r)
{
    struct sl_err err;
    if (r->answer) {
        r->answer(g, c);
        return;
    }
    enum sl_status s = check_media_type(c, &err);
    if (!s && node_is_draining(g->node))
        s = sl_fail(&err, SL_DRAINING, "the server is shutting down");
    if (!s && r->dialect->needs_model && !node_has_model(g->node))
        s = sl_fail(&err, SL_LOADING, "the model is being loaded");
    if (s) {
        call_error(c, &err);
        return;
    }
    c->dialect = r->dialect;
    c->body = sl_http_body(c->http);
    if (c->body.len <= INLINE_BODY_MAX || !prepare_aside(g, c)) {
        prepare(c);
        call_start(c);
    }
}

static bool authorized(struct gateway *g, struct call *c)
{
    static const char scheme[] = "bearer ";
    struct sl_str h = sl_http_header(c->http, "authorization");
    size_t n = sizeof scheme - 1;
    if (!node_needs_key(g->node))
        return true;
    if (h.len <= n || strncasecmp(h.data, scheme, n) != 0)
        return false;
    return node_key_ok(g->node, (struct sl_str){h.data + n, h.len - n});
}

static const struct route *find_route(struct sl_str path, struct sl_str method, bool *path_known)
{
    *path_known = false;
    bool head = sl_str_eqz(method, "HEAD");
    for (size_t i = 0; i < N_ROUTES; i++) {
        if (!sl_str_eqz(path, routes[i].path))
            continue;
        *path_known = true;
        if (sl_str_eqz(method, routes[i].method) || (head && !strcmp(routes[i].method, "GET")))
            return &routes[i];
    }
    return NULL;
}

/* Browsers ask first; the answer allows what the API needs. */
static void answer_options(struct call *c)
{
    c->answered = true;
    sl_http_respond(c->http, 204, NULL,
                    "Allow: GET, HEAD, POST, OPTIONS\r\n"
                    "Access-Control-Allow-Origin: *\r\n"
                    "Access-Control-Allow-Methods: GET, POST, OPTIONS\r\n"
                    "Access-Control-Allow-Headers: Authorization, Content-Type, Last-Event-ID\r\n",
                    "", 0);
}

static void refuse_route(struct call *c, struct sl_str path, struct sl_str method, bool path_known)
{
    struct sl_err err;
    if (path_known)
        sl_fail(&err, SL_METHOD, "%.*s is not allowed on %.*s", (int)method.len, method.data,
                (int)(path.len < 64 ? path.len : 64), path.data);
    else
        sl_fail(&err, SL_NOT_FOUND, "there is no %.*s", (int)(path.len < 64 ? path.len : 64),
                path.data);
    call_error(c, &err);
}

static void on_request(void *ctx, struct sl_http_req *http)
{
    struct gateway *g = ctx;
    struct sl_err err;
    struct call *c = calloc(1, sizeof *c);
    if (!c) {
        sl_http_set_user(http, NULL);
        sl_http_respond(http, 503, "application/json", NULL, "{}", 2);
        return;
    }
    c->gateway = g;
    c->node = g->node;
    c->http = http;
    c->created = sl_unix_ns() / SL_S_NS;
    sl_arena_init(&c->mem, CALL_MEM_MAX);
    sl_http_set_user(http, c);
    sl_list_push_back(&g->calls, &c->link);
    name_call(c);

    static const char models[] = "/v1/models/";
    struct sl_str path = sl_http_path(http), method = sl_http_method(http);
    bool path_known;
    const struct route *r = find_route(path, method, &path_known);
    if (sl_str_eqz(method, "OPTIONS")) {
        answer_options(c);
    } else if (!(r && r->open) && !authorized(g, c)) {
        sl_fail(&err, SL_UNAUTHORIZED, "a valid API key is required");
        call_error(c, &err);
    } else if (r) {
        dispatch(g, c, r);
    } else if (path.len > sizeof models - 1 && !memcmp(path.data, models, sizeof models - 1) &&
               (sl_str_eqz(method, "GET") || sl_str_eqz(method, "HEAD"))) {
        answer_model(
            g, c, (struct sl_str){path.data + sizeof models - 1, path.len - (sizeof models - 1)});
    } else {
        refuse_route(c, path, method, path_known);
    }
}

static void on_close(void *ctx, struct sl_http_req *http, bool sent_all)
{
    (void)ctx, (void)sent_all;
    struct call *c = sl_http_user(http);
    if (!c)
        return;
    c->http = NULL;
    if (!c->busy)
        call_free(c);
}

static void on_drain(void *ctx, struct sl_http_req *http)
{
    (void)ctx;
    struct call *c = sl_http_user(http);
    if (c)
        openai_drained(c);
}

static void error_body(void *ctx, const struct sl_err *err, struct sl_buf *out)
{
    (void)ctx;
    error_json(err, out);
}

/* Streams that were silent for a while get a comment, so that proxies keep them open. */
static void on_timer(void *ctx)
{
    struct gateway *g = ctx;
    uint64_t now = sl_now_ns();
    for (struct sl_list *l = g->calls.next; l != &g->calls; l = l->next) {
        struct call *c = SL_ENTRY(l, struct call, link);
        if (c->dialect && c->dialect->keep_alive && c->parts && !c->busy &&
            now - c->sent_ns > KEEP_ALIVE_MS * SL_MS_NS)
            c->dialect->keep_alive(c);
    }
    sl_timer_start(g->timer, KEEP_ALIVE_TICK_MS);
}

enum sl_status gateway_open(struct node *n, const struct sl_http_config *cfg, struct gateway **out,
                            struct sl_err *err)
{
    struct gateway *g = calloc(1, sizeof *g);
    if (!g)
        return sl_fail(err, SL_NO_MEMORY, "no memory for the gateway");
    g->node = n;
    sl_list_init(&g->calls);
    struct sl_http_handler h = {.on_request = on_request,
                                .on_close = on_close,
                                .on_drain = on_drain,
                                .error_body = error_body,
                                .ctx = g};
    enum sl_status s = sl_http_server_open(node_loop(n), cfg, &h, &g->http, err);
    if (!s && !(g->timer = sl_timer_new(node_loop(n), on_timer, g)))
        s = sl_fail(err, SL_NO_MEMORY, "no memory for the gateway");
    if (s) {
        gateway_close(g);
        return s;
    }
    sl_timer_start(g->timer, KEEP_ALIVE_TICK_MS);
    *out = g;
    return SL_OK;
}

uint16_t gateway_port(const struct gateway *g)
{
    return sl_http_server_port(g->http);
}

void gateway_drain(struct gateway *g)
{
    sl_http_server_drain(g->http);
}

uint32_t gateway_busy(const struct gateway *g)
{
    return sl_http_server_busy(g->http);
}

void gateway_close(struct gateway *g)
{
    if (!g)
        return;
    if (g->timer)
        sl_timer_free(g->timer);
    if (g->http)
        sl_http_server_close(g->http);
    free(g);
}
