/* Private folders for ipc endpoints: whoever may enter the folder may speak on the bus, so it is
 * made fresh and for its owner alone. */
#include <sluice/transport/bus.h>

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define FOLDER_TEMPLATE "/sluice-XXXXXX"
#define FOLDER_PREFIX   "/sluice-"
#define SCHEME          "ipc://"
#define SOCKET_NAME     "/bus"

enum sl_status sl_bus_ipc_make(const char *base_dir, struct sl_buf *endpoint, struct sl_err *err)
{
    size_t before = endpoint->len;
    sl_buf_puts(endpoint, SCHEME);
    sl_buf_puts(endpoint, base_dir);
    sl_buf_puts(endpoint, FOLDER_TEMPLATE);
    if (endpoint->failed)
        return sl_fail(err, SL_NO_MEMORY, "bus: no memory for an ipc endpoint");
    char *path = endpoint->data + before + strlen(SCHEME);
    size_t path_max = sizeof((struct sockaddr_un *)NULL)->sun_path;
    if (strlen(path) + sizeof SOCKET_NAME > path_max)
        return sl_fail(err, SL_CONFIG, "bus: ipc path below '%s' is %zu bytes, at most %zu",
                       base_dir, strlen(path) + sizeof SOCKET_NAME, path_max);
    if (!mkdtemp(path)) /* makes it with mode 0700 */
        return sl_fail(err, SL_CONFIG, "bus: cannot make a folder in '%s': %s", base_dir,
                       strerror(errno));
    sl_buf_puts(endpoint, SOCKET_NAME);
    return endpoint->failed ? sl_fail(err, SL_NO_MEMORY, "bus: no memory for an ipc endpoint")
                            : SL_OK;
}

/* Sockets of processes that were killed; nothing else is ever there. */
static void unlink_sockets(const char *folder)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_type == DT_SOCK)
            unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
}

void sl_bus_ipc_remove(const char *endpoint)
{
    if (!endpoint || strncmp(endpoint, SCHEME, strlen(SCHEME)) != 0)
        return;
    char *path = strdup(endpoint + strlen(SCHEME));
    char *name = path ? strrchr(path, '/') : NULL;
    if (name && name != path) {
        unlink(path);
        *name = '\0';
        char *folder = strrchr(path, '/');
        if (folder && !strncmp(folder, FOLDER_PREFIX, strlen(FOLDER_PREFIX))) {
            unlink_sockets(path);
            rmdir(path); /* only ever a folder of our making, and only when empty */
        }
    }
    free(path);
}
