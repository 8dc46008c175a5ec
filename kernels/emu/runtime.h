/* What the files of the emulated CUDA runtime share.
 *
 * One lock guards everything; it is let go only while an operation runs and while a host thread
 * waits. */
#ifndef SLUICE_KERNELS_EMU_RUNTIME_H
#define SLUICE_KERNELS_EMU_RUNTIME_H

#define EMU_NO_SITES
#include <cuda_runtime_api.h>

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "emu/calls.h"
#include "emu/control.h"
#include "emu/emu.h"
#include "emu/order.h"
#include "emu/work.h"

/* ---- memory ---- */

enum memory_kind { MEMORY_DEVICE, MEMORY_IPC, MEMORY_PINNED, MEMORY_REGISTERED };

struct access {
    struct span span;
    bool write;
    struct device *kernel_of; /* NULL: not a kernel's */
    struct mark *mark;        /* owned */
    const char *name;
    struct emu_site site;
};
struct memory {
    enum memory_kind kind;
    uintptr_t base, map; /* what the program sees; what is mapped, guards included */
    size_t bytes, map_bytes;
    struct device *device; /* NULL: host */
    bool freed, mapped;    /* mapped: kernels may use it */
    uint64_t file_at;
    int peer_pid, peer_file; /* whose it is, of MEMORY_IPC */
    uint64_t peer_started;
    uint32_t n_opens;
    struct emu_site site;
    struct epoch *users; /* last operation on each slot that may use it */
    uint32_t n_users, users_max;
    struct access *accesses;
    uint32_t n_accesses, accesses_max;
};

struct memory *memory_at(const void *p);
bool memory_insert(struct memory *m);
/* Pages for m->bytes from the file at m->file_at, or anonymous if file is -1, between guards. */
bool memory_map(struct memory *m, int file);
void memory_release(struct memory *m);
/* What was opened of another process, or NULL. */
struct memory *memory_of_peer(int pid, uint64_t started, uint64_t file_at, int file);
bool memory_covers(const struct memory *m, const void *p, size_t n);
bool memory_is_device(const struct memory *m);
void memory_describe(const struct memory *m, char *text, size_t max);
void memory_used_by(struct memory *m, const struct mark *mark);
void memory_left(void (*tell)(const char *));
/* Frees all of a device, or with NULL all of the host's; each is told to `leak`. */
uint32_t memory_close(struct device *d, void (*leak)(const char *));

/* ---- operations ---- */

struct op {
    struct work work;
    struct device *device;
    struct mark *mark;
    struct mark **deps;
    uint32_t n_deps;
    bool demanded;
    uint64_t born_ns;
    struct op *next, *next_demand;
};

struct CUstream_st {
    struct device *device;
    unsigned flags;
    struct mark *tail; /* of its last operation, or NULL */
    uint32_t slot;
    struct emu_site site;
    struct capture *capture; /* NULL: not capturing */
    uint32_t *front;         /* capturing: nodes that the next one follows */
    uint32_t n_front, strand;
    struct CUstream_st *next;
};
struct CUevent_st {
    struct device *device;
    unsigned flags;
    struct mark *mark; /* last record, or NULL */
    uint64_t captured; /* serial of the capture it was recorded in, else 0 */
    uint32_t *front;
    uint32_t n_front;
    struct emu_site site;
    struct CUevent_st *next;
};

struct device {
    int index;
    bool open;
    size_t used;
    cudaError_t sticky;
    uint64_t rng_host, rng_run;
    struct CUstream_st legacy;
    struct CUstream_st *streams;
    struct CUevent_st *events;
    struct op *first, *last; /* pending, oldest first */
    struct op *running;
    struct clock all; /* every operation it was ever given */
    pthread_t thread;
    bool has_thread, stop;
    uint32_t peers; /* bit i: may reach device i */
    int file;       /* memfd behind its memory, or -1 */
    uint64_t file_end;
};

/* What the environment asks for. */
enum { ENV_TEXT_MAX = 4096 };
struct env {
    struct emu_config config;
    char counts[ENV_TEXT_MAX]; /* path; empty: not asked for */
    char fault[ENV_TEXT_MAX];  /* as for emu_fault_parse */
};
void env_read(struct env *e); /* runtime_env.c */

struct runtime {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct emu_config config;
    struct device devices[EMU_DEVICES_MAX];
    struct clock host; /* what host code has waited for */
    uint32_t slot_time[SLOTS_MAX];
    bool slot_taken[SLOTS_MAX];
    uint64_t serial;
    bool configured;
    struct env env;
    uint64_t counts[CALL_MAX];
};
extern struct runtime rt;

/* ---- calls ---- */

