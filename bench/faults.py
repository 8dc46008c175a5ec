#!/usr/bin/env python3
"""Faults and what they cost: kills, stops and hangs of real processes under real streams.

  sluice bench faults [--only F-01,F-03] [--model FILE] [--tiny FILE] [--output FILE]

Every fault is a function below; it starts its own cluster on loopback, disturbs it, and states
figures with their goals. An answer that differs from the undisturbed one by a single token fails
the fault whatever the figures say. Exit status 9 when a goal was missed.

Streams run the model (default: the default one); where a fault's cost is to be seen apart from the
cost of computing, a small random model (`--tiny`, default: made by the build's generator).
"""
import argparse
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from cluster import (Cluster, Stream, all_tokens, bodies, cpu_model, free_port, percentile, rss_bytes, wait)

FAULTS = {}
GONE = r"is gone|is silent|was ended by signal|is lost|stands still"


def fault(name, what):
    def register(f):
        FAULTS[name] = (what, f)
        return f
    return register


class Run:
    """Figures of one fault."""

    def __init__(self, options):
        self.o, self.figures = options, []

    def figure(self, name, value, unit, goal=None, at_least=False):
        ok = goal is None or (value is not None and (value >= goal if at_least else value <= goal))
        self.figures.append({"name": name, "value": value, "unit": unit, "goal": goal, "ok": ok})
        sign = "" if goal is None else f"  (goal {'>=' if at_least else '<='} {goal:g} {unit})"
        shown = "none" if value is None else f"{value:.4g}"
        print(f"    {name:46} {shown:>9} {unit}{sign}{'' if ok else '  MISSED'}", flush=True)

    def exact(self, got, want, name="streams exact"):
        self.figure(name, sum(g == w for g, w in zip(got, want)), f"of {len(want)}", len(want), at_least=True)


def ms(seconds):
    return None if seconds is None else seconds * 1e3


def metric(door, name):
    """Sum of a metric over its labels."""
    _, text = door.get("/metrics")
    return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


def two_workers(c, *more):
    door = c.serve("--workers", 2, "--threads", 1, "--max-num-seqs", 64, *more)
    door.wait_port()
    wait("two workers", lambda: len(door.workers()) == 2)
    return door


def undisturbed(door, reqs):
    return all_tokens([Stream(door.port, b) for b in reqs])


def underway(streams, tokens):
    wait("all streams to be under way", lambda: all(len(s.tokens) >= tokens or s.error or s.done for s in streams),
         300)


def busiest(door):
    return max(door.workers(), key=lambda w: w["running"])["pid"]


