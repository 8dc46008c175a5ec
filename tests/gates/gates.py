"""The static gates on what nvcc made of the kernels, one architecture or many.

gates.py check ... compares the plug-in with rules (expect.py) and with tests/golden/kernels.tsv, and
writes the report (build/kernels.json). gates.py golden ... writes the golden file anew: run
`ninja -C build cuda_golden` after an intended change and commit the file with it.

Exit: 0 all gates hold, 1 one does not, 77 nothing failed but something could not be looked at.
"""
import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import expect
import sass

COLUMNS = ["registers", "stack", "spills", "shared", "barriers", "instructions", "code_bytes"]


class Gates:
    """Figures of every kernel x architecture, and what is wrong with them."""

    def __init__(self):
        self.figures = {}  # (arch, short name): {...}
        self.failures = []
        self.skipped = []

    def fail(self, text):
        self.failures.append(text)


def run(*command, text=None):
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


# ---- figures ----


def add_ptxas(gates, paths, arches, dtypes):
    """Returns {(arch, mangled): short name}."""
    found = sass.read_ptxas(paths)
    names = {m: sass.short_name(d, dtypes)
             for m, d in sass.demangle({m for _, m in found}).items()}
    for (arch, mangled), f in found.items():
        if arch not in arches:
            continue
        key = arch, names[mangled]
        if key in gates.figures:
            gates.fail(f"sm_{arch} {names[mangled]}: two kernels of this name")
        gates.figures[key] = dict(f)
    for arch in arches:
        if not any(a == arch for a, _ in gates.figures):
            gates.fail(f"sm_{arch}: the build's output tells of no kernel")
    return names


def add_sass(gates, cuobjdump, plugin, arches, names):
    for arch in arches:
        for mangled, f in sass.disassemble(cuobjdump, plugin, arch).items():
            name = names.get(mangled)
            if (arch, name) not in gates.figures:
                gates.fail(f"sm_{arch} {name or mangled}: in the plug-in, not in the build's output")
                continue
            gates.figures[arch, name].update(f, sass=dict(sorted(f["sass"].items())))
    for (arch, name), f in gates.figures.items():
        if "sass" not in f:
            gates.fail(f"sm_{arch} {name}: in the build's output, not in the plug-in")


def places(program, dtypes):
    """{address relative to main: short names of the functions there}."""
    out, main = defaultdict(set), 0
    for line in run("nm", program).splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[1] in "tTwW":
            out[int(parts[0], 16)].add(parts[2])
            if parts[2] == "main":
                main = int(parts[0], 16)
    names = sass.demangle({n for s in out.values() for n in s})
    return {(at - main) % 2**64: {sass.short_name(names[n], dtypes) for n in s}
            for at, s in out.items()}


def add_launches(gates, shapes, occupancy, arches, dtypes):
    """How the backend launches each kernel on each device, and how many warps then fit."""
    devices = dict(line.split() for line in run(occupancy, "--devices").splitlines())
    at = places(shapes, dtypes)
    for arch in arches:
        asked, lines = [], []
        for line in run(shapes, devices[arch.rstrip("a")]).splitlines():
            place, threads, smem, blocks, launch, call = line.split("\t")
            for name in at.get(int(place, 16), ()):
                f = gates.figures.get((arch, name))
                if f is None:
                    continue
                asked.append((f, dict(call=call, launch=launch, blocks=int(blocks),
                                      threads=int(threads), dynamic_shared=int(smem)), name))
                lines.append(f"{arch.rstrip('a')} {threads} {f['registers']} {f['shared']} {smem} "
                             f"{f['barriers']}")
        for (f, shape, name), line in zip(asked, run(occupancy, text="\n".join(lines)).splitlines(),
                                          strict=True):
            blocks, warps, most, limit = line.split()
            shape.update(blocks_per_sm=int(blocks), warps=int(warps), warps_max=int(most),
                         limit=limit)
            f.setdefault("launches", []).append(shape)
            if int(blocks) == 0:
                gates.fail(f"sm_{arch} {name}: cannot be launched with {shape['threads']} threads "
                           f"and {shape['dynamic_shared']} bytes of shared memory ({limit}): "
                           f"{shape['call']}")
    for (arch, name), f in gates.figures.items():
        if "launches" not in f:
            gates.fail(f"sm_{arch} {name}: shapes.c launches it never")


