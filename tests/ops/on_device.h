/* A device's backend behind the host's memory, so that the op table's tests, which call ops on
 * arrays of their own, run on it as well: each op copies in, runs, copies out and waits. */
#ifndef TESTS_OPS_ON_DEVICE_H
#define TESTS_OPS_ON_DEVICE_H

#include <sluice/kernels/op.h>

/* Takes `device`, which it closes. Ends the test on any error of the device's. */
struct sl_backend *on_device_open(struct sl_backend *device);

#endif
