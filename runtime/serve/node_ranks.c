/* What the node knows of the processes behind its workers, and how it shows them. */
#include "node.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* As much of `from` as fits. */
static struct sl_str keep_text(struct sl_str from, char *to, size_t size)
{
    size_t len = from.len < size ? from.len : size;
    if (len)
        memcpy(to, from.data, len);
    return (struct sl_str){to, len};
}

static void keep_kernels(struct peer_rank *r, const struct sl_msg_rank *m)
{
    for (uint32_t k = 0; k < m->n_kernels; k++)
        r->kernels[k] = (struct sl_msg_kernel){
            keep_text(m->kernels[k].name, r->names[k], sizeof r->names[k]), m->kernels[k].launches};
    r->figures.kernels = r->kernels;
}

void node_ranks_keep(struct peer *p, const struct sl_msg_ranks *m)
{
    p->hello.tp = m->tp;
    p->hello.pp = m->pp;
    if (m->n_ranks != p->n_ranks) {
        struct peer_rank *r = calloc(m->n_ranks + 1u, sizeof *r);
        if (!r)
            return; /* the next message will find memory */
        free(p->ranks);
        p->ranks = r;
        p->n_ranks = m->n_ranks;
    }
    for (uint32_t i = 0; i < m->n_ranks; i++) {
        struct peer_rank *r = &p->ranks[i];
        r->figures = m->ranks[i];
        r->figures.isa = keep_text(m->ranks[i].isa, r->isa, sizeof r->isa);
        keep_kernels(r, &m->ranks[i]);
    }
}

void node_ranks_endpoint(const struct node *n, uint32_t i, struct sl_buf *out)
{
    const char *name = strrchr(n->ipc.data, '/');
    sl_buf_append(out, n->ipc.data, (size_t)(name - n->ipc.data));
    sl_buf_printf(out, "/ranks-%u", i);
}

void node_ranks_remove(const struct node *n)
{
    for (uint32_t i = 0; n->ipc.len && n->cfg->n_ranks > 1 && i < n->cfg->n_workers; i++) {
        struct sl_buf path = {0};
        node_ranks_endpoint(n, i, &path);
        if (!path.failed)
            unlink(path.data + strlen("ipc://"));
        sl_buf_free(&path);
    }
}

/* Launches by kernel, or calls of ops where that is what there is to count. */
static void print_kernels(const struct sl_msg_rank *r, struct sl_buf *out)
{
    if (!r->n_kernels)
        sl_buf_printf(out, "\"ops\":%llu", (unsigned long long)r->op_calls);
    for (uint32_t i = 0; i < r->n_kernels; i++) {
        sl_buf_puts(out, i ? "," : "");
        sl_buf_json_str(out, r->kernels[i].name.data, r->kernels[i].name.len);
        sl_buf_printf(out, ":%llu", (unsigned long long)r->kernels[i].launches);
    }
}

/* The keys that all processes have; what the router knows of the worker comes from its load. */
static void print_rank(const struct peer *p, const struct sl_msg_rank *r, struct sl_buf *out)
{
    const struct sl_msg_hello *h = &p->hello;
    const struct sl_msg_load *l = &p->load;
    bool first = r->rank == 0;
    bool both = !h->role.len || sl_str_eqz(h->role, "both");
    sl_buf_printf(out, ",{\"pid\":%u,\"role\":", r->pid);
    sl_buf_json_str(out, both ? "worker" : h->role.data, both ? strlen("worker") : h->role.len);
    sl_buf_puts(out, ",\"site\":");
    sl_buf_json_str(out, h->site.data, h->site.len);
    sl_buf_printf(out, ",\"rank\":%u,\"tp\":%u,\"pp\":%u,\"isa\":", r->rank, h->tp, h->pp);
    sl_buf_json_str(out, r->isa.data, r->isa.len);
    sl_buf_puts(out, ",\"class\":");
    sl_buf_json_str(out, h->class_name.data, h->class_name.len);
    sl_buf_printf(out,
                  ",\"threads\":%u,\"max_batched_tokens\":%u,\"weight_bytes\":%llu,"
                  "\"comm_bytes\":%llu,\"kv_pages_total\":%u,\"kv_pages_free\":%u,"
                  "\"running\":%u,\"waiting\":%u,\"steps\":%llu,\"kernels\":{",
                  r->threads, h->max_batch_tokens, (unsigned long long)r->weight_bytes,
                  (unsigned long long)r->comm_bytes, l->pages_total, l->pages_free,
                  first ? l->running : 0, first ? l->waiting : 0, (unsigned long long)r->steps);
    print_kernels(r, out);
    sl_buf_puts(out, "}}");
}

void node_ranks_print(const struct peer *p, struct sl_buf *out)
{
    const struct sl_msg_hello *h = &p->hello;
    struct sl_msg_rank self = {.rank = h->rank,
                               .pid = h->pid,
                               .threads = h->threads,
                               .weight_bytes = h->weight_bytes,
                               .isa = h->isa};
    if (p->n_ranks && p->ranks[0].figures.pid == h->pid)
        self = p->ranks[0].figures;
    self.steps = p->load.steps; /* newer */
    self.op_calls = p->load.op_calls;
    print_rank(p, &self, out);
    for (uint32_t i = 1; i < p->n_ranks; i++)
        if (p->ranks[i].figures.pid)
            print_rank(p, &p->ranks[i].figures, out);
}
