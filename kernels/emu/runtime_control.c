/* Faults, reports and configuration of the emulated runtime: with runtime_env.c the only part that
 * writes to stderr. */
#include "emu/runtime.h"

#include <nccl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FAULTS_MAX = 32, TEXT_MAX = 2048 };

static struct fault {
    enum call_id id;
    uint64_t nth;
    cudaError_t error;
    bool late;
} faults[FAULTS_MAX];
static uint32_t n_faults;

static char reports[EMU_REPORTS_MAX][TEXT_MAX];
static uint32_t n_reports;

/* ---- reports ---- */

void report(struct device *d, const char *fmt, ...)
{
    char text[TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n_reports < EMU_REPORTS_MAX)
        memcpy(reports[n_reports], text, sizeof text);
    n_reports++;
    if (rt.config.keep_reports)
        return;
    fprintf(stderr, "cuda-emu: %s\n", text);
    if (d)
        device_fail(d, cudaErrorUnknown);
}

uint32_t emu_report_count(void)
{
    pthread_mutex_lock(&rt.lock);
    uint32_t n = n_reports;
    pthread_mutex_unlock(&rt.lock);
    return n;
}

const char *emu_report_text(uint32_t i)
{
    return i < EMU_REPORTS_MAX ? reports[i] : "";
}

void emu_reports_clear(void)
{
    pthread_mutex_lock(&rt.lock);
    memset(reports, 0, sizeof reports);
    n_reports = 0;
    pthread_mutex_unlock(&rt.lock);
}

/* ---- faults ---- */

bool fault_of(enum call_id id, uint64_t nth, cudaError_t *error, cudaError_t *late)
{
    for (uint32_t i = 0; i < n_faults; i++) {
        const struct fault *f = &faults[i];
        if (f->id != id || f->nth != nth)
            continue;
        if (!f->late) {
            *error = f->error;
            return true;
        }
        *late = f->error;
    }
    return false;
}

static bool add_fault(const char *name, size_t len, uint64_t nth, cudaError_t error, bool late)
{
    uint32_t id = 0;
    while (id < CALL_MAX && (strlen(call_name(id)) != len || memcmp(call_name(id), name, len)))
        id++;
    if (id == CALL_MAX || n_faults == FAULTS_MAX || !nth || !error ||
        ((int)error > EMU_NCCL_FAULT && strncmp(call_name(id), "nccl", 4) != 0))
        return false;
    faults[n_faults++] = (struct fault){id, nth, error, late};
    return true;
}

bool emu_fault(const char *name, uint64_t nth, cudaError_t error, bool late)
{
    pthread_mutex_lock(&rt.lock);
    bool ok = add_fault(name, strlen(name), nth, error, late);
    pthread_mutex_unlock(&rt.lock);
    return ok;
}

static cudaError_t error_named(const char *name, size_t len)
{
    static const cudaError_t all[] = {
#define VALUE_OF(name, value, text) name,
        EMU_CUDA_ERRORS(VALUE_OF)
#undef VALUE_OF
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const char *n = cudaGetErrorName(all[i]);
        if (strlen(n) == len && !memcmp(n, name, len))
            return all[i];
    }
    static const char *const results[] = {
#define NAME_OF(name, value, text) #name,
        EMU_NCCL_RESULTS(NAME_OF)
#undef NAME_OF
    };
    for (unsigned i = 1; i < ncclNumResults; i++)
        if (strlen(results[i]) == len && !memcmp(results[i], name, len))
            return (cudaError_t)(EMU_NCCL_FAULT + i);
    return cudaSuccess;
}

/* One of "NAME:N:ERROR[:late]", up to a comma. */
static bool parse_one(const char **at)
{
    const char *name = *at, *end = name + strcspn(name, ",");
    const char *colon = memchr(name, ':', (size_t)(end - name));
    if (!colon)
        return false;
    char *rest;
    uint64_t nth = strtoull(colon + 1, &rest, 10);
    if (*rest != ':')
        return false;
    const char *error = rest + 1;
    size_t len = strcspn(error, ",:");
    bool late = error[len] == ':';
    if (late && ((size_t)(end - error) != len + 5 || memcmp(error + len, ":late", 5)))
        return false;
    *at = *end ? end + 1 : end;
    return add_fault(name, (size_t)(colon - name), nth, error_named(error, len), late);
}

