/* The key ring of a ZeroMQ context: a thread answers ZAP requests from the allow-list and reads the
 * folder again when its stamp has changed and stayed the same for one look, so that a file just
 * being written is not taken for a short one.
 *
 * `lock` guards `folder`; the counters are atomic; the ZAP socket belongs to the thread. */
#include "curve.h"

#include <sluice/base/containers.h>
#include <sluice/base/log.h>

#include <zmq.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ZAP_ENDPOINT   "inproc://zeromq.zap.01"
#define DOMAIN_PREFIX  "sluice."
#define LOOK_MS        250
#define LOOKS_FAILED   8 /* a folder that cannot be read is tried at every eighth look */
#define FRAME_MAX      256
#define ZAP_FRAMES     7
#define ENFORCE_DOMAIN 93 /* ZMQ_ZAP_ENFORCE_DOMAIN, which zmq.h hides with its drafts */

struct curve {
    pthread_mutex_t lock;
    struct curve_folder *folder, *spare; /* the spare one is read into */
    char *dir;
    void *zap;
    int event_fd; /* wakes the thread: reload, or stopping */
    pthread_t thread;
    bool has_thread;
    uint64_t stamp_loaded, stamp_seen;
    uint32_t n_looks;
    atomic_bool stopping, reload;
    _Atomic uint64_t generation, n_accepted, n_denied, n_reloads;
};

/* ---- the list ---- */

/* All of them are compared, byte for byte: time does not tell which was near. */
static const struct curve_key *find_key(const struct curve_folder *f, const uint8_t *bytes,
                                        unsigned roles)
{
    const struct curve_key *found = NULL;
    for (uint32_t i = 0; i < f->n_keys; i++)
        if (sl_equal_ct(f->keys[i].bytes, bytes, CURVE_KEY_BYTES) && (f->keys[i].role & roles))
            found = &f->keys[i];
    return found;
}

bool curve_allows(struct curve *c, const char *key, unsigned roles, char name[SL_KEY_NAME_BYTES])
{
    uint8_t bytes[CURVE_KEY_BYTES];
    if (!key || strlen(key) != CURVE_TEXT_BYTES - 1 || !zmq_z85_decode(bytes, key))
        return false;
    pthread_mutex_lock(&c->lock);
    const struct curve_key *k = find_key(c->folder, bytes, roles);
    if (k && name)
        memcpy(name, k->name, SL_KEY_NAME_BYTES);
    pthread_mutex_unlock(&c->lock);
    return k != NULL;
}

/* 0 is tried first. */
static int turn_of(const struct curve_folder *f, const struct curve_key *k, struct sl_str host)
{
    size_t len = strlen(k->name);
    bool named = len > 0 && len <= host.len && !memcmp(k->name, host.data, len) &&
                 (len == host.len || host.data[len] == '.');
    if (named)
        return 0;
    return strcmp(k->text, f->own_public) == 0 ? 1 : 2;
}

bool curve_key_at(struct curve *c, unsigned roles, struct sl_str host, uint32_t i,
                  char text[CURVE_TEXT_BYTES])
{
    uint32_t n = 0, left;
    bool found = false;
    pthread_mutex_lock(&c->lock);
    const struct curve_folder *f = c->folder;
    for (uint32_t k = 0; k < f->n_keys; k++)
        n += (f->keys[k].role & roles) != 0;
    left = n ? i % n : 0;
    for (int turn = 0; turn < 3 && n && !found; turn++)
        for (uint32_t k = 0; k < f->n_keys && !found; k++) {
            if (!(f->keys[k].role & roles) || turn_of(f, &f->keys[k], host) != turn || left-- != 0)
                continue;
            memcpy(text, f->keys[k].text, CURVE_TEXT_BYTES);
            found = true;
        }
    pthread_mutex_unlock(&c->lock);
    return found;
}

void curve_own_key(struct curve *c, char text[CURVE_TEXT_BYTES])
{
    pthread_mutex_lock(&c->lock);
    memcpy(text, c->folder->own_public, CURVE_TEXT_BYTES);
    pthread_mutex_unlock(&c->lock);
}

