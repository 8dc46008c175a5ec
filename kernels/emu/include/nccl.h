/* The part of NCCL's interface that the emulator has, for builds without NCCL: same names, values
 * and meaning (NCCL 2.28). Fields of structures in an order of our own. */
#ifndef SLUICE_KERNELS_EMU_NCCL_H
#define SLUICE_KERNELS_EMU_NCCL_H

#include <limits.h>
#include <stddef.h>

#include <cuda_runtime_api.h>

#define NCCL_MAJOR 2
#define NCCL_MINOR 28
#define NCCL_PATCH 9
#define NCCL_VERSION(x, y, z)                                                                      \
    (((x) <= 2 && (y) <= 8) ? (x)*1000 + (y)*100 + (z) : (x)*10000 + (y)*100 + (z))
#define NCCL_VERSION_CODE     NCCL_VERSION(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH)
#define NCCL_UNIQUE_ID_BYTES  128
#define NCCL_CONFIG_UNDEF_INT INT_MIN

/* Also from a plug-in whose symbols are hidden. */
#define EMU_NCCL __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ncclComm *ncclComm_t;
typedef struct {
    char internal[NCCL_UNIQUE_ID_BYTES];
} ncclUniqueId;

#define EMU_NCCL_RESULTS(X)                                                                        \
    X(ncclSuccess, 0, "no error")                                                                  \
    X(ncclUnhandledCudaError, 1, "a CUDA call failed")                                             \
    X(ncclSystemError, 2, "a call of the operating system failed")                                 \
    X(ncclInternalError, 3, "internal error")                                                      \
    X(ncclInvalidArgument, 4, "invalid argument")                                                  \
    X(ncclInvalidUsage, 5, "invalid usage")                                                        \
    X(ncclRemoteError, 6, "a remote process left or failed")                                       \
    X(ncclInProgress, 7, "in progress")

#define EMU_VALUE(name, value, text) name = value,
typedef enum { EMU_NCCL_RESULTS(EMU_VALUE) ncclNumResults = 8 } ncclResult_t;
#undef EMU_VALUE

typedef enum {
    ncclInt8 = 0,
    ncclChar = 0,
    ncclUint8 = 1,
    ncclInt32 = 2,
    ncclInt = 2,
    ncclUint32 = 3,
    ncclInt64 = 4,
    ncclUint64 = 5,
    ncclFloat16 = 6,
    ncclHalf = 6,
    ncclFloat32 = 7,
    ncclFloat = 7,
    ncclFloat64 = 8,
    ncclDouble = 8,
    ncclBfloat16 = 9,
    ncclFloat8e4m3 = 10,
    ncclFloat8e5m2 = 11,
    ncclNumTypes = 12,
} ncclDataType_t;

/* Fields that stay undefined have NCCL's default; of these, the emulator reads `blocking`. */
typedef struct {
    size_t size;
    unsigned int magic, version;
    int blocking, cgaClusterSize, minCTAs, maxCTAs, splitShare;
    const char *netName, *commName;
} ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER                                                                    \
    {                                                                                              \
        sizeof(ncclConfig_t), 0xcafebeef, NCCL_VERSION_CODE, NCCL_CONFIG_UNDEF_INT,                \
            NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT,                   \
            NCCL_CONFIG_UNDEF_INT, NULL, NULL                                                      \
    }

EMU_NCCL ncclResult_t ncclGetVersion(int *version);
EMU_NCCL ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
EMU_NCCL const char *ncclGetErrorString(ncclResult_t result);
EMU_NCCL const char *ncclGetLastError(ncclComm_t comm);

EMU_NCCL ncclResult_t ncclCommInitRank(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank);
EMU_NCCL ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id,
                                             int rank, ncclConfig_t *config);
EMU_NCCL ncclResult_t ncclCommFinalize(ncclComm_t comm);
EMU_NCCL ncclResult_t ncclCommDestroy(ncclComm_t comm);
EMU_NCCL ncclResult_t ncclCommAbort(ncclComm_t comm);
EMU_NCCL ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error);
EMU_NCCL ncclResult_t ncclCommCount(const ncclComm_t comm, int *count);
EMU_NCCL ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device);
EMU_NCCL ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank);

EMU_NCCL ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                               ncclComm_t comm, cudaStream_t stream);
EMU_NCCL ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer,
                               ncclComm_t comm, cudaStream_t stream);
EMU_NCCL ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                                    ncclComm_t comm, cudaStream_t stream);
EMU_NCCL ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type,
                                    int root, ncclComm_t comm, cudaStream_t stream);
EMU_NCCL ncclResult_t ncclGroupStart(void);
EMU_NCCL ncclResult_t ncclGroupEnd(void);

#ifdef __cplusplus
}
#endif

#endif
