#!/usr/bin/env python3
"""Sluice beside llama.cpp: one run, one machine, the same model files, the same threads.

Every round measures each cell once with sluice and once with llama.cpp, one after the other and in
turns which comes first, so that a busy machine slows both. Cells:

  prefill  a prompt of 512 tokens
  decode   128 tokens of one sequence, one by one
  streams  16 sequences at once, prompts of 200 tokens, 64 tokens out; output tokens per second

Model files: the given one (the default model without --model) and a Q8_0 file made from it. KV is
f16 on both sides. Each measurement is a process of its own: it loads the model, runs the cell once
untimed and once timed. sluice is `sluice bench offline`: its time runs from submit to the last
token taken from the engine, scheduling and sampling included. llama.cpp is driven through the C API
of llama-cpp-python; its time is the time inside llama_decode alone, so that Python costs it
nothing. llama.cpp's flash attention, unified KV and spinning of idle OpenMP threads are tried both
ways first (many streams on a shorter run), and what is faster is kept for all rounds. --output is
written anew after every round.

Only the standard library is needed; llama-cpp-python is built from source for this machine's CPU
in a virtual environment of its own (--venv, kept in the cache folder).
"""
import argparse
import ctypes
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

CELLS = {
    "prefill": {"n_prompt": 512, "n_gen": 0, "n_seqs": 1},
    "decode": {"n_prompt": 1, "n_gen": 128, "n_seqs": 1},
    "streams": {"n_prompt": 200, "n_gen": 64, "n_seqs": 16},
}
PACKAGE = "llama-cpp-python"
CMAKE_ARGS = "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"


def say(text):
    print(text, file=sys.stderr, flush=True)


def cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "sluice", "compare")


# --- llama.cpp: runs in the virtual environment, one process a measurement ------------------------