# ---- rules ----


def check_rules(gates, rules=None):
    for (arch, name), f in sorted(gates.figures.items()):
        where = f"sm_{arch} {name}"
        for what in ("stack", "spills"):
            if f.get(what, 0):
                gates.fail(f"{where}: {f[what]} bytes of {what}")
        rule = next((r for p, r in rules or expect.RULES if re.fullmatch(p, name)), None)
        if rule is None:
            gates.fail(f"{where}: no rule in expect.py")
        if rule is None or "sass" not in f:
            continue
        counts = f["sass"]
        for need in rule["need"]:
            if not counts.get(need):
                gates.fail(f"{where}: no {need}")
        for op in counts:
            if op in expect.NEVER or op.split(".")[0] in rule["ban"] or op in rule["ban"]:
                gates.fail(f"{where}: {counts[op]} x {op}")


def check_plugin(gates, plugin):
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "-d", plugin))
    for lib in needed:
        if lib not in expect.MAY_NEED:
            gates.fail(f"{plugin}: needs {lib}")
    undefined = re.findall(r" U (\w+)", run("nm", "-D", "--undefined-only", plugin))
    for symbol in undefined:
        if re.match(r"(cu[A-Z]|nccl|cublas|nvml)", symbol):
            gates.fail(f"{plugin}: wants {symbol} at its start")
    defined = re.findall(r" [A-Z] (\w+)", run("nm", "-D", "--defined-only", plugin))
    if sorted(defined) != sorted(expect.GIVES):
        gates.fail(f"{plugin}: exports {', '.join(defined)}")
    return dict(file=os.path.basename(plugin), bytes=os.path.getsize(plugin), needed=needed)


# ---- the golden file ----


def warps_text(f):
    shapes = [s["warps"] for s in f.get("launches", [])]
    return f"{min(shapes)}-{max(shapes)}/{f['launches'][0]['warps_max']}" if shapes else "-"


def golden_rows(gates):
    """{(arch, name): {column: text}}"""
    out = {}
    for key, f in gates.figures.items():
        row = {c: str(f[c]) if c in f else "-" for c in COLUMNS}
        row["warps"] = warps_text(f)
        row.update(("#" + op, str(n)) for op, n in f.get("sass", {}).items())
        out[key] = row
    return out


def write_golden(gates, path, nvcc):
    lines = [f"# nvcc {nvcc}", "\t".join(["arch", "kernel", *COLUMNS, "warps", "sass"])]
    for (arch, name), row in sorted(golden_rows(gates).items()):
        ops = " ".join(f"{k[1:]}:{v}" for k, v in row.items() if k.startswith("#"))
        lines.append("\t".join([arch, name, *(row[c] for c in COLUMNS), row["warps"], ops]))
    Path(path).write_text("\n".join(lines) + "\n")


def read_golden(path):
    """The nvcc that made it, and rows as golden_rows gives them."""
    lines = Path(path).read_text().splitlines()
    out = {}
    for line in lines[2:]:
        arch, name, *cells, ops = line.split("\t")
        row = dict(zip(COLUMNS + ["warps"], cells, strict=True))
        row.update(("#" + op, n) for op, _, n in (o.rpartition(":") for o in ops.split()))
        out[arch, name] = row
    return lines[0].removeprefix("# nvcc "), out


def compare_golden(gates, golden, arches):
    """Fails on every difference, better or worse."""
    now = golden_rows(gates)
    for key in sorted(k for k in golden.keys() | now.keys() if k[0] in arches):
        where = f"sm_{key[0]} {key[1]}"
        if key not in golden or key not in now:
            gates.fail(f"{where}: {'not in the golden file' if key in now else 'gone'}")
            continue
        old, new = golden[key], now[key]
        no_sass = new["instructions"] == "-"
        for c in sorted(old.keys() | new.keys()):
            a, b = old.get(c, "0"), new.get(c, "0")
            if a == b or no_sass and (c.startswith("#") or b == "-") or c == "warps" and b == "-":
                continue
            gates.fail(f"{where}: {c.lstrip('#')} {a} -> {b}")


