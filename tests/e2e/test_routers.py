"""Several routers that share nothing, each fed by the workers' KV events: a prefix is found from a
router that never saw it, one router's death is none of the other's business, a slow worker is left
out; and the events themselves, read by a subscriber that knows vLLM's structs only."""
import hashlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import msgspec
import zmq

import harness
from harness import SLOW, TINY, Server, wait_until

PAGE = 16


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def prompt(i, n=200):
    """Token ids of a prompt that shares no page with those of other i."""
    return [(i * 37 + k * 11 + k * k % 7) % 250 + 1 for k in range(n)]


def ask(server, i, n=200, max_tokens=4, **more):
    status, answer = server.post("/v1/completions", {"prompt": prompt(i, n), "max_tokens": max_tokens, "temperature": 0,
                                                     "ignore_eos": True, **more})
    return status, answer


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def metric(server, name):
    text = server.get("/metrics")[1]
    return sum(float(v) for v in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.M))


class Worker:
    def __init__(self, ports, *args):
        self.log = tempfile.NamedTemporaryFile("w+", prefix="sluice-e2e-", suffix=".log", delete=False)
        connect = ",".join(f"tcp://127.0.0.1:{p}" for p in ports)
        self.run_dir = tempfile.mkdtemp(prefix="slr-")
        self.proc = subprocess.Popen(
            [harness.BIN, "worker", TINY, "--connect", connect, "--threads", "1", *map(str, args)],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
            env=dict(os.environ, XDG_RUNTIME_DIR=self.run_dir))

    def stop(self):
        """A clean end, which leaves no socket behind."""
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGCONT)
            self.proc.send_signal(signal.SIGTERM)
        rc = self.proc.wait(60 * SLOW)
        with open(self.log.name, errors="replace") as f:
            text = f.read()
        os.unlink(self.log.name)
        left = os.listdir(self.run_dir)
        for word in ("AddressSanitizer", "runtime error:", "ThreadSanitizer", "LeakSanitizer"):
            assert word not in text, text
        assert rc == 0, (rc, text)
        assert not left, left
        os.rmdir(self.run_dir)


def router(port, *args):
    return Server("--bind", f"tcp://127.0.0.1:{port}", *args, model=None, verb="router")


class Cluster:
    """n routers and n workers, each worker with every router."""

    def __init__(self, n_routers, n_workers, *router_args, worker_args=()):
        self.ports = free_ports(n_routers)
        self.router_args = router_args
        self.workers = [Worker(self.ports, *worker_args) for _ in range(n_workers)]
        self.routers = [router(p, *router_args) for p in self.ports]
        for r in self.routers:
            self.wait_workers(r)

    def wait_workers(self, r):
        wait_until("all workers are registered", lambda: len(r.workers()) == len(self.workers))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        if kind:
            show(error, *self.routers, n_lines=20)
        for r in self.routers:
            r.kill() if kind else r.stop()
        for w in self.workers:
            if not kind:
                w.stop()
            elif w.proc.poll() is None:
                w.proc.kill()
                w.proc.wait()