/* The thread only. A folder that cannot be read leaves the list as it is. */
static void load_again(struct curve *c)
{
    struct sl_err err;
    uint64_t stamp = curve_folder_stamp(c->dir);
    if (curve_folder_read(c->dir, false, c->spare, &err) != SL_OK) {
        sl_log(SL_LOG_ERROR, "%s: the keys read before stay in force", err.msg);
        explicit_bzero(c->spare, sizeof *c->spare);
        return;
    }
    pthread_mutex_lock(&c->lock);
    struct curve_folder *old = c->folder;
    c->folder = c->spare;
    c->spare = old;
    uint32_t n = c->folder->n_keys;
    pthread_mutex_unlock(&c->lock);
    explicit_bzero(old, sizeof *old);
    c->stamp_loaded = stamp;
    atomic_fetch_add(&c->n_reloads, 1);
    atomic_fetch_add(&c->generation, 1);
    sl_log(SL_LOG_INFO, "keys read again from %s: %u peers allowed", c->dir, n);
}

static void look(struct curve *c)
{
    uint64_t stamp = curve_folder_stamp(c->dir);
    bool rests = stamp == c->stamp_seen && c->n_looks++ % LOOKS_FAILED == 0;
    if (stamp != c->stamp_seen)
        c->n_looks = 0;
    c->stamp_seen = stamp;
    if (atomic_exchange(&c->reload, false) || (rests && stamp != c->stamp_loaded))
        load_again(c);
}

/* ---- ZAP ---- */

/* A request: version, request id, domain, address, identity, mechanism, credentials. Frames beyond
 * are thrown away; a longer one is cut, its full length kept. */
struct zap_request {
    char frames[ZAP_FRAMES][FRAME_MAX];
    int sizes[ZAP_FRAMES];
    int n_frames;
};
enum { ZAP_VERSION, ZAP_ID, ZAP_DOMAIN, ZAP_ADDRESS, ZAP_IDENTITY, ZAP_MECHANISM, ZAP_KEY };

static bool zap_receive(void *zap, struct zap_request *r)
{
    char surplus[FRAME_MAX];
    int more = 1;
    size_t size = sizeof more;
    memset(r, 0, sizeof *r);
    for (r->n_frames = 0; more; r->n_frames++) {
        bool keep = r->n_frames < ZAP_FRAMES;
        int n = zmq_recv(zap, keep ? r->frames[r->n_frames] : surplus, FRAME_MAX, ZMQ_DONTWAIT);
        if (n < 0)
            return false;
        if (keep)
            r->sizes[r->n_frames] = n;
        if (zmq_getsockopt(zap, ZMQ_RCVMORE, &more, &size))
            return false;
    }
    return true;
}

static bool frame_is(const struct zap_request *r, int frame, const char *text)
{
    return r->sizes[frame] == (int)strlen(text) && !memcmp(r->frames[frame], text, strlen(text));
}

/* "sluice.N", N a mask of roles; 0 for a domain of nobody. */
static unsigned roles_of(const struct zap_request *r)
{
    size_t prefix = strlen(DOMAIN_PREFIX);
    if (r->sizes[ZAP_DOMAIN] != (int)prefix + 1 ||
        memcmp(r->frames[ZAP_DOMAIN], DOMAIN_PREFIX, prefix) != 0)
        return 0;
    unsigned roles = (unsigned)r->frames[ZAP_DOMAIN][prefix] - '0';
    return roles <= (SL_KEY_ROUTER | SL_KEY_WORKER) ? roles : 0;
}

static bool is_welcome(struct curve *c, const struct zap_request *r)
{
    if (r->n_frames != ZAP_FRAMES || !frame_is(r, ZAP_VERSION, "1.0") ||
        !frame_is(r, ZAP_MECHANISM, "CURVE") || r->sizes[ZAP_KEY] != CURVE_KEY_BYTES)
        return false;
    pthread_mutex_lock(&c->lock);
    bool found = find_key(c->folder, (const uint8_t *)r->frames[ZAP_KEY], roles_of(r)) != NULL;
    pthread_mutex_unlock(&c->lock);
    return found;
}

