/* What this machine says of itself, for reports: figures name the processor they were taken on. */
#ifndef SLUICE_BASE_MACHINE_H
#define SLUICE_BASE_MACHINE_H

#include <stddef.h>

/* What /proc/cpuinfo calls the processor, or "unknown". */
void sl_cpu_model_name(char *out, size_t size);

#endif