/* A call of the API, from its begin to its end: holds the lock. */
struct call {
    enum call_id id;
    struct device *device; /* the thread's current one */
    cudaError_t error;
    cudaError_t late; /* injected into the work of this call */
    struct emu_site site;
};
/* False: the call returns c->error and does nothing more; the lock is not held. */
bool call_begin(struct call *c, enum call_id id);
/* As call_begin, but needs no device and meets no sticky error. */
bool call_begin_light(struct call *c, enum call_id id);
cudaError_t call_end(struct call *c, cudaError_t error);
const char *call_name(enum call_id id);
/* Of this thread; the place of the call under way. */
struct emu_site emu_site_now(void);
cudaError_t last_error_take(void);

/* Is this thread in a function of cudaLaunchHostFunc? Such may call nothing here. */
bool runtime_in_host_function(void);
/* Lock held, or before any other thread. */
void runtime_configure(const struct emu_config *config);
/* Of the nth call: false, none; else it returns *error. A late one goes to *late. */
bool fault_of(enum call_id id, uint64_t nth, cudaError_t *error, cudaError_t *late);

bool error_is_sticky(cudaError_t error);
void device_fail(struct device *d, cudaError_t error);
/* d: whose work it concerns; may be NULL. Lock held. */
void report(struct device *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Arguments of "%s:%d". */
#define SITE(s) (s).file ? (s).file : "?", (s).line

uint64_t emu_now_ns(void);
uint64_t draw_u64(uint64_t *rng);
bool draw_late(struct device *d);
void device_seed(struct device *d);

/* ---- streams ---- */

struct CUstream_st *stream_of(struct device *current, cudaStream_t handle);
struct CUevent_st *event_of(cudaEvent_t handle);
/* Enqueues on the stream, or adds to its capture. Takes what `w` owns, also on failure. */
cudaError_t stream_submit(struct CUstream_st *s, struct work *w);
/* The same of a stream that does not capture, after `more` as well (NULLs are skipped). */
cudaError_t stream_submit_after(struct CUstream_st *s, struct work *w, struct mark **more,
                                uint32_t n_more);
/* Marks that its next operation follows, and room for `more`; to be freed. NULL: no memory. */
struct mark **stream_order(struct CUstream_st *s, uint32_t *n, uint32_t more);
void stream_wait(struct CUstream_st *s);
void event_free(struct CUevent_st *e);
/* An operation of its own order: after deps, on `slot`. Its mark, with a reference, or NULL. */
struct mark *op_submit(struct device *d, struct work *w, struct mark **deps, uint32_t n_deps,
                       uint32_t slot);
void device_drain(struct device *d);
void device_close(struct device *d, void (*leak)(const char *));
uint32_t streams_close(struct device *d, void (*leak)(const char *));

/* ---- running ---- */

/* The memory it uses, by its spans or by its arguments; an error of memory it may not use. */
cudaError_t work_find_uses(struct device *d, struct work *w);

/* Before a launch, since others set handlers too: makes faults in kernels errors of their launches.
 * Lock held. */
void trap_install(void);

/* ---- nccl.c ---- */

/* All communicators end; and those of one device, as by an abort. */
uint32_t nccl_close(void (*leak)(const char *));
void nccl_abandon(struct device *d);
/* When a process began: its number may come again. False: there is none. */
bool process_started(int pid, uint64_t *when);

/* ---- captures and graphs ---- */

cudaError_t capture_add(struct CUstream_st *s, struct work *w);
/* Of an unsafe call while a capture is on: an error, and the capture is spoilt. */
cudaError_t capture_forbids(struct call *c);
/* Of a wait for, or a look at, a stream that captures: the same. */
cudaError_t capture_spoil(struct CUstream_st *s);
/* Before work of the legacy stream, which would follow what blocking streams capture. */
cudaError_t capture_meets_legacy(struct device *d);
cudaError_t capture_record(struct CUstream_st *s, struct CUevent_st *e);
cudaError_t capture_wait(struct CUstream_st *s, struct CUevent_st *e);
void capture_drop_stream(struct CUstream_st *s);
uint32_t graphs_close(void (*leak)(const char *));

/* ---- checks ---- */

/* Records what an operation that has run did, and reports what it had no order with. */
void check_work(struct device *d, struct work *w, struct mark *mark);
/* Of a free or destroy: is all that used it known to be over? Reports if not. */
void check_unused(struct memory *m, const struct call *c);
void check_forget(struct memory *m);
/* Before a copy runs: is its pinned source what it was when the copy was asked for? */
void check_source(struct device *d, const struct work *w);
/* When it is asked for: spoils a pinned destination, notes a pinned source. */
void check_host_sides(struct work *w);

#endif