static void zap_send(void *zap, const void *data, int size, int more)
{
    zmq_send(zap, data, (size_t)size, more | ZMQ_DONTWAIT);
}

static void zap_reply(struct curve *c, const struct zap_request *r, bool welcome)
{
    char key[CURVE_TEXT_BYTES] = "";
    const char *code = welcome ? "200" : "400", *why = welcome ? "OK" : "key not allowed";
    if (welcome)
        zmq_z85_encode(key, (const uint8_t *)r->frames[ZAP_KEY], CURVE_KEY_BYTES);
    int id = r->sizes[ZAP_ID] < FRAME_MAX ? r->sizes[ZAP_ID] : 0;
    zap_send(c->zap, "1.0", 3, ZMQ_SNDMORE);
    zap_send(c->zap, r->frames[ZAP_ID], id, ZMQ_SNDMORE);
    zap_send(c->zap, code, (int)strlen(code), ZMQ_SNDMORE);
    zap_send(c->zap, why, (int)strlen(why), ZMQ_SNDMORE);
    zap_send(c->zap, key, (int)strlen(key), ZMQ_SNDMORE);
    zap_send(c->zap, "", 0, 0);
}

static void zap_answer(struct curve *c)
{
    struct zap_request r;
    while (zap_receive(c->zap, &r)) {
        bool welcome = is_welcome(c, &r);
        int address = r.sizes[ZAP_ADDRESS] < 64 ? r.sizes[ZAP_ADDRESS] : 64;
        atomic_fetch_add(welcome ? &c->n_accepted : &c->n_denied, 1);
        if (!welcome)
            sl_log(SL_LOG_WARN, "a peer at %.*s showed no key that is allowed", address,
                   r.frames[ZAP_ADDRESS]);
        zap_reply(c, &r, welcome);
    }
}

static void *run(void *arg)
{
    struct curve *c = arg;
    eventfd_t n;
    while (!atomic_load(&c->stopping)) {
        zmq_pollitem_t items[] = {{.socket = c->zap, .events = ZMQ_POLLIN},
                                  {.fd = c->event_fd, .events = ZMQ_POLLIN}};
        zmq_poll(items, 2, LOOK_MS);
        if (items[1].revents)
            eventfd_read(c->event_fd, &n);
        if (items[0].revents)
            zap_answer(c);
        look(c);
    }
    return NULL;
}

/* ---- life ---- */

/* Without signals: those are for the thread that expects them. */
static enum sl_status start_thread(struct curve *c, struct sl_err *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&c->thread, NULL, run, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    c->has_thread = rc == 0;
    return rc == 0 ? SL_OK : sl_fail(err, SL_FAILED, "keys: no thread: %s", strerror(rc));
}

static enum sl_status open_zap(struct curve *c, void *ctx, struct sl_err *err)
{
    const int zero = 0;
    c->zap = zmq_socket(ctx, ZMQ_REP);
    if (!c->zap || zmq_setsockopt(c->zap, ZMQ_LINGER, &zero, sizeof zero) ||
        zmq_bind(c->zap, ZAP_ENDPOINT))
        return sl_fail(err, SL_FAILED, "keys: no handler at " ZAP_ENDPOINT ": %s",
                       zmq_strerror(errno));
    return SL_OK;
}

enum sl_status curve_open(void *ctx, const char *dir, struct curve **out, struct sl_err *err)
{
    *out = NULL;
    struct curve *c = calloc(1, sizeof *c);
    if (!c)
        return sl_fail(err, SL_NO_MEMORY, "keys: no memory");
    pthread_mutex_init(&c->lock, NULL);
    c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->folder = calloc(1, sizeof *c->folder);
    c->spare = calloc(1, sizeof *c->spare);
    c->dir = strdup(dir);
    enum sl_status s = SL_OK;
    if (!c->folder || !c->spare || !c->dir || c->event_fd < 0)
        s = sl_fail(err, SL_NO_MEMORY, "keys: no memory or descriptors");
    if (s == SL_OK) {
        c->stamp_loaded = c->stamp_seen = curve_folder_stamp(dir);
        s = curve_folder_read(dir, true, c->folder, err);
    }
    if (s == SL_OK)
        s = open_zap(c, ctx, err);
    if (s == SL_OK)
        s = start_thread(c, err);
    if (s != SL_OK)
        curve_close(c);
    else
        *out = c;
    return s;
}

