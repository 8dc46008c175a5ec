/* Graphs: instantiated, updated, launched. A launch enqueues every node as an operation of its own,
 * so independent ones run in any order, and one more that ends it. */
#include "emu/graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct CUgraph_st *graphs;
static struct CUgraphExec_st *execs;

/* ---- sets of nodes ---- */

bool node_set_assign(struct node_set *to, const struct node_set *from)
{
    free(to->of);
    *to = (struct node_set){NULL, 0};
    if (!from->n)
        return true;
    to->of = malloc(from->n * sizeof *to->of);
    if (!to->of)
        return false;
    memcpy(to->of, from->of, from->n * sizeof *to->of);
    to->n = from->n;
    return true;
}

static bool has(const struct node_set *s, uint32_t node)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (s->of[i] == node)
            return true;
    return false;
}

bool node_set_join(struct node_set *to, const struct node_set *more)
{
    if (!more->n)
        return true;
    uint32_t *all = realloc(to->of, ((size_t)to->n + more->n) * sizeof *all);
    if (!all)
        return false;
    to->of = all;
    for (uint32_t i = 0; i < more->n; i++)
        if (!has(to, more->of[i]))
            to->of[to->n++] = more->of[i];
    return true;
}

/* ---- graphs ---- */

struct CUgraph_st *graph_new(struct emu_site site)
{
    struct CUgraph_st *g = calloc(1, sizeof *g);
    if (g)
        g->site = site;
    return g;
}

void graph_free(struct CUgraph_st *g)
{
    for (uint32_t i = 0; i < g->n; i++) {
        work_free(&g->nodes[i]->work);
        free(g->nodes[i]->before.of);
        free(g->nodes[i]);
    }
    free(g->nodes);
    free(g);
}

uint32_t graph_add(struct CUgraph_st *g, struct device *d, struct work *w,
                   const struct node_set *before, uint32_t strand)
{
    struct CUgraphNode_st *node = calloc(1, sizeof *node);
    if (g->n == g->max && node) {
        uint32_t max = g->max ? 2 * g->max : 64;
        struct CUgraphNode_st **more = realloc(g->nodes, max * sizeof *more);
        if (more) {
            g->nodes = more;
            g->max = max;
        }
    }
    if (!node || g->n == g->max || !node_set_assign(&node->before, before)) {
        free(node);
        work_free(w);
        return UINT32_MAX;
    }
    node->work = *w;
    node->device = d;
    node->strand = strand;
    for (uint32_t i = 0; i < before->n; i++)
        g->nodes[before->of[i]]->has_successor = true;
    g->nodes[g->n] = node;
    return g->n++;
}

struct CUgraph_st *graph_clone(const struct CUgraph_st *g, struct emu_site site)
{
    struct CUgraph_st *to = graph_new(site);
    if (!to)
        return NULL;
    to->n_strands = g->n_strands;
    for (uint32_t i = 0; i < g->n; i++) {
        const struct CUgraphNode_st *node = g->nodes[i];
        struct work w;
        if (!work_clone(&w, &node->work) ||
            graph_add(to, node->device, &w, &node->before, node->strand) == UINT32_MAX) {
            graph_free(to);
            return NULL;
        }
    }
    return to;
}

void graph_publish(struct CUgraph_st *g)
{
    g->next = graphs;
    graphs = g;
}

static struct CUgraph_st **graph_at(cudaGraph_t handle)
{
    struct CUgraph_st **at = &graphs;
    while (*at && *at != handle)
        at = &(*at)->next;
    return at;
}

static struct CUgraphExec_st **exec_at(cudaGraphExec_t handle)
{
    struct CUgraphExec_st **at = &execs;
    while (*at && *at != handle)
        at = &(*at)->next;
    return at;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaGraphDestroy))
        return c.error;
    struct CUgraph_st **at = graph_at(graph);
    if (!*at)
        return call_end(&c, cudaErrorInvalidValue);
    *at = graph->next;
    graph_free(graph);
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaGraphGetNodes))
        return c.error;
    if (!*graph_at(graph) || !n_nodes)
        return call_end(&c, cudaErrorInvalidValue);
    for (uint32_t i = 0; nodes && i < *n_nodes; i++)
        nodes[i] = i < graph->n ? graph->nodes[i] : NULL;
    if (!nodes || *n_nodes > graph->n)
        *n_nodes = graph->n;
    return call_end(&c, cudaSuccess);
}

