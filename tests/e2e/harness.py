"""Starts real servers for the end-to-end tests and talks to them. Standard library only."""
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

BIN = os.environ["SL_BIN"]
TINY = os.environ["SL_TINY_MODEL"]
SLOW = float(os.environ.get("SL_SLOW", "1"))  # sanitised builds are slower
PATIENT = ("--shutdown-timeout", 600)  # for drains that must cut nothing, however slow the machine is


def default_model():
    """Path of the default model; fetched if it is not there yet. Sanitised runs take the small one."""
    if os.environ.get("SL_TINY_ONLY"):
        return TINY
    return subprocess.run([BIN, "pull"], check=True, capture_output=True, text=True).stdout.strip()


SANITIZERS = ("ERROR: AddressSanitizer", "runtime error:", "WARNING: ThreadSanitizer", "LeakSanitizer")


def excerpt(text, n_lines=40, width=240):
    """What a log tells in few words: its end, or a sanitizer's first finding. Whoever reads a failed run may
    have but the beginning and the end of what a test printed."""
    lines = [line[:width] for line in text.splitlines()]
    for i, line in enumerate(lines):
        if any(s in line for s in SANITIZERS):
            return "\n".join(lines[i:i + 2 * n_lines])
    return "\n".join(lines[-n_lines:])


def show(error, *processes, n_lines=40):
    """What failed, and the ends of the logs."""
    print(f"failed: {str(error) or repr(error)}"[:2000])
    for p in processes:
        if os.path.exists(p.log.name):
            print(f"--- the log of {p.proc.pid}, its end:\n{excerpt(p.text(), n_lines)}")


