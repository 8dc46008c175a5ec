"""The OpenAI API over HTTP, on a small generated model: what is asked is what is answered, streamed
or whole, and every bad value is refused by name while the server goes on."""
import json
import unittest

from harness import Server, in_parallel, wait_until

BASE = {"prompt": "hello world", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


def streamed(server, path, body):
    """Text, finish reason and usage put together from the events of choice 0."""
    text, finish, usage, roles = "", None, None, 0
    events = list(server.events(path, body))
    assert events[-1] == "[DONE]", events[-1]
    for e in events[:-1]:
        usage = e.get("usage") or usage
        for c in e["choices"]:
            if "delta" in c:
                roles += "role" in c["delta"]
                text += c["delta"].get("content", "")
            else:
                text += c["text"]
            finish = c["finish_reason"] or finish
    return text, finish, usage, roles


class Api(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.s = Server()

    @classmethod
    def tearDownClass(cls):
        cls.s.stop()

    def ok(self, path, body):
        status, got = self.s.post(path, body)
        self.assertEqual(status, 200, got)
        return got

    def test_reports(self):
        for path in ("/health", "/ready", "/version", "/v1/models", "/v1/limits"):
            status, got = self.s.get(path)
            self.assertEqual(status, 200, path)
            self.assertIsInstance(got, dict)
        model = self.s.get("/v1/models")[1]["data"][0]
        self.assertEqual(self.s.get("/v1/models/" + model["id"])[1]["id"], model["id"])
        self.assertEqual(self.s.get("/v1/models/nope")[0], 404)
        status, text = self.s.get("/metrics")
        self.assertEqual(status, 200)
        for name in ("sluice_num_requests_running", "sluice_num_requests_waiting",
                     "sluice_kv_cache_usage_perc", "sluice_time_to_first_token_seconds_bucket",
                     "sluice_generation_tokens_total"):
            self.assertIn(name, text)
        limits = {row["name"]: row["value"] for row in self.s.get("/v1/limits")[1]["data"]}
        self.assertEqual(limits["http_header_bytes"], 32768)

    def test_completion_shape(self):
        got = self.ok("/v1/completions", BASE)
        self.assertEqual(got["object"], "text_completion")
        self.assertEqual(got["usage"]["completion_tokens"], 12)
        self.assertEqual(got["choices"][0]["finish_reason"], "length")

    def test_stream_equals_whole(self):
        for path, body in (("/v1/completions", BASE),
                           ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}],
                                                     "max_tokens": 12, "seed": 5, "ignore_eos": True})):
            whole = self.ok(path, body)
            c = whole["choices"][0]
            text = c["text"] if "text" in c else c["message"]["content"]
            got = streamed(self.s, path, dict(body, stream_options={"include_usage": True}))
            self.assertEqual(got[0], text)
            self.assertEqual(got[1], c["finish_reason"])
            self.assertEqual(got[2]["completion_tokens"], whole["usage"]["completion_tokens"])
            self.assertEqual(got[3], 0 if "text" in c else 1)

    def test_seed_decides(self):
        body = dict(BASE, temperature=1, max_tokens=24)
        a, b = (self.ok("/v1/completions", dict(body, seed=7))["choices"][0]["text"] for _ in range(2))
        c = self.ok("/v1/completions", dict(body, seed=8))["choices"][0]["text"]
        self.assertEqual(a, b)
        self.assertNotEqual(a, c)

    def test_n_choices(self):
        body = dict(BASE, temperature=1, seed=3, n=4, max_tokens=16)
        got = self.ok("/v1/completions", body)["choices"]
        self.assertEqual([c["index"] for c in got], [0, 1, 2, 3])
        self.assertGreater(len({c["text"] for c in got}), 1)
        one = self.ok("/v1/completions", dict(body, n=1))["choices"][0]["text"]
        self.assertEqual(one, got[0]["text"])

    def test_prompt_lists(self):
        texts = ["hello", "world", "hello world"]
        many = self.ok("/v1/completions", dict(BASE, prompt=texts))["choices"]
        for text, c in zip(texts, many):
            alone = self.ok("/v1/completions", dict(BASE, prompt=text))["choices"][0]
            self.assertEqual(c["text"], alone["text"])

    def test_token_ids_in_and_out(self):
        ids = self.ok("/tokenize", {"prompt": "hello world", "add_special_tokens": False})["tokens"]
        by_ids = self.ok("/v1/completions", dict(BASE, prompt=ids, return_token_ids=True))
        self.assertEqual(by_ids["prompt_token_ids"], ids)
        self.assertEqual(len(by_ids["choices"][0]["token_ids"]), 12)
        self.assertEqual(self.ok("/detokenize", {"tokens": ids})["prompt"], "hello world")

    def test_stop_string(self):
        text = self.ok("/v1/completions", dict(BASE, max_tokens=40))["choices"][0]["text"]
        stop = text[len(text) // 2:len(text) // 2 + 3]
        cut = self.ok("/v1/completions", dict(BASE, max_tokens=40, stop=[stop]))["choices"][0]
        self.assertEqual(cut["text"], text[:text.index(stop)])
        self.assertEqual(cut["finish_reason"], "stop")
        self.assertEqual(cut["stop_reason"], stop)
        kept = self.ok("/v1/completions", dict(BASE, max_tokens=40, stop=stop,
                                               include_stop_str_in_output=True))["choices"][0]
        self.assertEqual(kept["text"], text[:text.index(stop)] + stop)
        got = streamed(self.s, "/v1/completions", dict(BASE, max_tokens=40, stop=[stop]))
        self.assertEqual(got[0], cut["text"])

    def test_stop_token(self):
        ids = self.ok("/v1/completions", dict(BASE, return_token_ids=True))["choices"][0]["token_ids"]
        cut = self.ok("/v1/completions", dict(BASE, stop_token_ids=[ids[3]], return_token_ids=True))
        first = ids.index(ids[3])
        self.assertEqual(cut["choices"][0]["token_ids"], ids[:first + 1])
        self.assertEqual(cut["choices"][0]["finish_reason"], "stop")

    def test_logprobs(self):
        c = self.ok("/v1/completions", dict(BASE, logprobs=3))["choices"][0]["logprobs"]
        self.assertEqual(len(c["tokens"]), 12)
        for lp, top in zip(c["token_logprobs"], c["top_logprobs"]):
            self.assertLessEqual(lp, 0)
            self.assertAlmostEqual(lp, max(top.values()))
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0,
                "logprobs": True, "top_logprobs": 2, "ignore_eos": True}
        items = self.ok("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"]
        self.assertEqual(len(items), 5)
        for i in items:
            self.assertEqual(i["logprob"], i["top_logprobs"][0]["logprob"])
            self.assertEqual(bytes(i["bytes"]).decode(errors="replace"), i["token"])

    def test_logit_bias(self):
        got = self.ok("/v1/completions", dict(BASE, logit_bias={"65": 100}, return_token_ids=True))
        self.assertEqual(set(got["choices"][0]["token_ids"]), {65})

    def test_echo(self):
        got = self.ok("/v1/completions", dict(BASE, echo=True))["choices"][0]["text"]
        plain = self.ok("/v1/completions", BASE)["choices"][0]["text"]
        self.assertEqual(got, BASE["prompt"] + plain)

    def test_special_text_of_a_user_stays_text(self):
        one = [{"role": "user", "content": "a"}]
        two = [{"role": "user", "content": "a<|im_end|>"}]
        n_end = []
        end = self.ok("/tokenize", {"prompt": "<|im_end|>", "add_special_tokens": False})["tokens"]
        self.assertEqual(len(end), 1)
        for messages in (one, two):
            n_end.append(self.ok("/tokenize", {"messages": messages})["tokens"].count(end[0]))
        self.assertEqual(n_end[0], n_end[1])

    def test_prefix_cache_counts(self):
        body = dict(BASE, prompt="cache me " * 20, cache_salt="unit")
        first = self.ok("/v1/completions", body)
        again = self.ok("/v1/completions", body)
        self.assertEqual(first["choices"][0]["text"], again["choices"][0]["text"])
        self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertGreater(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        other = self.ok("/v1/completions", dict(body, cache_salt="other"))
        self.assertEqual(other["usage"]["prompt_tokens_details"]["cached_tokens"], 0)

    def test_request_id_is_echoed(self):
        self.s.post("/v1/completions", BASE, {"X-Request-Id": "abc-1"})
        self.assertEqual(self.s.headers["X-Request-Id"], "abc-1")

    def test_bad_values(self):
        """Each row: what is wrong, the status, the field that the error names."""
        numbers = {"temperature": (-1, 101), "top_p": (-0.1, 0, 1.1), "min_p": (-0.1, 1.1),
                   "presence_penalty": (-2.1, 2.1), "frequency_penalty": (-2.1, 2.1),
                   "repetition_penalty": (0, -1, 101), "top_k": (-2, 1.5, 2**31), "typical_p": (0, 2),
                   "max_tokens": (0, -1, 1.5, 2**31, 2**53 + 1), "n": (0, -1, 17, 2**31),
                   "min_tokens": (-1, 2**31), "logprobs": (-1, 21, 2**31), "seed": (1.5,),
                   "priority": (2**31,), "timeout_ms": (0, -1)}
        rows = [({name: bad}, name) for name, bads in numbers.items() for bad in bads]
        rows += [({name: bad}, name) for name in numbers for bad in ("1", True, [], {})
                 if not (name == "logprobs" and bad is True)]
        rows += [({"stop": [""]}, "stop"), ({"stop": ["x"] * 17}, "stop"), ({"stop": 3}, "stop"),
                 ({"stop": ["x" * 1025]}, "stop"), ({"stop_token_ids": [-1]}, "stop_token_ids"),
                 ({"stop_token_ids": [10**6]}, "stop_token_ids"), ({"logit_bias": {"-1": 1}}, "logit_bias"),
                 ({"logit_bias": {"999999": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"),
                 ({"logit_bias": {"x": 1}}, "logit_bias"), ({"prompt": ""}, "prompt"),
                 ({"prompt": [-1]}, "prompt"), ({"prompt": [10**7]}, "prompt"), ({"prompt": []}, "prompt"),
                 ({"prompt": ["a"] * 65}, "prompt"), ({"prompt": 5}, "prompt"), ({"stream": 1}, "stream"),
                 ({"guided_json": {}}, "guided_json"), ({"response_format": {"type": "json_object"}},
                                                        "response_format"),
                 ({"tools": [{}]}, "tools"), ({"best_of": 2}, "best_of"), ({"suffix": "x"}, "suffix"),
                 ({"temprature": 1}, "temprature"), ({"stream_options": {}}, "stream_options"),
                 ({"cache_salt": ""}, "cache_salt"), ({"prompt": "x" * 200000}, "prompt"),
                 ({"max_tokens": 10**6}, "max_tokens")]
        for change, field in rows:
            status, got = self.s.post("/v1/completions", {**BASE, **change})
            self.assertEqual(status, 400, (change, got))
            self.assertEqual(got["error"]["param"], field, (change, got))
            self.assertEqual(got["error"]["type"], "invalid_request_error")
        self.assertEqual(self.s.post("/v1/completions", dict(BASE, model="nope"))[0], 404)
        self.ok("/v1/completions", BASE)

    def test_bad_messages(self):
        for messages in (None, [], {}, [{}], [{"role": "user"}], [{"role": "god", "content": "x"}],
                         [{"role": "user", "content": 5}], ["x"],
                         [{"role": "user", "content": [{"type": "image_url"}]}],
                         [{"role": "user", "content": "x"}] * 5000):
            status, got = self.s.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
            self.assertEqual(status, 400, (str(messages)[:80], got))
            self.assertEqual(got["error"]["param"], "messages")

    def test_bad_json(self):
        good = json.dumps(BASE)
        rows = [b"", b"{", b"[]", b"null", b"{}x", b'{"a":1,"a":2}', b'{"temperature":NaN}',
                b'{"temperature":1e999}', b'{"prompt":"\\ud800"}', b'{"prompt":"\\u0000"}',
                b'{"prompt":"\xff"}', b'{"prompt":"a\nb"}', b"\xef\xbb\xbf" + good.encode(),
                b'{"prompt":' + b"[" * 100 + b"]" * 100 + b"}", b'{"n":' + b"9" * 4000 + b"}",
                good.encode() + good.encode(), b"{'prompt':'x'}", b'{"prompt":"x",}', b'{"n":01}',
                b'{"n":1.}', b"[" * 1000000, b'{"a":' * 100000]
        for body in rows:
            status, got = self.s.post("/v1/completions", body)
            self.assertEqual(status, 400, body[:60])
            self.assertIn("message", got["error"])
        self.ok("/v1/completions", BASE)

    def test_methods_and_types(self):
        self.assertEqual(self.s.call("GET", "/v1/completions", None)[0], 405)
        self.assertEqual(self.s.call("DELETE", "/health", None)[0], 405)
        self.assertEqual(self.s.get("/nothing")[0], 404)
        self.assertEqual(self.s.post("/v1/completions", BASE, {"Content-Type": "text/plain"})[0], 415)
        self.assertEqual(self.s.call("OPTIONS", "/v1/completions", None)[0], 204)


class Keys(unittest.TestCase):
    def test_every_route_but_the_probes_needs_a_key(self):
        import tempfile
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as f:
            f.write("# keys\nsecret-one\nsecret-two\n")
            f.flush()
            with Server("--api-key-file", f.name) as s:
                for path in ("/v1/models", "/metrics", "/version", "/v1/limits", "/v1/internal/ps",
                             "//v1/models", "/v1/models/", "/V1/models", "/nothing"):
                    for key in (None, "secret", "secret-onex", ""):
                        h = {"Authorization": f"Bearer {key}"} if key is not None else {}
                        self.assertEqual(s.get(path, h)[0], 401, (path, key))
                for path in ("/health", "/ready"):
                    self.assertEqual(s.get(path)[0], 200)
                for key in ("secret-one", "secret-two"):
                    self.assertEqual(s.get("/v1/models", {"Authorization": f"Bearer {key}"})[0], 200)
                self.assertEqual(s.post("/v1/completions", BASE)[0], 401)
                self.assertNotIn("secret-one", s.text())


class Overload(unittest.TestCase):
    def test_a_full_queue_is_said_and_the_rest_is_served(self):
        with Server("--max-num-seqs", 1, "--max-num-queued-reqs", 2) as s:
            def one(i):
                status, got = s.post("/v1/completions", dict(BASE, max_tokens=400, seed=i))
                return status, got

            answers = in_parallel([lambda i=i: one(i) for i in range(40)])
            statuses = [a[0] for a in answers]
            self.assertEqual(set(statuses), {200, 429})
            for status, got in answers:
                if status == 429:
                    self.assertEqual(got["error"]["code"], "queue_full")
                else:
                    self.assertEqual(got["usage"]["completion_tokens"], 400)
            self.assertEqual(s.post("/v1/completions", BASE)[0], 200)

    def test_deadline(self):
        with Server() as s:
            status, got = s.post("/v1/completions", dict(BASE, max_tokens=1900, timeout_ms=1))
            self.assertEqual(status, 408, got)
            self.assertEqual(got["error"]["code"], "deadline_exceeded")
            wait_until("pages are free", lambda: all(w["kv_pages_free"] == w["kv_pages_total"]
                                                     for w in s.workers()))


if __name__ == "__main__":
    unittest.main(verbosity=2)
