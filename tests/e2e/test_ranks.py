"""Models over several processes: every layout answers bit for bit as one process; a rank that dies or
hangs is a pause and nothing else; ranks started one by one, as launchers do, find each other."""
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import unittest

from harness import BIN, PATIENT, SLOW, Server, default_model, in_parallel, run, wait_until

ROUNDS = int(os.environ.get("SL_ROUNDS", "4"))
TOOL = os.environ["SL_TINY_TOOL"]
LAYOUTS = [(2, 1), (3, 1), (1, 2), (2, 2)]
TIMEOUT = int(1000 * SLOW)  # of a rank: a sanitised one is slow, not dead


def make_model(folder):
    """Three KV heads and three layers: degrees 1, 2 and 3 both ways."""
    path = os.path.join(folder, "ranks.gguf")
    subprocess.run([TOOL, path, "--dim", "96", "--heads", "6", "--kv-heads", "3", "--head-dim", "32",
                    "--ffn", "192", "--layers", "3"], check=True)
    return path


def layout(tp, pp):
    return ("--tensor-parallel-size", tp, "--pipeline-parallel-size", pp, "--rank-timeout-ms", TIMEOUT)


def body(i, tokens=40):
    return dict(prompt="hello world " * (1 + i % 4) + "x" * i, max_tokens=tokens, ignore_eos=True, logprobs=2,
                temperature=0.9 * (i % 2), seed=50 + i, repetition_penalty=1.0 + 0.1 * (i % 3))


def answer(server, b):
    status, a = server.post("/v1/completions", b)
    assert status == 200, a
    return a["choices"][0]["text"], a["choices"][0]["logprobs"]


def answers(server, n, tokens=40):
    return in_parallel([lambda i=i: answer(server, body(i, tokens)) for i in range(n)])


def pids(server):
    return {w["rank"]: w["pid"] for w in server.workers()}


def n_fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def children(pid):
    """Process ids below one, zombies included."""
    out, todo = [], [pid]
    while todo:
        for task in glob.glob(f"/proc/{todo.pop()}/task/*/children"):
            try:
                with open(task) as f:
                    found = [int(x) for x in f.read().split()]
            except FileNotFoundError:
                continue
            out += found
            todo += found
    return out


