/* sluice_tiny_model OUT.gguf [options]: writes a small random model. */
#include "tiny_model.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static int usage(void)
{
    fputs("usage: sluice_tiny_model OUT.gguf [--seed N] [--dtype f32|f16|bf16|q8_0|q4_0|q4_1]\n"
          "       [--dim N] [--heads N] [--kv-heads N] [--head-dim N] [--layers N] [--ffn N]\n"
          "       [--ctx N] [--tied] [--bias] [--rope-factors]\n",
          stderr);
    return 2;
}

enum flag {
    F_SEED,
    F_DTYPE,
    F_DIM,
    F_HEADS,
    F_KV,
    F_HEAD_DIM,
    F_LAYERS,
    F_FFN,
    F_CTX,
    F_TIED,
    F_BIAS,
    F_FACTORS
};

static const struct option options[] = {
    {"seed", 1, NULL, F_SEED},
    {"dtype", 1, NULL, F_DTYPE},
    {"dim", 1, NULL, F_DIM},
    {"heads", 1, NULL, F_HEADS},
    {"kv-heads", 1, NULL, F_KV},
    {"head-dim", 1, NULL, F_HEAD_DIM},
    {"layers", 1, NULL, F_LAYERS},
    {"ffn", 1, NULL, F_FFN},
    {"ctx", 1, NULL, F_CTX},
    {"tied", 0, NULL, F_TIED},
    {"bias", 0, NULL, F_BIAS},
    {"rope-factors", 0, NULL, F_FACTORS},
    {NULL, 0, NULL, 0},
};

int main(int argc, char **argv)
{
    struct tiny_model m = tiny_model_default();
    uint32_t *const numbers[] = {[F_DIM] = &m.dim,         [F_HEADS] = &m.n_heads,
                                 [F_KV] = &m.n_kv_heads,   [F_HEAD_DIM] = &m.head_dim,
                                 [F_LAYERS] = &m.n_layers, [F_FFN] = &m.ffn_dim,
                                 [F_CTX] = &m.ctx};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == '?')
            return usage();
        if (c == F_SEED)
            m.seed = strtoull(optarg, NULL, 10);
        else if (c == F_DTYPE && !sl_dtype_parse(optarg, &m.dtype))
            return usage();
        else if (c >= F_DIM && c <= F_CTX)
            *numbers[c] = (uint32_t)strtoul(optarg, NULL, 10);
        m.tied |= c == F_TIED;
        m.bias |= c == F_BIAS;
        m.rope_factors |= c == F_FACTORS;
    }
    if (optind != argc - 1 || m.n_heads == 0)
        return usage();
    struct sl_err err = {0};
    if (tiny_model_write(&m, argv[optind], &err)) {
        fprintf(stderr, "sluice_tiny_model: %s\n", err.msg);
        return 1;
    }
    return 0;
}
