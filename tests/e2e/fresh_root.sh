#!/usr/bin/env bash
# Tries the README's commands in a fresh Debian 12 root that holds nothing but apt and the tree.
# Usage: fresh_root.sh ROOT-FOLDER [COMMAND...]   (default: the checks below; needs root, mmdebstrap;
# exit code 77 without them). The root is kept: remove it to begin anew.
# The machine's own apt and pip settings and certificates are handed in; the launcher knows of none.
set -euo pipefail
root=$1
shift
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ "$(id -u)" = 0 ] && command -v mmdebstrap >/dev/null ||
    { echo "skipped: needs root and mmdebstrap"; exit 77; }
say() { printf 'fresh root: %s\n' "$*" >&2; }

if [ ! -d "$root/etc" ]; then
    say "making $root"
    mmdebstrap --variant=minbase bookworm "$root" >/dev/null 2>"$root.log" || { tail "$root.log" >&2; exit 1; }
    cp -r /etc/apt/sources.list* /etc/apt/apt.conf.d "$root/etc/apt/"
    cp /etc/hosts /etc/resolv.conf "$root/etc/"
    cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/test-ca.crt"
    mkdir -p "$root/src"
    git clone -q "$tree" "$root/src/sluice"
fi

# A mount and pid namespace of its own: whatever is started in it ends with it.
inside() {
    unshare -m -p -f --mount-proc="$root/proc" bash -c '
        mount --rbind /dev "$0/dev" && mount -t sysfs none "$0/sys" 2>/dev/null
        root=$0; shift 0
        exec chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb CI="${CI-}" \
            PIP_CERT=/etc/test-ca.crt REQUESTS_CA_BUNDLE=/etc/test-ca.crt \
            SSL_CERT_FILE=/etc/test-ca.crt CURL_CA_BUNDLE=/etc/test-ca.crt bash -c "cd /src/sluice && $1"' "$root" "$1"
}

if [ $# -gt 0 ]; then
    inside "$*"
    exit
fi

check='
serve() {
    ./sluice serve --port 18090 >/tmp/serve.log 2>&1 &
    pid=$!
    for i in $(seq 9000); do
        grep -q "sluice: ready" /tmp/serve.log && break
        kill -0 $pid 2>/dev/null || { cat /tmp/serve.log; exit 1; }
        sleep 0.1
    done
    grep "sluice: ready" /tmp/serve.log
}
pss() { for p in /proc/[0-9]*; do
    grep -qz "^sluice\|/sluice" $p/cmdline 2>/dev/null && sed -n "s/^Pss: *\([0-9]*\) kB/\1/p" $p/smaps_rollup; done |
    { n=0; while read k; do n=$((n + k)); done; echo "PSS of all processes: $((n / 1024)) MiB"; [ $n -lt 358400 ]; }; }
echo "first start"; serve
kill $pid; wait $pid
echo "second start"; serve; pss
python3 -c "
import json, urllib.request as u
r = u.Request(\"http://127.0.0.1:18090/v1/completions\", json.dumps({\"prompt\": \"The capital of France is\",
    \"max_tokens\": 3, \"temperature\": 0}).encode(), {\"Content-Type\": \"application/json\"})
t = json.load(u.urlopen(r))[\"choices\"][0][\"text\"]; print(repr(t)); assert \"Paris\" in t"
kill $pid; wait $pid; echo "exit code $?"
t=$(sed -n "s/.*ready in \([0-9]*\)\..*/\1/p" /tmp/serve.log)
[ "$t" = 0 ] || { echo "the second start took a second or more"; exit 1; }
'
printf '%s' "$check" >"$root/tmp/check.sh"
inside "bash -e /tmp/check.sh"
say "passed"
