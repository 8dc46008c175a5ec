#!/bin/sh
# usage: check_plugin.sh PLUGIN OBJECT...: the emulated CUDA plug-in computes with kernels of its own.
# It holds no function of the objects (those of kernels/cpu and kernels/ref are looked at), gives one
# symbol to the kernels and one to the transport, and needs no CUDA library.
set -eu
plugin=$1
shift
functions() { nm "$@" | awk 'NF == 3 && $2 == "T" {print $3}' | sort -u; }
mine=$(mktemp)
theirs=$(mktemp)
trap 'rm -f "$mine" "$theirs"' EXIT
nm "$plugin" | awk 'NF == 3 && $2 ~ /[tTwW]/ {print $3}' | sort -u >"$mine"
for object; do
    case $object in */cpu/* | */ref/*) functions "$object" ;; esac
done | sort -u >"$theirs"
[ -s "$theirs" ] || { echo "no object of kernels/cpu and kernels/ref was named"; exit 1; }
both=$(comm -12 "$mine" "$theirs")
[ -z "$both" ] || { echo "of the CPU's backend or the reference: $both"; exit 1; }
symbols=$(nm -D --defined-only "$plugin" | awk '$2 ~ /[TDBRVW]/ {print $3}' | sort | tr '\n' ' ')
[ "$symbols" = "sl_comm_lane_plugin sl_cuda_plugin " ] || { echo "gives $symbols"; exit 1; }
! readelf -d "$plugin" | grep -E 'NEEDED.*lib(cuda|cudart|nccl|cublas)' || exit 1
grep -qx cuda_linear "$mine" || { echo "it has no kernels"; exit 1; }
