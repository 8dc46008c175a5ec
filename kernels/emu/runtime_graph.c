/* Captures and graphs. */
#include "emu/runtime.h"

cudaError_t capture_add(struct CUstream_st *s, struct work *w)
{
    (void)s;
    work_free(w);
    return cudaErrorNotSupported;
}

cudaError_t capture_forbids(struct call *c)
{
    (void)c;
    return cudaSuccess;
}

cudaError_t capture_spoil(struct CUstream_st *s)
{
    return s->capture ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t capture_record(struct CUstream_st *s, struct CUevent_st *e)
{
    (void)s, (void)e;
    return cudaErrorNotSupported;
}

cudaError_t capture_wait(struct CUstream_st *s, struct CUevent_st *e)
{
    (void)s, (void)e;
    return cudaErrorNotSupported;
}

void capture_drop_stream(struct CUstream_st *s)
{
    (void)s;
}

uint32_t graphs_close(void (*leak)(const char *))
{
    (void)leak;
    return 0;
}
