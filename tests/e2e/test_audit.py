"""A stored answer is audited by one prefill pass: what a server or `sluice complete` gave is authentic, on
other threads and instruction sets too; whatever is changed in it is found; the exit code says which."""
import copy
import http.client
import json
import os
import subprocess
import tempfile
import unittest

from harness import SLOW, TINY, Server, run

LONG = "The quick brown fox jumps over the lazy dog. " * 12
CASES = {
    "greedy": ("/v1/completions", {"prompt": LONG, "max_tokens": 30, "temperature": 0}),
    "sampled, two choices, logprobs": ("/v1/completions", {
        "prompt": "Once", "max_tokens": 40, "n": 2, "logprobs": 0, "ignore_eos": True}),
    "two prompts": ("/v1/completions", {"prompt": ["a", LONG], "max_tokens": 12, "seed": 3, "echo": True}),
    "chat": ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "Sing."}], "max_tokens": 60, "seed": 4, "ignore_eos": True,
        "logprobs": True, "top_logprobs": 3, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2,
        "top_p": 0.9, "top_k": 100, "min_p": 0.001, "logit_bias": {"65": 2, "10": -100}}),
}


def no_duplicates(pairs):
    """A strict reader: a key once, and no NUL in it."""
    names = [k for k, _ in pairs]
    assert len(set(names)) == len(names) and "\0" not in "".join(names), names
    return dict(pairs)


