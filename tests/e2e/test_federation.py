"""Routers as workers of a router: a global router picks a site, the site's router a worker. Answers are those
of one worker; a site that dies, hangs or loses its workers hands its streams over, token for token; what
a site loses itself is its own business."""
import os
import signal
import tempfile
import threading
import unittest

from harness import (PATIENT, Answer, Router, Worker, check_streams, read_stream, run, show, until_true,
                     wait_until)
from test_failover import TEXT, metric, request, run_streams

N = 16


class Site:
    """A site router and its workers."""

    def __init__(self, top, name, n_workers, *args, worker_args=()):
        self.name = name
        self.router = Router("--connect", top.bus, "--site", name, *args)
        self.workers = [Worker(self.router, args=("--site", name, *worker_args)) for _ in range(n_workers)]
        self.router.wait_ready()
        wait_until(f"the workers of {name}", lambda: len(self.router.workers()) == n_workers)

    def add_worker(self, *args):
        self.workers.append(Worker(self.router, args=args))

    def kill(self):
        """The whole site at once."""
        self.router.kill()
        for w in self.workers:
            w.kill()

    def close(self):
        for w in self.workers:
            w.kill()
        if self.router.proc.poll() is None:
            self.router.stop()


class Federation:
    def __init__(self, *sites, args=(), site_args=()):
        self.top = Router(*args)
        self.sites = [Site(self.top, name, n, *site_args) for name, n in sites]
        self.top.wait_ready()
        self.wait(len(sites))

    def rows(self):
        return {p["site"]: p for p in self.top.ps() if p["role"] == "site"}

    def wait(self, n):
        wait_until(f"{n} sites", lambda: len(self.rows()) == n)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        if kind:
            show(error, self.top, *(s.router for s in self.sites), n_lines=20)
        for s in self.sites:
            s.kill() if kind else s.close()
        self.top.kill() if kind else self.top.stop()


