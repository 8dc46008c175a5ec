"""The benchmarks say what they did: `bench offline` counts the tokens it was asked for, `bench serve`
every request of a real server, and a claim that does not hold is exit code 9."""
import json
import os
import tempfile
import unittest

from harness import TINY, Server, run

# Sizes differ from each other, so that a swapped pair shows.
SMALL = ("--input-len", 40, "--output-len", 9, "--repeat", 3, "--warmup", 0)


def offline(*args):
    rc, out, err = run("bench", "offline", TINY, *args)
    assert rc == 0, err
    return json.loads(out)


class Offline(unittest.TestCase):
    def test_every_mode_counts_its_tokens(self):
        got = offline(*SMALL, "--batch", 4, "--threads", 1, "--isa", "scalar", "--seed", 7)
        self.assertEqual([r["mode"] for r in got["results"]], ["prefill", "decode", "mixed"])
        self.assertEqual([r["test"] for r in got["results"]], ["pp40@4", "tg9@4", "pp40+tg9@4"])
        for r, prefill, decode in zip(got["results"], (160, 0, 160), (0, 36, 36)):
            self.assertEqual(r["n_prefill_tokens"], prefill)
            if r["mode"] != "decode":  # sequences that started early are ahead of the clock
                self.assertEqual(r["n_decode_tokens"], decode)
            self.assertLessEqual(r["n_decode_tokens"], decode)
            self.assertEqual(r["n_seqs"], 4)
            self.assert_samples(r, 3)
        env = got["environment"]
        self.assertEqual((env["isa"], env["threads"], env["backend"]), ("scalar", 1, "cpu"))
        self.assertTrue(env["cpu"])
        self.assertGreaterEqual(env["cores"], 1)
        self.assertEqual(got["options"]["seed"], 7)
        self.assertEqual(len(got["model_sha256"]), 64)
        self.assertIn("version", got)

    def assert_samples(self, r, n):
        for unit in ("ns", "ts", "cpu_ns", "first_token_ns"):
            samples = r["samples_" + unit]
            self.assertEqual(len(samples), n)
            self.assertAlmostEqual(r["median_" + unit], sorted(samples)[n // 2], delta=1)
            self.assertAlmostEqual(r["avg_" + unit] / (sum(samples) / n), 1, places=3)
        self.assertGreater(min(r["samples_ns"]), 0)
        self.assertAlmostEqual(r["total_tok_per_s"], r["median_ts"], delta=0.01)
        total = r["n_prefill_tokens"] + r["n_decode_tokens"]
        self.assertAlmostEqual(r["samples_ts"][0] * r["samples_ns"][0] / 1e9 / total, 1, places=3)

    def test_one_sequence_decodes_exactly_the_output(self):
        r = offline(*SMALL, "--mode", "decode", "--depth", 33)["results"][0]
        self.assertEqual((r["n_decode_tokens"], r["n_prefill_tokens"], r["n_prompt"]), (9, 0, 33))

    def test_more_prompts_than_run_at_once(self):
        r = offline(*SMALL, "--mode", "mixed", "--batch", 2, "--num-prompts", 7)["results"][0]
        self.assertEqual((r["n_prefill_tokens"], r["n_decode_tokens"]), (280, 63))
        self.assertEqual(r["n_prompts"], 7)

    def test_chunks_do_not_change_the_counts(self):
        r = offline(*SMALL, "--mode", "mixed", "--prefill-chunk", 16, "--batch", 3)["results"][0]
        self.assertEqual((r["n_prefill_tokens"], r["n_decode_tokens"]), (120, 27))

    def test_output_file(self):
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "out.json")
            rc, out, err = run("bench", "offline", TINY, *SMALL, "--mode", "prefill", "--output", path)
            self.assertEqual((rc, out), (0, ""), err)
            self.assertIn("pp40", err)
            with open(path) as f:
                self.assertEqual(len(json.load(f)["results"]), 1)
            rc, _, err = run("bench", "offline", TINY, *SMALL, "--output", d + "/none/out.json")
            self.assertEqual(rc, 1, err)

    def test_usage(self):
        for args in (("--mode", "decoed"), ("--input-len", 0), ("--repeat", 0), ("--batch", "x"),
                     ("--inputlen", 5), ("--batch", 5, "--max-num-seqs", 4),
                     ("--batch", 4, "--num-prompts", 3), ("more", "operands")):
            rc, out, err = run("bench", "offline", TINY, *args)
            self.assertEqual((rc, out), (2, ""), (args, err))
            self.assertIn("sluice: ", err)
        self.assertEqual(run("bench", "offline", "/nonexistent.gguf")[0], 4)
        self.assertNotEqual(run("bench", "offline", TINY, "--input-len", 100000)[0], 0)
        self.assertEqual(run("bench", "ofline")[0], 2)
        self.assertEqual(run("bench")[0], 2)


class Ops(unittest.TestCase):
    def test_cost_of_exact_sums(self):
        rc, out, err = run("bench", "ops", TINY, "--repeat", 2, "--depth", 40)
        self.assertEqual(rc, 0, err)
        report = json.loads(out)
        steps = report["cost_of_exact_sums"]
        self.assertEqual([(s["step"], s["n_seq"], s["rows"]) for s in steps],
                         [("decode", 1, 1), ("decode", 8, 1), ("decode", 32, 1), ("prefill", 1, 256)])
        for s in steps:
            self.assertGreaterEqual(s["exact_floats"], s["loose_floats"])
            for key in ("loose_floats", "exact_ns", "loose_ns", "exact_cpu_ns", "loose_cpu_ns"):
                self.assertGreater(s[key], 0)

    def test_refusals(self):
        rc, _, err = run("bench", "ops", TINY, "--tensor-parallel-size", 8)
        self.assertEqual(rc, 3, err)
        self.assertIn("at most 2", err)
        self.assertEqual(run("bench", "ops", TINY, "--tensor-parallel-size", 0)[0], 2)
        rc, _, err = run("bench", "ops", TINY, "--backend", "cuda-emu")
        self.assertEqual(rc, 2, err)
        self.assertIn("an emulated device's times say nothing", err)
        self.assertEqual(run("bench", "ops", "/nonexistent.gguf")[0], 4)


class Compare(unittest.TestCase):
    def test_usage(self):
        rc, out, err = run("bench", "compare", "--help")
        self.assertEqual(rc, 0, err)
        self.assertIn("--rounds", out)
        for args in (("--threads", "two"), ("--threads", "0"), ("--cells", "prefil"), ("--rounds", "0")):
            self.assertEqual(run("bench", "compare", *args)[0], 2, args)


class Serve(unittest.TestCase):
    N = 12
    SIZES = ("--num-prompts", N, "--random-input-len", 20, "--random-output-len", 8, "--seed", 3)

    def bench(self, server, *args):
        rc, out, err = run("bench", "serve", "--base-url", server.url, "--output", "-", "--disable-tqdm",
                           *self.SIZES, *args)
        return rc, out, err

    def figures(self, out):
        """The JSON object on standard output, whatever table stands before it."""
        return json.JSONDecoder().raw_decode(out[out.index("{"):])[0]

    def test_against_a_server(self):
        with Server() as s:
            rc, out, err = self.bench(s, "--max-concurrency", 4, "--goodput", "ttft:60000 e2el:600000")
            self.assertEqual(rc, 0, err)
            got = self.figures(out)
            self.check_figures(got)
            self.assertGreater(got["request_goodput"], 0)
            self.check_goodput_none(s)
            self.check_chat(s)
            self.check_open_loop(s)
            self.check_assertions(s)

    def check_figures(self, got):
        self.assertEqual((got["completed"], got["failed"], got["num_prompts"]), (self.N, 0, self.N))
        self.assertEqual(got["total_output_tokens"], 8 * self.N)
        self.assertGreater(got["total_input_tokens"], 0)
        self.assertEqual(got["output_lens"], [8] * self.N)
        for metric in ("ttft", "tpot", "itl", "e2el"):
            for figure in ("mean", "median", "std", "p99"):
                self.assertGreaterEqual(got[f"{figure}_{metric}_ms"], 0)
            self.assertGreaterEqual(got[f"p99_{metric}_ms"], got[f"median_{metric}_ms"])
        self.assertGreaterEqual(got["median_e2el_ms"], got["median_ttft_ms"])
        for key in ("date", "backend", "model_id", "request_rate", "burstiness", "max_concurrency",
                    "duration", "request_throughput", "output_throughput", "total_token_throughput", "environment"):
            self.assertIn(key, got)
        for key in ("ttfts", "itls", "input_lens", "generated_texts", "errors"):
            self.assertEqual(len(got[key]), self.N, key)

    def check_goodput_none(self, s):
        rc, out, err = self.bench(s, "--goodput", "e2el:0.0001")
        self.assertEqual(rc, 0, err)
        self.assertEqual(self.figures(out)["request_goodput"], 0)

    def check_chat(self, s):
        rc, out, err = self.bench(s, "--backend", "openai-chat")
        self.assertEqual(rc, 0, err)
        self.assertEqual(self.figures(out)["completed"], self.N)

    def check_open_loop(self, s):
        rc, out, err = self.bench(s, "--request-rate", 50, "--arrival", "poisson")
        self.assertEqual(rc, 0, err)
        got = self.figures(out)
        self.assertEqual((got["completed"], got["request_rate"]), (self.N, 50))

    def check_assertions(self, s):
        self.assertEqual(self.bench(s, "--assert", "failed==0, completed==12")[0], 0)
        rc, _, err = self.bench(s, "--assert", "failed==0, completed>12")
        self.assertEqual(rc, 9, err)
        self.assertIn("completed", err)
        self.assertEqual(self.bench(s, "--assert", "no_such_figure<1")[0], 2)

    def test_nobody_there(self):
        rc, _, err = run("bench", "serve", "--base-url", "http://127.0.0.1:1", "--num-prompts", 1)
        self.assertEqual(rc, 7, err)

    def test_usage(self):
        for args in (("--goodput", "speed:3"), ("--assert", "p99"), ("--request-rate", "-1"),
                     ("--dataset-name", "dice"), ("--num-prompts", 0)):
            rc, _, err = run("bench", "serve", "--base-url", "http://127.0.0.1:1", *args)
            self.assertEqual(rc, 2, (args, err))


if __name__ == "__main__":
    unittest.main(verbosity=2)