static bool is_node(cudaGraphNode_t node)
{
    for (const struct CUgraph_st *g = graphs; g; g = g->next)
        for (uint32_t i = 0; i < g->n; i++)
            if (g->nodes[i] == node)
                return true;
    return false;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, enum cudaGraphNodeType *type)
{
    static const enum cudaGraphNodeType types[] = {
        [WORK_EMPTY] = cudaGraphNodeTypeEmpty, [WORK_COPY] = cudaGraphNodeTypeMemcpy,
        [WORK_SET] = cudaGraphNodeTypeMemset,  [WORK_KERNEL] = cudaGraphNodeTypeKernel,
        [WORK_HOST] = cudaGraphNodeTypeHost,   [WORK_POLL] = cudaGraphNodeTypeKernel,
    };
    struct call c;
    if (!call_begin(&c, CALL_cudaGraphNodeGetType))
        return c.error;
    if (!type || !is_node(node))
        return call_end(&c, cudaErrorInvalidValue);
    *type = types[node->work.kind];
    return call_end(&c, cudaSuccess);
}

/* ---- executable graphs ---- */

static void exec_free(struct CUgraphExec_st *x)
{
    *exec_at(x) = x->next;
    for (uint32_t i = 0; x->slots && i < x->graph->n_strands; i++)
        slot_give(x->slots[i]);
    graph_free(x->graph);
    mark_unref(x->last);
    free(x->slots);
    free(x);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaGraphInstantiate))
        return c.error;
    if (!exec || !*graph_at(graph) || flags)
        return call_end(&c, cudaErrorInvalidValue);
    struct CUgraphExec_st *x = calloc(1, sizeof *x);
    struct CUgraph_st *g = graph_clone(graph, graph->site);
    uint32_t *slots = calloc(graph->n_strands + 1, sizeof *slots);
    if (!x || !g || !slots) {
        free(x);
        free(slots);
        if (g)
            graph_free(g);
        return call_end(&c, cudaErrorMemoryAllocation);
    }
    for (uint32_t i = 0; i < g->n_strands; i++)
        slots[i] = slot_take();
    *x = (struct CUgraphExec_st){
        .graph = g, .slots = slots, .device = c.device, .site = c.site, .next = execs};
    execs = x;
    *exec = x;
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaGraphExecDestroy))
        return c.error;
    if (!*exec_at(exec))
        return call_end(&c, cudaErrorInvalidValue);
    if (!mark_waited(exec->last))
        report(c.device,
               "cudaGraphExecDestroy at %s:%d: the last launch of the graph made at "
               "%s:%d was not waited for",
               SITE(c.site), SITE(exec->site));
    exec_free(exec);
    return call_end(&c, cudaSuccess);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaGraphUpload))
        return c.error;
    bool ok = *exec_at(exec) && stream_of(c.device, stream);
    return call_end(&c, ok ? cudaSuccess : cudaErrorInvalidValue);
}

static enum cudaGraphExecUpdateResult compare(const struct CUgraphNode_st *a,
                                              const struct CUgraphNode_st *b)
{
    if (a->before.n != b->before.n || a->strand != b->strand)
        return cudaGraphExecUpdateErrorTopologyChanged;
    for (uint32_t i = 0; i < a->before.n; i++)
        if (a->before.of[i] != b->before.of[i])
            return cudaGraphExecUpdateErrorTopologyChanged;
    if (a->work.kind != b->work.kind)
        return cudaGraphExecUpdateErrorNodeTypeChanged;
    if (a->device != b->device)
        return cudaGraphExecUpdateErrorParametersChanged;
    return cudaGraphExecUpdateSuccess;
}

static enum cudaGraphExecUpdateResult compare_all(struct CUgraph_st *a, struct CUgraph_st *b,
                                                  cudaGraphNode_t *node)
{
    if (a->n != b->n || a->n_strands != b->n_strands)
        return cudaGraphExecUpdateErrorTopologyChanged;
    enum cudaGraphExecUpdateResult r = cudaGraphExecUpdateSuccess;
    for (uint32_t i = 0; i < a->n && !r; i++) {
        r = compare(a->nodes[i], b->nodes[i]);
        *node = r ? b->nodes[i] : NULL;
    }
    return r;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo *result)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaGraphExecUpdate))
        return c.error;
    if (!*exec_at(exec) || !*graph_at(graph) || !result)
        return call_end(&c, cudaErrorInvalidValue);
    *result = (cudaGraphExecUpdateResultInfo){.result = cudaGraphExecUpdateSuccess};
    result->result = compare_all(exec->graph, graph, &result->errorNode);
    if (result->result)
        return call_end(&c, cudaErrorGraphExecUpdateFailure);
    struct CUgraph_st *g = graph_clone(graph, graph->site);
    if (!g)
        return call_end(&c, cudaErrorMemoryAllocation);
    graph_free(exec->graph);
    exec->graph = g;
    return call_end(&c, cudaSuccess);
}

