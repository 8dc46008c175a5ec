"""Streams of the real model: 64 at once through the openai client give the texts of one by one; a
client that goes away frees its pages; a killed worker's streams go on exactly; a drain cuts nothing."""
import http.client
import json
import os
import re
import signal
import socket
import unittest

import openai
from harness import PATIENT, SLOW, Server, default_model, in_parallel, wait_until

N_STREAMS = int(os.environ.get("SL_STREAMS", "64"))
N_KILLED = int(os.environ.get("SL_KILLED", "100"))
TOPICS = ["rivers", "bread", "winter", "glass", "maps", "bees", "iron", "songs"]


def prompt(i):
    return f"Write a short line about {TOPICS[i % len(TOPICS)]}, number {i}."


def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", timeout=300 * SLOW)


def chat(server, i, stream=True):
    args = dict(model=server.get("/v1/models")[1]["data"][0]["id"], max_tokens=24,
                messages=[{"role": "user", "content": prompt(i)}],
                temperature=0 if i % 2 else 0.9, seed=100 + i)
    c = client(server)
    if not stream:
        return c.chat.completions.create(**args).choices[0].message.content
    parts = c.chat.completions.create(stream=True, **args)
    return "".join(p.choices[0].delta.content or "" for p in parts if p.choices)


def open_stream(server, i, tokens=200):
    """A raw streaming request; returns the socket after its first event."""
    body = json.dumps({"prompt": prompt(i), "max_tokens": tokens, "temperature": 0, "stream": True,
                       "ignore_eos": True}).encode()
    s = socket.create_connection(("127.0.0.1", server.port))
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return s


class Streams(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = default_model()

    def test_many_streams_equal_one_by_one(self):
        with Server(model=self.model) as s:
            together = in_parallel([lambda i=i: chat(s, i) for i in range(N_STREAMS)])
            alone = [chat(s, i, stream=i % 3 == 0) for i in range(N_STREAMS)]
            self.assertEqual(together, alone)
            self.assertGreater(len(set(alone)), N_STREAMS // 2)

    def test_clients_that_go_away_free_their_pages(self):
        with Server(model=self.model) as s:
            chat(s, 0)
            before = s.free_pages()
            for start in range(0, N_KILLED, 50):
                socks = [open_stream(s, i) for i in range(start, min(start + 50, N_KILLED))]
                for k, sock in enumerate(socks):
                    if k % 3 == 0:  # some vanish before the first byte, some by RST, some by FIN
                        sock.recv(1)
                    if k % 2:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.close()
            wait_until("all pages are free again",
                       lambda: s.free_pages() == before and not any(w["running"] for w in s.workers()), 60)
            self.assertEqual(chat(s, 1), chat(s, 1))

    def test_streams_survive_a_killed_worker(self):
        with Server("--workers", 2, "--threads", 1, model=self.model) as s:
            wait_until("two workers", lambda: len(s.workers()) == 2)
            n = 8
            body = [dict(prompt=prompt(i), max_tokens=60, temperature=0.8 * (i % 2), seed=i, ignore_eos=True,
                         logprobs=1) for i in range(n)]
            want = [s.post("/v1/completions", b)[1]["choices"][0] for b in body]
            victim = s.workers()[0]["pid"]

            def stream(i):
                text, tops, killed = "", [], False
                for e in s.events("/v1/completions", body[i]):
                    if e == "[DONE]":
                        break
                    self.assertNotIn("error", e)
                    for c in e["choices"]:
                        text += c["text"]
                        if c["logprobs"]:
                            tops += c["logprobs"]["token_logprobs"]
                    if i == 0 and len(tops) > 10 and not killed:
                        killed = True
                        os.kill(victim, signal.SIGKILL)
                return text, tops

            got = in_parallel([lambda i=i: stream(i) for i in range(n)])
            for w, (text, tops) in zip(want, got):
                self.assertEqual(text, w["text"])
                self.assertEqual(tops, w["logprobs"]["token_logprobs"])
            wait_until("a new worker", lambda: len(s.workers()) == 2 and
                       victim not in [w["pid"] for w in s.workers()])

    def test_drain_cuts_no_stream(self):
        s = Server(*PATIENT, model=self.model)
        try:
            def stream():
                n = 0
                for e in s.events("/v1/completions", {"prompt": "Once", "max_tokens": 60, "ignore_eos": True}):
                    n += 1
                    if n == 3:
                        os.kill(s.proc.pid, signal.SIGTERM)
                    if e == "[DONE]":
                        return n
                raise AssertionError("cut off")
            self.assertGreater(stream(), 30)
        finally:
            s.stop()

    def test_a_reader_that_stops_holds_back_only_itself(self):
        with Server(model=self.model) as s:
            stuck = open_stream(s, 0, 400)
            self.assertEqual(chat(s, 1), chat(s, 1))
            stuck.close()

    def test_disconnect_is_noticed_at_once(self):
        """Long before the stream's end, however fast or slow the machine is."""
        def figure(name):
            return float(re.search(rf"^{name} (\S+)$", s.get("/metrics")[1], re.M)[1])

        with Server(model=self.model) as s:
            sock = open_stream(s, 0, 2000)
            sock.recv(1)
            sock.close()
            wait_until("it is aborted", lambda: figure(
                r'sluice_request_success_total\{[^}]*finished_reason="abort"[^}]*\}') == 1)
            wait_until("nothing runs", lambda: not any(w["running"] for w in s.workers()))
            self.assertLess(figure(r"sluice_generation_tokens_total\S*"), 1000)


if __name__ == "__main__":
    unittest.main(verbosity=2)