void curve_close(struct curve *c)
{
    if (!c)
        return;
    atomic_store(&c->stopping, true);
    if (c->has_thread) {
        eventfd_write(c->event_fd, 1);
        pthread_join(c->thread, NULL);
    }
    if (c->zap)
        zmq_close(c->zap);
    if (c->event_fd >= 0)
        close(c->event_fd);
    if (c->folder)
        explicit_bzero(c->folder, sizeof *c->folder);
    pthread_mutex_destroy(&c->lock);
    free(c->folder);
    free(c->spare);
    free(c->dir);
    free(c);
}

void curve_reload(struct curve *c)
{
    atomic_store(&c->reload, true);
    eventfd_write(c->event_fd, 1);
}

uint64_t curve_generation(const struct curve *c)
{
    return atomic_load(&((struct curve *)c)->generation);
}

void curve_stats(struct curve *c, struct curve_stats *out)
{
    out->n_accepted = atomic_load(&c->n_accepted);
    out->n_denied = atomic_load(&c->n_denied);
    out->n_reloads = atomic_load(&c->n_reloads);
    pthread_mutex_lock(&c->lock);
    out->n_keys = c->folder->n_keys;
    pthread_mutex_unlock(&c->lock);
}

/* ---- sockets ---- */

static bool set_text(void *zmq, int option, const char *text)
{
    return zmq_setsockopt(zmq, option, text, strlen(text) + 1) == 0;
}

static bool is_curve(void *zmq)
{
    int mechanism = ZMQ_NULL;
    size_t size = sizeof mechanism;
    return zmq_getsockopt(zmq, ZMQ_MECHANISM, &mechanism, &size) == 0 && mechanism == ZMQ_CURVE;
}

enum sl_status curve_arm_server(struct curve *c, void *zmq, unsigned roles, struct sl_err *err)
{
    const int one = 1;
    char domain[sizeof DOMAIN_PREFIX + 1];
    snprintf(domain, sizeof domain, DOMAIN_PREFIX "%u", roles & 3u);
    pthread_mutex_lock(&c->lock);
    bool ok = zmq_setsockopt(zmq, ZMQ_CURVE_SERVER, &one, sizeof one) == 0 &&
              set_text(zmq, ZMQ_CURVE_SECRETKEY, c->folder->own.text) &&
              zmq_setsockopt(zmq, ZMQ_ZAP_DOMAIN, domain, strlen(domain)) == 0 && is_curve(zmq);
    pthread_mutex_unlock(&c->lock);
    /* A library that does not know it still asks the handler, which outlives the socket. */
    zmq_setsockopt(zmq, ENFORCE_DOMAIN, &one, sizeof one);
    return ok ? SL_OK : sl_fail(err, SL_FAILED, "keys: CURVE server: %s", zmq_strerror(errno));
}

enum sl_status curve_arm_client(struct curve *c, void *zmq, const char *server_key,
                                struct sl_err *err)
{
    const int zero = 0;
    pthread_mutex_lock(&c->lock);
    bool ok = zmq_setsockopt(zmq, ZMQ_CURVE_SERVER, &zero, sizeof zero) == 0 &&
              set_text(zmq, ZMQ_CURVE_SERVERKEY, server_key) &&
              set_text(zmq, ZMQ_CURVE_PUBLICKEY, c->folder->own_public) &&
              set_text(zmq, ZMQ_CURVE_SECRETKEY, c->folder->own.text) && is_curve(zmq);
    pthread_mutex_unlock(&c->lock);
    return ok ? SL_OK : sl_fail(err, SL_FAILED, "keys: CURVE client: %s", zmq_strerror(errno));
}
