/* The sums of one warp: chains over slices, and the tree that adds them (tree.h). */
#ifndef SLUICE_KERNELS_CUDA_LINEAR_CHAIN_CUH
#define SLUICE_KERNELS_CUDA_LINEAR_CHAIN_CUH

#include "cuda/dev.cuh"

namespace {

/* MT x NT fragments of 16 outputs and 8 rows. Finished subtrees wait on a stack in shared memory,
 * which grows and shrinks as a binary counter carries. */
template <int MT, int NT> struct chain {
    float acc[MT][NT][4];
    float *stack; /* [levels][MT * NT][32][4], the warp's */
    uint32_t top, index, lane;

    __device__ __forceinline__ void begin(float *at, uint32_t of_lane)
    {
        stack = at;
        top = index = 0;
        lane = of_lane;
        zero();
    }
    __device__ __forceinline__ void zero()
    {
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int n = 0; n < NT; n++)
                UNROLL
                for (int i = 0; i < 4; i++)
                    acc[m][n][i] = 0.0f;
    }
    __device__ __forceinline__ float4 *slot(uint32_t level, uint32_t fragment)
    {
        return reinterpret_cast<float4 *>(stack) + (level * MT * NT + fragment) * 32 + lane;
    }
    __device__ __forceinline__ void push()
    {
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int n = 0; n < NT; n++) {
                const float *v = acc[m][n];
                *slot(top, m * NT + n) = make_float4(v[0], v[1], v[2], v[3]);
            }
        top++;
    }
    __device__ __forceinline__ void pop_add()
    {
        top--;
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int n = 0; n < NT; n++) {
                float4 v = *slot(top, m * NT + n);
                float *s = acc[m][n];
                s[0] = v.x + s[0], s[1] = v.y + s[1], s[2] = v.z + s[2], s[3] = v.w + s[3];
            }
    }
    /* A slice is complete; the last one leaves the sum of all in acc. */
    __device__ __forceinline__ void end_slice(bool last)
    {
        uint32_t carries = (uint32_t)__ffs((int)~index) - 1;
        UNROLL_BY(1)
        for (uint32_t i = last ? top : carries; i > 0; i--)
            pop_add();
        index++;
        if (last)
            return;
        push();
        zero();
    }
    /* Adds the sums of n_groups warps, which lie in slot 0 of their stacks, `step` float4 from one
     * to the next, as the tree's upper levels; the first warp's lanes each their own. */
    __device__ __forceinline__ void add_groups(uint32_t n_groups, uint32_t step)
    {
        UNROLL_BY(1)
        for (uint32_t f = 0; f < MT * NT; f++) {
            float4 *p = slot(0, f);
            for (uint32_t width = 1; width < n_groups; width *= 2)
                for (uint32_t i = 0; i + width < n_groups; i += 2 * width) {
                    float4 l = p[i * step], r = p[(i + width) * step];
                    p[i * step] = make_float4(l.x + r.x, l.y + r.y, l.z + r.z, l.w + r.w);
                }
        }
        UNROLL
        for (int m = 0; m < MT; m++)
            UNROLL
            for (int n = 0; n < NT; n++) {
                float4 v = *slot(0, m * NT + n);
                float *s = acc[m][n];
                s[0] = v.x, s[1] = v.y, s[2] = v.z, s[3] = v.w;
            }
    }
};

} // namespace

#endif
