"""What each kernel must be made of, on every architecture: the first rule whose pattern is the
kernel's whole short name. `need`: instructions that must be there; `ban`: that must not. A kernel
without a rule fails the gate. Figures in full are in tests/golden/kernels.tsv.

HMMA and IMMA are tensor cores, LDGSTS is cp.async, LDG and LDS are loads of global and shared memory
with their width in bits.
"""

INT8 = "IMMA.16832.S8.S8"
RULES = [
    # Weights and activations through a ring of asynchronous copies of 16 bytes.
    (r"linear_tiles<(q8_0|q4_0|q4_1), .*", dict(need=[INT8, "LDGSTS.128", "LDS.128", "BAR"],
                                                ban=["HMMA"])),
    (r"linear_tiles<bf16, .*", dict(need=["HMMA.16816.F32.BF16", "LDGSTS.128", "LDS.128", "BAR"],
                                    ban=["IMMA"])),
    (r"linear_tiles<f16, .*", dict(need=["HMMA.16816.F32", "LDGSTS.128", "LDS.128", "BAR"],
                                   ban=["IMMA"])),
    # Exact float32: no tensor cores, weights straight to registers.
    (r"linear_lanes<.*", dict(need=["LDG.128", "LDS.128", "FFMA", "BAR"], ban=["HMMA", "IMMA"])),
    (r"attention_short<.*", dict(need=["FFMA", "LDS.128", "LDGSTS.128", "BAR"],
                                 ban=["HMMA", "IMMA"])),
    (r"attention_long<.*", dict(need=["FFMA", "LDS.128", "LDG.128", "BAR"], ban=["HMMA", "IMMA"])),
    (r"attention_fold", dict(need=["LDG.32", "STG.32"], ban=["BAR"])),
    (r"rms_norm|logit_stats|norm_act<.*", dict(need=["BAR"], ban=[])),
    (r"silu_mul", dict(need=["LDG.128", "STG.128"], ban=["BAR"])),
    (r"rope|rope_kv_write<.*|fill_act<.*|kv_write_int8", dict(need=[], ban=["BAR"])),
    # No FFMA: what the source has in two roundings has two here (q4_1 is d * q + m).
    (r"add|gather_rows", dict(need=["LDG.128", "STG.128"], ban=["BAR", "FFMA"])),
    (r"tree_sum", dict(need=["LDS.32", "STS.32"], ban=["BAR", "FFMA"])),
    (r"(embed|pack_tiles|kv_write)<.*|pack_f32", dict(need=[], ban=["BAR", "FFMA"])),
    (r"top_k|moe_group", dict(need=["BAR"], ban=[])),
    (r"moe_route|moe_combine", dict(need=[], ban=["BAR"])),
]

# Of no kernel: local memory; approximations, which are not a CPU's; a chain that flushes subnormals.
# (Division and square root begin with MUFU.RCP and MUFU.RSQ and round correctly; the subroutines
# for their rare cases hold the FADD.FTZ and FMUL.FTZ there are.)
NEVER = ["LDL", "STL", "MUFU.EX2", "MUFU.LG2", "MUFU.SIN", "MUFU.COS", "MUFU.TANH", "FFMA.FTZ"]
# The plug-in starts where these are; all else it opens by name when it wants it.
MAY_NEED = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "libdl.so.2",
            "librt.so.1", "libpthread.so.0", "ld-linux-aarch64.so.1"]
# All it gives: the backend, and the lane between devices.
GIVES = ["sl_cuda_plugin", "sl_comm_lane_plugin"]
