/* How ranks come to share memory: rank 0 makes it (memfd), seals its size and hands the descriptor
 * to each over a unix socket, together with everybody's life.
 *
 * The socket is abstract: no file that a killed process would leave behind. Its random name travels
 * over the rendezvous; the kernel vouches for the user at either end (SO_PEERCRED), and a rank
 * shows with its first words that it holds the group's key. A life is a descriptor that becomes
 * readable when its process ends: a pidfd, or where the kernel has none the read end of a pipe. */
#include "shm.h"

#include <sluice/base/containers.h>
#include <sluice/base/time.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define SLICE_MS    20
#define PENDING_MAX (2 * SL_COMM_RANKS_MAX) /* connections that have not spoken yet */
#define FDS_MAX     (SL_COMM_RANKS_MAX + 1)
#define SEALS       (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* --- messages with descriptors -------------------------------------------------------------------
 */

static bool send_fds(int socket, const void *data, size_t bytes, const int *fds, size_t n)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control = {0};
    struct iovec io = {(void *)(uintptr_t)data, bytes};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1};
    if (n) {
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_SPACE(n * sizeof *fds);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n * sizeof *fds);
        memcpy(CMSG_DATA(c), fds, n * sizeof *fds);
    }
    return sendmsg(socket, &m, MSG_NOSIGNAL) == (ssize_t)bytes;
}

static void close_all(int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* One message; 0 at the end, -1 when none waits (errno EAGAIN) or it does not fit. Descriptors that
 * came are in fds [*n]; FDS_MAX of them at most, others were closed by the kernel. */
static ssize_t receive_fds(int socket, void *data, size_t bytes, int *fds, size_t *n)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control;
    struct iovec io = {data, bytes};
    struct msghdr m = {.msg_iov = &io,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof control.bytes};
    *n = 0;
    ssize_t got = recvmsg(socket, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0)
        return -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t came = (c->cmsg_len - CMSG_LEN(0)) / sizeof *fds;
        came = came < FDS_MAX - *n ? came : FDS_MAX - *n;
        memcpy(fds + *n, CMSG_DATA(c), came * sizeof *fds);
        *n += came;
    }
    if (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        close_all(fds, *n);
        *n = 0;
        errno = EPROTO;
        return -1;
    }
    return got;
}

/* --- names, lives, proofs ------------------------------------------------------------------------
 */

static socklen_t abstract_address(const char *name, struct sockaddr_un *out)
{
    size_t n = strlen(name);
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    n = n < sizeof out->sun_path - 1 ? n : sizeof out->sun_path - 1;
    memcpy(out->sun_path + 1, name, n);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
}

static bool same_user(int socket)
{
    struct ucred who;
    socklen_t size = sizeof who;
    return !getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &size) &&
           (who.uid == geteuid() || who.uid == 0);
}

/* *shown goes to the others, *kept stays open here; -1 when nothing has to. */
static enum sl_status make_life(int *shown, int *kept, struct sl_err *err)
{
    int both[2];
    *kept = -1;
    *shown = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (*shown >= 0)
        return SL_OK;
    if (pipe2(both, O_CLOEXEC))
        return sl_fail(err, SL_NO_MEMORY, "comm: no pipe: %s", strerror(errno));
    *shown = both[0];
    *kept = both[1];
    return SL_OK;
}

static void prove(const struct comm_join *j, uint32_t rank, uint8_t out[WIRE_KEY_BYTES])
{
    char label[32];
    snprintf(label, sizeof label, "shm rank %u", rank);
    secure_derive(j->answer.key, label, out);
}

/* --- rank 0 --------------------------------------------------------------------------------------
 */

enum sl_status shm_listen(struct comm_join *j, struct sl_err *err)
{
    struct sockaddr_un a;
    snprintf(j->answer.shm_name, sizeof j->answer.shm_name, "sluice-%016llx%016llx",
             (unsigned long long)sl_entropy_u64(), (unsigned long long)sl_entropy_u64());
    socklen_t size = abstract_address(j->answer.shm_name, &a);
    j->shm_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (j->shm_fd < 0 || bind(j->shm_fd, (struct sockaddr *)&a, size) ||
        listen(j->shm_fd, PENDING_MAX))
        return sl_fail(err, SL_FAILED, "comm: no unix socket: %s", strerror(errno));
    return SL_OK;
}