class Routers(unittest.TestCase):
    def test_prefix_found_from_the_other_router(self):
        n, pages = 10, 200 // PAGE
        with Cluster(2, 2) as c:
            a, b = c.routers
            first = [ask(a, i)[1] for i in range(n)]
            self.assertEqual([cached(x) for x in first], [0] * n)
            for r in (a, b):
                wait_until("its index is complete", lambda: metric(r, "sluice_router_kv_index_pages") >= n * pages)
            self.assertEqual(metric(b, "sluice_router_decisions_total"), 0)
            # By chance it would find all ten at the right one of two workers once in a thousand times.
            again = [ask(b, i)[1] for i in range(n)]
            self.assertEqual([cached(x) for x in again], [pages * PAGE] * n)
            self.assertEqual([x["choices"] for x in again], [x["choices"] for x in first])
            self.assertEqual(metric(b, "sluice_router_cached_tokens_expected_total"), n * pages * PAGE)
            self.assertEqual(metric(b, "sluice_kv_cache_events_malformed_total"), 0)

    def test_kill_9_of_a_router(self):
        n, pages = 6, 200 // PAGE
        with Cluster(2, 2) as c:
            a, b = c.routers
            expected = [ask(a, i, max_tokens=24)[1]["choices"][0]["text"] for i in range(n)]
            stop, failed, served = threading.Event(), [], [0]

            def client(k):
                while not stop.is_set():
                    status, answer = ask(b, k % n, max_tokens=24)
                    if status != 200 or answer["choices"][0]["text"] != expected[k % n]:
                        failed.append((status, answer))
                    served[0] += 1

            clients = [threading.Thread(target=client, args=(k,)) for k in range(4)]
            for t in clients:
                t.start()
            wait_until("requests flow", lambda: served[0] > 4)
            a.kill()
            started = time.monotonic()
            c.routers[0] = a = router(c.ports[0])
            ready = time.monotonic() - started
            c.wait_workers(a)
            registered = time.monotonic() - started
            # What the killed router had learned comes back from the workers.
            wait_until("its index is rebuilt", lambda: metric(a, "sluice_router_kv_index_pages") >= n * pages)
            rebuilt = time.monotonic() - started
            self.assertEqual(cached(ask(a, 0)[1]), pages * PAGE)
            stop.set()
            for t in clients:
                t.join()
            self.assertEqual(failed, [])
            print(f"restarted router: ready after {ready * 1e3:.0f} ms, workers {registered * 1e3:.0f} ms, "
                  f"index {rebuilt * 1e3:.0f} ms; the other served {served[0]} requests", file=sys.stderr)

    def test_stopping_a_router_leaves_the_workers(self):
        with Cluster(2, 1) as c:
            c.routers.pop(0).stop()
            self.assertEqual(ask(c.routers[0], 1)[0], 200)

    def test_session_stays(self):
        """Its prompt is cached at one worker of three, and found there however the session is named."""
        with Cluster(2, 3, "--routing-policy", "session") as c:
            for i, name in enumerate("abcdefgh"):
                hows = [({"session_id": name}, {}), ({}, {"X-Session-ID": name}), ({"session_id": name}, {"X-Session-ID": "z"})]
                found = []
                for body, headers in hows:
                    for r in c.routers:
                        status, answer = r.post("/v1/completions", {"prompt": prompt(i), "max_tokens": 2, **body}, headers)
                        self.assertEqual(status, 200)
                        found.append(cached(answer))
                self.assertEqual(found, [0] + [192] * 5, name)
            wait_until("not all sessions are at one worker", lambda: sum(w["steps"] > 0 for w in c.routers[0].workers()) > 1)

    def test_slow_worker_is_left_out(self):
        """Ten of its steps take far longer than the same steps elsewhere: it is left out, its streams go on
        exactly, and when it is fast again it is back."""
        with Cluster(1, 2) as c:
            r = c.routers[0]
            expected = [ask(r, i, 60, max_tokens=40)[1]["choices"][0]["text"] for i in range(6)]
            c.workers.append(Worker(c.ports, "--inject", "engine.slow=1@400+60x10"))
            c.wait_workers(r)
            ended, bad = threading.Event(), []

            def client(k):
                while not ended.is_set():
                    status, answer = ask(r, k % 6, 60, max_tokens=40)
                    if status != 200 or answer["choices"][0]["text"] != expected[k % 6]:
                        bad.append((status, answer))

            clients = [threading.Thread(target=client, args=(k,)) for k in range(6)]
            for t in clients:
                t.start()
            try:
                wait_until("it is left out", lambda: metric(r, "sluice_router_ejections_total") >= 1, limit=60)
                wait_until("it is back", lambda: metric(r, "sluice_workers_ejected") == 0, limit=120)
            finally:
                ended.set()
                for t in clients:
                    t.join()
            self.assertEqual(bad, [])
            self.assertEqual(metric(r, "sluice_router_retry_budget_exhausted_total"), 0)


