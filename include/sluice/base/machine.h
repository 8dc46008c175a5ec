/* What this machine says of itself, for reports: figures name the processor they were taken on. */
#ifndef SLUICE_BASE_MACHINE_H
#define SLUICE_BASE_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* What /proc/cpuinfo calls the processor, or "unknown". */
void sl_cpu_model_name(char *out, size_t size);
/* Physical memory, and what of it could be had now without swapping (MemAvailable of
 * /proc/meminfo); 0 when unknown. */
void sl_machine_memory(uint64_t *total_bytes, uint64_t *available_bytes);

#endif