def is_gone(pid):
    """Dead, reaped or not."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Ranks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="sluice-ranks-")
        cls.model = make_model(cls.folder.name)
        with Server(model=cls.model) as s:
            cls.expected = answers(s, 8)
            cls.weights = s.workers()[0]["weight_bytes"]

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_layouts_answer_alike(self):
        for tp, pp in LAYOUTS:
            with self.subTest(tp=tp, pp=pp), Server(*layout(tp, pp), model=self.model) as s:
                self.assertEqual(answers(s, 8), self.expected)
                self.assertEqual(answers(s, 8), self.expected)
                wait_until("figures of all ranks",
                           lambda: len(s.workers()) == tp * pp and all(w["steps"] for w in s.workers()))
                ps = s.workers()
                self.assertEqual(sorted(w["rank"] for w in ps), list(range(tp * pp)))
                self.assertEqual(len({w["pid"] for w in ps}), tp * pp)
                for w in ps:
                    self.assertEqual((w["tp"], w["pp"], w["class"]), (tp, pp, ps[0]["class"]))
                    self.assertGreater(w["comm_bytes"], 10000)
                    self.assertLess(w["weight_bytes"], self.weights)
                    with open(f"/proc/{w['pid']}/cmdline") as f:
                        self.assertEqual(f.read().split("\0")[:2], ["sluice", "worker"])
                self.assertEqual(sorted(children(s.proc.pid)), sorted(w["pid"] for w in ps))
                if tp * pp == 2:
                    self.assertGreater(sum(w["weight_bytes"] for w in ps), self.weights * 0.9)

    def test_chunks_and_preemption(self):
        """Small steps and too few pages, on ranks with unequal shards."""
        with Server(*layout(2, 1), "--max-num-batched-tokens", 16, "--max-num-seqs", 4, "--page-size", 4,
                    "--max-model-len", 192, "--kv-cache-memory-bytes", 400000, model=self.model) as s:
            self.assertEqual(answers(s, 8), self.expected)

    def test_the_real_model(self):
        model = default_model()
        if os.environ.get("SL_TINY_ONLY"):
            self.skipTest("the real model is too slow here")
        with Server(model=model) as s:
            want = answers(s, 4, 16)
        for tp, pp in LAYOUTS:
            with self.subTest(tp=tp, pp=pp), Server(*layout(tp, pp), model=model) as s:
                self.assertEqual(answers(s, 4, 16), want)

    def streaming(self, server, b):
        """A stream on a thread, once it has ten tokens: (thread, texts)."""
        begun, got = threading.Event(), []

        def stream():
            for e in server.events("/v1/completions", b):
                if e != "[DONE]" and e.get("choices"):
                    got.append(e["choices"][0]["text"])
                    if len(got) == 10:
                        begun.set()

        t = threading.Thread(target=stream)
        t.start()
        self.assertTrue(begun.wait(60 * SLOW))
        return t, got

    def hit(self, server, rank, signum, want, i):
        """Signals a rank while a stream runs; the stream must not show it."""
        before = pids(server)
        t, got = self.streaming(server, body(i, 1200))
        os.kill(before[rank], signum)
        t.join(120 * SLOW)
        self.assertFalse(t.is_alive())
        self.assertEqual("".join(got), want)
        wait_until("another process took its place",
                   lambda: len(pids(server)) == len(before) and pids(server)[rank] != before[rank])
        wait_until("the old one is gone", lambda: is_gone(before[rank]))

    def test_lost_ranks(self):
        """kill -9 and SIGSTOP of every follower, round after round: same text, nothing left behind."""
        with Server(model=self.model) as s:
            want = {i: answer(s, body(i, 1200))[0] for i in range(4)}
        with Server(*layout(2, 2), "--threads", 1, model=self.model) as s:
            wait_until("all ranks", lambda: len(pids(s)) == 4)
            pages = s.free_pages()
            leaks = None
            for k in range(ROUNDS):
                self.hit(s, 1 + k % 3, signal.SIGSTOP if k % 2 else signal.SIGKILL, want[k % 4], k % 4)
                wait_until("all pages are free", lambda: s.free_pages() == pages and
                           not any(w["running"] + w["waiting"] for w in s.workers()))
                rank0 = pids(s)[0]
                now = (n_fds(rank0), n_fds(s.proc.pid), len(children(s.proc.pid)),
                       sorted(os.listdir("/dev/shm")), sorted(glob.glob("/tmp/sluice-*")))
                leaks = leaks or now
                self.assertLessEqual(now[0], leaks[0] + 2, "descriptors of rank 0")
                self.assertLessEqual(now[1], leaks[1] + 2, "descriptors of the router")
                self.assertEqual(now[2], 4)
                self.assertEqual(now[3], leaks[3])
            self.assertEqual(pids(s)[0], rank0, "rank 0 was never started again")
            all_of_them = children(s.proc.pid)
        wait_until("no process is left", lambda: all(is_gone(p) for p in all_of_them))

    def test_lost_rank_0(self):
        """The whole group goes with it; the stream goes on at the other worker, or after the restart."""
        with Server(model=self.model) as s:
            want = answer(s, body(1, 1200))[0]
        for workers in (2, 1):
            with Server(*layout(2, 1), "--workers", workers, "--threads", 1, model=self.model) as s:
                wait_until("all ranks", lambda: len(s.workers()) == 2 * workers)
                t, got = self.streaming(s, body(1, 1200))
                before = [w["pid"] for w in s.workers()]
                for w in s.workers():
                    if w["rank"] == 0 and w["running"]:
                        os.kill(w["pid"], signal.SIGKILL)
                t.join(120 * SLOW)
                self.assertEqual("".join(got), want)
                wait_until("all ranks again", lambda: len({w["pid"] for w in s.workers()}) == 2 * workers)
                now = [w["pid"] for w in s.workers()]
                wait_until("the old ones are gone", lambda: all(is_gone(p) for p in before if p not in now))
                self.assertEqual(len(children(s.proc.pid)), 2 * workers)

    def test_stopped_rank_0(self):
        """It is taken for lost, and finds its ranks and its router again when it goes on."""
        with Server(model=self.model) as s:
            want = answer(s, body(2, 1200))[0]
        with Server(*layout(2, 1), "--workers", 2, "--threads", 1, model=self.model) as s:
            wait_until("all ranks", lambda: len(s.workers()) == 4)
            t, got = self.streaming(s, body(2, 1200))
            stopped = [w["pid"] for w in s.workers() if w["rank"] == 0 and w["running"]]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            t.join(120 * SLOW)
            self.assertEqual("".join(got), want)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            wait_until("all ranks again", lambda: len({w["pid"] for w in s.workers()}) == 4)
            self.assertEqual(answers(s, 8), self.expected)

    def test_fewer_ranks(self):
        """A rank that cannot come back, since the model file is gone: rank 0 computes all of it alone, until
        the file is there again and with it, under running streams, all ranks."""
        model = os.path.join(self.folder.name, "moved.gguf")
        shutil.copy(self.model, model)
        with Server(model=self.model) as s:
            want = answer(s, body(3, 1200))[0]
        with Server(*layout(3, 1), "--threads", 1, "--rank-restarts", 2, model=model) as s:
            wait_until("all ranks", lambda: len(pids(s)) == 3)
            before = pids(s)
            t, got = self.streaming(s, body(3, 1200))
            os.rename(model, model + ".away")
            os.kill(before[2], signal.SIGKILL)
            t.join(120 * SLOW)
            self.assertEqual("".join(got), want)
            wait_until("a group of one", lambda: [(w["pid"], w["tp"], w["weight_bytes"]) for w in s.workers()]
                       == [(before[0], 1, self.weights)])
            self.assertEqual(answers(s, 8), self.expected)
            wait_until("tries leave nobody", lambda: len(children(s.proc.pid)) == 1)
            os.rename(model + ".away", model)

            def grown():
                self.assertEqual(answer(s, body(3, 1200))[0], want)
                return len(pids(s)) == 3
            wait_until("all ranks", grown, 60)
            self.assertEqual(pids(s)[0], before[0])
            self.assertEqual(answers(s, 8), self.expected)
            self.assertEqual({(w["tp"], w["pp"]) for w in s.workers()}, {(3, 1)})
            self.assertEqual(len(children(s.proc.pid)), 3)

    def test_group_signal_drains(self):
        """A SIGTERM to the whole process group cuts no stream, and leaves nobody behind."""
        s = Server(*layout(2, 1), *PATIENT, "--threads", 1, model=self.model)
        first, got = threading.Event(), []

        def stream():
            for e in s.events("/v1/completions", body(0, 1000)):
                got.append(e)
                first.set()

        t = threading.Thread(target=stream)
        t.start()
        self.assertTrue(first.wait(60 * SLOW))
        everyone = children(s.proc.pid)
        os.killpg(s.proc.pid, signal.SIGTERM)
        t.join(60 * SLOW)
        s.stop()
        self.assertEqual(got[-1], "[DONE]")
        wait_until("no process is left", lambda: all(is_gone(p) for p in everyone))

    def test_ranks_of_a_launcher(self):
        """A router by hand; ranks by torchrun's variables, by ours, then a worker with its own followers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with tempfile.TemporaryDirectory() as d:
            os.chmod(d, 0o700)
            bus = f"ipc://{d}/bus"
            for prefix in ("", "SLUICE_", None):
                own = prefix is None
                prefix = prefix or ""
                procs = []
                env = dict(os.environ, **{prefix + "WORLD_SIZE": "2", prefix + "MASTER_ADDR": "127.0.0.1",
                                          prefix + "MASTER_PORT": str(port)})
                args = [BIN, "worker", self.model, "--connect", bus, *map(str, layout(2, 1))]
                if own:
                    procs.append(subprocess.Popen(args, stderr=subprocess.DEVNULL))
                else:
                    for rank in (1, 0):
                        procs.append(subprocess.Popen(args, env=dict(env, **{prefix + "RANK": str(rank)}),
                                                      stderr=subprocess.DEVNULL))
                with Server("--bind", bus, model=None, verb="router") as s:
                    wait_until("both ranks", lambda: len(s.workers()) == 2)
                    self.assertEqual(answers(s, 8), self.expected)
                    everyone = [w["pid"] for w in s.workers()]
                    if not own:
                        self.assertEqual(sorted(everyone), sorted(p.pid for p in procs))
                        procs[1].kill()  # rank 1 waits for another rank 0
                        procs[1].wait()
                        procs[1] = subprocess.Popen(args, env=dict(env, **{prefix + "RANK": "0"}),
                                                    stderr=subprocess.DEVNULL)
                        wait_until("a new rank 0", lambda: pids(s) == {0: procs[1].pid, 1: procs[0].pid})
                        self.assertEqual(answers(s, 8), self.expected)
                    for p in procs:
                        p.send_signal(signal.SIGTERM)
                    self.assertEqual([p.wait(60 * SLOW) for p in procs], [0] * len(procs))
                    wait_until("no process is left", lambda: all(is_gone(p) for p in everyone))

    def test_refusals(self):
        for args, rc, says in ((("--tensor-parallel-size", 7), 3, "at most"),
                               (("--pipeline-parallel-size", 4), 3, "at most 3"),
                               (("--tensor-parallel-size", 9, "--pipeline-parallel-size", 9), 2, "64")):
            code, _, err = run("serve", self.model, "--port", "0", *args)
            self.assertEqual(code, rc, err)
            self.assertIn(says, err)
        code, _, err = run("worker", self.model, "--connect", "ipc:///nowhere/x", "--tensor-parallel-size", 2,
                           "--rank", 2)
        self.assertEqual(code, 2, err)

    def test_complete(self):
        def text(*args):
            code, out, err = run("complete", self.model, "--prompt", "hello world", "--max-tokens", 24,
                                 "--temperature", 0, "--json", *args)
            self.assertEqual(code, 0, err)
            return json.loads(out)["choices"][0]
        self.assertEqual(text(*layout(3, 2)), text())


if __name__ == "__main__":
    unittest.main()