# ---- the report ----


def read_tables(folder):
    """What the tests left there: which detector found which mutant of a kernel, and the worst that
    the tests of index functions enumerated (banks: lanes that wait for one; sectors)."""
    mutants = Path(folder, "mutants.json")
    figures = [line.split("\t") for path in sorted(Path(folder).glob("figures-*.tsv"))
               for line in path.read_text().splitlines()]
    return dict(mutants=json.loads(mutants.read_text()) if mutants.exists() else None,
                index_functions=[dict(access=a, kind=k, worst=int(n)) for k, a, n in figures])


def write_report(gates, o, plugin, tools):
    kernels = [dict(kernel=name, arch="sm_" + arch, **f)
               for (arch, name), f in sorted(gates.figures.items())]
    report = dict(tools=tools, plugin=plugin, kernels=kernels, failures=gates.failures,
                  skipped=gates.skipped, **read_tables(Path(o.report).parent))
    Path(o.report).write_text(json.dumps(report, indent=1) + "\n")


def summary(gates, arches, plugin):
    print(f"{plugin['file']}: {plugin['bytes']} bytes, needs {', '.join(plugin['needed'])}")
    for arch in arches:
        of = [f for (a, _), f in gates.figures.items() if a == arch]
        code = sum(f.get("code_bytes", 0) for f in of)
        print(f"sm_{arch}: {len(of)} kernels, {code} bytes of code, at most "
              f"{max((f['registers'] for f in of), default=0)} registers")


def look(o):
    gates, arches = Gates(), o.arch.split(",")
    dtypes = sass.dtype_names(o.dtypes)
    names = add_ptxas(gates, sorted(Path(o.ptxas).glob("*.ptxas")), arches, dtypes)
    tools = dict(nvcc=o.nvcc, cuobjdump=None)
    cuobjdump = next(iter(sorted(Path(o.venv).glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump"))),
                     None)
    if cuobjdump:
        os.environ["PATH"] = f"{cuobjdump.parent}:{os.environ['PATH']}"  # it calls nvdisasm
        tools["cuobjdump"] = re.search(r"V([\d.]+)", run(cuobjdump, "--version"))[1]
        add_sass(gates, str(cuobjdump), o.plugin, arches, names)
    else:
        why = Path(o.venv, "why")
        gates.skipped.append("SASS: no cuobjdump and nvdisasm from PyPI: "
                             + (why.read_text()[-300:] if why.exists() else "not installed"))
    if o.occupancy:
        add_launches(gates, o.shapes, o.occupancy, arches, dtypes)
    else:
        gates.skipped.append("occupancy: the toolkit has no cuda_occupancy.h")
    return gates, arches, tools


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("verb", choices=["check", "golden"])
    for name in ("plugin", "ptxas", "arch", "dtypes", "nvcc", "venv", "shapes", "golden", "report"):
        p.add_argument("--" + name, required=name != "report")
    p.add_argument("--occupancy")
    o = p.parse_args()
    gates, arches, tools = look(o)
    check_rules(gates)
    plugin = check_plugin(gates, o.plugin)
    summary(gates, arches, plugin)
    if o.verb == "golden" and gates.skipped:
        gates.fail("a golden file needs all tools")
    elif o.verb == "golden" and not gates.failures:
        write_golden(gates, o.golden, o.nvcc)
    else:
        version, golden = read_golden(o.golden)
        if version == o.nvcc:
            compare_golden(gates, golden, arches)
        else:
            gates.skipped.append(f"golden figures are of nvcc {version}, this is {o.nvcc}")
    if o.report:
        write_report(gates, o, plugin, tools)
    for text in gates.failures:
        print("FAILED", text)
    if gates.failures and o.verb == "check":
        print("Intended? ninja -C build cuda_golden, and commit tests/golden/kernels.tsv")
    for text in gates.skipped:
        print("skipped", text)
    return 1 if gates.failures else 77 if gates.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
