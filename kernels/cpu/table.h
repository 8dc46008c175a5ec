/* The table of an instruction set, from the names lanes.h and lanes_row.h define. Included once, at
 * the end of scalar.c, avx2.c and avx512.c. */
#ifndef SLUICE_KERNELS_CPU_TABLE_H
#define SLUICE_KERNELS_CPU_TABLE_H

const struct sl_isa_ops TABLE_NAME = {
    .isa = TABLE_ISA,
    .q_rows = Q_ROWS,
    .tile_rows = TILE_ROWS,
    .q8_flip = TABLE_FLIP,
    .linear_q = linear_q,
    .linear_f = linear_f,
    .quantize = quantize,
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .add = add,
    .tree_sum = tree_sum,
    .rope = rope,
    .max = max_of,
    .exp_sum = exp_sum,
    .kv_store = kv_store,
    .kv_load = kv_load,
    .scores = scores,
    .softmax = softmax,
    .weigh = weigh,
    .merge = merge,
    .finish = finish,
};

#endif
