"""Nobody without a key speaks to a node, and nobody who tries costs the others anything: CURVE end to end
over tcp, keys that come, go and change under running streams, peers that say nothing, garbage or the same
bytes twice, and a cluster of two protocol versions. Streams are compared token by token throughout."""
import os
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time
import unittest

from harness import SLOW, Router, Server, Worker, free_port, read_stream, run, show, wait_until

N_SQUATTERS = int(os.environ.get("SL_SQUATTERS", "1000"))
GROWTH_MAX_KIB = 32 * 1024
TEXT = "/v1/completions"


def body(i, max_tokens=80):
    return {"prompt": f"Line {i} says " * (1 + i % 3), "max_tokens": max_tokens, "ignore_eos": True, "seed": i,
            "temperature": 0.8 * (i % 2), "logprobs": 1, "return_token_ids": True}


def metric(server, name):
    for line in server.get("/metrics")[1].splitlines():
        if line.startswith((name + "{", name + " ")):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(name)


def rss_kib(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))


def listeners(pid):
    """(address, port) of every listening TCP socket of a process."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass
    found = set()
    for name in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{name}") as f:
            for line in list(f)[1:]:
                local, state, inode = line.split()[1], line.split()[3], line.split()[9]
                if state == "0A" and f"socket:[{inode}]" in inodes:
                    host, port = local.split(":")
                    found.add((bytes.fromhex(host)[::-1], int(port, 16)))
    return found


class Keys:
    """Folders of a cluster's nodes, made by keygen."""

    def __init__(self, *nodes):
        self.root = tempfile.mkdtemp(prefix="sluice-keys-")
        self.add(*nodes)

    def add(self, *nodes):
        rc, _, err = run("keygen", "--curve-dir", self.root, "--nodes", ",".join(nodes))
        assert rc == 0, err

    def dir(self, node, *path):
        return os.path.join(self.root, node, *path)

    def pair(self, node, *args):
        rc, _, err = run("keygen", "--curve-dir", self.dir(node), "--name", node, "--role",
                         "router" if node[0] == "r" else "worker", *args)
        assert rc == 0, err

    def give(self, source, node, name):
        """A public key file joins another node's allowed ones, all at once."""
        shutil.copy(source, self.dir(node, ".coming"))
        os.rename(self.dir(node, ".coming"), self.dir(node, "allowed", name + ".pub"))

    def take(self, node, name):
        os.unlink(self.dir(node, "allowed", name + ".pub"))

    def close(self):
        shutil.rmtree(self.root)


class Cluster:
    """A router and workers under CURVE, node names r, w0, w1, ...; or without keys."""

    def __init__(self, n, keys=None, router_args=(), worker_args=(), through=None):
        self.keys = keys
        self.router = Router(*self.keyed("r"), *router_args)
        self.target = through(self.router) if through else self.router
        self.workers = [self.worker(f"w{i}", *worker_args) for i in range(n)]
        try:
            self.router.wait_ready()
            self.wait(n)
        except BaseException:
            for w in self.workers:
                w.kill()
            raise

    def keyed(self, node):
        return ("--curve-dir", self.keys.dir(node)) if self.keys else ()

    def worker(self, node, *args):
        return Worker(self.target, args=(*self.keyed(node), *args))

    def wait(self, n):
        wait_until(f"{n} workers", lambda: len(self.router.workers()) == n)

    def pids(self):
        return sorted(w["pid"] for w in self.router.workers())

    @property
    def bus_port(self):
        return int(self.router.bus.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        if kind:
            show(error, self.router, *self.workers, n_lines=20)
        for w in self.workers:
            w.kill()
        self.router.kill() if kind else self.router.stop()


class Load:
    """Streams one after the other on some threads, each compared with what it must be."""

    def __init__(self, server, n_threads=4, max_tokens=80):
        self.server, self.errors, self.n_done, self.stopping = server, [], 0, False
        self.n_kinds = 2 * n_threads
        self.bodies = [body(i, max_tokens) for i in range(self.n_kinds)]
        self.want = [read_stream(server, TEXT, b).result() for b in self.bodies]
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.go, args=(i,)) for i in range(n_threads)]

    def go(self, i):
        while not self.stopping and not self.errors:
            try:
                got = read_stream(self.server, TEXT, self.bodies[i % self.n_kinds]).result()
                if got != self.want[i % self.n_kinds]:
                    self.errors.append((i, got, self.want[i % self.n_kinds]))
            except BaseException as e:  # noqa: BLE001: told by the owner
                self.errors.append((i, e))
            with self.lock:
                self.n_done += 1
            i += 1

    def more(self, n):
        """Another n streams have been served."""
        until = self.n_done + n
        wait_until(f"{n} more streams", lambda: self.n_done >= until or self.errors, 60)
        assert not self.errors, self.errors[0]

    def __enter__(self):
        for t in self.threads:
            t.start()
        self.more(len(self.threads))
        return self

    def __exit__(self, *_):
        self.stopping = True
        for t in self.threads:
            t.join()
        assert not self.errors, self.errors[0]


