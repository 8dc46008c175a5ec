/* Products with q4_1 weights: linear_tiles.cuh. A file of its own so that builds run side by side. */
#include "cuda/linear_tiles.cuh"

cudaError_t linear_q4_1(const linear_call &l)
{
    return run_type<SL_Q4_1>(l, "linear_q4_1_few", "linear_q4_1");
}
