/* Products with f16 and bf16 weights: linear_tiles.cuh. A file of its own so that builds run side by side. */
#include "cuda/linear_tiles.cuh"

cudaError_t linear_f16(const linear_call &l)
{
    return run_type<SL_F16>(l, "linear_f16_few", "linear_f16");
}

cudaError_t linear_bf16(const linear_call &l)
{
    return run_type<SL_BF16>(l, "linear_bf16_few", "linear_bf16");
}
