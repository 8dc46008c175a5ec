/* Captures, graphs and executable graphs of the emulated runtime. Nodes are kept in the order they
 * were captured in, so a node's predecessors come before it. The nodes that one stream added are a
 * strand: each follows the one before. */
#ifndef SLUICE_KERNELS_EMU_GRAPH_H
#define SLUICE_KERNELS_EMU_GRAPH_H

#include "emu/runtime.h"

/* Nodes that a later one follows, by index. */
struct node_set {
    uint32_t *of;
    uint32_t n;
};

struct CUgraphNode_st {
    struct work work;
    struct device *device;
    struct node_set before;
    uint32_t strand;
    bool has_successor;
};
struct CUgraph_st {
    struct CUgraphNode_st **nodes; /* owned */
    uint32_t n, max, n_strands;
    struct emu_site site;
    struct CUgraph_st *next;
};
struct CUgraphExec_st {
    struct CUgraph_st *graph; /* its own copy */
    uint32_t *slots;          /* [n_strands] */
    struct device *device;
    struct mark *last; /* end of its last launch, or NULL */
    struct emu_site site;
    struct CUgraphExec_st *next;
};

struct CUgraph_st *graph_new(struct emu_site site);
struct CUgraph_st *graph_clone(const struct CUgraph_st *g, struct emu_site site);
void graph_free(struct CUgraph_st *g);
/* Appends a node; takes what `w` owns, also on failure. Its index, or UINT32_MAX. */
uint32_t graph_add(struct CUgraph_st *g, struct device *d, struct work *w,
                   const struct node_set *before, uint32_t strand);
/* The program's handle to a captured graph. */
void graph_publish(struct CUgraph_st *g);

bool node_set_assign(struct node_set *to, const struct node_set *from);
bool node_set_join(struct node_set *to, const struct node_set *more);

#endif
