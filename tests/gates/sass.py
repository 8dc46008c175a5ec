"""What compilers and disassemblers say of kernels, as numbers.

Names of kernels are short ones: `linear_tiles<q8_0, 2, 8, 1>`, without arguments and namespaces,
formats by the names of sluice/kernels/dtype.h.
"""
import re
import subprocess
from collections import Counter
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers, used (\d+) barriers(.*)")
LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
FUNCTION = re.compile(r"^\s+Function : (\S+)")
WIDTHS = ("256", "128", "64", "U16", "S16", "U8", "S8")


def dtype_names(header):
    """The formats in the order of their enum."""
    table = Path(header).read_text().split("#define SL_DTYPE_TABLE(X)")[1]
    return re.findall(r'X\(\w+, "(\w+)"', table.split("\n\n")[0])


def short_name(demangled, dtypes):
    name = demangled.removeprefix("void ").replace("(anonymous namespace)::", "")
    name = re.sub(r"\(sl_dtype\)(\d+)", lambda m: dtypes[int(m[1])], name)
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i]
    return name


def demangle(names):
    names = list(names)
    if not names:
        return {}
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                         check=True).stdout.splitlines()
    return dict(zip(names, out))


def read_ptxas(paths):
    """{(arch, mangled): figures} of nvcc's output with -Xptxas -v."""
    out, at = {}, None
    for path in paths:
        for line in Path(path).read_text().splitlines():
            if m := ENTRY.search(line):
                at = out[m[2], m[1]] = {}
            elif (m := FRAME.search(line)) and at is not None:
                at.update(stack=int(m[1]), spills=int(m[2]) + int(m[3]))
            elif (m := USED.search(line)) and at is not None:
                shared = re.search(r"(\d+) bytes smem", m[3])
                at.update(registers=int(m[1]), barriers=int(m[2]),
                          shared=int(shared[1]) if shared else 0)
                at = None
    return out


def instruction_key(op):
    """What an instruction counts as; None: as nothing but an instruction."""
    parts = op.split(".")
    base = parts[0]
    if base in ("LDG", "LDS", "STG", "STS", "LDGSTS"):
        return base + "." + next((w for w in WIDTHS if w in parts), "32")
    if base == "LDSM":
        return base + "." + parts[-1]
    if base.endswith("MMA"):
        return op
    if base in ("LDL", "STL", "SHFL", "BAR", "ATOM", "ATOMG", "ATOMS", "RED", "REDUX", "LDGDEPBAR",
                "CALL"):
        return base
    if base in ("DFMA", "DADD", "DMUL"):
        return "F64"
    if base in ("FADD", "FMUL", "FFMA"):
        return base + ".FTZ" if "FTZ" in parts else base
    if base == "MUFU":
        return op
    return None


def read_sass(lines):
    """{mangled: {"instructions", "code_bytes", "sass": Counter}} of one architecture."""
    out, at = {}, None
    for line in lines:
        if m := FUNCTION.match(line):
            at = out[m[1]] = {"instructions": 0, "code_bytes": 0, "sass": Counter()}
        elif (m := LINE.match(line)) and at is not None:
            at["instructions"] += m[2] != "NOP"
            at["code_bytes"] = int(m[1], 16) + 16
            if key := instruction_key(m[2]):
                at["sass"][key] += 1
    return out


def disassemble(cuobjdump, plugin, arch):
    run = subprocess.Popen([cuobjdump, "-sass", "-arch", "sm_" + arch, plugin],
                           stdout=subprocess.PIPE, text=True)
    out = read_sass(run.stdout)
    if run.wait():
        raise RuntimeError(f"{cuobjdump} ended with {run.returncode}")
    return out
