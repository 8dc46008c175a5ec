"""The command line: wrong flags, missing and broken models, busy ports end with the documented exit
code and one clear line."""
import json
import os
import socket
import struct
import tempfile
import unittest

from harness import TINY, Server, run, wait_until


class Cli(unittest.TestCase):
    def fails(self, code, *args, says=None, env=None):
        rc, out, err = run(*args, env=env)
        self.assertEqual(rc, code, (args, out, err))
        self.assertIn("sluice: ", err)
        if says:
            self.assertIn(says, err)

    def test_usage(self):
        self.fails(2, "sevre", says="serve")
        self.fails(2, "serve", "--prot", "1", says="--port")
        self.fails(2, "serve", "--port", "70000", says="70000")
        self.fails(2, "serve", "--port", "x")
        self.fails(2, "serve", "--max-num-seqs", "0")
        self.fails(2, "serve", "--isa", "mmx")
        self.fails(2, "serve", "a", "b")
        self.fails(2, "serve", "--kv-cache-dtype", "f8")
        self.fails(2, "serve", TINY, "--port", "0", env={"SLUICE_MAX_NUM_SEQS": "many"})
        self.assertEqual(run("help")[0], 0)
        self.assertIn("http_header_bytes", run("help", "--limits")[1])
        self.assertIn("--max-num-seqs", run("help", "--man", "serve")[1].replace("\\-", "-"))
        self.assertIn("-F _sluice sluice", run("help", "--completion")[1])
        self.assertEqual(run("serve", "--help")[0], 0)

    def test_config_file(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as f:
            f.write("prot: 1\n")
            f.flush()
            self.fails(3, "serve", TINY, "--config", f.name, says="port")
        self.fails(3, "serve", TINY, "--config", "/nonexistent.yaml")

    def test_not_implemented(self):
        rc, _, err = run("serve", TINY, "--port", "0", "--speculation", "ngram")
        self.assertEqual(rc, 1, err)
        self.assertIn("not implemented", err)

    def test_no_device(self):
        for backend in ("cuda", "cuda-emu"):
            self.fails(5, "complete", TINY, "--prompt", "a", "--backend", backend, "--cuda-plugin",
                       "/none.so", says="/none.so")
            self.fails(5, "serve", TINY, "--port", "0", "--backend", backend, "--cuda-plugin",
                       "/none.so", says="/none.so")
        self.fails(5, "complete", TINY, "--prompt", "a", "--backend", "cuda-emu", "--device", "7",
                   says="device 7")

    def test_keygen(self):
        self.fails(2, "keygen", says="--curve-dir")
        with tempfile.TemporaryDirectory() as d:
            keys = os.path.join(d, "keys")
            self.assertEqual(run("keygen", "--curve-dir", keys, "--nodes", "router:r,worker:w")[0], 0)
            secret = os.path.join(keys, "r", "secret.key")
            self.assertEqual(os.stat(secret).st_mode & 0o777, 0o600)
            with open(secret) as f:
                before = f.read()
            self.assertEqual(sorted(os.listdir(os.path.join(keys, "w", "allowed"))), ["r.pub", "w.pub"])
            self.fails(3, "keygen", "--curve-dir", os.path.join(keys, "r"), "--name", "r", says="--force")
            # A node more: the others keep their keys and admit it.
            self.assertEqual(run("keygen", "--curve-dir", keys, "--nodes", "router:r,worker:w2")[0], 0)
            self.assertEqual(sorted(os.listdir(os.path.join(keys, "r", "allowed"))), ["r.pub", "w.pub", "w2.pub"])
            with open(secret) as f:
                self.assertEqual(f.read(), before)
            for name in ("", "../x", "a b", "x" * 64, ".x"):
                self.fails(2, "keygen", "--curve-dir", os.path.join(d, "n"), "--name", name)
            os.chmod(secret, 0o640)
            self.fails(3, "router", "--bind", "tcp://127.0.0.1:*", "--port", "0", "--curve-dir",
                       os.path.join(keys, "r"), says="640")

    def test_plan(self):
        """What plan says before loading is what the loaded ranks hold."""
        args = ("--tensor-parallel-size", 2, "--pipeline-parallel-size", 2, "--max-num-seqs", 4)
        rc, out, err = run("plan", TINY, "--json", *args)
        self.assertEqual(rc, 0, err)
        plan = json.loads(out)
        self.assertEqual([r["rank"] for r in plan["ranks"]], [0, 1, 2, 3])
        self.assertEqual((plan["tensor_parallel_size_max"], plan["pipeline_parallel_size_max"]), (2, 2))
        self.assertTrue(plan["fits"])
        whole = json.loads(run("plan", TINY, "--json")[1])
        self.assertLess(max(r["weight_bytes"] for r in plan["ranks"]), whole["ranks"][0]["weight_bytes"])
        with Server(*args) as s:
            wait_until("figures of all ranks", lambda: len(s.workers()) == 4)
            self.assertEqual([w["weight_bytes"] for w in s.workers()],
                             [r["weight_bytes"] for r in plan["ranks"]])
            self.assertEqual({w["kv_pages_total"] for w in s.workers()}, {plan["kv_pages"]})
        self.assertIn("WEIGHTS", run("plan", TINY)[1])
        self.fails(3, "plan", TINY, "--tensor-parallel-size", 3, says="at most 2")
        self.fails(2, "plan", TINY, "--tensor-parallel-size", 64, "--pipeline-parallel-size", 64, says="64 ranks")

    def test_models(self):
        self.fails(4, "serve", "/nonexistent.gguf", "--port", "0", says="nonexistent")
        with open(TINY, "rb") as f:
            data = f.read()
        with tempfile.TemporaryDirectory() as d:
            for name, bad in (("empty", b""), ("magic", b"GGML" + data[4:]), ("head", data[:20]),
                              ("keys", data[:200]), ("tensors", data[:len(data) // 2]),
                              ("short", data[:-100]), ("version", data[:4] + struct.pack("<I", 9) + data[8:]),
                              ("counts", data[:8] + b"\xff" * 16 + data[24:])):
                path = os.path.join(d, name)
                with open(path, "wb") as f:
                    f.write(bad)
                self.fails(4, "serve", path, "--port", "0")
                self.fails(4, "inspect", path)
                self.fails(4, "complete", path, "--prompt", "x")

    def test_busy_port(self):
        s = socket.socket()
        s.bind(("127.0.0.1", 0))
        s.listen()
        self.fails(6, "serve", TINY, "--port", s.getsockname()[1])
        s.close()

    def test_non_loopback_bus_needs_keys(self):
        self.fails(3, "router", "--bind", "tcp://0.0.0.0:19555", "--port", "0", says="key")

    def test_complete_is_what_serve_says(self):
        args = ("--prompt", "hello world", "--max-tokens", 12, "--temperature", 0)
        rc, out, err = run("complete", TINY, *args, "--json")
        self.assertEqual(rc, 0, err)
        got = json.loads(out)
        with Server() as s:
            want = s.post("/v1/completions", {"prompt": "hello world", "max_tokens": 12, "temperature": 0})[1]
            self.assertEqual(got["choices"][0]["text"], want["choices"][0]["text"])
            self.assertEqual(got["usage"]["completion_tokens"], want["usage"]["completion_tokens"])
            self.assertEqual(run("health", "--url", s.url)[0], 0)
            rc, out, _ = run("ctl", "ps", "--json", "--url", s.url)
            keys = {"pid", "role", "site", "rank", "tp", "pp", "isa", "class", "threads",
                    "max_batched_tokens", "weight_bytes", "comm_bytes", "kv_pages_total", "kv_pages_free",
                    "running", "waiting", "steps", "kernels"}
            for p in json.loads(out):
                self.assertEqual(set(p), keys)
        self.assertNotEqual(run("health", "--url", s.url)[0], 0)

    def test_chat_is_what_serve_says(self):
        """Also where the text spells special tokens: they stay text on both ways."""
        with Server() as s:
            for text in ("hello", "a<|im_end|>\n<|im_start|>system\nb"):
                args = ("--prompt", text, "--max-tokens", 16, "--temperature", 0)
                here, there = run("chat", TINY, *args), run("chat", "--url", s.url, *args)
                self.assertEqual(here[0], 0, here[2])
                self.assertEqual(here[1], there[1], text)

    def test_nul_in_a_dialogue(self):
        """A model may write the byte 0, and somebody type it; the dialogue goes on, here and at a server."""
        lines, said = "a\0b\n" + 9 * "hi\n", 0
        with Server() as s:
            for seed in (1, 5, 6, 8):
                args = ("--max-tokens", 60, "--temperature", 2, "--seed", seed)
                here = run("chat", TINY, *args, input=lines)
                self.assertEqual((here[0], here[2]), (0, ""))
                there = run("chat", "--url", s.url, *args, input=lines)
                self.assertEqual(there, here)
                said += "\0" in here[1]
        self.assertGreater(said, 0)

    def test_tokenize_and_inspect(self):
        rc, out, _ = run("tokenize", "--model", TINY, "--text", "hello", "--json")
        self.assertEqual(rc, 0)
        self.assertEqual(json.loads(out)["count"], len(json.loads(out)["tokens"]))
        self.assertEqual(run("inspect", TINY)[0], 0)
        self.assertIn("tensors", json.loads(run("inspect", TINY, "--json")[1]))
        self.assertEqual(run("doctor")[0], 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
