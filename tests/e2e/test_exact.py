"""The exactness promise on the real model: 16 requests, greedy and sampled, give identical tokens and
logprobs alone, together, in other orders, with other chunk sizes, thread counts and instruction sets,
with and without the prefix cache, and when pages run out so that sequences are preempted."""
import json
import random
import unittest

from harness import Server, default_model, in_parallel, run

SHARED = "You are a careful clerk. Read the list and answer in one line. " * 4


def requests():
    out = []
    for i in range(16):
        text = (SHARED if i % 4 == 0 else "") + f"Item {i}: " + "river stone lamp " * (1 + i * 3 % 17)
        body = {"prompt": text, "max_tokens": 10 + i, "ignore_eos": True, "logprobs": 2,
                "return_token_ids": True, "seed": 1000 + i}
        body.update({"temperature": 0} if i % 2 else
                    {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1})
        out.append(body)
    return out


def answer(server, body):
    status, got = server.post("/v1/completions", body)
    assert status == 200, got
    c = got["choices"][0]
    return c["token_ids"], c["logprobs"]["token_logprobs"], c["logprobs"]["top_logprobs"]


class Exact(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = default_model()
        cls.reqs = requests()
        with Server("--threads", 1, "--no-enable-prefix-caching", model=cls.model) as s:
            cls.want = [answer(s, r) for r in cls.reqs]

    def check(self, got, why):
        for i, (g, w) in enumerate(zip(got, self.want)):
            self.assertEqual(g, w, f"request {i} differs: {why}")

    def matrix(self, *args):
        with Server(*args, model=self.model) as s:
            self.check([answer(s, r) for r in self.reqs], f"{args}, one by one")
            self.check(in_parallel([lambda r=r: answer(s, r) for r in self.reqs]), f"{args}, together")
            order = list(range(16))
            random.Random(4).shuffle(order)
            got = dict(zip(order, in_parallel([lambda i=i: answer(s, self.reqs[i]) for i in order])))
            self.check([got[i] for i in range(16)], f"{args}, in another order")
            return sum(w["steps"] for w in s.workers())

    def test_every_isa(self):
        isas = json.loads(run("doctor", "--json")[1])["isas"]
        self.assertIn("scalar", isas)
        for isa in isas[1:]:
            self.matrix("--isa", isa)

    def test_scalar(self):
        """Scalar code is slow: the shortest requests stand for all."""
        short = sorted(range(16), key=lambda i: len(self.reqs[i]["prompt"]) + 20 * i)[:3]
        with Server("--isa", "scalar", "--threads", 2, model=self.model) as s:
            self.assertEqual(s.workers()[0]["isa"], "scalar")
            got = in_parallel([lambda i=i: answer(s, self.reqs[i]) for i in short])
            for i, g in zip(short, got):
                self.assertEqual(g, self.want[i], f"request {i} differs: scalar")

    def test_threads_and_chunks(self):
        self.matrix("--threads", 2, "--max-num-batched-tokens", 64)
        self.matrix("--threads", 3, "--max-num-batched-tokens", 23, "--max-num-seqs", 16)

    def test_without_prefix_cache(self):
        self.matrix("--no-enable-prefix-caching", "--page-size", 32)

    def test_preemption(self):
        # room for 240 positions of 23040 bytes; small pages, so that answers grow by several
        args = ("--kv-cache-memory-bytes", 240 * 23040, "--max-model-len", 230, "--page-size", 4)
        with Server(*args, model=self.model) as s:
            n = 0
            for _ in range(10):  # whether answers run out of pages depends on when they come
                self.check(in_parallel([lambda r=r: answer(s, r) for r in self.reqs]), "few pages")
                text = s.get("/metrics")[1]
                n = sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                        if line.startswith("sluice_num_preemptions_total"))
                if n > 0:
                    break
            self.assertGreater(n, 0, "nothing was preempted: the test proves nothing")


if __name__ == "__main__":
    unittest.main(verbosity=2)
