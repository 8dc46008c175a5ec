"""Clocks that jump change nothing: while the wall clock of every process steps by hours and by seconds,
streams go on exactly, no worker is taken for lost, and no deadline fires early (F-15)."""
import glob
import tempfile
import unittest

from harness import Server, in_parallel, wait_until

FAKETIME = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")


def bodies(n, tokens):
    return [{"prompt": f"Item {i}: river stone", "max_tokens": tokens, "ignore_eos": True, "seed": i,
             "temperature": 0.8 * (i % 2), "return_token_ids": True} for i in range(n)]


@unittest.skipUnless(FAKETIME, "the package faketime is not installed")
class Clock(unittest.TestCase):
    def setUp(self):
        self.offset = tempfile.NamedTemporaryFile("w", suffix=".offset")
        self.step("+0")
        self.env = {"LD_PRELOAD": FAKETIME[0], "FAKETIME_TIMESTAMP_FILE": self.offset.name, "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}

    def step(self, to):
        self.offset.seek(0)
        self.offset.truncate()
        self.offset.write(to + "\n")
        self.offset.flush()

    def test_steps_of_hours_and_seconds(self):
        reqs = bodies(8, 400)
        with Server("--workers", 2, "--threads", 1, env=self.env) as s:
            wait_until("two workers", lambda: len(s.workers()) == 2)
            want = [s.post("/v1/completions", r)[1]["choices"][0]["token_ids"] for r in reqs]
            pids = {w["pid"] for w in s.workers()}
            seen = set()
            stepping = True

            def steps():
                k = 0
                while stepping:
                    self.step(["+3600", "-3600", "+1", "-1", "+86400", "+0"][k % 6])
                    seen.add(s.get("/v1/models")[1]["data"][0]["created"])
                    seen.add(s.post("/v1/completions", dict(reqs[0], max_tokens=1))[1]["created"])
                    k += 1

            def answers():
                nonlocal stepping
                try:
                    for _ in range(6):
                        got = in_parallel([lambda r=r: s.post("/v1/completions", dict(r, timeout_ms=60000))[1]
                                           for r in reqs])
                        self.assertEqual([g["choices"][0]["token_ids"] for g in got], want)
                finally:
                    stepping = False

            in_parallel([steps, answers])
            self.assertGreater(max(seen) - min(seen), 3600, "the clock never jumped: the test proves nothing")
            self.assertEqual({w["pid"] for w in s.workers()}, pids)
            for word in ("is silent", "is gone", "deadline"):
                self.assertNotIn(word, s.text())


if __name__ == "__main__":
    unittest.main(verbosity=2)
