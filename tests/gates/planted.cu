/* Kernels that the gates must refuse: an array that needs an address is local memory, too few
 * registers are spills. */
extern "C" __global__ void planted_array(const int *in, int *out)
{
    int v[64] = {};
    for (int i = 0; i < 64; i++)
        v[in[i * 2 + threadIdx.x] & 63] += i; /* places known at run time only */
    out[threadIdx.x] = v[out[threadIdx.x] & 63];
}

#ifdef PLANT_SPILL
extern "C" __global__ void __launch_bounds__(1024, 2) planted_spill(const float *in, float *out)
{
    float v[96];
#pragma unroll
    for (int i = 0; i < 96; i++)
        v[i] = in[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 96; i++)
        out[((threadIdx.x * 97 + i) * 31) % 8191] = v[95 - i] * v[i];
}
#endif