static bool parse_faults(const char *text)
{
    while (*text)
        if (!parse_one(&text))
            return false;
    return true;
}

bool emu_fault_parse(const char *text)
{
    pthread_mutex_lock(&rt.lock);
    bool ok = parse_faults(text);
    pthread_mutex_unlock(&rt.lock);
    return ok;
}

void emu_faults_clear(void)
{
    pthread_mutex_lock(&rt.lock);
    n_faults = 0;
    pthread_mutex_unlock(&rt.lock);
}

const char *emu_call_count(uint32_t i, uint64_t *n)
{
    if (i >= CALL_MAX)
        return NULL;
    pthread_mutex_lock(&rt.lock);
    *n = rt.counts[i];
    pthread_mutex_unlock(&rt.lock);
    return call_name(i);
}

/* ---- at the end of the process ---- */

static FILE *counts_file;

static void write_left(const char *text)
{
    fprintf(counts_file, "left %s\n", text);
}

/* What a sweep of faults over a whole program goes by: "NAME CALLS" a line; then reports, and
 * memory that was left. */
static void write_counts(void)
{
    char path[ENV_TEXT_MAX + 16];
    snprintf(path, sizeof path, "%s.%d", rt.env.counts, (int)getpid());
    counts_file = fopen(path, "we");
    if (!counts_file)
        return;
    pthread_mutex_lock(&rt.lock);
    for (uint32_t i = 0; i < CALL_MAX; i++)
        fprintf(counts_file, "%s %llu\n", call_name(i), (unsigned long long)rt.counts[i]);
    for (uint32_t i = 0; i < n_reports && i < EMU_REPORTS_MAX; i++)
        fprintf(counts_file, "report %s\n", reports[i]);
    memory_left(write_left);
    pthread_mutex_unlock(&rt.lock);
    fclose(counts_file);
}

static void ask_for_counts(void)
{
    static bool asked;
    if (!asked && *rt.env.counts)
        atexit(write_counts);
    asked = true;
}

/* ---- configuration ---- */

void runtime_configure(const struct emu_config *config)
{
    env_read(&rt.env);
    rt.config = config ? *config : rt.env.config;
    if (rt.config.n_devices > EMU_DEVICES_MAX)
        rt.config.n_devices = EMU_DEVICES_MAX;
    for (int i = 0; i < EMU_DEVICES_MAX; i++)
        rt.devices[i] = (struct device){.index = i, .file = -1};
    memset(&rt.host, 0, sizeof rt.host);
    memset(rt.slot_time, 0, sizeof rt.slot_time);
    memset(rt.slot_taken, 0, sizeof rt.slot_taken);
    memset(rt.counts, 0, sizeof rt.counts);
    rt.serial = 0;
    rt.configured = true;
    n_faults = 0;
    ask_for_counts();
    if (!parse_faults(rt.env.fault)) {
        fprintf(stderr, "cuda-emu: SLUICE_CUDA_EMU_FAULT: '%s' is not CALL:N:ERROR[:late],...\n",
                rt.env.fault);
        rt.config.no_driver = true;
    }
}

uint32_t emu_restart(const struct emu_config *config, void (*leak)(const char *))
{
    uint32_t n = 0;
    pthread_mutex_lock(&rt.lock);
    n += nccl_close(leak);
    for (int i = 0; i < EMU_DEVICES_MAX; i++)
        if (rt.devices[i].open)
            device_drain(&rt.devices[i]);
    n += graphs_close(leak);
    for (int i = 0; i < EMU_DEVICES_MAX; i++) {
        if (!rt.devices[i].open)
            continue;
        n += streams_close(&rt.devices[i], leak);
        n += memory_close(&rt.devices[i], leak);
        device_close(&rt.devices[i], NULL);
    }
    n += memory_close(NULL, leak);
    runtime_configure(config);
    pthread_mutex_unlock(&rt.lock);
    emu_reports_clear();
    last_error_take();
    return n;
}

void emu_seed(uint64_t seed)
{
    pthread_mutex_lock(&rt.lock);
    rt.config.seed = seed;
    for (int i = 0; i < EMU_DEVICES_MAX; i++)
        device_seed(&rt.devices[i]);
    pthread_mutex_unlock(&rt.lock);
}
