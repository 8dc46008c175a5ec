"""Prompts computed by one worker and continued by another: the answers are those of one worker that does
both, bit for bit, with pages over shared memory and over TCP, when pages come damaged, when the prefill
worker dies in the middle, when the decode worker does, and when there is none of a kind."""
import concurrent.futures
import itertools
import math
import os
import signal
import subprocess
import tempfile
import time
import unittest

from harness import TINY, Router, Worker, free_port, in_parallel, show, wait_until

N_REQUESTS = 24
SHARED = "You are a careful clerk. Read the list and answer in one line. " * 6


def requests():
    """Greedy and sampled, short and long, with prefixes in common, with penalties and several choices."""
    out = []
    for i in range(N_REQUESTS):
        text = (SHARED if i % 3 == 0 else "") + f"Item {i}: " + "river stone lamp " * (1 + i * 5 % 31)
        body = {"prompt": text, "max_tokens": 6 + i, "ignore_eos": True, "logprobs": 2,
                "return_token_ids": True, "seed": 700 + i}
        body.update([{"temperature": 0}, {"temperature": 0.9, "top_p": 0.95, "top_k": 40},
                     {"temperature": 1.0, "presence_penalty": 0.5, "repetition_penalty": 1.2},
                     {"temperature": 0.8, "n": 2}][i % 4])
        out.append(body)
    return out


def answer(server, body):
    status, got = server.post("/v1/completions", body)
    assert status == 200, got
    return sorted((c["index"], c["token_ids"], c["logprobs"]["token_logprobs"], str(c["logprobs"]["top_logprobs"]),
                   c["finish_reason"]) for c in got["choices"])


def metric(server, name):
    for line in server.get("/metrics")[1].splitlines():
        if line.startswith(name + "{") or line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(name)


def ranks(tp, pp):
    return ("--tensor-parallel-size", tp, "--pipeline-parallel-size", pp)


class Cluster:
    """A router and one worker for each (role, further options)."""

    def __init__(self, *roles, tcp=False, model=TINY, router_args=("--prefill-min-tokens", 32)):
        self.model = model
        self.router = Router(*router_args, bus=f"tcp://127.0.0.1:{free_port()}" if tcp else None)
        self.workers = []
        for role, *args in roles:
            self.add(role, *args)
        self.router.wait_ready()
        self.wait(sum(self.degree(r) for r in roles))

    def add(self, role, *args):
        self.workers.append(Worker(self.router, model=self.model, args=("--role", role, *args)))
        return self.workers[-1]

    @staticmethod
    def degree(role):
        sizes = [int(v) for k, v in zip(role, role[1:]) if str(k).endswith("-parallel-size")]
        return math.prod(sizes)

    def wait(self, n):
        wait_until(f"{n} ranks", lambda: len(self.rows()) == n, 60)

    def rows(self):
        return [p for p in self.router.ps() if p["role"] != "router"]

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        if kind:
            show(error, self.router, *self.workers, n_lines=20)
        for w in self.workers:
            w.kill() if kind or w.proc.poll() is not None else w.stop()
        self.router.kill() if kind else self.router.stop()


class Case(unittest.TestCase):
    model = TINY

    @classmethod
    def setUpClass(cls):
        cls.reqs = requests()
        with Cluster(("both",), model=cls.model) as c:
            cls.want = [answer(c.router, r) for r in cls.reqs]
            assert metric(c.router, "sluice_router_prefills_total") == 0

    def check(self, got, why):
        for i, (g, w) in enumerate(zip(got, self.want)):
            self.assertEqual(g, w, f"request {i} differs: {why}")

    def together(self, c, why):
        self.check(in_parallel([lambda r=r: answer(c.router, r) for r in self.reqs]), why)

    def moved(self, c):
        wait_until("pages were reported",
                   lambda: metric(c.router, "sluice_kv_transfer_pages_received_total") > 0)
        return metric(c.router, "sluice_kv_transfer_pages_received_total")

    def act_when(self, c, holds, act, why):
        """All requests at once, with `act` once a row of `ctl ps` shows what it is to; again, with nothing of them
        cached, while that was not seen: a router may give a slow worker nothing for a while."""
        acted, salts = [], itertools.count()

        def all_at_once():
            salt = next(salts)
            reqs = [dict(r, cache_salt=f"round {salt}") if salt else r for r in self.reqs]
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                run = pool.submit(in_parallel, [lambda r=r: answer(c.router, r) for r in reqs])
                while not acted and not run.done():
                    if any(holds(p) for p in c.rows()):
                        acted.append(act())
                    time.sleep(0.02)
                self.check(run.result(), why)
            return acted

        wait_until(why, all_at_once, 60)

    def act_while(self, c, victim, holds, act, why):
        self.act_when(c, lambda p: p["pid"] == victim.pid and holds(p), act, why)