/* ---- launches ---- */

static cudaError_t launch_node(struct CUgraphExec_st *x, uint32_t i, struct mark **first,
                               uint32_t n_first, struct mark **marks)
{
    const struct CUgraphNode_st *node = x->graph->nodes[i];
    uint32_t n = node->before.n;
    struct work w;
    struct mark **before = calloc(n + 1, sizeof *before);
    if (!before || !work_clone(&w, &node->work)) {
        free(before);
        return cudaErrorMemoryAllocation;
    }
    for (uint32_t k = 0; k < n; k++)
        before[k] = marks[node->before.of[k]];
    if (w.kind == WORK_COPY)
        check_host_sides(&w);
    marks[i] =
        op_submit(node->device, &w, n ? before : first, n ? n : n_first, x->slots[node->strand]);
    free(before);
    return marks[i] ? cudaSuccess : cudaErrorMemoryAllocation;
}

/* The operation that ends the launch: in the stream's order, after every node that none follows. */
static cudaError_t launch_end(struct call *c, struct CUgraphExec_st *x, struct CUstream_st *s,
                              struct mark **marks)
{
    uint32_t n = 0;
    struct mark **ends = calloc(x->graph->n + 1, sizeof *ends);
    if (!ends)
        return cudaErrorMemoryAllocation;
    for (uint32_t i = 0; i < x->graph->n; i++)
        if (!x->graph->nodes[i]->has_successor)
            ends[n++] = marks[i];
    ends[n++] = x->last;
    struct work w = {
        .kind = WORK_EMPTY, .name = "cudaGraphLaunch", .site = c->site, .fail = c->late};
    cudaError_t error = stream_submit_after(s, &w, ends, n);
    free(ends);
    if (!error) {
        mark_unref(x->last);
        x->last = mark_ref(s->tail);
    }
    return error;
}

static cudaError_t launch(struct call *c, struct CUgraphExec_st *x, struct CUstream_st *s)
{
    uint32_t n_first, n = x->graph->n;
    struct mark **first = stream_order(s, &n_first, 1), **marks = calloc(n + 1, sizeof *marks);
    cudaError_t error = first && marks ? cudaSuccess : cudaErrorMemoryAllocation;
    if (!error)
        first[n_first++] = x->last; /* launches of one graph do not overlap */
    for (uint32_t i = 0; i < n && !error; i++)
        error = launch_node(x, i, first, n_first, marks);
    if (!error)
        error = launch_end(c, x, s, marks);
    for (uint32_t i = 0; marks && i < n; i++)
        mark_unref(marks[i]);
    free(first);
    free(marks);
    return error;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaGraphLaunch))
        return c.error;
    struct CUstream_st *s = stream_of(c.device, stream);
    if (!s)
        return call_end(&c, cudaErrorInvalidResourceHandle);
    if (!*exec_at(exec))
        return call_end(&c, cudaErrorInvalidValue);
    cudaError_t error = s == &s->device->legacy ? capture_meets_legacy(s->device) : cudaSuccess;
    if (!error && s->capture)
        error = capture_spoil(s); /* as a child graph: not here */
    return call_end(&c, error ? error : launch(&c, exec, s));
}

uint32_t graphs_close(void (*leak)(const char *))
{
    uint32_t n = 0;
    char text[200];
    for (; execs; n++) {
        snprintf(text, sizeof text, "executable graph made at %s:%d", SITE(execs->site));
        if (leak)
            leak(text);
        exec_free(execs);
    }
    for (; graphs; n++) {
        struct CUgraph_st *g = graphs;
        snprintf(text, sizeof text, "graph whose capture began at %s:%d", SITE(g->site));
        if (leak)
            leak(text);
        graphs = g->next;
        graph_free(g);
    }
    return n;
}
