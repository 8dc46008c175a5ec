/* Which kernels multiply with which format. */
#include "cuda/linear.cuh"

cudaError_t cuda_linear(cudaStream_t s, const struct cuda_weight *w, const float *x,
                        uint32_t x_stride, const void *act, uint32_t n_tok,
                        const struct cuda_parts *parts, const float *bias, bool accumulate,
                        float *out, uint32_t out_stride, size_t plane)
{
    linear_call l = {};
    l.stream = s;
    l.n_parts = parts->n;
    l.n_slices = w->n_slices;
    l.a.w = static_cast<const uint8_t *>(w->data);
    l.a.x = w->dtype == SL_F32 ? static_cast<const void *>(x) : act;
    l.a.border = w->border;
    l.a.node = parts->node;
    l.a.bias = bias;
    l.a.out = out;
    l.a.plane = plane;
    l.a.n = w->n;
    l.a.k = w->k;
    l.a.n_tok = n_tok;
    l.a.x_stride = x_stride;
    l.a.out_stride = out_stride;
    l.a.accumulate = accumulate;
    if (n_tok == 0)
        return cudaSuccess;
    switch (w->dtype) {
    case SL_F32:
        return linear_f32(l);
    case SL_F16:
        return linear_f16(l);
    case SL_BF16:
        return linear_bf16(l);
    case SL_Q8_0:
        return linear_q8_0(l);
    case SL_Q4_0:
        return linear_q4_0(l);
    case SL_Q4_1:
        return linear_q4_1(l);
    default:
        return cudaErrorInvalidValue;
    }
}