# vLLM's structs, as a subscriber of another program would write them down.
class Event(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    pass


class BlockStored(Event):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list | None = None
    group_idx: int | None = None


class BlockRemoved(Event):
    block_hashes: list[bytes | int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(Event):
    pass


class KVEventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


# Before 0.33: events are arrays.
class OldEvent(msgspec.Struct, array_like=True, omit_defaults=True, gc=False, tag=True):
    pass


class OldStored(OldEvent, tag="BlockStored"):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None = None


class OldRemoved(OldEvent, tag="BlockRemoved"):
    block_hashes: list[bytes | int]
    medium: str | None


class OldCleared(OldEvent, tag="AllBlocksCleared"):
    pass


class OldBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    ts: float
    events: list[OldStored | OldRemoved | OldCleared]
    data_parallel_rank: int | None = None


class Subscriber:
    """SUB and the replay socket, as in vLLM's examples/online_serving/kv_events_subscriber.py."""

    def __init__(self, port, replay_port, topic, old):
        self.ctx = zmq.Context()
        self.old = old
        self.sub = self.ctx.socket(zmq.SUB)
        self.sub.connect(f"tcp://127.0.0.1:{port}")
        self.sub.setsockopt_string(zmq.SUBSCRIBE, topic)
        self.replay_socket = self.ctx.socket(zmq.REQ)
        self.replay_socket.connect(f"tcp://127.0.0.1:{replay_port}")
        self.decode = msgspec.msgpack.Decoder(OldBatch if old else KVEventBatch).decode

    def live(self, ms):
        if not self.sub.poll(ms):
            return None
        topic, seq, payload = self.sub.recv_multipart()
        return topic, int.from_bytes(seq, "big"), self.decode(payload)

    def replay(self, start):
        dealer = self.ctx.socket(zmq.DEALER)
        dealer.connect(self.replay_socket.getsockopt_string(zmq.LAST_ENDPOINT))
        dealer.send_multipart([b"", start.to_bytes(8, "big")])
        out = []
        while True:
            assert dealer.poll(10000 * SLOW), "no answer to a replay request"
            frames = dealer.recv_multipart()
            assert frames[0] == b"" and len(frames) == (3 if self.old else 4), frames
            seq, payload = frames[-2:]
            if int.from_bytes(seq, "big", signed=True) == -1:
                assert payload == b""
                dealer.close(0)
                return out
            out.append((int.from_bytes(seq, "big"), self.decode(payload)))

    def close(self):
        self.sub.close(0)
        self.replay_socket.close(0)
        self.ctx.term()


class KvEvents(unittest.TestCase):
    def pages(self, batches):
        """The set of pages after these batches, each {hash: (parent, tokens)}; the chain is checked."""
        held = {}
        for _, batch in batches:
            self.assertLess(abs(batch.ts - time.time()), 3600)
            self.assertEqual(batch.data_parallel_rank, 0)
            for e in batch.events:
                name = type(e).__name__
                if name.endswith("Cleared"):
                    held = {}
                elif name.endswith("Removed"):
                    for key in e.block_hashes:
                        held.pop(key)  # it was there
                else:
                    self.assertEqual(len(e.token_ids), len(e.block_hashes) * e.block_size)
                    self.assertEqual((e.medium, e.lora_id), ("CPU", None))
                    parent = e.parent_block_hash
                    for i, key in enumerate(e.block_hashes):
                        tokens = e.token_ids[i * e.block_size:(i + 1) * e.block_size]
                        self.assertEqual(len(key), 32)
                        self.assertTrue(parent is None or parent in held)
                        if parent is not None:
                            self.assertEqual(key, hashlib.sha256(parent + struct.pack(f"<{len(tokens)}I", *tokens)).digest())
                        held[key] = (parent, tokens)
                        parent = key
        return held

    def subscriber_sees_all(self, old):
        port, replay_port = free_ports(2)
        # Few pages: prompts push each other out.
        args = ["--kv-events-endpoint", f"tcp://127.0.0.1:{port}", "--kv-events-replay-endpoint",
                f"tcp://127.0.0.1:{replay_port}", "--kv-events-topic", "kv@tiny", "--max-model-len", "256",
                "--kv-cache-memory-bytes", "200000", "--threads", "1"] + (["--kv-events-format", "vllm-array"] if old else [])
        with Server(*args) as s:
            sub = Subscriber(port, replay_port, "kv@", old)
            try:
                live, i = [], 0
                while not live:  # the subscription takes its time
                    ask(s, i)
                    i += 1
                    got = sub.live(200)
                    live += [got] if got else []
                for k in range(i, i + 30):
                    ask(s, k % 40)
                while (got := sub.live(500)) is not None:
                    live.append(got)
                self.assertEqual({t for t, _, _ in live}, {b"kv@tiny"})
                numbers = [n for _, n, _ in live]
                self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
                everything = sub.replay(0)
                self.assertEqual([n for n, _ in everything], list(range(len(everything))))
                self.assertEqual(everything[numbers[0]:numbers[-1] + 1], [(n, b) for _, n, b in live])
                self.assertEqual(sub.replay(len(everything)), [])
                self.assertLess(s.workers()[0]["kv_pages_total"], 400)
                self.assertTrue(any("Removed" in type(e).__name__ for _, b in everything for e in b.events))
                held = self.pages(everything)
                # The last prompt is there, from its first page on.
                roots = {tuple(t): k for k, (p, t) in held.items() if p is None}
                last = prompt((i + 29) % 40)
                key = roots[tuple(last[:PAGE])]
                for p in range(1, 200 // PAGE):
                    key = next(k for k, v in held.items() if v == (key, last[p * PAGE:(p + 1) * PAGE]))
            finally:
                sub.close()

    def test_as_vllm_0_33(self):
        self.subscriber_sees_all(old=False)

    def test_as_vllm_before(self):
        self.subscriber_sees_all(old=True)

    def test_endpoints_of_others_need_keys(self):
        for endpoint in ("tcp://*:5557", "tcp://0.0.0.0:5557", "tcp://10.1.2.3:5557"):
            rc, _, err = harness.run("worker", TINY, "--connect", "tcp://127.0.0.1:1", "--kv-events-endpoint", endpoint)
            self.assertEqual(rc, 3, err)
            self.assertIn("curve", err)
        rc, _, err = harness.run("serve", TINY, "--port", "0", "--workers", "2", "--kv-events-endpoint", "tcp://127.0.0.1:5557")
        self.assertEqual(rc, 2, err)

    def test_off(self):
        with Server("--no-kv-events") as s:
            self.assertEqual(ask(s, 1)[0], 200)
            self.assertEqual(cached(ask(s, 1)[1]), 192)
            self.assertEqual(metric(s, "sluice_kv_cache_events_total"), 0)


if __name__ == "__main__":
    unittest.main()