class Server:
    """`sluice serve` on a free port, from READY to exit."""

    def __init__(self, *args, model=TINY, env=None, verb="serve", wait=True, prefix=()):
        self.log = tempfile.NamedTemporaryFile("w+", prefix="sluice-e2e-", suffix=".log", delete=False)
        command = [*prefix, BIN, verb] + ([model] if model else []) + ["--port", "0", *map(str, args)]
        full = dict(os.environ, **(env or {}))
        self.proc = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                     start_new_session=True, env=full)
        if wait:
            self.wait_ready()

    def wait_ready(self):
        self.port = self._wait_ready(60 * SLOW)
        return self

    def text(self):
        with open(self.log.name, errors="replace") as f:
            return f.read()

    def _wait_ready(self, limit):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            m = re.search(r"sluice: ready in [\d.]+ s, https?://\S*:(\d+)", self.text())
            if m:
                return int(m[1])
            if self.proc.poll() is not None:
                raise RuntimeError(f"server exited with {self.proc.returncode}:\n{excerpt(self.text())}")
            time.sleep(0.02)
        self.kill()
        raise RuntimeError("server is not ready:\n" + excerpt(self.text()))

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ps(self):
        return self.get("/v1/internal/ps")[1]

    def workers(self):
        return [p for p in self.ps() if p["role"] == "worker"]

    def free_pages(self):
        return sum(w["kv_pages_free"] for w in self.workers())

    def get(self, path, headers=None):
        return self.call("GET", path, None, headers)

    def post(self, path, body, headers=None):
        return self.call("POST", path, body, headers)

    def call(self, method, path, body, headers=None):
        """(status, parsed JSON or text)"""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120 * SLOW)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        h = {"Content-Type": "application/json"} if data is not None else {}
        c.request(method, path, data, {**h, **(headers or {})})
        r = c.getresponse()
        raw = r.read()
        c.close()
        self.headers = dict(r.getheaders())
        kind = r.getheader("Content-Type") or ""
        return r.status, json.loads(raw) if "json" in kind and raw else raw.decode()

    def sse(self, path, body, last_id=None):
        """(id or None, data text) of each event, until the stream ends or breaks."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120 * SLOW)
        headers = {"Content-Type": "application/json", **({"Last-Event-ID": last_id} if last_id else {})}
        c.request("POST", path, json.dumps(dict(body, stream=True)), headers)
        r = c.getresponse()
        if r.status != 200:
            error = Refused(r.status, r.read())
            c.close()
            raise error
        event = data = None
        try:
            for line in r:
                line = line.decode().rstrip("\n")
                if line.startswith("id: "):
                    event = line[4:]
                elif line.startswith("data: "):
                    data = line[6:]
                elif not line and data is not None:  # a comment alone keeps the connection open
                    yield event, data
                    event = data = None
        except (http.client.IncompleteRead, ConnectionError):
            pass
        finally:
            r.close()
            c.close()

    def events(self, path, body):
        """Parsed SSE data events of a streamed answer; the last is the string '[DONE]'."""
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120 * SLOW)
        c.request("POST", path, json.dumps(dict(body, stream=True)), {"Content-Type": "application/json"})
        r = c.getresponse()
        assert r.status == 200, (r.status, r.read())
        try:
            for line in r:
                line = line.decode().rstrip("\n")
                if line.startswith("data: "):
                    yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])
        finally:
            r.close()
            c.close()

    def raw(self, data, limit=10):
        """Sends bytes, returns all that comes until the server closes (or the limit passes)."""
        s = socket.create_connection(("127.0.0.1", self.port), timeout=limit * SLOW)
        s.sendall(data)
        out = b""
        try:
            while True:
                got = s.recv(65536)
                if not got:
                    break
                out += got
        except (ConnectionResetError, socket.timeout):
            pass
        s.close()
        return out

    def stop(self, expect=0):
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
        rc = self.proc.wait(60 * SLOW)
        text = self.text()
        os.unlink(self.log.name)
        assert not any(s in text for s in SANITIZERS), excerpt(text)
        assert rc == expect, f"exit code {rc}, not {expect}:\n{excerpt(text)}"

    def kill(self):
        if self.proc.poll() is None:
            os.killpg(self.proc.pid, signal.SIGKILL)
            self.proc.wait()

    def __enter__(self):
        return self

    def __exit__(self, kind, error=None, *_):
        if kind:
            show(error, self)
            self.kill()
        else:
            self.stop()


class Answer:
    """What a client has of a stream after some events, choice by choice."""

    def __init__(self):
        self.choices, self.usage, self.done, self.last_id, self.n_events = {}, None, False, None, 0
        self.error = self.proof = None

    def take(self, event_id, data):
        self.n_events += 1
        self.last_id = event_id or self.last_id
        if data == "[DONE]":
            self.done = True
            return
        e = json.loads(data)
        if "error" in e:
            self.error = e["error"]
            return
        self.proof = e.get("sluice") or self.proof
        if e.get("usage"):
            self.usage = {k: e["usage"][k] for k in ("prompt_tokens", "completion_tokens")}
        for c in e["choices"]:
            mine = self.choices.setdefault(c["index"], {"text": "", "logprobs": [], "ids": [], "ends": [],
                                                        "roles": 0})
            mine["roles"] += "role" in c.get("delta", {})
            mine["text"] += c["text"] if "text" in c else c["delta"].get("content", "")
            if c["logprobs"]:
                mine["logprobs"].append(c["logprobs"])
            mine["ids"] += c.get("token_ids", [])
            if c["finish_reason"]:
                mine["ends"].append((c["finish_reason"], c["stop_reason"]))

    def result(self):
        """Without how logprobs were cut into events."""
        assert not self.error, self.error
        out = {}
        for i, c in self.choices.items():
            flat = {}
            for part in c["logprobs"]:
                for name, values in part.items():
                    flat.setdefault(name, []).extend(values or [])
            out[i] = (c["text"], flat, c["ids"], c["ends"])
        return out, self.usage, self.done


def read_stream(server, path, body, answer=None, last_id=None):
    answer = answer or Answer()
    for event in server.sse(path, body, last_id):
        answer.take(*event)
    return answer


def difference(got, want):
    """In words, how an Answer is not what it must be; None: it is."""
    ends = {i: c["ends"] for i, c in got.choices.items()}
    so_far = f"after {got.n_events} events, ends {ends}, last id {got.last_id}"
    if got.error:
        return f"error {got.error} {so_far}"
    if not got.done:
        return f"cut off {so_far}"
    g, w = got.result(), want.result()
    if g == w:
        return None
    for i, choice in w[0].items():
        for name, x, y in zip(("text", "logprobs", "ids", "ends"), g[0].get(i, ("", {}, [], [])), choice):
            if x != y and name in ("text", "ids"):
                at = next((k for k, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
                return f"choice {i}: {name} of {len(x)} differs from {len(y)} at {at}, {so_far}"
            if x != y:
                return f"choice {i}: {name} differ: {str(x)[:200]}, not {str(y)[:200]}, {so_far}"
    return f"usage {g[1]}, not {w[1]}, {so_far}"


def check_streams(answers, want):
    """Every stream is what it must be; else says which is not, and how."""
    wrong = [f"stream {i}: {d}" for i, (a, w) in enumerate(zip(answers, want)) if (d := difference(a, w))]
    assert len(answers) <= len(want)
    assert not wrong, f"{len(wrong)} of {len(answers)} streams are wrong: " + "; ".join(wrong[:8])


class Refused(Exception):
    """A stream that was answered with an error: status and body."""

    def __init__(self, status, body):
        super().__init__(status, body)
        self.status = status
        self.error = json.loads(body)["error"]


class Router(Server):
    """`sluice router`; its endpoint for workers is `bus`. It is ready once a worker is: wait_ready."""

    def __init__(self, *args, bus=None, env=None, prefix=()):
        self.bus = bus or f"tcp://127.0.0.1:{free_port()}"
        super().__init__("--bind", self.bus, *args, model=None, env=env, verb="router", wait=False, prefix=prefix)


class Worker:
    """`sluice worker` for one or more routers."""

    def __init__(self, *routers, args=(), model=TINY, prefix=(), env=None):
        self.log = tempfile.NamedTemporaryFile("w+", prefix="sluice-e2e-", suffix=".log", delete=False)
        self.proc = subprocess.Popen(
            [*prefix, BIN, "worker", model, "--threads", "1", "--connect", ",".join(r.bus for r in routers),
             *map(str, args)], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True, env=dict(os.environ, **(env or {})))

    @property
    def pid(self):
        return self.proc.pid

    def text(self):
        with open(self.log.name, errors="replace") as f:
            return f.read()

    def signal(self, signum):
        self.proc.send_signal(signum)

    def kill(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()

    def stop(self, expect=0):
        """SIGTERM, and the exit code."""
        if self.proc.poll() is None:
            self.proc.terminate()
        rc = self.proc.wait(60 * SLOW)
        text = self.text()
        os.unlink(self.log.name)
        assert rc == expect and "Sanitizer" not in text, f"exit code {rc}, not {expect}:\n{excerpt(text)}"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(what, holds, limit=20):
    """Polls a condition of the server; fails with its name."""
    end = time.monotonic() + limit * SLOW
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def until_true(what, attempt, n=6):
    """Runs `attempt`, which checks what must hold always and returns whether it met what it is for (a fault
    in mid-stream: a fast server may be done before); fails when that never came."""
    for _ in range(n):
        if attempt():
            return
    raise AssertionError(what)


def in_parallel(jobs):
    """Runs callables on threads, returns their results in order; the first error is raised."""
    results, errors = [None] * len(jobs), []

    def one(i):
        try:
            results[i] = jobs[i]()
        except BaseException as e:  # noqa: BLE001: handed to the caller below
            errors.append(e)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return results


def run(*args, env=None, input=None, limit=60):
    """A verb that ends by itself: (exit code, stdout, stderr)."""
    full = dict(os.environ, **(env or {}))
    p = subprocess.run([BIN, *map(str, args)], capture_output=True, text=True, input=input, env=full,
                       timeout=limit * SLOW)
    return p.returncode, p.stdout, p.stderr
