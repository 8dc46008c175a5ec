"""The exactness promise across layouts: the same 24 requests (greedy, sampled, long, with a shared prefix)
under tensor x pipeline parallel x batch x chunk x prefix cache x preemption x failover x disaggregation
give the same hash chain each, and the same logprobs.

A row is one cluster of real processes. The default tier takes a covering set: every pair of values of
any two dimensions occurs in some row (plus every layout of ranks by itself); SL_MATRIX=full takes the
whole product. SL_MATRIX_MODEL names the model: a small one of the default model's shape, or `default`."""
import itertools
import os
import random
import signal
import subprocess
import tempfile
import time
import unittest

from harness import Router, Worker, default_model, in_parallel, show, until_true, wait_until

DIMENSIONS = {
    "tp": [1, 2, 3],
    "pp": [1, 2, 3],
    "seqs": [64, 1, 7],
    "chunk": [512, 64, 23],
    "cache": [True, False],
    "preempt": [False, True],
    "failover": [False, True],
    "disagg": [False, True],
}
POSITIONS = 300 if os.environ.get("SL_MATRIX_MODEL") == "default" else 1000  # of KV, for few pages
FULL = os.environ.get("SL_MATRIX") == "full"
REAL = os.environ.get("SL_MATRIX_MODEL") == "default"
SHARED = "You are a careful clerk. Read the list and answer in one line. " * 2


def requests():
    out = []
    for i in range(24):
        words = 60 if i % 8 == 7 else 1 + i * 5 % 11
        text = (SHARED if i % 3 == 0 else "") + f"Item {i}: " + "river stone lamp " * words
        body = {"prompt": text, "max_tokens": 8 + i, "ignore_eos": True, "logprobs": 2, "seed": 1000 + i,
                "return_chain": True}
        body.update({"temperature": 0} if i % 2 else
                    {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1})
        out.append(body)
    return out


def product():
    rows = [dict(zip(DIMENSIONS, v)) for v in itertools.product(*DIMENSIONS.values())]
    return [r for r in rows if not (r["preempt"] and r["seqs"] == 1)]  # one alone is never preempted


def pairs_of(row):
    return set(itertools.combinations(sorted(row.items()), 2))


def covering():
    """Rows that hold every possible pair of values, found greedily."""
    rows = product()
    random.Random(1).shuffle(rows)
    left = set().union(*map(pairs_of, rows))
    chosen = []
    while left:
        best = max(rows, key=lambda r: len(pairs_of(r) & left))
        chosen.append(best)
        left -= pairs_of(best)
    return chosen


