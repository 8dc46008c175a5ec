/* The emulated CUDA runtime: its state, what every call does first and last, and devices. */
#include "emu/runtime.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

struct runtime rt = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static __thread int current;
static __thread cudaError_t last_error;

/* ---- small things ---- */

uint64_t emu_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t draw_u64(uint64_t *rng)
{
    uint64_t x = *rng += 0x9e3779b97f4a7c15ull; /* splitmix64, Steele et al. 2014 */
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

void device_seed(struct device *d)
{
    d->rng_host = rt.config.seed * 0x2545f4914f6cdd1dull + (uint32_t)d->index;
    d->rng_run = ~d->rng_host;
}

/* Seven of eight by the seed's parity, so that both kinds meet in one run. */
bool draw_late(struct device *d)
{
    if (!rt.config.seed)
        return false;
    bool other = draw_u64(&d->rng_host) % 8 == 0;
    return (rt.config.seed % 2 == 0) != other;
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
#define NAME_OF(name, value, text)                                                                 \
    case name:                                                                                     \
        return #name;
        EMU_CUDA_ERRORS(NAME_OF)
#undef NAME_OF
    }
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
#define TEXT_OF(name, value, text)                                                                 \
    case name:                                                                                     \
        return text;
        EMU_CUDA_ERRORS(TEXT_OF)
#undef TEXT_OF
    }
    return "unrecognized error code";
}

bool error_is_sticky(cudaError_t error)
{
    switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
        return true;
    default:
        return false;
    }
}

void device_fail(struct device *d, cudaError_t error)
{
    if (!d->sticky)
        d->sticky = error;
}

/* ---- calls ---- */

const char *call_name(enum call_id id)
{
#define NAME_OF(name) #name,
    static const char *const names[] = {EMU_CALLS(NAME_OF)};
#undef NAME_OF
    return id < CALL_MAX ? names[id] : NULL;
}

static void configure_once(void)
{
    if (!rt.configured)
        runtime_configure(NULL);
}

static void device_open(struct device *d)
{
    d->open = true;
    device_seed(d);
    d->legacy.device = d;
    d->legacy.slot = slot_take();
}

static cudaError_t no_device_error(void)
{
    if (rt.config.no_driver)
        return cudaErrorInsufficientDriver;
    return rt.config.n_devices ? cudaSuccess : cudaErrorNoDevice;
}

static bool call_refuse(struct call *c, cudaError_t error)
{
    c->error = error;
    if ((int)error < EMU_NCCL_FAULT)
        last_error = error;
    pthread_mutex_unlock(&rt.lock);
    return false;
}

bool call_begin_light(struct call *c, enum call_id id)
{
    *c = (struct call){.id = id, .site = emu_site_now()};
    pthread_mutex_lock(&rt.lock);
    configure_once();
    c->device = &rt.devices[current];
    uint64_t n = ++rt.counts[id];
    cudaError_t error;
    if (!fault_of(id, n, &error, &c->late))
        return true;
    if (error_is_sticky(error))
        device_fail(c->device, error);
    return call_refuse(c, error);
}

bool call_begin(struct call *c, enum call_id id)
{
    if (!call_begin_light(c, id))
        return false;
    cudaError_t error = no_device_error();
    if (!error && current >= (int)rt.config.n_devices)
        error = cudaErrorInvalidDevice;
    if (error)
        return call_refuse(c, error);
    if (!c->device->open)
        device_open(c->device);
    if (runtime_in_host_function())
        return call_refuse(c, cudaErrorNotPermitted);
    if (c->device->sticky)
        return call_refuse(c, c->device->sticky);
    error = capture_forbids(c);
    return error ? call_refuse(c, error) : true;
}

cudaError_t call_end(struct call *c, cudaError_t error)
{
    if (error)
        last_error = error;
    pthread_mutex_unlock(&rt.lock);
    c->error = error;
    emu_at(NULL, 0);
    return error;
}

cudaError_t last_error_take(void)
{
    pthread_mutex_lock(&rt.lock);
    cudaError_t error = last_error ? last_error : rt.devices[current].sticky;
    pthread_mutex_unlock(&rt.lock);
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaGetLastError(void)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaGetLastError)) {
        last_error = cudaSuccess;
        return c.error;
    }
    return call_end(&c, cudaSuccess), last_error_take();
}

