#!/usr/bin/env bash
# setup.sh VENV: NVIDIA's disassembler from PyPI, once. Where it cannot be had, VENV/why says so and
# the gates look at what they can without it.
venv=$1
packages="nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
[ "$(cat "$venv/.packages" 2>/dev/null)" = "$packages" ] && exit 0
rm -rf "$venv"
mkdir -p "$venv"
if python3 -m venv "$venv" >"$venv/why" 2>&1 &&
    "$venv/bin/pip" install -q --only-binary :all: $packages >"$venv/why" 2>&1; then
    printf '%s' "$packages" >"$venv/.packages"
    rm -f "$venv/why"
else
    cat "$venv/why"
fi
exit 0
