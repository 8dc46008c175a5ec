"""A model whose ranks run on two machines: the ranks meet over CURVE, their links are TCP under TLS, the
answers those of one process. A rank that dies, or whose link is down for a while, is a pause, no more.

The machines are network namespaces; router and rank 0 live in the test's own, rank 1 in the other. Needs
root and iproute2."""
import os
import signal
import tempfile
import threading
import time
import unittest

from nets import Net, Tap, own_network

own_network()

from harness import Router, Server, Worker, run, show, until_true, wait_until  # noqa: E402
from test_ranks import SLOW, answer, answers, body, layout, make_model, pids  # noqa: E402

HERE, THERE = "10.91.0.1", "10.91.0.2"
BUS_PORT, RANKS_PORT = 5811, 5812
TOKENS = 1200


class Stream(threading.Thread):
    """A stream that runs once it has ten tokens."""

    def __init__(self, server, b):
        super().__init__()
        self.server, self.body, self.texts, self.begun = server, b, [], threading.Event()
        self.start()
        assert self.begun.wait(60 * SLOW), "the stream does not begin"

    def run(self):
        try:
            for e in self.server.events("/v1/completions", self.body):
                if e != "[DONE]" and e.get("choices"):
                    self.texts.append(e["choices"][0]["text"])
                    if len(self.texts) == 10:
                        self.begun.set()
        finally:
            self.begun.set()

    def text(self):
        self.join(120 * SLOW)
        assert not self.is_alive(), "the stream does not end"
        return "".join(self.texts)


class Cluster:
    """A router and a model over two ranks, one here, one there."""

    def __init__(self, net, model, args=()):
        self.net, self.model, self.args = net, model, args
        self.dir = tempfile.TemporaryDirectory(prefix="sluice-machines-")
        self.keys = self.dir.name + "/keys"
        rc, _, err = run("keygen", "--curve-dir", self.keys, "--nodes", "router:r,worker:w0,worker:w1")
        assert rc == 0, err
        self.router = Router("--curve-dir", f"{self.keys}/r", bus=f"tcp://{HERE}:{BUS_PORT}")
        self.ranks = [None, None]
        self.start(1)  # whoever comes first waits
        self.start(0)
        self.router.wait_ready()
        wait_until("both ranks", lambda: len(pids(self.router)) == 2)

    def start(self, rank):
        self.ranks[rank] = Worker(
            self.router, model=self.model, prefix=self.net.inside(0) if rank else (),
            args=("--curve-dir", f"{self.keys}/w{rank}", "--rank", rank, "--master-addr", HERE, "--master-port",
                  RANKS_PORT, "--host-ip", THERE if rank else HERE, *layout(2, 1), *self.args))

    def log(self, rank):
        with open(self.ranks[rank].log.name) as f:
            return f.read()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        if kind:
            show(error, self.router, *self.ranks, n_lines=20)
            for r in self.ranks:
                r.kill()
            self.router.kill()
        else:
            self.ranks[0].stop()
            self.ranks[1].proc.wait(60 * SLOW)  # rank 0 took its leave
            self.ranks[1].stop()
            self.router.stop()
        self.dir.cleanup()


class Machines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.net = Net(["far"], "10.91")
        cls.addClassCleanup(cls.net.close)
        folder = tempfile.TemporaryDirectory(prefix="sluice-machines-")
        cls.addClassCleanup(folder.cleanup)
        cls.model = make_model(folder.name)
        with Server(model=cls.model) as s:
            cls.expected = answers(s, 8)
            cls.long = answer(s, body(1, TOKENS))[0]

    def cluster(self, *args):
        return Cluster(self.net, self.model, args)

    def test_answers_alike(self):
        tap = Tap(0)
        self.addCleanup(tap.close)
        with self.cluster() as c:
            firsts = tap.beginnings()
            before = self.net.link_bytes(0)
            self.assertEqual(answers(c.router, 8), self.expected)
            crossed = self.net.link_bytes(0) - before
            wait_until("figures of both ranks", lambda: all(w["steps"] for w in c.router.workers()))
            for w in c.router.workers():
                self.assertEqual((w["tp"], w["pp"]), (2, 1))
                self.assertGreater(w["comm_bytes"], 10000)
            self.assertGreater(crossed, 10000, "bytes on the wire")
        between = [f for way, f in firsts.items() if RANKS_PORT not in way]
        self.assertGreaterEqual(len(between), 2)  # both ways
        for f in between:
            self.assertEqual(f[:2], b"\x16\x03", "a TLS handshake")

    def test_killed_rank(self):
        """kill -9 of the far rank in mid-stream; what started it starts it again."""
        def attempt():
            with self.cluster() as c:
                before = pids(c.router)
                stream = Stream(c.router, body(1, TOKENS))
                c.ranks[1].kill()
                running = stream.is_alive()
                c.start(1)
                self.assertEqual(stream.text(), self.long)
                wait_until("another rank 1", lambda: len(pids(c.router)) == 2 and pids(c.router)[1] != before[1])
                self.assertEqual(pids(c.router)[0], before[0])
                self.assertEqual(answers(c.router, 8), self.expected)
                return running
        until_true("killed in mid-stream", attempt)

    def test_rank_that_stays_away(self):
        """Rank 0 goes on alone, in mid-stream; when the other is started again, whatever runs, it takes part."""
        def attempt():
            with self.cluster("--rank-return-ms", 500) as c:
                before = pids(c.router)
                stream = Stream(c.router, body(1, TOKENS))
                c.ranks[1].kill()
                running = stream.is_alive()
                self.assertEqual(stream.text(), self.long)
                wait_until("rank 0 alone", lambda: [(w["pid"], w["tp"]) for w in c.router.workers()]
                           == [(before[0], 1)])
                self.assertEqual(answers(c.router, 8), self.expected)
                c.start(1)

                def grown():
                    self.assertEqual(answer(c.router, body(1, TOKENS))[0], self.long)
                    return len(pids(c.router)) == 2
                wait_until("both ranks", grown, 60)
                self.assertEqual(pids(c.router)[0], before[0])
                self.assertEqual(answers(c.router, 8), self.expected)
                return running
        until_true("killed in mid-stream", attempt)

    def test_link_down(self):
        """Three seconds without the link between the machines, in mid-stream: the same processes go on."""
        def attempt():
            with self.cluster() as c:
                before = pids(c.router)
                stream = Stream(c.router, body(1, TOKENS))
                self.net.link(0, False)
                try:
                    running = stream.is_alive()
                    time.sleep(3)
                finally:
                    self.net.link(0, True)
                self.assertEqual(stream.text(), self.long)
                wait_until("both ranks", lambda: pids(c.router) == before)
                self.assertEqual(answers(c.router, 8), self.expected)
                return running and "is lost" in c.log(0)
        until_true("cut in mid-stream", attempt)

    def test_stopped_rank(self):
        """A far rank that stands still for a while; once it goes on it finds its group again."""
        def attempt():
            with self.cluster() as c:
                before = pids(c.router)
                stream = Stream(c.router, body(1, TOKENS))
                os.kill(before[1], signal.SIGSTOP)
                running = stream.is_alive()
                wait_until("noticed", lambda: "is lost" in c.log(0) or not stream.is_alive())
                os.kill(before[1], signal.SIGCONT)
                self.assertEqual(stream.text(), self.long)
                wait_until("both ranks", lambda: pids(c.router) == before)
                self.assertEqual(answers(c.router, 8), self.expected)
                return running
        until_true("stopped in mid-stream", attempt)


if __name__ == "__main__":
    unittest.main(verbosity=2)