def prefill_rate(door, reqs, replayed_each):
    """Prompt tokens a second that one of the two workers takes while the streams run."""
    busy = [Stream(door.port, dict(b, max_tokens=4 * b["max_tokens"])) for b in reqs]
    underway(busy, 2)
    fresh = [dict(b, prompt=[7 + (i * 31 + k * 17) % 200 for k in range(replayed_each)], max_tokens=1)
             for i, b in enumerate(reqs[:len(reqs) // 2])]
    start = time.time()
    all_tokens([Stream(door.port, b) for b in fresh])
    rate = len(fresh) * replayed_each / (time.time() - start) / 2
    for s in busy:
        s.join(300)
    return rate


def lose_worker(run, model, how, reqs, label):
    """Kills or stops the busier of two workers under all streams."""
    with Cluster(run.o.sluice, model) as c:
        door = two_workers(c)
        want = undisturbed(door, reqs)
        streams = [Stream(door.port, b) for b in reqs]
        underway(streams, 8)
        pid, at = busiest(door), time.time()
        os.kill(pid, how)
        moved = sum(len(s.tokens) for s in streams) / 2
        got = all_tokens(streams)
        seen = door.log_time(GONE, at)
        if how == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        run.exact(got, want, f"{label}: streams exact")
        detection = ms(seen - at) if seen else None
        run.figure(f"{label}: detection", detection, "ms", 150 if how == signal.SIGKILL else 1000)
        stall = ms(max(s.longest_gap(at) for s in streams))
        return door, detection or 0, stall, moved


@fault("F-01", "kill -9 of a worker under 64 streams")
def kill_worker(run):
    reqs = bodies(64, 96)
    prompt = 60
    _, detection, stall, moved = lose_worker(run, run.o.model, signal.SIGKILL, reqs, "default model")
    with Cluster(run.o.sluice, run.o.model) as c:
        rate = prefill_rate(two_workers(c), reqs, prompt + 16)
    replayed = moved + 32 * prompt
    run.figure("default model: prefill rate", rate, "tok/s")
    run.figure("default model: replayed tokens, about", replayed, "tokens")
    run.figure("default model: worst stall", stall, "ms", detection + 1.3e3 * replayed / rate)
    _, _, stall, _ = lose_worker(run, run.o.tiny, signal.SIGKILL, bodies(64, 1200), "tiny model")
    run.figure("tiny model: worst stall", stall, "ms", 500)


@fault("F-03", "SIGSTOP of a worker, SIGCONT later")
def stop_worker(run):
    _, _, stall, _ = lose_worker(run, run.o.tiny, signal.SIGSTOP, bodies(64, 1200), "tiny model")
    run.figure("tiny model: worst stall", stall, "ms", 1500)


def lose_rank(run, how, label, goal):
    with Cluster(run.o.sluice, run.o.model) as c:
        door = c.serve("--tensor-parallel-size", 2, "--threads", 1)
        door.wait_port()
        reqs = bodies(8, 96)
        want = undisturbed(door, reqs)
        fds = lambda: len(os.listdir(f"/proc/{door.workers()[0]['pid']}/fd"))
        before, shm = fds(), len(os.listdir("/dev/shm"))
        worst = 0
        for _ in range(run.o.rounds):
            streams = [Stream(door.port, b) for b in reqs]
            underway(streams, 8)
            follower = [p for p in door.ranks() if p["rank"] == 1][0]["pid"]
            at = time.time()
            os.kill(follower, how)
            got = all_tokens(streams)
            run.exact(got, want, f"{label}: streams exact")
            worst = max([worst] + [s.longest_gap(at) for s in streams])
            wait("the rank to be back", lambda: any(p["rank"] == 1 and p["pid"] != follower for p in door.ranks()))
        run.figure(f"{label}: noticed, re-formed and continued", ms(worst), "ms", goal)
        run.figure(f"{label}: descriptors more than before", fds() - before, "", 0)
        run.figure(f"{label}: shared memory objects more than before", len(os.listdir("/dev/shm")) - shm, "", 0)


@fault("F-04", "kill -9 of a rank of a tensor-parallel group")
def kill_rank(run):
    lose_rank(run, signal.SIGKILL, "kill", 5000)


@fault("F-05", "SIGSTOP of a rank inside a collective")
def stop_rank(run):
    lose_rank(run, signal.SIGSTOP, "stop", 6000)


@fault("F-06", "kill -9 of a router; resume at another")
def kill_router(run):
    with Cluster(run.o.sluice, run.o.tiny) as c:
        ends = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
        ports = [free_port(), free_port()]
        routers = [c.router("--bind", e, port=p) for e, p in zip(ends, ports)]
        for _ in range(2):
            c.worker("--connect", ",".join(ends), "--threads", 1)
        for r in routers:
            r.wait_port()
            wait("two workers", lambda r=r: len(r.workers()) == 2)
        reqs = bodies(16, 600)
        want = undisturbed(routers[0], reqs)
        streams = [Stream(ports[0], b) for b in reqs]
        underway(streams, 20)
        failed = [0, 0]
        stop = threading.Event()

        def clients():  # new requests with both routers in the list
            while not stop.is_set():
                failed[1] += 1
                for port in ports:
                    s = Stream(port, {"prompt": "x", "max_tokens": 2, "ignore_eos": True})
                    s.join(60)
                    if s.done and not s.error:
                        break
                else:
                    failed[0] += 1

        load = threading.Thread(target=clients)
        load.start()
        time.sleep(0.2)
        routers[0].send(signal.SIGKILL)
        at = time.time()
        for s in streams:
            s.join(30)
        run.figure("cut connections end after", ms(time.time() - at), "ms", 2000)
        rest = [Stream(ports[1], b, {"Last-Event-ID": s.last_id}) for b, s in zip(reqs, streams)]
        all_tokens(rest)
        run.exact([a.text + b.text for a, b in zip(streams, rest)], texts_of(routers[1], reqs),
                  "resumed with Last-Event-ID, exact")
        again = c.router("--bind", ends[0], port=ports[0])
        wait("HTTP", lambda: answers(ports[0]), 10)
        run.figure("restart to serving", ms(time.time() - again.started), "ms", 300)
        again.wait_port()
        wait("workers", lambda: len(again.workers()) == 2, 10)
        run.figure("restart to all workers registered", ms(time.time() - again.started), "ms", 1000)
        stop.set()
        load.join()
        run.figure("new requests that failed with two routers", 100 * failed[0] / max(1, failed[1]), "%", 0.1)
        run.exact(undisturbed(again, reqs), want, "answers after the restart exact")


def texts_of(door, reqs):
    streams = [Stream(door.port, b) for b in reqs]
    all_tokens(streams)
    return [s.text for s in streams]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


@fault("F-09", "one of four workers is ten times slower")
def slow_worker(run):
    def p99(slow):
        with Cluster(run.o.sluice, run.o.tiny) as c:
            door = c.serve("--workers", 4, "--threads", 1)
            door.wait_port()
            wait("four workers", lambda: len(door.workers()) == 4)
            pid, stop = door.workers()[0]["pid"], threading.Event()

            def hold():
                while not stop.is_set():
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(0.045)
                    os.kill(pid, signal.SIGCONT)
                    time.sleep(0.005)

            def burst(k):
                streams = [Stream(door.port, dict(b, seed=k)) for b in bodies(16, 40)]
                all_tokens(streams)
                return [s.times[0] - s.sent for s in streams]

            def bursts(seconds, until=lambda: False):
                end, k = time.time() + seconds, 0
                while time.time() < end and not until():
                    k += 1
                    burst(k)

            def is_out():
                return metric(door, "sluice_router_ejections_total") > before

            t = threading.Thread(target=hold)
            bursts(1.5)  # what is usual gets known
            began, before = time.time(), metric(door, "sluice_router_ejections_total")
            if slow:
                t.start()
            bursts(5, is_out)
            out = time.time() - began if is_out() else None
            first = [x for k in range(8) for x in burst(k)]
            stop.set()
            if slow:
                t.join()
            return percentile(first, 99), out

    (base, _), (slow, out) = p99(False), p99(True)
    run.figure("slow worker left out after", ms(out), "ms", 2000)
    run.figure("p99 TTFT, all well", ms(base), "ms")
    run.figure("p99 TTFT with a slow one, over all well", slow / base, "x", 1.5)


@fault("F-12", "more requests than the queue takes")
def overload(run):
    with Cluster(run.o.sluice, run.o.tiny) as c:
        door = c.serve("--threads", 1, "--max-num-seqs", 4, "--max-num-queued-reqs", 8)
        door.wait_port()
        busy = [Stream(door.port, b) for b in bodies(40, 1000)]
        wait("a full queue", lambda: any(s.status == 429 for s in busy))
        waits, codes = [], set()
        for _ in range(50):
            t = time.perf_counter()
            code, _ = door.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
            waits.append(time.perf_counter() - t)
            codes.add(code)
        refused = [w for w in waits] if codes == {429} else []
        run.figure("429 after, median", ms(percentile(refused, 50)) if refused else None, "ms", 10)
        for s in busy:
            s.join(120)
        run.figure("accepted requests that failed", sum(s.status == 200 and not s.done for s in busy), "", 0)


@fault("F-16", "clients disconnect")
def disconnects(run):
    with Cluster(run.o.sluice, run.o.tiny) as c:
        door = c.serve("--threads", 1)
        door.wait_port()
        undisturbed(door, bodies(4, 8))
        worker = door.workers()[0]
        idle, rss = worker["kv_pages_free"], rss_bytes(door.pid) + rss_bytes(worker["pid"])
        body = json.dumps({"prompt": "Once", "max_tokens": 1900, "stream": True, "ignore_eos": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        freed = []
        for i in range(run.o.disconnects):
            s = socket.create_connection(("127.0.0.1", door.port))
            s.sendall(head % len(body) + body)
            if i % 4 < 2:
                s.recv(1)
            if i % 2:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            s.close()
            if i % 100 == 99:
                t = time.perf_counter()
                wait("pages to be free", lambda: door.workers()[0]["kv_pages_free"] == idle, 20)
                freed.append(time.perf_counter() - t)
        run.figure("pages free again after a hundred disconnects, median", ms(percentile(freed, 50)), "ms", 100)
        grown = rss_bytes(door.pid) + rss_bytes(worker["pid"]) - rss
        run.figure(f"memory grown by {run.o.disconnects} disconnects", grown / 2**20, "MiB", 4)


@fault("F-17", "readers that do not read")
def slow_readers(run):
    body = {"prompt": "Once", "max_tokens": 1900, "stream": True, "ignore_eos": True, "logprobs": 5}

    def gaps(door):
        streams = [Stream(door.port, b) for b in bodies(4, 300)]
        all_tokens(streams)
        return percentile([b - a for s in streams for a, b in zip(s.times, s.times[1:])], 99)

    def reader(door, window):
        data, s = json.dumps(body).encode(), socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        s.connect(("127.0.0.1", door.port))
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(data) + data)
        return s

    def drain_all(socks):
        """Reads all of them to their ends, looking at nothing."""
        with selectors.DefaultSelector() as sel:
            for k in socks:
                sel.register(k, selectors.EVENT_READ)
            while sel.get_map():
                for key, _ in sel.select():
                    if not key.fileobj.recv(1 << 16):
                        sel.unregister(key.fileobj)
                        key.fileobj.close()

    with Cluster(run.o.sluice, run.o.tiny) as c:
        door = c.serve("--threads", 1, "--max-num-seqs", run.o.readers + 8)
        door.wait_port()
        reading = threading.Thread(target=drain_all, args=([reader(door, 1 << 18) for _ in range(run.o.readers)],))
        reading.start()
        wait("the readers' streams to run", lambda: door.workers()[0]["running"] == run.o.readers)
        base = gaps(door)
        wait("the readers' streams to end", lambda: not door.workers()[0]["running"], 300)
        rss = rss_bytes(door.pid)
        stuck = [reader(door, 2048) for _ in range(run.o.readers)]
        wait("the stuck streams to run", lambda: door.workers()[0]["running"] == run.o.readers)
        run.figure("p99 token gap of others, over as many readers that read", gaps(door) / base, "x", 1.05)
        wait("the stuck streams to end or pause", lambda: not door.workers()[0]["waiting"], 300)
        run.figure(f"memory held for {run.o.readers} stuck readers", (rss_bytes(door.pid) - rss) / 2**20, "MiB", 64)
        for s in stuck:
            s.close()


@fault("F-26", "SIGTERM under load")
def drain(run):
    with Cluster(run.o.sluice, run.o.tiny) as c:
        door = two_workers(c)
        reqs = bodies(32, 800)
        want = undisturbed(door, reqs)
        streams = [Stream(door.port, b) for b in reqs]
        underway(streams, 20)
        door.send(signal.SIGTERM)
        at = time.time()
        while True:
            try:
                if door.get("/ready")[0] == 503:
                    break
            except OSError:
                break
        run.figure("SIGTERM to readiness 503", ms(time.time() - at), "ms", 50)
        run.exact(all_tokens(streams), want, "streams not cut")
        run.figure("exit code", door.proc.wait(40), "", 0)


@fault("F-27", "a wedged engine")
def wedge(run):
    with Cluster(run.o.sluice, run.o.tiny) as c:
        door = c.serve("--threads", 1, "--inject", "engine.wedge=1+300")
        door.wait_port()
        s = Stream(door.port, bodies(1, 1200)[0])
        last = [0]

        def not_ready():
            if s.times:
                last[0] = s.times[-1]
            return door.get("/ready")[0] == 503
        wait("readiness 503", not_ready, 30)
        run.figure("last token to readiness 503", ms(time.time() - last[0]), "ms", 1100)
        door.send(signal.SIGTERM)
        door.send(signal.SIGTERM)


@fault("F-28", "rolling restart of all workers under load")
def rolling_restart(run):
    with Cluster(run.o.sluice, run.o.tiny) as c:
        end = f"tcp://127.0.0.1:{free_port()}"
        router = c.router("--bind", end)
        workers = [c.worker("--connect", end, "--threads", 1) for _ in range(3)]
        router.wait_port()
        wait("three workers", lambda: len(router.workers()) == 3)
        total, failed, done, lock = run.o.requests, [], [0], threading.Lock()

        def client(k):
            while True:
                with lock:
                    if done[0] >= total:
                        return
                    done[0] += 1
                    i = done[0]
                s = Stream(router.port, {"prompt": f"Item {i}", "max_tokens": 8, "ignore_eos": True, "seed": i})
                s.join(120)
                if s.error or not s.done or len(s.tokens) != 8:
                    failed.append(s.error)

        clients = [threading.Thread(target=client, args=(k,)) for k in range(8)]
        for t in clients:
            t.start()
        for i, w in enumerate(workers):
            wait("its turn", lambda: done[0] >= total * (i + 1) // 5, 600)
            w.send(signal.SIGTERM)
            w.proc.wait(60)
            workers[i] = c.worker("--connect", end, "--threads", 1)
            wait("it to be back", lambda: len(router.workers()) == 3)
        for t in clients:
            t.join()
        run.figure(f"requests failed of {total}", len(failed), "", 0)


class Squatters:
    """Connections to a port that say a greeting or nothing, and never a key; each that is closed comes again,
    so that there are always as many."""

    GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" + bytes(31)

    def __init__(self, port, n):
        self.port, self.stop = port, threading.Event()
        self.selector, self.n_made = selectors.DefaultSelector(), 0
        self.thread = threading.Thread(target=self.run, args=(n,))
        self.thread.start()

    def one(self):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        try:
            s.connect(("127.0.0.1", self.port))
            s.sendall([b"", self.GREETING][self.n_made % 2])
        except OSError:
            pass
        self.n_made += 1
        self.selector.register(s, selectors.EVENT_READ)

    def run(self, n):
        for _ in range(n):
            self.one()
        while not self.stop.is_set():
            for key, _ in self.selector.select(0.2):
                try:
                    gone = not key.fileobj.recv(4096)
                except OSError:
                    gone = True
                if gone:
                    self.selector.unregister(key.fileobj)
                    key.fileobj.close()
                    self.one()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()

    def end(self):
        self.stop.set()
        self.thread.join()


@fault("S-02", "a thousand squatters on the CURVE port")
def squatters(run):
    with tempfile.TemporaryDirectory() as keys, Cluster(run.o.sluice, run.o.tiny) as c:
        subprocess.run([run.o.sluice, "keygen", "--curve-dir", keys, "--nodes", "router:r,worker:w"], check=True,
                       stdout=subprocess.DEVNULL)
        port = free_port()
        end = f"tcp://127.0.0.1:{port}"
        router = c.router("--bind", end, "--curve-dir", f"{keys}/r")
        c.worker("--connect", end, "--curve-dir", f"{keys}/w", "--threads", 1)
        router.wait_port()
        reqs = bodies(16, 400)
        want = undisturbed(router, reqs)
        rss, peak, times = rss_bytes(router.pid), 0, {False: [], True: []}
        for k in range(2 * run.o.squat_rounds):  # in turn, so that the machine's other work hits both
            attack = Squatters(port, 1000) if k % 2 else None
            if attack:
                wait("the squatters to be there", lambda: attack.n_made >= 1000)
            start = time.time()
            got = undisturbed(router, reqs)
            times[bool(attack)].append(time.time() - start)
            peak = max(peak, rss_bytes(router.pid))
            if attack:
                attack.end()
            if got != want:
                run.exact(got, want)
        run.exact(got, want)
        loss = 100 * (percentile(times[True], 50) / percentile(times[False], 50) - 1)
        run.figure("throughput lost, median of rounds", loss, "%", 2)
        run.figure("memory grown, at most", (peak - rss) / 2**20, "MiB", 32)


def tiny_model(options):
    """A small random model from the build's generator."""
    maker = os.path.join(os.path.dirname(options.sluice), "tests/golden/sluice_tiny_model")
    if not os.path.exists(maker):
        sys.exit(f"bench faults: no {maker}; build the tests or give --tiny FILE")
    path = os.path.join(tempfile.mkdtemp(prefix="sluice-faults-"), "tiny.gguf")
    subprocess.run([maker, path], check=True)
    return path


def main():
    p = argparse.ArgumentParser(prog="sluice bench faults", description=__doc__.split("\n")[0])
    p.add_argument("--sluice", required=True, help=argparse.SUPPRESS)
    p.add_argument("--only", help="faults to run, e.g. F-01,F-03 (default: all)")
    p.add_argument("--model", help="GGUF file of the streams (default: the default model)")
    p.add_argument("--tiny", help="GGUF file of a small model (default: one made by the build)")
    p.add_argument("--output", help="JSON file of the figures")
    p.add_argument("--requests", type=int, default=10000, help="of the rolling restart")
    p.add_argument("--disconnects", type=int, default=2000)
    p.add_argument("--readers", type=int, default=200)
    p.add_argument("--squat-rounds", type=int, default=10, help="with and without squatters each")
    p.add_argument("--rounds", type=int, default=3, help="of each rank fault")
    o = p.parse_args()
    unknown = set(o.only.split(",")) - set(FAULTS) if o.only else set()
    if unknown:
        p.error(f"unknown faults: {', '.join(sorted(unknown))}; known: {', '.join(FAULTS)}")
    o.tiny = o.tiny or tiny_model(o)
    o.model = o.model or subprocess.run([o.sluice, "pull"], check=True, capture_output=True, text=True).stdout.strip()
    result = {"cpu": cpu_model(), "cores": os.cpu_count(), "load": os.getloadavg(), "faults": {}}
    print(f"{result['cpu']}, {result['cores']} cores, load {result['load'][0]:.1f}")
    missed = 0
    for name in (o.only.split(",") if o.only else FAULTS):
        what, f = FAULTS[name]
        print(f"{name}  {what}", flush=True)
        run = Run(o)
        try:
            f(run)
        except (RuntimeError, OSError) as e:
            run.figures.append({"name": "error", "value": str(e)[:2000], "unit": "", "goal": None, "ok": False})
            print(f"    FAILED: {e}", flush=True)
        missed += sum(not x["ok"] for x in run.figures)
        result["faults"][name] = {"what": what, "figures": run.figures}
        if o.output:
            with open(o.output, "w") as out:
                json.dump(result, out, indent=1)
    print(f"{missed} goals missed" if missed else "every goal met")
    sys.exit(9 if missed else 0)


if __name__ == "__main__":
    main()
