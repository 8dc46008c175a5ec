"""Faults that are switched on inside the product (--inject): whatever happens within a worker or on the
bus, a stream is exact or ends with a typed error, and a wedged engine is not called ready."""
import unittest

from harness import Answer, check_streams, in_parallel, read_stream, wait_until
from test_failover import Cluster, Refused, metric, request, run_streams

N = 16


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Cluster(1) as c:
            cls.want = run_streams(c.router, N)
        for a in cls.want:
            assert a.done and a.result()

    def check(self, answers):
        check_streams(answers, self.want)

    def test_wedged_engine(self):
        """It says heartbeats and computes nothing: its streams go on at the other worker."""
        with Cluster(1) as c:
            wedged = c.worker("--inject", "engine.wedge=1+60")
            c.workers.append(wedged)
            c.wait(2)
            self.check(run_streams(c.router, N))
            self.assertGreater(metric(c.router, "sluice_router_retries_total"), 0)
            self.assertEqual(len(c.router.workers()), 2)
            self.check(run_streams(c.router, N))
            self.assertEqual(c.router.get("/ready")[0], 200)

    def test_only_engine_wedged(self):
        """Nobody is ready then; when it moves again its streams go on where they were."""
        with Cluster(1, worker_args=("--inject", "engine.wedge=1@5000+100x1")) as c:
            answers, seen = [], []
            in_parallel([lambda: answers.extend(run_streams(c.router, 2)),
                         lambda: wait_until("not ready", lambda: c.router.get("/ready")[0] == 503)
                         or seen.append(c.router.get("/ready")[1]["error"]["code"])])
            self.assertEqual(seen, ["worker_lost"])
            self.check(answers)
            wait_until("ready again", lambda: c.router.get("/ready")[0] == 200)

    def test_slow_engine_is_no_wedge(self):
        """Steps of a second are what this worker needs: it is left alone once that is known."""
        with Cluster(1, worker_args=("--inject", "engine.slow=1@1000")) as c:
            path, body = request(1, max_tokens=5)
            for _ in range(2):
                self.assertTrue(read_stream(c.router, path, body).done)
            self.assertEqual(metric(c.router, "sluice_router_retries_total"), 0)

    def test_lost_messages(self):
        """A message that is lost in either direction is noticed by its number; the link starts over."""
        for where in "worker", "router":
            with Cluster(1, *(["--inject", "bus.drop=0.005,seed=3"] if where == "router" else [])) as c:
                if where == "worker":
                    c.workers.append(c.worker("--inject", "bus.drop=0.005,seed=4"))
                    c.wait(2)
                self.check(run_streams(c.router, N))

    def test_flipped_bits(self):
        for where in "worker", "router":
            with Cluster(1, *(["--inject", "bus.corrupt=0.005,seed=3"] if where == "router" else [])) as c:
                if where == "worker":
                    c.workers.append(c.worker("--inject", "bus.corrupt=0.005,seed=4"))
                    c.wait(2)
                self.check(run_streams(c.router, N))

    def test_no_memory_for_some_requests(self):
        with Cluster(1) as c:
            c.workers.append(c.worker("--inject", "request.memory=0.3"))
            c.wait(2)
            self.check(run_streams(c.router, N))

    def test_logits_that_are_no_numbers(self):
        """One sequence of one step: that request ends with an error, the others are exact."""
        with Cluster(1, worker_args=("--inject", "engine.nan=1+60x1")) as c:
            path, body = request(1, max_tokens=40)
            answer = Answer()
            try:
                for _ in range(2):
                    answer = read_stream(c.router, path, body)
                    if answer.error:
                        break
                self.assertEqual(answer.error["type"], "server_error")
            except Refused as e:
                self.assertEqual(e.status, 500)

    def test_others_in_the_batch_are_exact(self):
        """Of 16 streams in one batch one is hit; the other 15 do not notice."""
        with Cluster(1, worker_args=("--inject", "engine.nan=1+12x1")) as c:
            answers = run_streams(c.router, N)
            self.assertEqual([a.error["type"] for a in answers if a.error], ["server_error"])
            for a, w in zip(answers, self.want):
                if not a.error:
                    self.assertEqual(a.result(), w.result())


if __name__ == "__main__":
    unittest.main(verbosity=2)
