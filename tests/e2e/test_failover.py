"""Streams outlive their workers, token for token: 64 at once, of every kind, through kill -9, SIGSTOP and
SIGCONT, a drain, the loss of every worker and a rolling restart, in prefill and in decode. Compared is
all a client sees: text, logprobs, token ids, finish and stop reason, usage."""
import os
import signal
import threading
import unittest

from harness import (PATIENT, Answer, Refused, Router, Worker, check_streams, in_parallel, read_stream, show,
                     until_true, wait_until)

N_STREAMS = int(os.environ.get("SL_STREAMS", "64"))
N_ROLLING = int(os.environ.get("SL_ROLLING", "300"))
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
E_ACUTE = {"195": 7, "169": 7, "226": 6, "130": 6, "172": 6}  # bytes of é and €, often out of step

KINDS = [
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.95, "top_k": 80, "min_p": 0.001, "logprobs": 3, "return_token_ids": True},
    {"presence_penalty": 0.9, "frequency_penalty": 0.6, "repetition_penalty": 1.3, "logprobs": 1},
    {"logit_bias": E_ACUTE, "temperature": 0.8},
    {"n": 2, "typical_p": 0.9, "logprobs": 0},
    {"min_tokens": 150, "stop": ["e", "a"], "temperature": 1.1},
    {"logit_bias": E_ACUTE, "stop": ["é€é€é€", "€€€€€"], "include_stop_str_in_output": True},
    {"stop_token_ids": [0, 1, 2], "min_tokens": 100, "logit_bias": {"0": 3}},
]


def request(i, max_tokens=200):
    """(path, body) of stream i; every third is a chat."""
    body = dict(KINDS[i % len(KINDS)], max_tokens=max_tokens, ignore_eos=True, seed=1000 + i, priority=i % 3)
    words = f"Stream {i} begins. " * (1 + i % 5)
    if i % 3 or "return_token_ids" in body:
        return TEXT, dict(body, prompt=words)
    if "logprobs" in body:
        body["top_logprobs"] = body["logprobs"]
        body["logprobs"] = True
    return CHAT, dict(body, messages=[{"role": "user", "content": words}],
                      stream_options={"include_usage": True})


def metric(server, name):
    for line in server.get("/metrics")[1].splitlines():
        if line.startswith(name + "{") or line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(name)


class Cluster:
    """A router and workers; stops what is left of them."""

    def __init__(self, n, *router_args, worker_args=()):
        self.worker_args = worker_args
        self.router = Router(*router_args)
        self.workers = [self.worker() for _ in range(n)]
        self.router.wait_ready()
        self.wait(n)

    def worker(self, *args):
        return Worker(self.router, args=(*self.worker_args, *args))

    def wait(self, n):
        wait_until(f"{n} workers", lambda: len(self.router.workers()) == n)

    def row(self, worker):
        return [w for w in self.router.workers() if w["pid"] == worker.pid][0]

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        if kind:
            show(error, self.router, *self.workers, n_lines=20)
        for w in self.workers:
            w.kill()
        self.router.kill() if kind else self.router.stop()


def run_streams(router, n, act=None, after=4, **kw):
    """Streams 0..n-1 at once; `act` is called once, when an eighth of them have `after` events."""
    answers = [Answer() for _ in range(n)]
    lock, state = threading.Lock(), {"ready": 0, "acted": act is None}

    def note():
        with lock:
            state["ready"] += 1
            go = not state["acted"] and state["ready"] >= (n + 7) // 8
            state["acted"] |= go
        if go:
            act()

    def one(i):
        path, body = request(i, **kw)
        try:
            for event in router.sse(path, body):
                answers[i].take(*event)
                if answers[i].n_events == after:
                    note()
        except Refused as e:
            answers[i].error = dict(e.error, status=e.status)
        if answers[i].n_events < after:
            note()

    in_parallel([lambda i=i: one(i) for i in range(n)])
    assert state["acted"]
    return answers