static enum sl_status make_memory(size_t bytes, int *out, struct sl_err *err)
{
    *out = memfd_create("sluice-comm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*out < 0 || posix_fallocate(*out, 0, (off_t)bytes) || fcntl(*out, F_ADD_SEALS, SEALS))
        return sl_fail(err, SL_NO_MEMORY, "comm: no %zu bytes of shared memory: %s", bytes,
                       strerror(errno));
    return SL_OK;
}

struct hosting {
    int waiting[PENDING_MAX]; /* connected, silent */
    size_t n_waiting;
    int ranks[SL_COMM_RANKS_MAX]; /* known by rank; -1: not here yet */
    uint32_t n_missing, n_unready;
};

static void forget(struct hosting *h, size_t i)
{
    h->n_waiting--;
    memmove(&h->waiting[i], &h->waiting[i + 1], (h->n_waiting - i) * sizeof *h->waiting);
}

static void let_in(const struct comm_join *j, struct hosting *h)
{
    int fd;
    while ((fd = accept4(j->shm_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
        if (!same_user(fd)) {
            close(fd);
            continue;
        }
        if (h->n_waiting == PENDING_MAX) { /* the oldest silent one gives way */
            close(h->waiting[0]);
            forget(h, 0);
        }
        h->waiting[h->n_waiting++] = fd;
    }
}

/* A rank's first words and its life; false: not a rank of ours. */
static bool welcome(const struct comm_join *j, struct shm_net *s, struct hosting *h, int socket,
                    const uint8_t *data, size_t bytes, int *fds, size_t n_fds)
{
    struct wire_hail hail;
    struct sl_err err;
    uint8_t proof[WIRE_KEY_BYTES];
    if (wire_hail_decode(data, bytes, &hail, &err) || n_fds != 1 || hail.rank == 0 ||
        hail.rank >= s->base.n_ranks || h->ranks[hail.rank] >= 0)
        return false;
    prove(j, hail.rank, proof);
    if (!sl_equal_ct(proof, hail.proof, sizeof proof))
        return false;
    h->ranks[hail.rank] = socket;
    s->life[hail.rank] = fds[0];
    h->n_missing--;
    return true;
}

static void hear(const struct comm_join *j, struct shm_net *s, struct hosting *h)
{
    for (size_t i = 0; i < h->n_waiting;) {
        uint8_t data[WIRE_HAIL_BYTES];
        int fds[FDS_MAX];
        size_t n_fds;
        ssize_t n = receive_fds(h->waiting[i], data, sizeof data, fds, &n_fds);
        if (n < 0 && errno == EAGAIN) {
            i++;
            continue;
        }
        if (n <= 0 || !welcome(j, s, h, h->waiting[i], data, (size_t)n, fds, n_fds)) {
            close_all(fds, n_fds);
            close(h->waiting[i]);
        }
        forget(h, i);
    }
}

static enum sl_status gather_ranks(struct comm_join *j, struct shm_net *s, struct hosting *h,
                                   struct sl_err *err)
{
    while (h->n_missing) {
        struct pollfd fds[PENDING_MAX + 1] = {{j->shm_fd, POLLIN, 0}};
        enum sl_status status = comm_join_check(j, "every rank at the shared memory", err);
        if (status)
            return status;
        for (size_t i = 0; i < h->n_waiting; i++)
            fds[i + 1] = (struct pollfd){h->waiting[i], POLLIN, 0};
        poll(fds, h->n_waiting + 1, SLICE_MS);
        let_in(j, h);
        hear(j, s, h);
    }
    return SL_OK;
}

/* Until every rank has said that it mapped the memory. */
static enum sl_status await_ready(struct comm_join *j, struct shm_net *s, struct hosting *h,
                                  struct sl_err *err)
{
    while (h->n_unready) {
        struct pollfd fds[SL_COMM_RANKS_MAX];
        enum sl_status status = comm_join_check(j, "every rank's mapping", err);
        if (status)
            return status;
        for (uint32_t p = 0; p < s->base.n_ranks; p++)
            fds[p] = (struct pollfd){h->ranks[p], POLLIN, 0};
        poll(fds, s->base.n_ranks, SLICE_MS);
        for (uint32_t p = 1; p < s->base.n_ranks; p++) {
            uint8_t word;
            ssize_t n = fds[p].revents ? recv(h->ranks[p], &word, 1, MSG_DONTWAIT) : -1;
            if (n < 0)
                continue;
            if (n == 0)
                return sl_fail(err, SL_PEER, "comm: rank %u gave up while joining", p);
            close(h->ranks[p]);
            h->ranks[p] = -1;
            h->n_unready--;
        }
    }
    return SL_OK;
}

static enum sl_status host(struct comm_join *j, struct shm_net *s, int *memory, struct sl_err *err)
{
    uint32_t n = s->base.n_ranks;
    struct hosting h = {.n_missing = n - 1, .n_unready = n - 1};
    int fds[FDS_MAX];
    memset(h.ranks, -1, sizeof h.ranks);
    enum sl_status status = make_memory(s->map_bytes, memory, err);
    if (!status)
        status = make_life(&s->life[0], &s->own_life, err);
    if (!status)
        status = gather_ranks(j, s, &h, err);
    fds[0] = *memory;
    memcpy(fds + 1, s->life, n * sizeof *fds);
    for (uint32_t p = 1; p < n && !status; p++)
        if (!send_fds(h.ranks[p], &n, sizeof n, fds, n + 1))
            status = sl_fail(err, SL_PEER, "comm: rank %u gave up while joining: %s", p,
                             strerror(errno));
    if (!status)
        status = await_ready(j, s, &h, err);
    close_all(h.waiting, h.n_waiting);
    close_all(h.ranks, SL_COMM_RANKS_MAX);
    return status;
}

/* --- the others ----------------------------------------------------------------------------------
 */

static enum sl_status dial(struct comm_join *j, int *out, struct sl_err *err)
{
    struct sockaddr_un a;
    socklen_t size = abstract_address(j->answer.shm_name, &a);
    enum sl_status status;
    *out = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*out < 0)
        return sl_fail(err, SL_FAILED, "comm: no unix socket: %s", strerror(errno));
    while (connect(*out, (struct sockaddr *)&a, size)) {
        if (errno != EAGAIN && errno != EINTR)
            return sl_fail(err, SL_PEER, "comm: rank 0's shared memory is gone: %s",
                           strerror(errno));
        if ((status = comm_join_check(j, "room at rank 0's socket", err)))
            return status;
        poll(NULL, 0, SLICE_MS);
    }
    return same_user(*out) ? SL_OK : sl_fail(err, SL_PEER, "comm: another user answers for rank 0");
}

static enum sl_status check_memory(const struct shm_net *s, int memory, struct sl_err *err)
{
    off_t bytes = lseek(memory, 0, SEEK_END);
    if (bytes != (off_t)s->map_bytes || (fcntl(memory, F_GET_SEALS) & SEALS) != SEALS)
        return sl_fail(err, SL_CONFIG, "comm: shared memory of %lld bytes, expected %zu, sealed",
                       (long long)bytes, s->map_bytes);
    return SL_OK;
}

static enum sl_status take_memory(struct comm_join *j, struct shm_net *s, int socket, int *memory,
                                  struct sl_err *err)
{
    struct pollfd p = {socket, POLLIN, 0};
    int fds[FDS_MAX];
    size_t n_fds = 0;
    uint32_t n = 0;
    ssize_t got;
    while ((got = receive_fds(socket, &n, sizeof n, fds, &n_fds)) < 0) {
        enum sl_status status = comm_join_check(j, "the shared memory", err);
        if (status || errno != EAGAIN)
            return status ? status : sl_fail(err, SL_PEER, "comm: rank 0 gave up while joining");
        poll(&p, 1, SLICE_MS);
    }
    if (got != sizeof n || n != s->base.n_ranks || n_fds != (size_t)n + 1) {
        close_all(fds, n_fds);
        return sl_fail(err, SL_PEER, "comm: rank 0 gave up while joining");
    }
    *memory = fds[0];
    for (uint32_t i = 0; i < n; i++)
        s->life[i] = fds[i + 1];
    return check_memory(s, *memory, err);
}

static enum sl_status visit(struct comm_join *j, struct shm_net *s, int *memory, struct sl_err *err)
{
    struct wire_hail hail = {.rank = j->cfg->rank};
    uint8_t words[WIRE_HAIL_BYTES];
    int socket = -1, life = -1;
    enum sl_status status = dial(j, &socket, err);
    if (!status)
        status = make_life(&life, &s->own_life, err);
    prove(j, hail.rank, hail.proof);
    wire_hail_encode(&hail, words);
    if (!status && !send_fds(socket, words, sizeof words, &life, 1))
        status = sl_fail(err, SL_PEER, "comm: rank 0's shared memory is gone: %s", strerror(errno));
    if (!status)
        status = take_memory(j, s, socket, memory, err);
    if (!status && send(socket, "k", 1, MSG_NOSIGNAL) != 1)
        status = sl_fail(err, SL_PEER, "comm: rank 0 gave up while joining");
    close_all(&life, 1);
    close_all(&socket, 1);
    return status;
}

enum sl_status shm_share(struct comm_join *j, struct shm_net *net, int *memory, struct sl_err *err)
{
    return j->cfg->rank == 0 ? host(j, net, memory, err) : visit(j, net, memory, err);
}
