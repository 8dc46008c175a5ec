#!/usr/bin/env bash
# One serve-and-stop run of router and worker under valgrind: no invalid access, nothing lost. (What
# is fetched from OpenSSL once stays reachable to the end.)
# Usage: valgrind.sh SLUICE TINY-MODEL. Exit code 77: there is no valgrind.
set -euo pipefail
sluice=$1 model=$2
command -v valgrind >/dev/null || { echo "skipped: valgrind is not installed"; exit 77; }
dir=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null; rm -rf "$dir"' EXIT

valgrind --leak-check=full --show-leak-kinds=all --error-exitcode=9 --trace-children=yes \
    --errors-for-leak-kinds=definite,indirect,possible --log-file="$dir/%p.log" \
    "$sluice" serve "$model" --port 0 >"$dir/out" 2>&1 &
pid=$!
for _ in $(seq 600); do
    url=$(sed -n 's/.*ready in .* s, \(http.*\)/\1/p' "$dir/out")
    [ -z "$url" ] || break
    sleep 0.5
done
[ -n "$url" ] || { cat "$dir/out"; echo "never ready"; exit 1; }
ask() { curl -sf -m 60 "$url/v1/$1" -H 'Content-Type: application/json' -d "$2" >"$dir/answer"; }
ask chat/completions '{"messages":[{"role":"user","content":"hi"}],"max_tokens":8,"logprobs":true,"n":2}'
ask completions '{"prompt":"hi","max_tokens":20,"stream":true,"stop":["zz"],"repetition_penalty":1.1}'
ask completions '{"prompt":["a","b"],"max_tokens":3,"echo":true,"logit_bias":{"5":1}}'
! ask completions '{"prompt":"x","top_p":7}'
curl -s -m 1 -N "$url/v1/completions" -H 'Content-Type: application/json' \
    -d '{"prompt":"x","max_tokens":1500,"stream":true,"ignore_eos":true}' >/dev/null || true
curl -sf -m 60 "$url/metrics" >/dev/null
kill "$pid"
wait "$pid" || { echo "exit code $?"; cat "$dir"/*.log; exit 1; }
pid=
n=0
for log in "$dir"/[0-9]*.log; do
    grep -q "ERROR SUMMARY: 0 errors" "$log" ||
        { cat "$log"; exit 1; }
    n=$((n + 1))
done
[ "$n" = 2 ] || { echo "expected two processes, saw $n"; exit 1; }
echo "router and worker: no error, nothing lost"