class Disagg(Case):
    def pair(self, via, tcp):
        with Cluster(("prefill", "--kv-transfer", via), ("decode", "--kv-transfer", via), tcp=tcp) as c:
            self.assertEqual(sorted(p["role"] for p in c.rows()), ["decode", "prefill"])
            self.check([answer(c.router, r) for r in self.reqs], f"{via}, one by one")
            alone = self.moved(c)
            self.together(c, f"{via}, together")
            self.assertGreater(metric(c.router, "sluice_router_prefills_total"), N_REQUESTS // 2)
            self.assertEqual(metric(c.router, "sluice_kv_transfer_checksum_failures_total"), 0)
            # A machine that stands still for more than a second makes a worker give up waiting.
            self.assertLess(metric(c.router, "sluice_kv_transfer_fallbacks_total"), N_REQUESTS // 4)
            wait_until("the sender's report", lambda: metric(
                c.router, "sluice_kv_transfer_pages_sent_total") >= alone)
            self.assertGreater(metric(c.router, "sluice_kv_transfer_bytes_total"), alone * 1000)
            return alone

    def test_shared_memory(self):
        self.assertGreater(self.pair("shm", False), N_REQUESTS)

    def test_tcp(self):
        self.assertGreater(self.pair("tcp", True), N_REQUESTS)

    def test_decode_worker_prefills_little(self):
        """With nothing cached, the owner computes at most a page of each long prompt."""
        with Cluster(("prefill",), ("decode",)) as c:
            long = [r for r in self.reqs if len(r["prompt"]) > 300 and r.get("n", 1) == 1]
            computed = []
            for r in long:
                status, got = c.router.post("/v1/completions", r)
                self.assertEqual(status, 200)
                usage = got["usage"]
                computed.append(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
            few = sum(n <= 16 for n in computed)
            self.assertGreaterEqual(few, len(long) - metric(c.router, "sluice_kv_transfer_fallbacks_total"))
            self.assertGreater(few, len(long) // 2)

    def test_damaged_pages(self):
        """Every tenth row flips a bit: noticed, counted, computed instead."""
        with Cluster(("prefill", "--inject", "bulk.corrupt=0.1,seed=5"), ("decode",)) as c:
            self.together(c, "damaged pages")
            wait_until("failures are reported",
                       lambda: metric(c.router, "sluice_kv_transfer_checksum_failures_total") > 0)
            self.assertGreater(metric(c.router, "sluice_kv_transfer_fallbacks_total"), 0)

    SLOW_PREFILL = ("prefill", "--inject", "engine.slow=1@150", "--max-num-batched-tokens", 64)

    def test_prefill_worker_dies(self):
        """kill -9 while it computes prompts: the owner computes them."""
        with Cluster(self.SLOW_PREFILL, ("decode",)) as c:
            victim = c.workers[0]
            self.act_while(c, victim, lambda p: p["steps"] > 2, victim.kill, "the prefill worker dies")
            self.check([answer(c.router, r) for r in self.reqs], "decode alone")
            self.assertGreater(metric(c.router, "sluice_kv_transfer_fallbacks_total"), 0)

    def test_prefill_worker_hangs(self):
        """SIGSTOP while it computes prompts: its silence is noticed, the owner computes them."""
        with Cluster(self.SLOW_PREFILL, ("decode",)) as c:
            victim = c.workers[0]
            self.act_while(c, victim, lambda p: p["steps"] > 2, lambda: victim.signal(signal.SIGSTOP),
                           "the prefill worker hangs")
            victim.signal(signal.SIGCONT)
            c.wait(2)
            self.together(c, "it is back")

    def test_decode_worker_dies(self):
        """Its streams go on at the other one, with pages of the prefill worker or without."""
        slow = ("decode", "--inject", "engine.slow=1@60")  # long enough to be seen at work
        with Cluster(("prefill",), slow, slow) as c:
            victim = c.workers[1]
            self.act_while(c, victim, lambda p: p["running"] > 2, victim.kill, "a decode worker dies")
            self.assertGreater(metric(c.router, "sluice_router_retries_total"), 0)

    def test_one_kind_alone(self):
        for roles in [("decode",)], [("prefill",)], [("both",), ("decode",)], [("prefill",), ("both",)]:
            with Cluster(*roles) as c:
                self.together(c, f"{roles}")

    def test_pages_are_given_back(self):
        with Cluster(("prefill",), ("decode",)) as c:
            self.together(c, "before")
            wait_until("all pages are free", lambda: all(
                p["kv_pages_free"] == p["kv_pages_total"] for p in c.rows()))


class Ranks(Case):
    """Sharded workers, of a model with three KV heads and three layers: the same head on two ranks at degree 2."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="sluice-e2e-")
        cls.model = os.path.join(cls.folder.name, "ranks.gguf")
        subprocess.run([os.environ["SL_TINY_TOOL"], cls.model, "--dim", "96", "--heads", "6", "--kv-heads", "3",
                        "--head-dim", "32", "--ffn", "192", "--layers", "3"], check=True)
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def warm(self, c):
        """Until all ranks are known to serve: before, pages are computed instead."""
        salts = itertools.count()

        def moves():
            answer(c.router, dict(self.reqs[3], cache_salt=f"warm {next(salts)}"))
            return metric(c.router, "sluice_kv_transfer_pages_received_total") > 0

        wait_until("pages move", moves, 60)
        return metric(c.router, "sluice_kv_transfer_fallbacks_total")

    def sharded(self, prefill, decode, via="auto", tcp=False):
        """Pages move from rank to rank, cut as the other side needs them."""
        kv = ("--kv-transfer", via)
        with Cluster(("prefill", *ranks(*prefill), *kv), ("decode", *ranks(*decode), *kv), tcp=tcp,
                     model=self.model) as c:
            why = f"{prefill} to {decode}, {via}"
            before, first = self.warm(c), self.moved(c)
            self.check([answer(c.router, r) for r in self.reqs], why)
            alone = self.moved(c) - first
            self.together(c, why + ", together")
            self.assertEqual(metric(c.router, "sluice_kv_transfer_checksum_failures_total"), 0)
            self.assertLess(metric(c.router, "sluice_kv_transfer_fallbacks_total") - before, N_REQUESTS // 4)
            self.assertGreater(alone, N_REQUESTS)
            wait_until("all pages are free", lambda: all(
                p["kv_pages_free"] == p["kv_pages_total"] for p in c.rows()))

    def test_same_layout(self):
        self.sharded((2, 1), (2, 1))
        self.sharded((2, 2), (2, 2))

    def test_other_layouts(self):
        self.sharded((2, 1), (1, 1))
        self.sharded((1, 1), (3, 1))
        self.sharded((1, 2), (2, 1))
        self.sharded((3, 1), (2, 1))

    def test_other_layouts_over_tcp(self):
        self.sharded((2, 1), (1, 2), "tcp", True)

    SLOW = ("prefill", *ranks(3, 1), "--inject", "engine.slow=1@150x24", "--max-num-batched-tokens", 64)

    def lose_follower(self, role, signum):
        """In the middle of transfers; the streams are exact, and pages move again when the group is back."""
        with Cluster(self.SLOW, ("decode", *ranks(1, 2)), model=self.model) as c:
            def follower():
                return next(p["pid"] for p in c.rows() if p["role"] == role and p["rank"] == 1)

            def steps():
                return next(p["steps"] for p in c.rows() if p["role"] == "prefill" and p["rank"] == 0)

            def busy(p):
                return p["role"] == "prefill" and p["rank"] == 0 and p["steps"] > begun + 1

            failed = self.warm(c)
            begun, victim = steps(), follower()
            self.act_when(c, busy, lambda: os.kill(victim, signum), f"rank 1 of {role}, signal {signum}")
            wait_until("another rank 1", lambda: len(c.rows()) == 5 and follower() != victim, 60)
            self.assertGreater(metric(c.router, "sluice_kv_transfer_fallbacks_total"), failed)
            before, salts = metric(c.router, "sluice_kv_transfer_pages_received_total"), itertools.count()

            def moves_again():  # a new salt: nothing of it is cached; the router may find the worker too slow at first
                i = next(salts) % N_REQUESTS
                self.assertEqual(answer(c.router, dict(self.reqs[i], cache_salt=f"{next(salts)}")), self.want[i])
                return metric(c.router, "sluice_kv_transfer_pages_received_total") > before + 8

            wait_until("pages move again", moves_again, 60)
            wait_until("all pages are free", lambda: all(
                p["kv_pages_free"] == p["kv_pages_total"] for p in c.rows()))

    def test_prefill_follower_dies(self):
        self.lose_follower("prefill", signal.SIGKILL)

    def test_decode_follower_dies(self):
        self.lose_follower("decode", signal.SIGKILL)

    def test_prefill_follower_hangs(self):
        self.lose_follower("prefill", signal.SIGSTOP)

    def test_decode_follower_hangs(self):
        self.lose_follower("decode", signal.SIGSTOP)

    def test_damaged_pages(self):
        """At some rank a row flips a bit: noticed at the rank that gets it, counted, computed instead."""
        with Cluster(("prefill", *ranks(2, 1), "--inject", "bulk.corrupt=0.05,seed=5"), ("decode", *ranks(1, 2)),
                     model=self.model) as c:
            self.warm(c)
            self.together(c, "damaged pages")
            wait_until("failures are reported",
                       lambda: metric(c.router, "sluice_kv_transfer_checksum_failures_total") > 0)
            self.assertGreater(metric(c.router, "sluice_kv_transfer_fallbacks_total"), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