class Sites(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        router = Router()
        worker = Worker(router)
        router.wait_ready()
        cls.want = run_streams(router, N)
        cls.want_long = run_streams(router, N, max_tokens=800)
        worker.stop()
        router.stop()

    def check(self, answers, want=None):
        check_streams(answers, want or self.want)

    def test_answers_and_figures(self):
        with Federation(("north", 1), ("south", 2), args=("--site-weights", "south=2")) as f:
            self.check(run_streams(f.top, N))
            for s in f.sites:  # a site's own door
                self.check(run_streams(s.router, 4))
            wait_until("the sum of a site's workers", lambda: f.rows()["south"]["kv_pages_total"] ==
                       2 * f.rows()["north"]["kv_pages_total"])
            for name, row in f.rows().items():
                self.assertGreater(row["steps"], 0, name)
                self.assertIn("kv-f16", row["class"])
            self.assertEqual([p["site"] for p in f.sites[1].router.ps()], ["south"] * 3)
            rc, out, _ = run("ctl", "ps", "--url", f.top.url)
            self.assertEqual(rc, 0)
            self.assertIn("south", out)
            self.assertIn('site="south"} 2', f.sites[1].router.get("/metrics")[1])

    def test_a_request_passes_up_and_ends(self):
        """Cancelled streams free their pages at the site; errors come through; chains are the same."""
        with Federation(("north", 1)) as f:
            site = f.sites[0].router
            before = site.free_pages()
            for i in range(4):
                for _ in f.top.sse(TEXT, {"prompt": f"gone {i}", "max_tokens": 1500, "ignore_eos": True}):
                    break
            wait_until("cancelled", lambda: site.free_pages() == before and
                       not any(w["running"] for w in site.workers()))
            body = dict(prompt="chain", max_tokens=8, seed=3, return_chain=True)
            above, below = (r.post(TEXT, body)[1]["sluice"] for r in (f.top, site))
            self.assertEqual(above, below)
            self.assertEqual(f.top.post(TEXT, {"prompt": "x", "max_tokens": 10 ** 6})[0], 400)

    def test_killed_site(self):
        def attempt():
            with Federation(("north", 2), ("south", 2)) as f:
                self.check(run_streams(f.top, N, f.sites[0].kill, max_tokens=800), self.want_long)
                f.wait(1)
                self.assertEqual(list(f.rows()), ["south"])
                return metric(f.top, "sluice_router_retries_total") > 0
        until_true("streams moved", attempt)

    def test_killed_worker_of_a_site(self):
        """The site moves its streams itself."""
        def attempt():
            with Federation(("north", 2)) as f:
                self.check(run_streams(f.top, N, f.sites[0].workers[0].kill, max_tokens=800), self.want_long)
                self.assertEqual(metric(f.top, "sluice_router_retries_total"), 0)
                return metric(f.sites[0].router, "sluice_router_retries_total") > 0
        until_true("streams moved", attempt)

    def test_site_without_workers(self):
        """It leaves, so that its streams move; with a worker it is back, and takes new work."""
        with Federation(("north", 1), ("south", 1)) as f:
            self.check(run_streams(f.top, N, f.sites[0].workers[0].kill, max_tokens=800), self.want_long)
            f.wait(1)
            f.sites[0].add_worker("--site", "north")
            f.wait(2)
            self.check(run_streams(f.top, N))

    def test_stopped_site(self):
        """As a partition looks from above: silence; then words that nobody believes any more."""
        with Federation(("north", 1), ("south", 1)) as f:
            sleeper = f.sites[0].router.proc

            def wake():
                f.wait(1)
                sleeper.send_signal(signal.SIGCONT)

            waker = threading.Thread(target=wake)

            def stop():
                sleeper.send_signal(signal.SIGSTOP)
                waker.start()

            self.check(run_streams(f.top, N, stop, max_tokens=800), self.want_long)
            waker.join()
            f.wait(2)
            self.check(run_streams(f.top, N))

    def test_drained_site_cuts_nothing(self):
        with Federation(("north", 1), ("south", 1), site_args=PATIENT) as f:
            leaver = f.sites[0]
            self.check(run_streams(f.top, N, lambda: leaver.router.proc.send_signal(signal.SIGTERM),
                                   max_tokens=800), self.want_long)
            self.assertEqual(leaver.router.proc.wait(), 0)
            f.wait(1)

    def test_killed_global_router(self):
        """Sites know two global routers; a client goes on at the other one."""
        other = Router()
        with Federation(("north", 1)) as f:
            site = Site(other, "both", 1, "--connect", f"{f.top.bus},{other.bus}")
            f.sites.append(site)
            f.wait(2)
            other.wait_ready()
            path, body = TEXT, {"prompt": "resume", "max_tokens": 1500, "ignore_eos": True, "logprobs": 1,
                                "n": 8}
            answer = Answer()
            for event in f.top.sse(path, body):
                answer.take(*event)
                if answer.n_events == 20:
                    f.top.kill()
            self.assertFalse(answer.done)
            read_stream(other, path, body, answer, answer.last_id)
            whole = read_stream(other, path, dict(body, seed=int(answer.last_id.split(".")[1], 16)))
            self.assertEqual(answer.result(), whole.result())
            f.top = Router(bus=f.top.bus).wait_ready()
            f.wait(2)
            other.stop()

    def test_one_class_is_offered(self):
        """A site of two classes offers one of them, and keeps to it."""
        with Federation(("north", 1)) as f:
            f.sites[0].add_worker("--kv-cache-dtype", "f32")
            site = f.sites[0].router
            wait_until("both classes", lambda: len({w["class"] for w in site.workers()}) == 2)
            self.check(run_streams(f.top, N))
            wait_until("one worker's pages", lambda: f.rows()["north"]["kv_pages_total"] ==
                       [w for w in site.workers() if "kv-f16" in w["class"]][0]["kv_pages_total"])
            steps = [w["steps"] for w in site.workers() if "kv-f32" in w["class"]]
            self.assertEqual(steps, [0])

    def test_under_keys(self):
        """All links under CURVE; a site whose key is taken away is cut off, and its streams move."""
        with tempfile.TemporaryDirectory() as root:
            nodes = "router:top,router:north,router:south,worker:w"
            self.assertEqual(run("keygen", "--curve-dir", root, "--nodes", nodes)[0], 0)
            keys = {n: ("--curve-dir", os.path.join(root, n)) for n in ("top", "north", "south", "w")}
            top = Router(*keys["top"])
            sites = [Site(top, name, 1, *keys[name], worker_args=keys["w"]) for name in ("north", "south")]
            top.wait_ready()
            try:
                def names():
                    return sorted(p["site"] for p in top.ps() if p["role"] == "site")

                wait_until("two sites", lambda: names() == ["north", "south"])
                revoked = os.path.join(root, "top", "allowed", "north.pub")
                self.check(run_streams(top, N, lambda: os.unlink(revoked), max_tokens=800), self.want_long)
                wait_until("one site", lambda: names() == ["south"])
                self.check(run_streams(top, N))
            finally:
                for s in sites:
                    s.close()
                top.stop()

    def test_options(self):
        for bad in ("north", "north=", "=2", "north=0", "north=1,,", "north=2x"):
            rc, _, err = run("router", "--bind", "tcp://127.0.0.1:0", "--port", 0, "--site-weights", bad)
            self.assertEqual(rc, 2, bad)
            self.assertIn("site-weights", err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
