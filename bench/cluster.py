"""Processes of a small cluster and streams through it, for bench/faults.py. Standard library only.

Every process is a real `sluice`; what it logs is read as JSON lines, so that an event in a log and
one seen by a client are told by the same clock (time.time()).
"""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from datetime import datetime


class Process:
    """One sluice process with its log."""

    def __init__(self, program, *args):
        self.log = tempfile.NamedTemporaryFile(prefix="sluice-faults-", suffix=".log", delete=False)
        self.args = [program, *map(str, args)]
        self.started = time.time()
        self.proc = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                     start_new_session=True)

    @property
    def pid(self):
        return self.proc.pid

    def text(self):
        with open(self.log.name, errors="replace") as f:
            return f.read()

    def log_time(self, pattern, after):
        """When the first log line matching `pattern` since `after` was written; None if there is none."""
        for line in self.text().splitlines():
            if not line.startswith("{") or not re.search(pattern, line):
                continue
            t = datetime.fromisoformat(json.loads(line)["ts"].replace("Z", "+00:00")).timestamp()
            if t >= after - 0.001:
                return t
        return None

    def send(self, number):
        os.kill(self.pid, number)

    def end(self):
        if self.proc.poll() is None:
            try:
                self.send(signal.SIGCONT)
                self.send(signal.SIGTERM)
                self.proc.wait(20)
            except subprocess.TimeoutExpired:
                self.proc.kill()
        self.proc.wait()
        if os.path.exists(self.log.name):
            os.unlink(self.log.name)


class Door(Process):
    """A process with an HTTP door: `serve` or `router`."""

    def __init__(self, program, *args, port=0):
        super().__init__(program, args[0], *args[1:], "--port", port, "--log-format", "json")
        self.port = port or None

    def wait_port(self, limit=60):
        """The port, once READY was printed."""
        def ready():
            m = re.search(r"sluice: ready in [\d.]+ s, https?://\S*:(\d+)", self.text())
            if m:
                self.port = int(m[1])
            elif self.proc.poll() is not None:
                raise RuntimeError(f"{' '.join(self.args)} exited with {self.proc.returncode}:\n{self.text()}")
            return bool(m)
        wait("READY", ready, limit)
        return self.port

    def get(self, path, timeout=60):
        return self.call("GET", path, None, timeout)

    def post(self, path, body, timeout=600):
        return self.call("POST", path, body, timeout)

    def call(self, method, path, body, timeout):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            c.request(method, path, json.dumps(body) if body is not None else None,
                      {"Content-Type": "application/json"} if body is not None else {})
            r = c.getresponse()
            raw = r.read()
            return r.status, json.loads(raw) if "json" in (r.getheader("Content-Type") or "") else raw.decode()
        finally:
            c.close()

    def ps(self):
        return self.get("/v1/internal/ps")[1]

    def workers(self):
        return [p for p in self.ps() if p["role"] != "router" and not p.get("rank")]

    def ranks(self):
        return [p for p in self.ps() if p["role"] != "router"]


class Cluster:
    """Routers and workers of this machine, ended together."""

    def __init__(self, program, model):
        self.program, self.model, self.all = program, model, []

    def serve(self, *args):
        return self.keep(Door(self.program, "serve", self.model, *args))

    def router(self, *args, port=0):
        return self.keep(Door(self.program, "router", *args, port=port))

    def worker(self, *args):
        return self.keep(Process(self.program, "worker", self.model, *args, "--log-format", "json"))

    def keep(self, p):
        self.all.append(p)
        return p

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for p in self.all:
            if kind and os.environ.get("SLUICE_FAULTS_LOGS"):
                print(p.text())
            p.end()


class Stream(threading.Thread):
    """A streamed completion: token ids with the time each came, and how it ended."""

    def __init__(self, port, body, headers=None):
        super().__init__(daemon=True)
        self.port, self.body, self.headers = port, dict(body, stream=True, return_token_ids=True), headers or {}
        self.tokens, self.times, self.error, self.done, self.last_id = [], [], None, False, None
        self.text, self.status = "", None
        self.sent = time.time()
        self.start()

    def run(self):
        try:
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
            c.request("POST", "/v1/completions", json.dumps(self.body),
                      {"Content-Type": "application/json", **self.headers})
            r = c.getresponse()
            self.status = r.status
            if r.status != 200:
                self.error = r.read().decode()
                return
            for line in r:
                self.take(line.decode().rstrip("\n"))
            if not self.done and not self.error:
                self.error = "the connection ended before [DONE]"
        except (OSError, http.client.HTTPException) as e:
            self.error = repr(e)

    def take(self, line):
        if line.startswith("id:"):
            self.last_id = line[3:].strip()
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            self.done = True
            return
        event, now = json.loads(line[6:]), time.time()
        if "error" in event:
            self.error = event["error"]
            return
        for c in event["choices"]:
            self.text += c.get("text") or ""
            ids = c.get("token_ids") or []
            self.tokens += ids
            self.times += [now] * len(ids)

    def longest_gap(self, since):
        """Seconds of the longest wait for a token that began or was under way at `since` or later."""
        t = self.times
        return max((b - a for a, b in zip(t, t[1:]) if b > since), default=0.0)


def wait(what, holds, limit=60):
    end = time.monotonic() + limit
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {limit} s for: {what}")
        time.sleep(0.005)


def bodies(n, tokens, words=40):
    """n different requests, greedy and sampled in turn."""
    return [{"prompt": f"Item {i}: " + "river stone lamp glass " * (words // 4), "max_tokens": tokens,
             "ignore_eos": True, "temperature": 0.9 * (i % 2), "seed": 500 + i} for i in range(n)]


def all_tokens(streams, limit=600):
    """Joins the streams; their tokens, or an error naming the first that failed."""
    for i, s in enumerate(streams):
        s.join(limit)
        if s.error or not s.done:
            raise RuntimeError(f"stream {i}: {s.error or 'not finished'}")
    return [s.tokens for s in streams]


def percentile(values, p):
    v = sorted(values)
    return v[min(len(v) - 1, int(p / 100 * len(v)))]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def rss_bytes(pid):
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_model():
    with open("/proc/cpuinfo") as f:
        m = re.search(r"model name\s*: (.*)", f.read())
    return m[1] if m else "unknown"
