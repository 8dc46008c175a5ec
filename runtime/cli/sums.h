/* Remembered SHA-256 sums of files: a folder with one small file a sum.
 *
 * The file's name holds what identifies the bytes (device, inode, size, time of the last change),
 * its content is the sum. At most SUMS_MAX are kept, those last used; processes that share the
 * folder need no lock, since every file comes by a rename and one that is gone costs a hash, no
 * more. */
#ifndef SLUICE_CLI_SUMS_H
#define SLUICE_CLI_SUMS_H

#include <stdbool.h>
#include <sys/stat.h>

#define SUMS_MAX 64

/* The sum of the file that `st` tells of, if it is remembered; it counts as used. */
bool sums_get(const char *dir, const struct stat *st, char hex[65]);
/* Remembers it, and forgets the sums that were used longest ago. Best effort. */
void sums_put(const char *dir, const struct stat *st, const char hex[65]);

#endif