class Layout:
    """A router and the workers that a row asks for."""

    def __init__(self, row, model, position_bytes):
        self.row = row
        args = ["--tensor-parallel-size", row["tp"], "--pipeline-parallel-size", row["pp"],
                "--max-num-seqs", row["seqs"], "--max-num-batched-tokens", row["chunk"]]
        if not row["cache"]:
            args.append("--no-enable-prefix-caching")
        if row["preempt"]:
            heads = -(-3 // row["tp"])  # of the three KV heads a rank has at most
            args += ["--kv-cache-memory-bytes", POSITIONS * position_bytes * heads // 3 // row["pp"],
                     "--max-model-len", POSITIONS - 10, "--page-size", 4]
        roles = (["prefill", "decode"] if row["disagg"] else ["both"]) * (2 if row["failover"] else 1)
        self.router = Router()
        self.workers = [Worker(self.router, model=model, args=[*args, "--role", r]) for r in roles]
        self.roles = roles

    def __enter__(self):
        try:
            self.router.wait_ready()
            wait_until("all workers", lambda: len(self.heads()) == len(self.workers), 60)
        except BaseException as e:
            self.__exit__(type(e), e)
            raise
        return self

    def __exit__(self, kind, error, *_):
        if kind:
            show(error, self.router, *self.workers, n_lines=10)
        for w in self.workers:
            w.kill() if kind else self.end(w)
        self.router.kill() if kind else self.router.stop()

    @staticmethod
    def end(w):
        if w.proc.poll() is None:
            w.stop()

    def heads(self):
        """The workers' first ranks, as `ctl ps` lists them."""
        return [p for p in self.router.ps() if p["role"] != "router" and p["rank"] == 0]

    def check_is_real(self, test):
        """As many processes as asked for, each with a share of the weights, in touch with each other."""
        degree = self.row["tp"] * self.row["pp"]

        def ranks():
            return [p for p in self.router.ps() if p["role"] != "router"]

        wait_until("all ranks to be known", lambda: len({p["pid"] for p in ranks()}) == degree * len(self.workers))
        if degree > 1:
            wait_until("all ranks to have exchanged something", lambda: all(p["comm_bytes"] for p in ranks()))
        for p in ranks():
            test.assertEqual((p["tp"], p["pp"]), (self.row["tp"], self.row["pp"]))
            test.assertEqual(p["max_batched_tokens"], max(self.row["chunk"], self.row["seqs"]))
            test.assertTrue(p["isa"])
        if degree > 1:
            one = max(sum(p["weight_bytes"] for p in ranks()) // len(self.workers), 1)
            test.assertLess(max(p["weight_bytes"] for p in ranks()), one)

    def metric(self, name):
        text = self.router.get("/metrics")[1]
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    def pages_moved(self):
        """Whether workers report, or will within some reports, that KV pages came from others."""
        for _ in range(50):
            if self.metric("sluice_kv_transfer_pages_received_total") > 0:
                return True
            time.sleep(0.05)
        return False

    def lose_one(self):
        """Kills the first worker that takes decodes."""
        at = next(i for i, r in enumerate(self.roles) if r != "prefill")
        os.kill(self.workers[at].pid, signal.SIGKILL)
        self.workers[at].proc.wait()


def answer(server, body):
    status, got = server.post("/v1/completions", body)
    assert status == 200, (status, got, body["seed"])
    c = got["choices"][0]
    return got["sluice"]["choices"][0]["chain"], c["logprobs"]["token_logprobs"], c["logprobs"]["top_logprobs"]


class Matrix(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if REAL:
            cls.model, cls.position_bytes = default_model(), 23040
        else:  # the default model's shape, small: 9 query heads on 3
            cls.model = os.path.join(tempfile.mkdtemp(prefix="sluice-matrix-"), "nine.gguf")
            subprocess.run([os.environ["SL_TINY_TOOL"], cls.model, "--dim", "288", "--heads", "9", "--kv-heads",
                            "3", "--layers", "6", "--ffn", "512", "--dtype", "q4_0"], check=True)
            cls.position_bytes = 2 * 2 * 6 * 3 * 32
        cls.reqs = requests()
        plain = {k: v[0] for k, v in DIMENSIONS.items()} | {"cache": False}
        with Layout(plain, cls.model, cls.position_bytes) as one:
            cls.want = [answer(one.router, r) for r in cls.reqs]

    def check_row(self, row):
        """Whether the row met what it is for: of a lost worker's requests some must have been on their way."""
        with Layout(row, self.model, self.position_bytes) as c:
            for _ in range(2 * len(c.workers)):  # each has a part in it
                c.router.post("/v1/completions", dict(self.reqs[0], max_tokens=2))
            c.check_is_real(self)
            order = list(range(24))
            random.Random(5).shuffle(order)
            answered = itertools.count(1)  # its next() is atomic

            def one(i):
                got = answer(c.router, self.reqs[i])
                if next(answered) == 4 and row["failover"]:
                    c.lose_one()  # the other twenty are under way
                return got

            got = dict(zip(order, in_parallel([lambda i=i: one(i) for i in order])))
            wrong = [i for i in range(24) if got[i] != self.want[i]]
            self.assertFalse(wrong, f"requests {wrong} differ under {row}")
            self.preempted += c.metric("sluice_num_preemptions_total")
            if row["disagg"] and row["cache"] and not row["preempt"] and not row["failover"]:  # at every degree
                return c.pages_moved()
            return not row["failover"] or c.metric("sluice_router_retries_total") > 0

    def test_layouts(self):
        self.preempted = 0
        for row in product() if FULL else covering():
            with self.subTest(**row):
                until_true("something was moved", lambda: self.check_row(row))
        self.assertGreater(self.preempted, 0, "no row preempted anything")

    def test_requests_differ(self):
        chains = [str(w[0]) for w in self.want]
        self.assertEqual(len(set(chains)), len(chains))


if __name__ == "__main__":
    unittest.main(verbosity=2)