class Peer:
    """A llama.cpp context for one cell."""

    def __init__(self, spec):
        import llama_cpp
        self.lib, self.spec = llama_cpp, spec
        llama_cpp.llama_log_set(self._silent(), None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(spec["file"].encode(), params)
        if not self.model:
            raise RuntimeError("llama.cpp cannot load " + spec["file"])
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self.ctx = llama_cpp.llama_init_from_model(self.model, self._context_params())
        if not self.ctx:
            raise RuntimeError("llama.cpp cannot make a context")
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.decode_ns = 0

    def _silent(self):
        self._log = self.lib.llama_log_callback(lambda level, text, data: None)
        return self._log

    def _context_params(self):
        s, lib = self.spec, self.lib
        p = lib.llama_context_default_params()
        room = (s["n_prompt"] + s["n_gen"] + 255) // 256 * 256
        p.n_ctx = room * s["n_seqs"]
        p.n_batch = p.n_ubatch = 512
        p.n_seq_max = s["n_seqs"]
        p.n_threads = p.n_threads_batch = s["threads"]
        p.type_k = p.type_v = 1  # GGML_TYPE_F16
        p.no_perf = True
        names = [f[0] for f in p._fields_]
        if "flash_attn_type" in names:
            p.flash_attn_type = 1 if s["flash_attn"] else 0
        else:
            p.flash_attn = bool(s["flash_attn"])
        if "kv_unified" in names:
            p.kv_unified = bool(s["kv_unified"])
        return p

    def clear(self):
        if hasattr(self.lib, "llama_memory_clear"):
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.ctx), True)
        else:
            self.lib.llama_kv_self_clear(self.ctx)

    def decode(self, rows):
        """rows: (token, position, sequence, wants logits); only llama_decode is timed."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (token, pos, seq, logits) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, pos, 1, logits
            b.seq_id[i][0] = seq
        start = time.perf_counter_ns()
        rc = self.lib.llama_decode(self.ctx, b)
        if any(r[3] for r in rows):
            self.lib.llama_synchronize(self.ctx)
        self.decode_ns += time.perf_counter_ns() - start
        if rc:
            raise RuntimeError(f"llama_decode: {rc}")

    def argmax(self, row):
        import numpy as np
        at = self.lib.llama_get_logits_ith(self.ctx, row)
        logits = ctypes.cast(at, ctypes.POINTER(ctypes.c_float))
        return int(np.argmax(np.ctypeslib.as_array(logits, (self.n_vocab,))))

    def prefill(self, prompts):
        """All prompts in batches of at most 512 rows; the next token of each sequence."""
        rows = [(t, i, s, int(i + 1 == len(p)))
                for s, p in enumerate(prompts) for i, t in enumerate(p)]
        out = {}
        for at in range(0, len(rows), 512):
            part = rows[at:at + 512]
            self.decode(part)
            for i, r in enumerate(part):
                if r[3]:
                    out[r[2]] = self.argmax(i)
        return [out[s] for s in range(len(prompts))]

    def warm_up(self):
        """The cell once; of many streams a short one, for it touches all there is to warm."""
        whole = self.spec
        if whole["n_seqs"] > 1:
            self.spec = dict(whole, n_prompt=whole["n_prompt"] // 4, n_gen=4)
        self.run(1)
        self.spec = whole

    def run(self, seed):
        """One run of the cell: figures of its timed part."""
        import random
        s, rng = self.spec, random.Random(seed)
        prompts = [[rng.randrange(self.n_vocab) for _ in range(s["n_prompt"])]
                   for _ in range(s["n_seqs"])]
        self.clear()
        self.decode_ns = 0
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        tokens = self.prefill(prompts)
        n_more = max(s["n_gen"] - 1, 0)
        if s["cell"] == "decode":  # the clock starts behind the prompt, as with sluice
            self.decode_ns, n_more = 0, s["n_gen"]
            wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for i in range(n_more):
            self.decode([(t, s["n_prompt"] + i, q, 1) for q, t in enumerate(tokens)])
            tokens = [self.argmax(q) for q in range(len(tokens))]
        return {"ns": self.decode_ns, "wall_ns": time.perf_counter_ns() - wall,
                "cpu_ns": time.process_time_ns() - cpu}


def peer_main(text):
    spec = json.loads(text)
    peer = Peer(spec)
    peer.warm_up()
    result = min((peer.run(2 + i) for i in range(spec.get("repeat", 1))), key=lambda r: r["ns"])
    result["system_info"] = peer.lib.llama_print_system_info().decode()
    print(json.dumps(result))


# --- the virtual environment ----------------------------------------------------------------------

def package_version(python):
    code = "import llama_cpp; print(llama_cpp.__version__)"
    p = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return p.stdout.strip() if p.returncode == 0 else None


def make_venv(folder):
    """Python of an environment that has llama-cpp-python, built on this machine."""
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        say(f"compare: making {folder}")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if not package_version(python):
        say(f"compare: building {PACKAGE} for this CPU (minutes)")
        env = dict(os.environ, CMAKE_ARGS=CMAKE_ARGS)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-binary", PACKAGE, PACKAGE],
                       check=True, env=env, stdout=sys.stderr)
    return python


# --- measuring ------------------------------------------------------------------------------------

def output_of(command, what, env=None, limit_s=None):
    """Standard output; None when it takes longer than limit_s."""
    full = dict(os.environ, **(env or {}))
    try:
        p = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           env=full, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None
    if p.returncode:
        raise SystemExit(f"compare: {what} failed ({p.returncode}): {p.stderr.strip()[-400:]}")
    return p.stdout


def measure_sluice(sluice, file, threads, cell):
    c = CELLS[cell]
    command = [sluice, "bench", "offline", file, "--threads", str(threads), "--repeat", "1",
               "--warmup", "1", "--batch", str(c["n_seqs"])]
    if cell == "prefill":
        command += ["--mode", "prefill", "--input-len", str(c["n_prompt"])]
    elif cell == "decode":
        command += ["--mode", "decode", "--depth", str(c["n_prompt"]),
                    "--output-len", str(c["n_gen"])]
    else:
        command += ["--mode", "mixed", "--input-len", str(c["n_prompt"]),
                    "--output-len", str(c["n_gen"])]
    got = json.loads(output_of(command, "sluice bench offline"))
    r = got["results"][0]
    return {"ns": r["samples_ns"][0], "cpu_ns": r["samples_cpu_ns"][0],
            "environment": got["environment"], "version": got["version"]}


def measure_llama(python, file, threads, cell, choice, limit_s=None, sizes=None):
    spec = dict(sizes or CELLS[cell], cell=cell, file=file, threads=threads, **choice)
    command = [python, os.path.abspath(__file__), "--peer", json.dumps(spec)]
    out = output_of(command, "llama.cpp", {"OMP_WAIT_POLICY": choice["omp_wait"]}, limit_s)
    return json.loads(out.splitlines()[-1]) if out else None


def best_choice(python, file, threads, cell):
    """llama.cpp's faster settings for this cell, one switch after the other. Threads that spin
    while others wait for a core can take minutes on a busy machine: such a try is broken off."""
    best = {"flash_attn": True, "kv_unified": False, "omp_wait": "passive"}
    sizes = CELLS[cell]
    if sizes["n_seqs"] > 1:
        sizes = dict(sizes, n_prompt=sizes["n_prompt"] // 4, n_gen=16)
    start = time.monotonic()
    best_ns = measure_llama(python, file, threads, cell, best, None, sizes)["ns"]
    limit_s = 3 * (time.monotonic() - start)
    tries = [{"flash_attn": False}]
    if CELLS[cell]["n_seqs"] > 1:
        tries.append({"kv_unified": True})
    if threads > 1:
        tries.append({"omp_wait": "active"})
    for change in tries:
        choice = dict(best, **change)
        got = measure_llama(python, file, threads, cell, choice, limit_s, sizes)
        if got and got["ns"] < best_ns:
            best, best_ns = choice, got["ns"]
    return best


def n_tokens(cell):
    c = CELLS[cell]
    return c["n_prompt"] if cell == "prefill" else c["n_gen"] * c["n_seqs"]


def add_round(row, i, sluice, python):
    """One measurement of each side; odd rounds start with llama.cpp."""
    file, threads, cell = row["file"], row["threads"], row["cell"]
    sides = ["sluice", "llama"] if i % 2 == 0 else ["llama", "sluice"]
    for side in sides:
        if side == "sluice":
            got = measure_sluice(sluice, file, threads, cell)
        else:
            got = measure_llama(python, file, threads, cell, row["llama_settings"])
        row[side]["samples_ns"].append(got["ns"])
        row[side]["samples_cpu_ns"].append(got["cpu_ns"])
        row[side]["last"] = got


def summarise(row):
    for side in ("sluice", "llama"):
        r = row[side]
        r["median_ns"] = statistics.median(r["samples_ns"])
        r["median_cpu_ns"] = statistics.median(r["samples_cpu_ns"])
        r["tok_per_s"] = n_tokens(row["cell"]) * 1e9 / r["median_ns"]
    pairs = list(zip(row["llama"]["samples_ns"], row["sluice"]["samples_ns"]))
    row["ratio_rounds"] = [round(l / s, 3) for l, s in pairs]
    row["ratio"] = round(statistics.median(row["ratio_rounds"]), 3)
    row["ratio_cpu"] = round(row["llama"]["median_cpu_ns"] / row["sluice"]["median_cpu_ns"], 3)


def table_of(result):
    e = result["environment"]
    lines = [f"{e['cpu']}, {e['cores']} cores, {e['isa']}; sluice {e['sluice']}, "
             f"{PACKAGE} {e['llama_cpp_python']}; {e['date']}",
             f"medians of {result['rounds']} interleaved rounds; load {e['load_start'][0]:.1f} at "
             f"the start, {e['load_end'][0]:.1f} at the end; ratio = median over rounds of "
             "llama.cpp's time / sluice's, above 1: sluice is faster", "",
             f"{'model':34} {'threads':>7} {'cell':8} {'sluice tok/s':>12} {'llama tok/s':>12} "
             f"{'ratio':>6} {'rounds':>13} {'cpu':>6}"]
    for r in result["rows"]:
        low, high = min(r["ratio_rounds"]), max(r["ratio_rounds"])
        lines.append(f"{os.path.basename(r['file'])[:34]:34} {r['threads']:7} {r['cell']:8} "
                     f"{r['sluice']['tok_per_s']:12.1f} {r['llama']['tok_per_s']:12.1f} "
                     f"{r['ratio']:6.2f} {low:6.2f}-{high:.2f} {r['ratio_cpu']:6.2f}")
    return "\n".join(lines)


def compare(args, files, python):
    rows = []
    for file, threads, cell in itertools.product(files, args.threads, args.cells):
        name = os.path.basename(file)
        say(f"compare: settings of llama.cpp for {name}, {threads} threads, {cell}")
        rows.append({"file": file, "threads": threads, "cell": cell,
                     "llama_settings": best_choice(python, file, threads, cell),
                     "sluice": {"samples_ns": [], "samples_cpu_ns": []},
                     "llama": {"samples_ns": [], "samples_cpu_ns": []}})
    load_start = os.getloadavg()
    for i in range(args.rounds):
        say(f"compare: round {i + 1} of {args.rounds}")
        for row in rows:
            add_round(row, i, args.sluice, python)
            summarise(row)
        result = {"kind": "compare", "environment": environment_of(rows[0], python, load_start),
                  "rounds": i + 1, "cells": CELLS,
                  "rows": [dict(r, sluice=without_last(r["sluice"]), llama=without_last(r["llama"]))
                           for r in rows]}
        if args.output:
            with open(args.output, "w", encoding="utf-8") as f:
                json.dump(result, f, indent=1)
    return result


def without_last(side):
    return {k: v for k, v in side.items() if k != "last"}


def environment_of(row, python, load_start):
    """Where and with what this was measured, as both sides say it themselves."""
    last = row["sluice"]["last"]
    return {"cpu": last["environment"]["cpu"], "cores": os.cpu_count(),
            "isa": last["environment"]["isa"], "sluice": last["version"],
            "llama_cpp_python": package_version(python),
            "llama_cpp_system_info": row["llama"]["last"]["system_info"], "cmake_args": CMAKE_ARGS,
            "platform": platform.platform(), "date": time.strftime("%Y-%m-%d"),
            "load_start": load_start, "load_end": os.getloadavg()}


def default_model(sluice):
    return output_of([sluice, "pull"], "sluice pull").strip()


def parse_args():
    p = argparse.ArgumentParser(prog="sluice bench compare", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sluice", default="build/sluice", help="the program to measure")
    p.add_argument("--model", help="a GGUF file (default: the default model)")
    p.add_argument("--no-q8", action="store_true", help="leave out the Q8_0 file made from it")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", default="1,2", help="thread counts, by commas")
    p.add_argument("--cells", default=",".join(CELLS), help="of " + ", ".join(CELLS))
    p.add_argument("--venv", default=os.path.join(cache_folder(), "venv"),
                   help="where llama-cpp-python is or will be built")
    p.add_argument("--output", help="where the JSON goes")
    p.add_argument("--peer", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peer:
        return args
    try:
        args.threads = [int(t) for t in args.threads.split(",")]
    except ValueError:
        p.error(f"--threads {args.threads}: not numbers parted by commas")
    args.cells = args.cells.split(",")
    for cell in args.cells:
        if cell not in CELLS:
            p.error(f"--cells: {cell} is none of {', '.join(CELLS)}")
    if args.rounds < 1 or min(args.threads) < 1:
        p.error("--rounds and --threads are 1 or more")
    return args


def main():
    args = parse_args()
    if args.peer:
        return peer_main(args.peer)
    python = make_venv(args.venv)
    with tempfile.TemporaryDirectory(prefix="sluice-compare-") as folder:
        files = [args.model or default_model(args.sluice)]
        if not args.no_q8:
            stem = os.path.basename(files[0]).removesuffix(".gguf")
            files.append(os.path.join(folder, stem + "-as-Q8_0.gguf"))
            output_of([args.sluice, "bench", "requantize", *files], "sluice bench requantize")
        result = compare(args, files, python)
    print(table_of(result))


if __name__ == "__main__":
    main()
