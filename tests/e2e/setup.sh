#!/usr/bin/env bash
# Makes the tests' virtual environment and small model once: setup.sh VENV TINY.gguf TINY-PROGRAM
set -euo pipefail
venv=$1 tiny=$2 program=$3
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
