"""A stream cut off by a dying router goes on at another one, exactly: the texts, logprobs and ends
before the cut and after it are together those of an undisturbed stream, and what is shown twice or
not at all is nothing. Two routers, two workers that know both."""
import signal
import unittest

from harness import Answer, Refused, Router, Worker, read_stream, until_true, wait_until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Count to ten, then sing."}]

# The small model writes bytes at random: many characters are not ASCII.
CASES = {
    "completion": (TEXT, {"prompt": "Once", "max_tokens": 40, "ignore_eos": True, "seed": 5}),
    "chat": (CHAT, {"messages": HELLO, "max_tokens": 40, "seed": 6}),
    "greedy with penalties": (TEXT, {"prompt": "a b a b", "max_tokens": 40, "temperature": 0,
                                     "presence_penalty": 0.7, "frequency_penalty": 0.4,
                                     "repetition_penalty": 1.2, "logit_bias": {"65": 3}}),
    "two choices, logprobs": (TEXT, {"prompt": "Twice", "max_tokens": 24, "n": 2, "seed": 8, "logprobs": 3,
                                     "ignore_eos": True, "return_token_ids": True}),
    "chat, two choices, logprobs": (CHAT, {"messages": HELLO, "max_tokens": 24, "n": 2, "seed": 9,
                                           "logprobs": True, "top_logprobs": 2,
                                           "stream_options": {"include_usage": True}}),
    "characters of several tokens": (TEXT, {"prompt": "é", "max_tokens": 40, "seed": 4, "logit_bias": {
        "195": 7, "169": 7, "226": 6, "130": 6, "172": 6}, "n": 2, "ignore_eos": True}),
    "without a seed": (CHAT, {"messages": HELLO, "max_tokens": 30, "temperature": 1.2}),
    "batch without a seed": (TEXT, {"prompt": ["same", "same"], "max_tokens": 16, "ignore_eos": True}),
    "echo, min_tokens, top_k": (TEXT, {"prompt": "Echo this", "echo": True, "max_tokens": 30, "seed": 2,
                                       "min_tokens": 20, "top_k": 40, "top_p": 0.9, "min_p": 0.01}),
}


class Resume(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.a, cls.b = Router(), Router()
        cls.workers = [Worker(cls.a, cls.b) for _ in range(2)]
        cls.a.wait_ready()
        cls.b.wait_ready()
        wait_until("two workers", lambda: len(cls.a.workers()) == len(cls.b.workers()) == 2)

    @classmethod
    def tearDownClass(cls):
        for w in cls.workers:
            w.stop()
        for r in (cls.a, cls.b):
            r.stop()

    def cut_everywhere(self, path, body, step=1):
        """A stream of router a as if cut after event 1, 2, ...; each goes on at b."""
        events = list(self.a.sse(path, body))
        whole = Answer()
        for e in events:
            whole.take(*e)
        self.assertTrue(whole.done)
        for k in range(1, len(events), step):
            got = Answer()
            for e in events[:k]:
                got.take(*e)
            if not got.last_id:  # only a role chunk came: nothing to go on from
                continue
            begun = [i for i, c in got.choices.items() if c["text"] or c["logprobs"]]
            read_stream(self.b, path, body, got, got.last_id)
            self.assertEqual(got.result(), whole.result(), f"cut after event {k}")
            for i in begun:
                self.assertEqual(got.choices[i]["roles"], path == CHAT)

    def test_every_cut(self):
        for name, (path, body) in CASES.items():
            with self.subTest(name):
                self.cut_everywhere(path, body, step=3 if "choices" in name else 2)

    def test_stop_string_across_the_cut(self):
        """Every event of a stream is a cut; the stop strings begin in one token and end in another."""
        for path, body in (CASES["completion"], CASES["chat"]):
            _, whole = self.a.post(path, body)
            c = whole["choices"][0]
            text = c["text"] if "text" in c else c["message"]["content"]
            at = len(text) // 2
            for include in (False, True):
                stop = dict(body, stop=[text[at:at + 5], "never met"], include_stop_str_in_output=include)
                with self.subTest(path=path, include=include):
                    self.cut_everywhere(path, stop)

    def test_ids_that_are_not_of_this_stream(self):
        path, body = CASES["completion"]
        good = [event_id for event_id, _ in self.a.sse(path, body)][6]

        def refused(last_id, want, changed=None):
            with self.assertRaises(Refused) as e:
                read_stream(self.b, path, changed or body, Answer(), last_id)
            self.assertEqual(e.exception.status, want, e.exception.error)
            self.assertEqual(e.exception.error["param"], "Last-Event-ID")

        for bad in ("x", good[:-1], good + "0", good.replace("1.", "2.", 1), good + ".1", "1.5"):
            refused(bad, 400)
        refused(good, 409, dict(body, prompt="Twice"))
        refused(good, 409, dict(body, seed=6))
        refused(good, 409, dict(body, stop=["x"]))
        refused(good, 409, dict(body, n=2))
        refused(good, 409, dict(body, temperature=0.5))  # seen when the tokens are computed again
        last = good[-1]
        refused(good[:-1] + ("0" if last != "0" else "1"), 409)
        status, answer = self.b.post(path, body, {"Last-Event-ID": good})
        self.assertEqual((status, answer["error"]["param"]), (400, "Last-Event-ID"))

    def test_killed_router(self):
        """kill -9 of the router in mid-stream; the other one goes on."""
        path, body = CHAT, {"messages": HELLO, "max_tokens": 600, "n": 4, "ignore_eos": True,
                            "logprobs": True, "top_logprobs": 1, "seed": 77}
        whole = read_stream(self.b, path, body, Answer())

        def attempt():
            victim = Router()
            workers = [Worker(victim, self.b) for _ in range(2)]
            victim.wait_ready()
            try:
                got = Answer()
                for event_id, data in victim.sse(path, body):
                    got.take(event_id, data)
                    if got.n_events == 30:
                        victim.proc.send_signal(signal.SIGKILL)
                cut = not got.done
                if cut:
                    read_stream(self.b, path, body, got, got.last_id)
                self.assertEqual(got.result(), whole.result())
                return cut
            finally:
                for w in workers:
                    w.stop()
                victim.kill()
        until_true("the stream was cut", attempt)


if __name__ == "__main__":
    unittest.main(verbosity=2)