def greeting(mechanism):
    return b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + mechanism.ljust(20, b"\0") + b"\0" + bytes(31)


def squat(port, i):
    """A connection that never becomes a peer; what it says depends on i."""
    said = [b"", b"\xff", greeting(b"CURVE"), greeting(b"NULL"), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            greeting(b"CURVE") + b"\x04\xc8" + b"\x05HELLO\x01\x00" + bytes(192),
            greeting(b"NULL") + b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\6DEALER",
            greeting(b"CURVE") + b"\x06" + struct.pack(">Q", 1 << 62)]
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.connect(("127.0.0.1", port))
    s.sendall(said[i % len(said)])
    return s


class Tampering:
    """A proxy in front of a router's bus port. `act` once changes what passes to the router."""

    def __init__(self, router):
        self.to = int(router.bus.rsplit(":", 1)[1])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.bus = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.act, self.tape = None, []  # of what passes to the router
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            a = self.listener.accept()[0]
            try:
                b = socket.create_connection(("127.0.0.1", self.to))
            except OSError:  # not there yet
                a.close()
                continue
            threading.Thread(target=self.pump, args=(a, b, True), daemon=True).start()
            threading.Thread(target=self.pump, args=(b, a, False), daemon=True).start()

    def pump(self, source, sink, upward):
        try:
            while data := source.recv(65536):
                if upward and len(self.tape) < 200:
                    self.tape.append(data)
                act = self.act if upward and len(data) > 64 else None
                if act:
                    self.act = None
                sink.sendall(act(data) if act else data)
        except OSError:
            pass
        for s in (source, sink):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def flip(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1:]


