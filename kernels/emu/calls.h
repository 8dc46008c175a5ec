/* Every call of the emulated runtime by name: each is counted and can be made to fail (control.h).
 * emu_enqueue is a kernel's launch. */
#ifndef SLUICE_KERNELS_EMU_CALLS_H
#define SLUICE_KERNELS_EMU_CALLS_H

#define EMU_CALLS(X)                                                                               \
    X(cudaGetLastError)                                                                            \
    X(cudaPeekAtLastError)                                                                         \
    X(cudaGetDeviceCount)                                                                          \
    X(cudaSetDevice)                                                                               \
    X(cudaGetDevice)                                                                               \
    X(cudaGetDeviceProperties)                                                                     \
    X(cudaDeviceGetAttribute)                                                                      \
    X(cudaDeviceGetPCIBusId)                                                                       \
    X(cudaDeviceGetStreamPriorityRange)                                                            \
    X(cudaDeviceSynchronize)                                                                       \
    X(cudaDeviceReset)                                                                             \
    X(cudaDriverGetVersion)                                                                        \
    X(cudaRuntimeGetVersion)                                                                       \
    X(cudaDeviceCanAccessPeer)                                                                     \
    X(cudaDeviceEnablePeerAccess)                                                                  \
    X(cudaDeviceDisablePeerAccess)                                                                 \
    X(cudaFuncSetAttribute)                                                                        \
    X(cudaMalloc)                                                                                  \
    X(cudaFree)                                                                                    \
    X(cudaMallocHost)                                                                              \
    X(cudaHostAlloc)                                                                               \
    X(cudaFreeHost)                                                                                \
    X(cudaHostRegister)                                                                            \
    X(cudaHostUnregister)                                                                          \
    X(cudaHostGetDevicePointer)                                                                    \
    X(cudaMemGetInfo)                                                                              \
    X(cudaPointerGetAttributes)                                                                    \
    X(cudaIpcGetMemHandle)                                                                         \
    X(cudaIpcOpenMemHandle)                                                                        \
    X(cudaIpcCloseMemHandle)                                                                       \
    X(cudaMemcpy)                                                                                  \
    X(cudaMemcpyAsync)                                                                             \
    X(cudaMemcpy2DAsync)                                                                           \
    X(cudaMemcpyPeer)                                                                              \
    X(cudaMemcpyPeerAsync)                                                                         \
    X(cudaMemset)                                                                                  \
    X(cudaMemsetAsync)                                                                             \
    X(cudaStreamCreate)                                                                            \
    X(cudaStreamCreateWithFlags)                                                                   \
    X(cudaStreamCreateWithPriority)                                                                \
    X(cudaStreamDestroy)                                                                           \
    X(cudaStreamSynchronize)                                                                       \
    X(cudaStreamQuery)                                                                             \
    X(cudaStreamWaitEvent)                                                                         \
    X(cudaLaunchHostFunc)                                                                          \
    X(cudaEventCreate)                                                                             \
    X(cudaEventCreateWithFlags)                                                                    \
    X(cudaEventDestroy)                                                                            \
    X(cudaEventRecord)                                                                             \
    X(cudaEventSynchronize)                                                                        \
    X(cudaEventQuery)                                                                              \
    X(cudaEventElapsedTime)                                                                        \
    X(cudaStreamBeginCapture)                                                                      \
    X(cudaStreamEndCapture)                                                                        \
    X(cudaStreamIsCapturing)                                                                       \
    X(cudaThreadExchangeStreamCaptureMode)                                                         \
    X(cudaGraphDestroy)                                                                            \
    X(cudaGraphGetNodes)                                                                           \
    X(cudaGraphNodeGetType)                                                                        \
    X(cudaGraphInstantiate)                                                                        \
    X(cudaGraphExecUpdate)                                                                         \
    X(cudaGraphUpload)                                                                             \
    X(cudaGraphLaunch)                                                                             \
    X(cudaGraphExecDestroy)                                                                        \
    X(emu_enqueue)                                                                                 \
    X(ncclGetVersion)                                                                              \
    X(ncclGetUniqueId)                                                                             \
    X(ncclCommInitRank)                                                                            \
    X(ncclCommInitRankConfig)                                                                      \
    X(ncclCommFinalize)                                                                            \
    X(ncclCommDestroy)                                                                             \
    X(ncclCommAbort)                                                                               \
    X(ncclCommGetAsyncError)                                                                       \
    X(ncclCommCount)                                                                               \
    X(ncclCommCuDevice)                                                                            \
    X(ncclCommUserRank)                                                                            \
    X(ncclSend)                                                                                    \
    X(ncclRecv)                                                                                    \
    X(ncclAllGather)                                                                               \
    X(ncclBroadcast)                                                                               \
    X(ncclGroupStart)                                                                              \
    X(ncclGroupEnd)

#define EMU_CALL_ID(name) CALL_##name,
enum call_id { EMU_CALLS(EMU_CALL_ID) CALL_MAX };
#undef EMU_CALL_ID

#endif
