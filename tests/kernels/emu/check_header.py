#!/usr/bin/env python3
"""Are our own cuda_runtime_api.h and nccl.h true to NVIDIA's? Every value we give and the type of
every function we declare is compared with the toolkit's headers, where there are any (else exit 77:
skipped). Usage: check_header.py CC OUR_INCLUDE TOOLKIT_INCLUDE"""
import os
import re
import subprocess
import sys
import tempfile

# no function of CUDA's, or another structure with the same fields
OURS = {"emu_at"}


def strip(text):
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r"\\\n", " ", text)


def read(folder, name):
    with open(os.path.join(folder, name)) as f:
        return strip(f.read())


def values(text):
    names = set(re.findall(r"\b((?:cuda|nccl)[A-Z]\w*)\s*=\s*(?:0x)?\d", text))
    names |= set(re.findall(r"X\((\w+), \d", text))
    return names | {"NCCL_VERSION_CODE", "NCCL_UNIQUE_ID_BYTES", "NCCL_CONFIG_UNDEF_INT",
                    "CUDART_VERSION"}


def functions(text):
    found = re.findall(r"^(?:EMU_NCCL )?([\w ]+?[ *]+)((?:cuda|nccl)[A-Z]\w*)(\([^;{]*\));", text,
                       flags=re.M)
    return [(kind, name, " ".join(args.split())) for kind, name, args in found if name not in OURS]


def build(cc, include, source, folder):
    path = os.path.join(folder, "x.c")
    with open(path, "w") as f:
        f.write(source)
    exe = os.path.join(folder, "x")
    r = subprocess.run([cc, "-std=c11", "-Werror=incompatible-pointer-types", "-I" + include, path,
                        "-c", "-o", exe + ".o"], capture_output=True, text=True)
    return r.returncode, r.stderr, exe


def print_values(cc, include, names, folder):
    source = "#include <cuda_runtime_api.h>\n#include <nccl.h>\n#include <stdio.h>\nint main(void) {\n"
    source += "".join(f'printf("{n} %lld\\n", (long long)({n}));\n' for n in sorted(names)) + "}\n"
    rc, err, exe = build(cc, include, source, folder)
    if rc:
        sys.exit(f"with {include}:\n{err}")
    subprocess.run([cc, exe + ".o", "-o", exe], check=True)
    lines = subprocess.run([exe], capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split() for line in lines)


def main(cc, ours, toolkit):
    if not all(os.path.exists(os.path.join(toolkit, h)) for h in ("cuda_runtime_api.h", "nccl.h")):
        print(f"skipped: no headers of CUDA and NCCL in {toolkit}")
        sys.exit(77)
    text = "\n".join(read(ours, h) for h in ("cuda_runtime_api.h", "nccl.h", "emu_errors.h"))
    names, declared = values(text), functions(text)
    assert len(names) > 150 and len(declared) > 75, (len(names), len(declared))
    with tempfile.TemporaryDirectory() as folder:
        a, b = (print_values(cc, d, names, folder) for d in (ours, toolkit))
        wrong = [f"{n}: {a[n]} here, {b[n]} there" for n in a
                 if a[n] != b[n] and not n.endswith(("_VERSION", "_VERSION_CODE"))]
        source = "#include <cuda_runtime_api.h>\n#include <nccl.h>\n"
        source += "".join(f"{kind}(*is_{n}){args} = {n};\n" for kind, n, args in declared)
        rc, err, _ = build(cc, toolkit, source, folder)
    if wrong or rc:
        sys.exit("\n".join(wrong) + err)
    print(f"{len(names)} values, {len(declared)} functions")


if __name__ == "__main__":
    main(*sys.argv[1:])
