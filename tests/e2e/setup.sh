#!/usr/bin/env bash
# Makes the tests' virtual environment, small model and cache once: setup.sh VENV TINY.gguf
# TINY-PROGRAM CACHE. The cache shares nothing with the user's but the models, which are fetched once.
set -euo pipefail
venv=$1 tiny=$2 program=$3 cache=$4
packages="openai grpcio tritonclient[grpc] grpcio-health-checking"
if [ "$(cat "$venv/.packages" 2>/dev/null)" != "$packages" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --only-binary :all: $packages
    printf '%s' "$packages" >"$venv/.packages"
fi
# For subscribers of KV events; beside the others, so that a new one does not make all anew.
"$venv/bin/python" -c 'import msgspec, zmq' 2>/dev/null ||
    "$venv/bin/pip" install -q --only-binary :all: msgspec pyzmq
"$program" "$tiny"
models=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/models
mkdir -p "$models" "$cache/sluice"
ln -sfn "$models" "$cache/sluice/models"
