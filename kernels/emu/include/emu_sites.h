/* Tells the emulated runtime where in the source each call stands, for its reports. */
#ifndef SLUICE_KERNELS_EMU_SITES_H
#define SLUICE_KERNELS_EMU_SITES_H

#ifdef __cplusplus
extern "C" {
#endif
void emu_at(const char *file, int line);
#ifdef __cplusplus
}
#endif

#ifndef EMU_NO_SITES
#define EMU_AT(call)                          (emu_at(__FILE__, __LINE__), call)
#define cudaGetDeviceCount(...)               EMU_AT(cudaGetDeviceCount(__VA_ARGS__))
#define cudaSetDevice(...)                    EMU_AT(cudaSetDevice(__VA_ARGS__))
#define cudaGetDevice(...)                    EMU_AT(cudaGetDevice(__VA_ARGS__))
#define cudaGetDeviceProperties(...)          EMU_AT(cudaGetDeviceProperties(__VA_ARGS__))
#define cudaDeviceGetAttribute(...)           EMU_AT(cudaDeviceGetAttribute(__VA_ARGS__))
#define cudaDeviceGetPCIBusId(...)            EMU_AT(cudaDeviceGetPCIBusId(__VA_ARGS__))
#define cudaDeviceGetStreamPriorityRange(...) EMU_AT(cudaDeviceGetStreamPriorityRange(__VA_ARGS__))
#define cudaDeviceSynchronize(...)            EMU_AT(cudaDeviceSynchronize(__VA_ARGS__))
#define cudaDeviceReset(...)                  EMU_AT(cudaDeviceReset(__VA_ARGS__))
#define cudaDriverGetVersion(...)             EMU_AT(cudaDriverGetVersion(__VA_ARGS__))
#define cudaRuntimeGetVersion(...)            EMU_AT(cudaRuntimeGetVersion(__VA_ARGS__))
#define cudaDeviceCanAccessPeer(...)          EMU_AT(cudaDeviceCanAccessPeer(__VA_ARGS__))
#define cudaDeviceEnablePeerAccess(...)       EMU_AT(cudaDeviceEnablePeerAccess(__VA_ARGS__))
#define cudaDeviceDisablePeerAccess(...)      EMU_AT(cudaDeviceDisablePeerAccess(__VA_ARGS__))
#define cudaFuncSetAttribute(...)             EMU_AT(cudaFuncSetAttribute(__VA_ARGS__))
#define cudaMalloc(...)                       EMU_AT(cudaMalloc(__VA_ARGS__))
#define cudaFree(...)                         EMU_AT(cudaFree(__VA_ARGS__))
#define cudaMallocHost(...)                   EMU_AT(cudaMallocHost(__VA_ARGS__))
#define cudaHostAlloc(...)                    EMU_AT(cudaHostAlloc(__VA_ARGS__))
#define cudaFreeHost(...)                     EMU_AT(cudaFreeHost(__VA_ARGS__))
#define cudaHostRegister(...)                 EMU_AT(cudaHostRegister(__VA_ARGS__))
#define cudaHostUnregister(...)               EMU_AT(cudaHostUnregister(__VA_ARGS__))
#define cudaHostGetDevicePointer(...)         EMU_AT(cudaHostGetDevicePointer(__VA_ARGS__))
#define cudaMemGetInfo(...)                   EMU_AT(cudaMemGetInfo(__VA_ARGS__))
#define cudaPointerGetAttributes(...)         EMU_AT(cudaPointerGetAttributes(__VA_ARGS__))
#define cudaIpcGetMemHandle(...)              EMU_AT(cudaIpcGetMemHandle(__VA_ARGS__))
#define cudaIpcOpenMemHandle(...)             EMU_AT(cudaIpcOpenMemHandle(__VA_ARGS__))
#define cudaIpcCloseMemHandle(...)            EMU_AT(cudaIpcCloseMemHandle(__VA_ARGS__))
#define cudaMemcpy(...)                       EMU_AT(cudaMemcpy(__VA_ARGS__))
#define cudaMemcpyAsync(...)                  EMU_AT(cudaMemcpyAsync(__VA_ARGS__))
#define cudaMemcpy2DAsync(...)                EMU_AT(cudaMemcpy2DAsync(__VA_ARGS__))
#define cudaMemcpyPeer(...)                   EMU_AT(cudaMemcpyPeer(__VA_ARGS__))
#define cudaMemcpyPeerAsync(...)              EMU_AT(cudaMemcpyPeerAsync(__VA_ARGS__))
#define cudaMemset(...)                       EMU_AT(cudaMemset(__VA_ARGS__))
#define cudaMemsetAsync(...)                  EMU_AT(cudaMemsetAsync(__VA_ARGS__))
#define cudaStreamCreate(...)                 EMU_AT(cudaStreamCreate(__VA_ARGS__))
#define cudaStreamCreateWithFlags(...)        EMU_AT(cudaStreamCreateWithFlags(__VA_ARGS__))
#define cudaStreamCreateWithPriority(...)     EMU_AT(cudaStreamCreateWithPriority(__VA_ARGS__))
#define cudaStreamDestroy(...)                EMU_AT(cudaStreamDestroy(__VA_ARGS__))
#define cudaStreamSynchronize(...)            EMU_AT(cudaStreamSynchronize(__VA_ARGS__))
#define cudaStreamQuery(...)                  EMU_AT(cudaStreamQuery(__VA_ARGS__))
#define cudaStreamWaitEvent(...)              EMU_AT(cudaStreamWaitEvent(__VA_ARGS__))
#define cudaLaunchHostFunc(...)               EMU_AT(cudaLaunchHostFunc(__VA_ARGS__))
#define cudaEventCreate(...)                  EMU_AT(cudaEventCreate(__VA_ARGS__))
#define cudaEventCreateWithFlags(...)         EMU_AT(cudaEventCreateWithFlags(__VA_ARGS__))
#define cudaEventDestroy(...)                 EMU_AT(cudaEventDestroy(__VA_ARGS__))
#define cudaEventRecord(...)                  EMU_AT(cudaEventRecord(__VA_ARGS__))
#define cudaEventSynchronize(...)             EMU_AT(cudaEventSynchronize(__VA_ARGS__))
#define cudaEventQuery(...)                   EMU_AT(cudaEventQuery(__VA_ARGS__))
#define cudaEventElapsedTime(...)             EMU_AT(cudaEventElapsedTime(__VA_ARGS__))
#define cudaStreamBeginCapture(...)           EMU_AT(cudaStreamBeginCapture(__VA_ARGS__))
#define cudaStreamEndCapture(...)             EMU_AT(cudaStreamEndCapture(__VA_ARGS__))
#define cudaStreamIsCapturing(...)            EMU_AT(cudaStreamIsCapturing(__VA_ARGS__))
#define cudaThreadExchangeStreamCaptureMode(...)                                                   \
    EMU_AT(cudaThreadExchangeStreamCaptureMode(__VA_ARGS__))
#define cudaGraphDestroy(...)     EMU_AT(cudaGraphDestroy(__VA_ARGS__))
#define cudaGraphGetNodes(...)    EMU_AT(cudaGraphGetNodes(__VA_ARGS__))
#define cudaGraphNodeGetType(...) EMU_AT(cudaGraphNodeGetType(__VA_ARGS__))
#define cudaGraphInstantiate(...) EMU_AT(cudaGraphInstantiate(__VA_ARGS__))
#define cudaGraphExecUpdate(...)  EMU_AT(cudaGraphExecUpdate(__VA_ARGS__))
#define cudaGraphUpload(...)      EMU_AT(cudaGraphUpload(__VA_ARGS__))
#define cudaGraphLaunch(...)      EMU_AT(cudaGraphLaunch(__VA_ARGS__))
#define cudaGraphExecDestroy(...) EMU_AT(cudaGraphExecDestroy(__VA_ARGS__))
#endif

#endif
