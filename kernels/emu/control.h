/* What tests and tools set and read of the emulated runtime; programs know cuda_runtime_api.h only.
 *
 * Asynchrony. Every device has a thread that runs its operations one at a time, in any order that
 * streams and events allow. Under an even seed an operation mostly runs as late as allowed: once it
 * or a later one is waited for or asked after, or EMU_LATE_MS have passed; under an odd seed it
 * mostly has run when the call returns. Under seed 0, the default, all run as soon as they can, in
 * order.
 *
 * Checks. What a device would not tell of (memory freed in use, two operations without an order on
 * one range, ...) is reported: kept as text, and unless keep_reports is set, printed on stderr and
 * made a sticky cudaErrorUnknown of the device, so that no test passes over it. */
#ifndef SLUICE_KERNELS_EMU_CONTROL_H
#define SLUICE_KERNELS_EMU_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EMU_DEVICES_MAX = 16, EMU_REPORTS_MAX = 64, EMU_LATE_MS = 5, EMU_NCCL_FAULT = 2000 };

struct emu_config {
    uint32_t n_devices; /* 0: cudaErrorNoDevice */
    bool no_driver;     /* cudaErrorInsufficientDriver */
    bool keep_reports;
    bool no_peers; /* no device can reach another's memory */
    size_t memory; /* bytes of each device */
    uint64_t seed;
    uint32_t n_threads;    /* OS threads of a launch */
    uint32_t n_processors; /* multiprocessors of a device */
    size_t shared_max;     /* bytes of shared memory a block may opt into */
    int major, minor;      /* compute capability */
};

/* The defaults, changed by SLUICE_CUDA_EMU_DEVICES, _MEMORY (bytes), _SEED, _THREADS and _DRIVER
 * (0: none). A wrong value is told on stderr and leaves no driver. */
struct emu_config emu_config_default(void);
/* Ends everything: waits for the devices, frees what is left, forgets errors, faults, counts and
 * reports, and starts anew. NULL: the default. No other thread is in the runtime. Returns how many
 * objects were left: each is reported to `leak` if that is given. */
uint32_t emu_restart(const struct emu_config *config, void (*leak)(const char *text));

/* Reports so far, and the i-th of the first EMU_REPORTS_MAX (else ""). */
uint32_t emu_report_count(void);
const char *emu_report_text(uint32_t i);
void emu_reports_clear(void);

/* The nth call (from 1) of `name` returns `error`, or, if `late`, has its work fail with it when
 * the device gets there. Errors that the device does not survive (ECC, launch failure, illegal
 * address,
 * ...) are sticky. Of NCCL's calls, EMU_NCCL_FAULT + an ncclResult_t is returned; a late one is the
 * communicator's asynchronous error, with ncclInProgress none, and its work never ends. False: no
 * such call, or too many faults. */
bool emu_fault(const char *name, uint64_t nth, cudaError_t error, bool late);
/* "NAME:N:ERROR[:late],...", as in SLUICE_CUDA_EMU_FAULT. */
bool emu_fault_parse(const char *text);
void emu_faults_clear(void);
/* The i-th call's name and how often it was called since the start; NULL beyond the last. A process
 * with SLUICE_CUDA_EMU_COUNTS=PATH writes them to PATH.PID at its exit, with reports and leaks. */
const char *emu_call_count(uint32_t i, uint64_t *n);

/* Whether a kernel's fault ends its launch only; not beside ThreadSanitizer. */
bool emu_traps_faults(void);

/* Where the seed goes to: the next draws of all devices follow it. */
void emu_seed(uint64_t seed);

#ifdef __cplusplus
}
#endif
#endif