class Failover(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Cluster(1) as c:
            cls.want = run_streams(c.router, N_STREAMS)
            cls.want_long = run_streams(c.router, 8, max_tokens=1200)
        for a in cls.want:
            assert a.done and a.result()

    def check(self, answers, want=None):
        check_streams(answers, want or self.want)

    def test_killed_worker(self):
        def attempt():
            with Cluster(2) as c:
                self.check(run_streams(c.router, N_STREAMS, c.workers[0].kill))
                return metric(c.router, "sluice_router_retries_total") > 0
        until_true("streams moved", attempt)

    def test_killed_twice(self):
        with Cluster(3) as c:
            def kill_two():
                c.workers[0].kill()
                c.workers[1].kill()
            self.check(run_streams(c.router, N_STREAMS, kill_two))

    def test_stopped_worker_wakes_up(self):
        """What it says after it woke up is refused."""
        def attempt():
            with Cluster(2) as c:
                sleeper = c.workers[0]

                def wake():
                    c.wait(1)
                    sleeper.signal(signal.SIGCONT)

                waker = threading.Thread(target=wake)

                def stop():
                    sleeper.signal(signal.SIGSTOP)
                    waker.start()

                self.check(run_streams(c.router, 8, stop, max_tokens=1200), self.want_long)
                waker.join()
                c.wait(2)
                self.check(run_streams(c.router, 8))
                return metric(c.router, "sluice_router_fenced_total") > 0
        until_true("late outputs are refused", attempt)

    def test_killed_in_prefill(self):
        """Chunks of 16 rows: long prompts take many steps, and the victim dies in the middle of them."""
        args = ("--max-num-batched-tokens", 16, "--max-num-seqs", 16)
        n, prompt = 12, "All work and no play makes a long prompt. " * 40
        bodies = [dict(prompt=f"{i} {prompt}", max_tokens=20, seed=i, logprobs=1) for i in range(n)]
        with Cluster(2, worker_args=args) as c:
            want = in_parallel([lambda b=b: read_stream(c.router, TEXT, b) for b in bodies])

        def attempt():
            with Cluster(2, worker_args=args) as c:
                answers = [Answer() for _ in bodies]
                begun = []

                def kill():
                    wait_until("it computes", lambda: c.row(c.workers[0])["steps"] > 3)
                    c.workers[0].kill()
                    begun.append(sum(a.n_events > 0 for a in answers))

                in_parallel([kill] + [lambda a=a, b=b: read_stream(c.router, TEXT, b, a)
                                      for a, b in zip(answers, bodies)])
                self.check(answers, want)
                return begun[0] < n and metric(c.router, "sluice_router_retries_total") > 0
        until_true("prompts moved", attempt)

    def test_drained_worker_cuts_nothing(self):
        with Cluster(2, worker_args=PATIENT) as c:
            leaver = c.workers.pop(0)
            self.check(run_streams(c.router, N_STREAMS, lambda: leaver.signal(signal.SIGTERM)))
            self.assertEqual(leaver.proc.wait(), 0)  # a second SIGTERM would stop it at once

    def test_drain_deadline(self):
        """A worker that may not finish hands its streams over."""
        with Cluster(1) as c:
            c.workers += [c.worker("--shutdown-timeout", 0)]
            c.wait(2)
            leaver = c.workers.pop(1)
            self.check(run_streams(c.router, 8, lambda: leaver.signal(signal.SIGTERM), max_tokens=1200),
                       self.want_long)
            self.assertIn(leaver.proc.wait(), (0, 8))

    def test_all_workers_lost(self):
        """Streams wait for a worker to come; those with a deadline end with a typed error at it."""
        with Cluster(2) as c:
            late = []

            def kill_all():
                for w in c.workers:
                    w.kill()
                c.wait(0)
                try:
                    read_stream(c.router, TEXT, {"prompt": "late", "timeout_ms": 300})
                except Refused as e:  # no event was sent yet: an HTTP error
                    late.append((e.status, e.error["type"]))
                c.workers.append(c.worker())

            self.check(run_streams(c.router, 8, kill_all, max_tokens=1200), self.want_long)
            self.assertEqual(late, [(408, "timeout_error")])

    def test_deadline_in_mid_stream(self):
        with Cluster(1) as c:
            answer = Answer()
            body = {"prompt": "x", "max_tokens": 1900, "timeout_ms": 3000, "ignore_eos": True, "n": 16,
                    "logprobs": 5}
            for event in c.router.sse(TEXT, body):
                answer.take(*event)
                if answer.n_events == 5:
                    c.workers[0].signal(signal.SIGSTOP)
            c.workers[0].signal(signal.SIGCONT)
            self.assertEqual(answer.error["type"], "timeout_error")
            self.assertTrue(answer.done)

    def test_seedless(self):
        """A drawn seed is the stream's own for all its life: the same seed gives the same answer."""
        with Cluster(2) as c:
            answers = [Answer() for _ in range(8)]

            def one(i):
                body = {"prompt": f"no seed {i}", "max_tokens": 400, "ignore_eos": True, "return_chain": True,
                        "logprobs": 0}
                for event in c.router.sse(TEXT, body):
                    answers[i].take(*event)
                    if i == 0 and answers[i].n_events == 50:
                        c.workers[0].kill()
                again = read_stream(c.router, TEXT, dict(body, seed=answers[i].proof["choices"][0]["seed"]))
                self.assertEqual(answers[i].result(), again.result())
                self.assertEqual(answers[i].proof, again.proof)

            in_parallel([lambda i=i: one(i) for i in range(8)])

    def test_rolling_restart(self):
        """Every worker is replaced by a new one under load: no request fails, every answer is right."""
        n_clients = 8
        want = [self.want[i].result() for i in range(n_clients)]
        with Cluster(2, worker_args=PATIENT) as c:
            left = [N_ROLLING]
            done, lock = [], threading.Lock()

            def client(i):
                while True:
                    with lock:
                        if not left[0]:
                            return
                        left[0] -= 1
                    got = read_stream(c.router, *request(i)).result()
                    with lock:
                        done.append(got == want[i])

            def roll():
                n_replaced = 0
                while left[0] or n_replaced < 2:
                    old, new = c.workers.pop(0), c.worker()
                    c.workers.append(new)
                    wait_until("the new one serves",
                               lambda: new.pid in [w["pid"] for w in c.router.workers()])
                    old.stop()
                    n_replaced += 1

            in_parallel([roll] + [lambda i=i: client(i) for i in range(n_clients)])
            self.assertEqual(len(done), N_ROLLING)
            self.assertTrue(all(done))


if __name__ == "__main__":
    unittest.main(verbosity=2)
