/* Deliberate bugs of the kernels, to prove that the tests find them (tests/kernels/mutants): a
 * build with SL_KERNEL_MUTANTS has them all and switches one on at a time. In every other build
 * MUTANT is false and costs nothing.
 *
 * X(kernel, id, what is wrong, what must find it): WRONG numbers under one of four seeds, a RACE, a
 * COPY that was not waited for, memory outside of BOUNDS. */
#ifndef SLUICE_KERNELS_CUDA_MUTANT_H
#define SLUICE_KERNELS_CUDA_MUTANT_H

#define KERNEL_MUTANT_TABLE(X)                                                                     \
    X(embed, EMBED_ROW, "the row after the token's", WRONG)                                        \
    X(embed, EMBED_STRIDE, "rows of a block more", WRONG)                                          \
    X(rms_norm, NORM_FILL_BARRIER, "no barrier between filling a tile and summing it", RACE)       \
    X(rms_norm, NORM_REUSE_BARRIER, "no barrier before a tile is filled again", RACE)              \
    X(rms_norm, NORM_SCALE_BARRIER, "no barrier before the scale is read", RACE)                   \
    X(rms_norm, NORM_TAIL, "a tile's last element is not summed", WRONG)                           \
    X(rope, ROPE_STRIDE, "angles of a position one too far apart", WRONG)                          \
    X(rope, ROPE_TOKENS, "one token too many", BOUNDS)                                             \
    X(silu_mul, SILU_UP, "the element before the gate's partner", WRONG)                           \
    X(add, ADD_TAIL, "the last quad is taken to be whole", BOUNDS)                                 \
    X(gather_rows, GATHER_STRIDE, "rows one too long", WRONG)                                      \
    X(logit_stats, STATS_LANES_BARRIER, "no barrier before partial maxima are folded", RACE)       \
    X(logit_stats, STATS_LANES_SYNC, "no warp barrier before the maximum overwrites one", RACE)    \
    X(logit_stats, STATS_MAX_BARRIER, "no barrier before the maximum is read", RACE)               \
    X(logit_stats, STATS_RETURN_BARRIER, "no barrier before its memory is used again", RACE)       \
    X(logit_stats, STATS_TILE_BARRIER, "no barrier between filling a tile and adding it up", RACE) \
    X(logit_stats, STATS_FOUND_BARRIER, "no barrier before what threads saw is gathered", RACE)    \
    X(logit_stats, STATS_TAIL, "the last group is not looked at", WRONG)                           \
    X(kv_write, KV_SLOT, "the slot after the position's", WRONG)                                   \
    X(kv_write, KV_TOKENS, "one token too many", BOUNDS)                                           \
    X(kv_write_int8, KV_INT8_TAIL, "a row's last element is not written", WRONG)                   \
    X(kv_write_int8, KV_INT8_SCALE, "a byte of the scale is not written", WRONG)                   \
    X(rope_kv_write, ROTATE_PAIR, "the pair after the element's", WRONG)                           \
    X(rope_kv_write, ROTATE_TOKENS, "one token too many", BOUNDS)                                  \
    X(top_k, TOPK_BINS_BARRIER, "no barrier between clearing bins and counting", RACE)             \
    X(top_k, TOPK_COUNT_BARRIER, "no barrier before counts are added up", RACE)                    \
    X(top_k, TOPK_FOUND_BARRIER, "no barrier before the bin is read", RACE)                        \
    X(top_k, TOPK_KEPT_BARRIER, "no barrier before keys are kept", WRONG)                          \
    X(top_k, TOPK_SORT_BARRIER, "no barrier between steps of the sort", RACE)                      \
    X(top_k, TOPK_ORDER, "every run of the sort ascends", WRONG)                                   \
    X(moe_route, ROUTE_TAIL, "the last expert is not looked at", WRONG)                            \
    X(moe_group, GROUP_LOWER_BARRIER, "no barrier before counts of lower experts are read", RACE)  \
    X(moe_group, GROUP_COUNTS_BARRIER, "no barrier before warps' counts are read", RACE)           \
    X(moe_group, GROUP_REUSE_BARRIER, "no barrier before they are overwritten", RACE)              \
    X(moe_group, GROUP_LOWER, "the expert's own entries count as lower", WRONG)                    \
    X(moe_combine, COMBINE_TAIL, "one element too many", BOUNDS)                                   \
    X(attention_short, SHORT_WAIT, "copies are not waited for", COPY)                              \
    X(attention_short, SHORT_STAGE_BARRIER, "no barrier before others' copies are read", RACE)     \
    X(attention_short, SHORT_REUSE_BARRIER, "no barrier before a stage is copied to again", RACE)  \
    X(attention_short, SHORT_CAUSAL, "a query sees the position after it", WRONG)                  \
    X(attention_fold, FOLD_LAST, "the last segment is left out", WRONG)                            \
    X(attention_long, LONG_KEYS_BARRIER, "no barrier before keys are read", RACE)                  \
    X(attention_long, LONG_SCORES_BARRIER, "no barrier before keys are overwritten", RACE)         \
    X(attention_long, LONG_VALUES_BARRIER, "no barrier before values are read", RACE)              \
    X(attention_long, LONG_WEIGH_BARRIER, "no barrier before values are overwritten", RACE)        \
    X(attention_long, LONG_SEEN_BARRIER, "no barrier between two segments", RACE)                  \
    X(linear_q8_0, TILES_WAIT, "stages are not waited for", COPY)                                  \
    X(linear_q8_0, TILES_SYNC, "no barrier between a stage's copies and its reads", RACE)          \
    X(linear_q8_0, TILES_GROUPS_BARRIER, "no barrier before groups are added", RACE)               \
    X(linear_q8_0, TILES_STRIDE, "tiles of activations one piece apart", WRONG)                    \
    X(linear_q8_0, TILES_COLUMNS, "one row of the output too many", BOUNDS)                        \
    X(linear_f32, F32_FILL_SYNC, "no warp barrier before inputs are read", RACE)                   \
    X(linear_f32, F32_REUSE_SYNC, "no warp barrier before inputs are overwritten", RACE)           \
    X(linear_f32, F32_GROUPS_BARRIER, "no barrier before groups are added", RACE)                  \
    X(linear_f32, F32_BORDER, "a slice's last input is left out", WRONG)                           \
    X(tree_sum, TREE_STRIDE, "parts one too close", RACE)                                          \
    X(pack_tiles, PACK_ROWS, "rows of the second half shifted by one", WRONG)                      \
    X(pack_f32, PACK_TAIL, "an input past the row's end", BOUNDS)                                  \
    X(quantize_int8, QUANT_BLOCK, "half a block's maximum", WRONG)                                 \
    X(round_16, ROUND_TAIL, "an input past the row's end", BOUNDS)                                 \
    X(norm_quantize, NORM_ACT_ROW, "activations of the row after", WRONG)                          \
    X(silu_quantize, SILU_ACT_UP, "the element before the gate's partner", WRONG)

enum kernel_mutant {
    KERNEL_MUTANT_NONE,
#define X(kernel, id, what, must) KERNEL_MUTANT_##id,
    KERNEL_MUTANT_TABLE(X)
#undef X
        N_KERNEL_MUTANTS
};

#ifdef SL_KERNEL_MUTANTS
#ifdef __cplusplus
extern "C"
#endif
    int
    kernel_mutant_now(void); /* of tests/kernels/mutants */
#define MUTANT(id) (kernel_mutant_now() == KERNEL_MUTANT_##id)
#else
#define MUTANT(id) false
#endif
#define UNLESS(id) if (!MUTANT(id))

#endif