cudaError_t cudaPeekAtLastError(void)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaPeekAtLastError))
        return c.error;
    cudaError_t error = last_error ? last_error : c.device->sticky;
    return call_end(&c, cudaSuccess), error;
}

/* ---- devices ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaGetDeviceCount))
        return c.error;
    cudaError_t error = count ? no_device_error() : cudaErrorInvalidValue;
    if (!error)
        *count = (int)rt.config.n_devices;
    return call_end(&c, error);
}

static bool is_device(int device)
{
    return device >= 0 && device < (int)rt.config.n_devices;
}

cudaError_t cudaSetDevice(int device)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaSetDevice))
        return c.error;
    cudaError_t error = no_device_error();
    if (!error && !is_device(device))
        error = cudaErrorInvalidDevice;
    if (error)
        return call_end(&c, error);
    current = device;
    struct device *d = &rt.devices[device];
    if (!d->open)
        device_open(d);
    return call_end(&c, d->sticky);
}

cudaError_t cudaGetDevice(int *device)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaGetDevice))
        return c.error;
    cudaError_t error = device ? no_device_error() : cudaErrorInvalidValue;
    if (!error)
        *device = current;
    return call_end(&c, error);
}

static void describe(struct cudaDeviceProp *p, int device)
{
    *p = (struct cudaDeviceProp){.totalGlobalMem = rt.config.memory};
    snprintf(p->name, sizeof p->name, "Sluice emulated device");
    memcpy(p->uuid.bytes, "sluice-cuda-emu", 15);
    p->uuid.bytes[15] = (char)device;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = rt.config.shared_max;
    p->sharedMemPerMultiprocessor = rt.config.shared_max + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->warpSize = 32;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = EMU_BLOCK_MAX;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = INT32_MAX;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = rt.config.major;
    p->minor = rt.config.minor;
    p->multiProcessorCount = (int)rt.config.n_processors;
    p->maxThreadsPerMultiProcessor = 1536;
    p->maxBlocksPerMultiProcessor = 24;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->canMapHostMemory = p->concurrentKernels = p->ECCEnabled = p->unifiedAddressing = 1;
    p->hostRegisterSupported = p->hostRegisterReadOnlySupported = 1;
    p->pciBusID = device + 1;
    p->asyncEngineCount = 2;
    p->memoryBusWidth = 384;
    p->l2CacheSize = 4 << 20;
    p->streamPrioritiesSupported = 1;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int device)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaGetDeviceProperties))
        return c.error;
    cudaError_t error = prop ? no_device_error() : cudaErrorInvalidValue;
    if (!error && !is_device(device))
        error = cudaErrorInvalidDevice;
    if (!error)
        describe(prop, device);
    return call_end(&c, error);
}

static bool attribute(const struct cudaDeviceProp *p, enum cudaDeviceAttr attr, int *v)
{
    const struct {
        enum cudaDeviceAttr attr;
        int value;
    } all[] = {
        {cudaDevAttrMaxThreadsPerBlock, p->maxThreadsPerBlock},
        {cudaDevAttrMaxSharedMemoryPerBlock, (int)p->sharedMemPerBlock},
        {cudaDevAttrWarpSize, p->warpSize},
        {cudaDevAttrClockRate, 1000000},
        {cudaDevAttrMultiProcessorCount, p->multiProcessorCount},
        {cudaDevAttrIntegrated, p->integrated},
        {cudaDevAttrCanMapHostMemory, p->canMapHostMemory},
        {cudaDevAttrConcurrentKernels, p->concurrentKernels},
        {cudaDevAttrEccEnabled, p->ECCEnabled},
        {cudaDevAttrPciBusId, p->pciBusID},
        {cudaDevAttrPciDeviceId, p->pciDeviceID},
        {cudaDevAttrMemoryClockRate, 1000000},
        {cudaDevAttrGlobalMemoryBusWidth, p->memoryBusWidth},
        {cudaDevAttrL2CacheSize, p->l2CacheSize},
        {cudaDevAttrMaxThreadsPerMultiProcessor, p->maxThreadsPerMultiProcessor},
        {cudaDevAttrAsyncEngineCount, p->asyncEngineCount},
        {cudaDevAttrUnifiedAddressing, p->unifiedAddressing},
        {cudaDevAttrPciDomainId, p->pciDomainID},
        {cudaDevAttrComputeCapabilityMajor, p->major},
        {cudaDevAttrComputeCapabilityMinor, p->minor},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, (int)p->sharedMemPerMultiprocessor},
        {cudaDevAttrPageableMemoryAccess, p->pageableMemoryAccess},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, (int)p->sharedMemPerBlockOptin},
        {cudaDevAttrHostRegisterSupported, p->hostRegisterSupported},
        {cudaDevAttrHostRegisterReadOnlySupported, p->hostRegisterReadOnlySupported},
        {cudaDevAttrIpcEventSupport, p->ipcEventSupported},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].attr == attr) {
            *v = all[i].value;
            return true;
        }
    return false;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaDeviceGetAttribute))
        return c.error;
    cudaError_t error = value ? no_device_error() : cudaErrorInvalidValue;
    if (!error && !is_device(device))
        error = cudaErrorInvalidDevice;
    struct cudaDeviceProp prop;
    if (!error) {
        describe(&prop, device);
        error = attribute(&prop, attr, value) ? cudaSuccess : cudaErrorInvalidValue;
    }
    return call_end(&c, error);
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int len, int device)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaDeviceGetPCIBusId))
        return c.error;
    cudaError_t error = id && len >= 13 ? no_device_error() : cudaErrorInvalidValue;
    if (!error && !is_device(device))
        error = cudaErrorInvalidDevice;
    if (!error)
        snprintf(id, (size_t)len, "0000:%02x:00.0", (unsigned)device + 1);
    return call_end(&c, error);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaDeviceGetStreamPriorityRange))
        return c.error;
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return call_end(&c, cudaSuccess);
}

static cudaError_t version(enum call_id id, int *out)
{
    struct call c;
    if (!call_begin_light(&c, id))
        return c.error;
    if (out)
        *out = rt.config.no_driver && id == CALL_cudaDriverGetVersion ? 0 : CUDART_VERSION;
    return call_end(&c, out ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaDriverGetVersion(int *out)
{
    return version(CALL_cudaDriverGetVersion, out);
}

cudaError_t cudaRuntimeGetVersion(int *out)
{
    return version(CALL_cudaRuntimeGetVersion, out);
}

cudaError_t cudaDeviceSynchronize(void)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaDeviceSynchronize))
        return c.error;
    device_drain(c.device);
    return call_end(&c, c.device->sticky);
}

static void report_left(const char *text)
{
    report(NULL, "cudaDeviceReset: not freed before: %s", text);
}

cudaError_t cudaDeviceReset(void)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaDeviceReset))
        return c.error;
    cudaError_t error = no_device_error();
    if (!error && c.device->open)
        device_close(c.device, c.device->sticky ? NULL : report_left);
    return call_end(&c, error);
}

/* ---- peers ---- */