class Security(unittest.TestCase):
    def keys(self, *nodes):
        k = Keys(*nodes)
        self.addCleanup(k.close)
        return k

    def test_only_loopback_without_keys(self):
        for endpoint in ("tcp://0.0.0.0:5599", "tcp://*:5599", "tcp://[::]:5599", "tcp://10.0.0.1:5599",
                         "tcp://node-7.example:5599", "tcp://eth0:5599", "tcp://[2001:db8::1]:5599"):
            rc, _, err = run("router", "--bind", endpoint, "--port", 0)
            self.assertEqual((rc, "--curve-dir" in err), (3, True), err)
            rc, _, err = run("worker", os.environ["SL_TINY_MODEL"], "--connect", endpoint)
            self.assertEqual((rc, "--curve-dir" in err), (3, True), err)

    def test_only_expected_sockets_listen(self):
        keys = self.keys("router:r", "worker:w0")
        loopback = bytes([127, 0, 0, 1])
        with Cluster(1, keys) as c:
            self.assertEqual(listeners(c.router.proc.pid),
                             {(loopback, c.router.port), (loopback, c.bus_port)})
            self.assertTrue(all(host[0] == 127 for host, _ in listeners(c.workers[0].pid)))
        with Server() as s:
            self.assertEqual(listeners(s.proc.pid), {(loopback, s.port)})

    def test_stranger(self):
        """A key that nobody allowed, no key at all, and a worker's key held by a router."""
        keys = self.keys("router:r", "worker:w0")
        others = self.keys("router:r", "worker:w0")
        others.give(keys.dir("r", "public.key"), "w0", "r")
        with Cluster(1, keys) as c, Load(c.router, 2) as load:
            strange = Worker(c.router, args=("--curve-dir", others.dir("w0")))
            bare = Worker(c.router)
            wait_until("both are refused", lambda: metric(c.router, "sluice_zmq_denied_total") >= 2 and
                       metric(c.router, "sluice_zmq_handshakes_failed_total") >= 4)
            load.more(4)
            self.assertEqual(c.pids(), [c.workers[0].pid])
            with open(strange.log.name) as f:
                self.assertIn("does not allow our key", f.read())
            for w in (strange, bare):
                w.kill()
            text = c.router.text()
            with open(keys.dir("w0", "secret.key")) as f:
                self.assertNotIn(f.read().split()[2], text)
            with open(others.dir("w0", "public.key")) as f:
                self.assertNotIn(f.read().split()[2], text)
        with Cluster(1, keys) as c:  # a router that shows a worker's key is not spoken to
            port = free_port()
            false = Router("--curve-dir", keys.dir("w0"), "--port", port)
            false.port = port
            wait_until("it listens", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
            w = Worker(false, args=("--curve-dir", keys.dir("w0")))
            wait_until("no handshake", lambda: metric(false, "sluice_zmq_handshakes_failed_total") >= 3)
            self.assertEqual(false.workers(), [])
            w.kill()
            false.stop()

    def test_keys_come_and_go(self):
        keys = self.keys("router:r", "worker:w0", "worker:w1")
        keys.take("r", "w1")
        with Cluster(1, keys) as c, Load(c.router) as load:
            late = c.worker("w1")
            c.workers.append(late)
            wait_until("w1 is refused", lambda: metric(c.router, "sluice_zmq_denied_total") >= 1)
            self.assertEqual(c.pids(), [c.workers[0].pid])
            keys.give(keys.dir("w1", "public.key"), "r", "w1")
            c.wait(2)
            load.more(8)
            # w0 loses its key in the middle of streams: they go on at w1.
            keys.take("r", "w0")
            os.kill(c.router.proc.pid, signal.SIGHUP)
            wait_until("w0 is cut", lambda: c.pids() == [late.pid])
            self.assertEqual(metric(c.router, "sluice_zmq_revoked_total"), 1)
            load.more(8)
            keys.give(keys.dir("w0", "public.key"), "r", "w0")
            c.wait(2)
            load.more(8)
            self.assertTrue(all(w.proc.poll() is None for w in c.workers))

    def test_rotation(self):
        """Every node gets a new key under running streams; no process is started again."""
        keys = self.keys("router:r", "worker:w0", "worker:w1")
        with Cluster(2, keys) as c, Load(c.router) as load:
            before = c.pids()
            for i, node in enumerate(("w0", "w1")):
                keys.pair(node, "--next")
                keys.give(keys.dir(node, "next.pub"), "r", node + ".next")
                self.assertEqual(run("keygen", "--curve-dir", keys.dir(node), "--promote")[0], 0)
                n = metric(c.router, "sluice_zmq_handshakes_total")
                keys.take("r", node)
                wait_until("the old link is cut",
                           lambda: metric(c.router, "sluice_zmq_revoked_total") == i + 1)
                wait_until("it is back under the new key",
                           lambda: metric(c.router, "sluice_zmq_handshakes_total") > n)
                c.wait(2)
                load.more(6)
            keys.pair("r", "--next")
            for node in ("w0", "w1"):
                keys.give(keys.dir("r", "next.pub"), node, "r.next")
            load.more(4)
            n = metric(c.router, "sluice_zmq_handshakes_total")
            self.assertEqual(run("keygen", "--curve-dir", keys.dir("r"), "--promote")[0], 0)
            wait_until("all links are made anew",
                       lambda: metric(c.router, "sluice_zmq_handshakes_total") >= n + 2)
            for node in ("w0", "w1"):
                keys.take(node, "r")
            c.wait(2)
            load.more(8)
            self.assertEqual(c.pids(), before)

    def test_squatters(self):
        """A thousand connections that never become a peer, silent ones and such that never read."""
        keys = self.keys("router:r", "worker:w0", "worker:w1")
        with Cluster(2, keys) as c, Load(c.router) as load:
            load.more(8)
            failed = metric(c.router, "sluice_zmq_handshakes_failed_total")
            before, peak = rss_kib(c.router.proc.pid), 0
            socks = [squat(c.bus_port, i) for i in range(N_SQUATTERS)]
            peak = max(peak, rss_kib(c.router.proc.pid))
            load.more(16)
            peak = max(peak, rss_kib(c.router.proc.pid))
            wait_until("each is counted", lambda: metric(c.router, "sluice_zmq_handshakes_failed_total") >=
                       failed + N_SQUATTERS, 60)
            wait_until("their connections are closed",
                       lambda: metric(c.router, "sluice_zmq_connections") <= 2 + 2, 60)
            load.more(8)
            peak = max(peak, rss_kib(c.router.proc.pid))
            for s in socks:
                s.close()
            self.assertEqual(sorted(w.pid for w in c.workers), c.pids())
            if SLOW == 1:  # a sanitizer keeps freed memory
                self.assertLess(peak - before, GROWTH_MAX_KIB)

    def test_garbage(self):
        """Floods of bytes on the keyed and on the open port."""
        keys = self.keys("router:r", "worker:w0")
        noise = [os.urandom(4096), greeting(b"CURVE") + os.urandom(4096), greeting(b"NULL") + os.urandom(4096)]
        for k in (keys, None):
            with Cluster(1, k) as c, Load(c.router, 2) as load:
                before = rss_kib(c.router.proc.pid)
                for i in range(300):
                    s = socket.create_connection(("127.0.0.1", c.bus_port))
                    try:
                        s.sendall(noise[i % 3] * (1 + i % 5))
                    except OSError:
                        pass  # cut off in the middle, as it should be
                    s.close()
                load.more(8)
                self.assertEqual(c.pids(), [c.workers[0].pid])
                if k:
                    wait_until("they are counted",
                               lambda: metric(c.router, "sluice_zmq_handshakes_failed_total") >= 200)
                if SLOW == 1:
                    self.assertLess(rss_kib(c.router.proc.pid) - before, GROWTH_MAX_KIB)

    def test_malformed_messages(self):
        """Complete frames of an open peer that are no messages: each is counted, none is heard."""
        with Cluster(1) as c, Load(c.router, 2) as load:
            s = socket.create_connection(("127.0.0.1", c.bus_port))
            s.sendall(greeting(b"NULL") + b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\6DEALER")
            got = b""
            while b"READY" not in got:  # before that a message would break the handshake
                got += s.recv(4096) or self.fail("the router hung up")
            for i in range(500):
                s.sendall(b"\x00\x09" + struct.pack(">Q", i) + b"\xff")
            wait_until("each is counted", lambda: metric(c.router, "sluice_zmq_malformed_total") >= 500)
            load.more(6)
            s.close()
            self.assertEqual(c.pids(), [c.workers[0].pid])

    def test_tampering(self):
        """Bytes flipped or sent twice on the way: the connection ends, the streams do not."""
        keys = self.keys("router:r", "worker:w0", "worker:w1")
        with Cluster(2, keys, through=Tampering) as c, Load(c.router) as load:
            def n_broken():
                return metric(c.router, "sluice_zmq_broken_total") + \
                    metric(c.router, "sluice_zmq_handshakes_failed_total")

            def is_counted(before, act):
                """A damaged length breaks nothing, the silence after it ends the connection: once more then."""
                c.target.act = c.target.act or act
                return n_broken() > before

            for act in (flip, lambda data: data + data, lambda data: data[:-1] + data[:40]) * 2:
                before = n_broken()
                wait_until("it is counted", lambda: is_counted(before, act))
                c.target.act = None
                c.wait(2)
                load.more(4)
            self.assertTrue(all(w.proc.poll() is None for w in c.workers))
            self.assertEqual(metric(c.router, "sluice_zmq_malformed_total"), 0)

    def test_replayed_session(self):
        """All that a worker ever said, said again by somebody who has no key."""
        keys = self.keys("router:r", "worker:w0")
        with Cluster(1, keys, through=Tampering) as c, Load(c.router, 2) as load:
            load.more(6)
            tape = list(c.target.tape)
            handshakes = metric(c.router, "sluice_zmq_handshakes_total")
            failed = metric(c.router, "sluice_zmq_handshakes_failed_total")
            for _ in range(20):
                s = socket.create_connection(("127.0.0.1", c.bus_port))
                try:
                    for part in tape:
                        s.sendall(part)
                        time.sleep(0)
                except OSError:
                    pass  # cut off
                s.close()
            wait_until("each is counted", lambda: metric(c.router, "sluice_zmq_handshakes_failed_total") >=
                       failed + 20)
            load.more(4)
            self.assertEqual(metric(c.router, "sluice_zmq_handshakes_total"), handshakes)
            self.assertEqual(c.pids(), [c.workers[0].pid])

    def test_rolling_upgrade(self):
        """Workers of bus version 1 are replaced one by one; then a router of version 1 has new workers."""
        old = ("--bus-version", 1)
        with Cluster(3, worker_args=old) as c, Load(c.router) as load:
            load.more(6)
            for i in range(3):
                was = c.workers[i]
                c.workers[i] = c.worker(f"w{i}")
                c.wait(4)
                self.assertEqual(was.stop(), None)
                c.wait(3)
                load.more(6)
            self.assertEqual(c.pids(), sorted(w.pid for w in c.workers))
        with Cluster(1, router_args=old, worker_args=old) as c, Load(c.router) as load:
            c.workers.append(c.worker("w1"))
            c.wait(2)
            load.more(8)
            c.workers[0].stop()
            c.wait(1)
            load.more(6)
            c.workers[0].kill()


if __name__ == "__main__":
    unittest.main(verbosity=2)