class Audit(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        with Server("--threads", 2) as s:
            cls.answers = {name: cls.ask(s, path, body) for name, (path, body) in CASES.items()}
            path, body = CASES["chat"]
            text = cls.answers["chat"]["choices"][0]["message"]["content"]
            cls.stop = dict(body, stop=[text[len(text) // 2:][:4]])
            cls.answers["stop string"] = cls.ask(s, path, cls.stop)
            cls.events = "".join(f"id: {i}\ndata: {data}\n\n" if i else f"data: {data}\n\n" for i, data in
                                 s.sse(path, dict(cls.stop, return_chain=True)))

        # Every token as likely: the alternatives are bytes that are no UTF-8, and NUL after NUL.
        cls.tied = os.path.join(cls.dir.name, "tied.gguf")
        subprocess.run([os.environ["SL_TINY_TOOL"], cls.tied, "--tied"], check=True)
        with Server("--threads", 2, model=cls.tied) as s:
            cls.listed = [cls.ask_raw(s, "/v1/completions", {
                "prompt": prompt, "max_tokens": n, "seed": seed, "temperature": 3, "logprobs": 5, "ignore_eos": True})
                for prompt in ("Once", [0]) for n in (1, 24) for seed in range(25)]

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    @classmethod
    def ask(cls, server, path, body):
        status, answer = server.post(path, dict(body, return_chain=True))
        assert status == 200, answer
        return answer

    @classmethod
    def ask_raw(cls, server, path, body):
        """The body as bytes."""
        c = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120 * SLOW)
        c.request("POST", path, json.dumps(dict(body, return_chain=True)), {"Content-Type": "application/json"})
        r = c.getresponse()
        raw = r.read()
        c.close()
        assert r.status == 200, raw
        return raw

    def audit(self, answer, *args, model=TINY):
        """(exit code, verdict or None)"""
        path = os.path.join(self.dir.name, "answer")
        with open(path, "w") as f:
            f.write(answer if isinstance(answer, str) else json.dumps(answer))
        rc, out, err = run("audit", path, model, "--json", *args)
        self.assertEqual(bool(out), rc in (0, 1), err)
        return rc, json.loads(out) if out else None

    def test_what_was_given_is_authentic(self):
        for name, answer in self.answers.items():
            for args in ((), ("--isa", "scalar", "--threads", 1)):
                with self.subTest(name, args=args):
                    rc, got = self.audit(answer, *args)
                    self.assertEqual((rc, got["authentic"]), (0, True), got)
                    want = [c["chain"] for c in answer["sluice"]["choices"]]
                    self.assertEqual([c["chain"] for c in got["choices"]], want)
        self.assertEqual(self.answers["stop string"]["choices"][0]["finish_reason"], "stop")
        rc, got = self.audit({"request": self.stop, "response": self.answers["stop string"]})
        self.assertEqual(rc, 0, got)

    def test_a_stored_stream(self):
        self.assertEqual(self.audit(self.events)[0], 0)
        self.assertEqual(self.audit(self.events.replace("\n", "\r\n"))[0], 0)

    def test_alternatives_of_one_text(self):
        """Lists by text hold a text once; what is left out is no difference, what is changed is one."""
        said = all_shorter = some_shorter = 0
        for i, raw in enumerate(self.listed):
            answer = json.loads(raw, object_pairs_hook=no_duplicates)
            probs = answer["choices"][0]["logprobs"]
            lengths = [len(top) for top in probs["top_logprobs"]]
            self.assertTrue(1 <= min(lengths) and max(lengths) <= 5)
            said += "\0" in answer["choices"][0]["text"]
            all_shorter += max(lengths) < 5
            some_shorter += min(lengths) < 5 and max(lengths) == 5
            if i % 5:
                continue
            rc, got = self.audit(raw.decode(), model=self.tied)
            self.assertEqual((rc, got["authentic"]), (0, True), got)
            top = probs["top_logprobs"][-1]
            key = list(top)[-1]
            for value in (top[key] - 1e-4, None):
                top[key] = value
                rc, got = self.audit(answer, model=self.tied)
                self.assertEqual((rc, got["choices"][0]["verdict"]), (1, "a logprob differs"), got)
        self.assertTrue(said and all_shorter and some_shorter, (said, all_shorter, some_shorter))

    def test_complete_here(self):
        rc, out, err = run("complete", TINY, "--prompt", "Once upon", "--max-tokens", 20, "--seed", 9,
                           "--json")
        self.assertEqual(rc, 0, err)
        self.assertEqual(self.audit(out)[0], 0)

    def test_changes_are_found(self):
        def change(name, edit):
            a = copy.deepcopy(self.answers[name])
            edit(a, a["sluice"]["choices"][-1])
            rc, got = self.audit(a)
            self.assertEqual((rc, got["authentic"]), (1, False))
            return got["choices"][-1]

        def token(a, c):
            c["tokens"][17] ^= 1

        for name in ("greedy", "sampled, two choices, logprobs", "chat"):
            got = change(name, token)
            self.assertEqual((got["verdict"], got["position"]), ("a token differs", 17))
            self.assertEqual(got["computed_token"], self.answers[name]["sluice"]["choices"][-1]["tokens"][17])
            for field, value in (("temperature", 5), ("max_tokens", 61), ("top_k", 2), ("ignore_eos", None)):
                def parameter(a, c):
                    c["sampling"][field] = not c["sampling"][field] if value is None else value
                change(name, parameter)
            change(name, lambda a, c: c.update(seed=c["seed"] + 1))
            change(name, lambda a, c: c.update(choice=c["choice"] + 1))
            change(name, lambda a, c: c.update(chain="0" * 64))
            change(name, lambda a, c: c["tokens"].pop())
            change(name, lambda a, c: a["sluice"]["prompts"][-1].insert(0, 70))

        def logprob(a, c):
            a["choices"][-1]["logprobs"]["content"][5]["top_logprobs"][1]["logprob"] -= 1e-4
        self.assertEqual(change("chat", logprob)["verdict"], "a logprob differs")

        def text(a, c):
            a["choices"][-1]["message"]["content"] += "!"
        self.assertIn("text", change("chat", text)["verdict"])
        self.assertIn("finish reason", change("chat", lambda a, c: a["choices"][-1].update(
            finish_reason="stop"))["verdict"])

    def test_exit_codes(self):
        a = self.answers["greedy"]
        self.assertEqual(self.audit(a, "--kv-cache-dtype", "f32")[0], 4)  # another class
        self.assertEqual(self.audit(dict(a, sluice=None))[0], 2)
        self.assertEqual(self.audit("{")[0], 2)
        self.assertEqual(self.audit("")[0], 2)
        for member in ("prompts", "choices", "stop", "version"):
            less = {k: v for k, v in a["sluice"].items() if k != member}
            self.assertEqual(self.audit(dict(a, sluice=less))[0], 2)
        self.assertEqual(run("audit")[0], 2)
        self.assertEqual(run("audit", "/nonexistent", TINY)[0], 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