static bool can_reach(int a, int b)
{
    return a != b && !rt.config.no_peers;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    struct call c;
    if (!call_begin_light(&c, CALL_cudaDeviceCanAccessPeer))
        return c.error;
    cudaError_t error = can ? no_device_error() : cudaErrorInvalidValue;
    if (!error && !(is_device(device) && is_device(peer)))
        error = cudaErrorInvalidDevice;
    if (!error)
        *can = can_reach(device, peer);
    return call_end(&c, error);
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaDeviceEnablePeerAccess))
        return c.error;
    cudaError_t error = cudaSuccess;
    if (flags)
        error = cudaErrorInvalidValue;
    else if (!is_device(peer) || peer == c.device->index)
        error = cudaErrorInvalidDevice;
    else if (!can_reach(c.device->index, peer))
        error = cudaErrorPeerAccessUnsupported;
    else if (c.device->peers >> peer & 1)
        error = cudaErrorPeerAccessAlreadyEnabled;
    else
        c.device->peers |= 1u << peer;
    return call_end(&c, error);
}

cudaError_t cudaDeviceDisablePeerAccess(int peer)
{
    struct call c;
    if (!call_begin(&c, CALL_cudaDeviceDisablePeerAccess))
        return c.error;
    cudaError_t error = cudaSuccess;
    if (!is_device(peer))
        error = cudaErrorInvalidDevice;
    else if (!(c.device->peers >> peer & 1))
        error = cudaErrorPeerAccessNotEnabled;
    else
        c.device->peers &= ~(1u << peer);
    return call_end(&c, error);
}
