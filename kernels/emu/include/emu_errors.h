/* Errors of the CUDA runtime: name, value, text. One table for the enum and for what is printed.
 * Values: CUDA Runtime API 13.0. */
#ifndef SLUICE_KERNELS_EMU_ERRORS_H
#define SLUICE_KERNELS_EMU_ERRORS_H

#define EMU_CUDA_ERRORS(X)                                                                         \
    X(cudaSuccess, 0, "no error")                                                                  \
    X(cudaErrorInvalidValue, 1, "invalid argument")                                                \
    X(cudaErrorMemoryAllocation, 2, "out of memory")                                               \
    X(cudaErrorInitializationError, 3, "initialization error")                                     \
    X(cudaErrorCudartUnloading, 4, "driver shutting down")                                         \
    X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                          \
    X(cudaErrorInvalidPitchValue, 12, "invalid pitch argument")                                    \
    X(cudaErrorInvalidHostPointer, 16, "invalid host pointer")                                     \
    X(cudaErrorInvalidDevicePointer, 17, "invalid device pointer")                                 \
    X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction")                               \
    X(cudaErrorStubLibrary, 34, "the library is a stub")                                           \
    X(cudaErrorInsufficientDriver, 35, "driver too old for this runtime, or none")                 \
    X(cudaErrorDevicesUnavailable, 46, "devices busy or unavailable")                              \
    X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                               \
    X(cudaErrorNoDevice, 100, "no device")                                                         \
    X(cudaErrorInvalidDevice, 101, "invalid device number")                                        \
    X(cudaErrorInvalidKernelImage, 200, "invalid kernel image")                                    \
    X(cudaErrorDeviceUninitialized, 201, "no context, or an invalid one")                          \
    X(cudaErrorMapBufferObjectFailed, 205, "mapping failed")                                       \
    X(cudaErrorNoKernelImageForDevice, 209, "no kernel image for this device")                     \
    X(cudaErrorECCUncorrectable, 214, "uncorrectable ECC error")                                   \
    X(cudaErrorPeerAccessUnsupported, 217, "no peer access between these devices")                 \
    X(cudaErrorNvlinkUncorrectable, 220, "uncorrectable NVLink error")                             \
    X(cudaErrorContained, 226, "memory error, contained")                                          \
    X(cudaErrorOperatingSystem, 304, "a call of the operating system failed")                      \
    X(cudaErrorInvalidResourceHandle, 400, "invalid handle")                                       \
    X(cudaErrorIllegalState, 401, "illegal state")                                                 \
    X(cudaErrorSymbolNotFound, 500, "symbol not found")                                            \
    X(cudaErrorNotReady, 600, "not ready")                                                         \
    X(cudaErrorIllegalAddress, 700, "illegal memory access")                                       \
    X(cudaErrorLaunchOutOfResources, 701, "launch needs too many resources")                       \
    X(cudaErrorLaunchTimeout, 702, "launch timed out")                                             \
    X(cudaErrorPeerAccessAlreadyEnabled, 704, "peer access is enabled already")                    \
    X(cudaErrorPeerAccessNotEnabled, 705, "peer access is not enabled")                            \
    X(cudaErrorContextIsDestroyed, 709, "context is destroyed")                                    \
    X(cudaErrorAssert, 710, "assertion in a kernel")                                               \
    X(cudaErrorTooManyPeers, 711, "too many peers")                                                \
    X(cudaErrorHostMemoryAlreadyRegistered, 712, "host memory is registered already")              \
    X(cudaErrorHostMemoryNotRegistered, 713, "host memory is not registered")                      \
    X(cudaErrorHardwareStackError, 714, "hardware stack error")                                    \
    X(cudaErrorIllegalInstruction, 715, "illegal instruction")                                     \
    X(cudaErrorMisalignedAddress, 716, "misaligned address")                                       \
    X(cudaErrorInvalidAddressSpace, 717, "wrong address space")                                    \
    X(cudaErrorInvalidPc, 718, "invalid program counter")                                          \
    X(cudaErrorLaunchFailure, 719, "launch failed")                                                \
    X(cudaErrorCooperativeLaunchTooLarge, 720, "too many blocks for a cooperative launch")         \
    X(cudaErrorNotPermitted, 800, "not permitted")                                                 \
    X(cudaErrorNotSupported, 801, "not supported")                                                 \
    X(cudaErrorSystemNotReady, 802, "system not ready")                                            \
    X(cudaErrorSystemDriverMismatch, 803, "display driver and CUDA driver differ")                 \
    X(cudaErrorStreamCaptureUnsupported, 900, "not permitted while a stream is capturing")         \
    X(cudaErrorStreamCaptureInvalidated, 901, "capture was spoilt by an earlier error")            \
    X(cudaErrorStreamCaptureMerge, 902, "would merge two captures")                                \
    X(cudaErrorStreamCaptureUnmatched, 903, "capture did not begin in this stream")                \
    X(cudaErrorStreamCaptureUnjoined, 904, "a forked stream was not joined before the end")        \
    X(cudaErrorStreamCaptureIsolation, 905, "a dependency would leave the capture")                \
    X(cudaErrorStreamCaptureImplicit, 906, "would depend on a capture by the legacy stream")       \
    X(cudaErrorCapturedEvent, 907, "event was last recorded in a capture")                         \
    X(cudaErrorStreamCaptureWrongThread, 908, "capture was begun by another thread")               \
    X(cudaErrorTimeout, 909, "timed out")                                                          \
    X(cudaErrorGraphExecUpdateFailure, 910, "graph differs too much for an update")                \
    X(cudaErrorExternalDevice, 911, "an asynchronous error outside the GPU")                       \
    X(cudaErrorUnknown, 999, "unknown error")

#endif
