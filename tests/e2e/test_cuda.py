"""The CUDA backend on emulated devices, through the program: answers are the CPU's token for token, on one
device and on two, under several orders of scheduling; a device that fails ends its worker with code 5 and
costs no stream a token; whichever call of the CUDA runtime fails, the program says so or answers right."""
import glob
import json
import os
import signal
import tempfile
import threading
import unittest

from harness import SLOW, TINY, Router, Server, Worker, in_parallel, read_stream, run, until_true, wait_until

EMU = ("--backend", "cuda-emu", "--max-num-seqs", "8", "--max-model-len", "512")
CPU = ("--backend", "cpu", "--max-num-seqs", "8", "--max-model-len", "512")
TEXT = "/v1/completions"
KINDS = [{"temperature": 0, "logprobs": 2}, {"temperature": 0.9, "top_p": 0.9, "logprobs": 3},
         {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logprobs": 1}, {"n": 2, "logprobs": 0}]


def request(i, max_tokens=12):
    return dict(KINDS[i % len(KINDS)], prompt=f"Stream {i} begins. " * (1 + 7 * (i % 3)), max_tokens=max_tokens,
                ignore_eos=True, seed=100 + i)


def metric(server, name):
    rows = [r for r in server.get("/metrics")[1].splitlines() if r.startswith((name + "{", name + " "))]
    return sum(float(r.rsplit(" ", 1)[1]) for r in rows)


def answers(server, n, **kw):
    return in_parallel([lambda i=i: read_stream(server, TEXT, request(i, **kw)).result() for i in range(n)])


class Cuda(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Server(*CPU, model=TINY) as s:
            cls.want = answers(s, 8)
            cls.want_long = answers(s, 4, max_tokens=100)

    def test_complete(self):
        flags = ("--prompt", "hello world", "--max-tokens", "6", "--temperature", "0")
        want = run("complete", TINY, *CPU, *flags)
        for seed in "0", "1", "2", "3", "4":
            self.assertEqual(run("complete", TINY, *EMU, *flags, env={"SLUICE_CUDA_EMU_SEED": seed}), want)

    def test_wrong_environment(self):
        for name, value in ("SEED", "x"), ("DEVICES", "-1"), ("FAULT", "cudaNothing:1:cudaErrorUnknown"):
            with self.subTest(name):
                rc, out, err = run("complete", TINY, *EMU, "--prompt", "a", env={f"SLUICE_CUDA_EMU_{name}": value})
                self.assertEqual((rc, out), (5, ""), err)
                self.assertIn(f"SLUICE_CUDA_EMU_{name}: '{value}' is", err)

    def test_serve(self):
        """Twice, so that pages come from the prefix cache too."""
        for seed in "3", "4":
            with Server(*EMU, model=TINY, env={"SLUICE_CUDA_EMU_SEED": seed}) as s:
                self.assertEqual(answers(s, 8), self.want)
                self.assertEqual(answers(s, 8), self.want)

    def test_figures(self):
        with Server(*EMU, model=TINY) as s:
            answers(s, 2)
            wait_until("launches are told", lambda: sum(s.workers()[0]["kernels"].values()) > 100)
            w = s.workers()[0]
            for part in "embed", "norm", "linear", "attention", "rope", "logit_stats":
                self.assertTrue([name for name in w["kernels"] if part in name], w["kernels"])
            self.assertNotIn("ops", w["kernels"])
            self.assertEqual(w["isa"], "emulated")
            self.assertTrue(w["class"].startswith("cuda-emu/"), w["class"])
            self.assertGreater(w["weight_bytes"], 0)

    def test_doctor_and_plan(self):
        rc, out, _ = run("doctor", "--json", env={"SLUICE_CUDA_EMU_DEVICES": "3"})
        self.assertEqual(rc, 0)
        emu = [b for b in json.loads(out)["backends"] if b["backend"] == "cuda-emu"][0]
        self.assertEqual([d["arch"] for d in emu["devices"]], ["emulated"] * 3)
        rc, out, _ = run("doctor", "--json", env={"SLUICE_CUDA_EMU_DEVICES": "0"})
        emu = [b for b in json.loads(out)["backends"] if b["backend"] == "cuda-emu"][0]
        self.assertEqual((rc, emu["devices"], emu["plugin"]), (0, [], True))
        self.assertTrue(emu["problem"])
        small = {"SLUICE_CUDA_EMU_MEMORY": str(64 << 20)}
        plan = json.loads(run("plan", TINY, *EMU, "--json", env=small)[1])
        self.assertTrue(plan["on_device"] and plan["fits"], plan)
        self.assertEqual((plan["memory_bytes"], plan["ranks"][0]["mapped_bytes"]), (64 << 20, 0))
        rc, _, err = run("complete", TINY, *EMU, "--prompt", "a", env={"SLUICE_CUDA_EMU_MEMORY": "100000"})
        self.assertEqual(rc, 5, err)

    def test_failed_device_hands_its_streams_over(self):
        """The router's other worker goes on exactly where the device stopped."""
        def attempt():
            fault = {"SLUICE_CUDA_EMU_FAULT": "cudaGraphLaunch:20:cudaErrorECCUncorrectable:late"}
            router = Router()
            workers = [Worker(router, args=EMU, env=fault), Worker(router, args=EMU)]
            try:
                router.wait_ready()
                wait_until("2 workers", lambda: len(router.workers()) == 2)
                self.assertEqual(answers(router, 4, max_tokens=100), self.want_long)
                code = workers[0].proc.poll()
                if code is None:  # it got too little to do
                    return False
                self.assertEqual(code, 5)
                return True
            finally:
                for w in workers:
                    w.kill()
                router.kill()
        until_true("a device failed", attempt)

    def test_pages_travel_between_devices(self):
        """Prefill on one worker, decode on another: pages leave one device's memory and enter the other's."""
        router = Router("--prefill-min-tokens", "32")
        workers = [Worker(router, args=(*EMU, "--role", role)) for role in ("prefill", "decode")]
        try:
            router.wait_ready()
            wait_until("2 workers", lambda: len([p for p in router.ps() if p["role"] != "router"]) == 2)
            self.assertEqual(answers(router, 8), self.want)
            wait_until("pages travelled", lambda: metric(router, "sluice_kv_transfer_pages_received_total") > 0)
        finally:
            for w in workers:
                w.kill()
            router.kill()

    def test_serve_starts_again(self):
        """A device that fails every 40 steps: streams go on in the next process, without a second worker."""
        fault = {"SLUICE_CUDA_EMU_FAULT": "cudaGraphLaunch:40:cudaErrorIllegalAddress"}
        with Server(*EMU, model=TINY, env=fault) as s:
            pids = {s.workers()[0]["pid"]}
            self.assertEqual(answers(s, 4, max_tokens=100), self.want_long)
            wait_until("a worker", s.workers)
            self.assertNotIn(s.workers()[0]["pid"], pids)

    def test_two_workers(self):
        with Server(*EMU, "--workers", "2", model=TINY, env={"SLUICE_CUDA_EMU_DEVICES": "2"}) as s:
            wait_until("2 workers", lambda: len(s.workers()) == 2)
            self.assertEqual(answers(s, 8), self.want)

    def on_devices(self, tp, pp, **env):
        n = {"SLUICE_CUDA_EMU_DEVICES": str(tp * pp)} | {f"SLUICE_CUDA_EMU_{k}": v for k, v in env.items()}
        return Server(*EMU, "--tensor-parallel-size", tp, "--pipeline-parallel-size", pp,
                      "--rank-timeout-ms", int(2000 * SLOW), model=TINY, env=n)

    def test_several_devices(self):
        """They exchange in their own memory, none through the host."""
        for tp, pp, seed in (2, 1, "0"), (2, 1, "3"), (1, 2, "4"), (2, 2, "5"):
            with self.subTest(tp=tp, pp=pp, seed=seed), self.on_devices(tp, pp, SEED=seed) as s:
                self.assertEqual(answers(s, 8), self.want)
                self.assertEqual(answers(s, 8), self.want)
                wait_until("figures of all ranks",
                           lambda: len(s.workers()) == tp * pp and all(w["steps"] for w in s.workers()))
                for w in s.workers():
                    self.assertGreater(w["comm_bytes"], 10000)
                self.assertIn("exchange between devices", s.text())
                self.assertNotIn("through the host", s.text())

    def test_killed_rank(self):
        """Streams stand still while the ranks come together again, and go on where they were."""
        for rank, tp, pp in (1, 2, 1), (0, 1, 2), (1, 1, 2):
            with self.subTest(rank=rank, tp=tp, pp=pp), self.on_devices(tp, pp) as s:
                self.assertEqual(answers(s, 4), self.want[:4])
                for _ in range(2):
                    got = []
                    t = threading.Thread(target=lambda: got.extend(answers(s, 4, max_tokens=100)))
                    before = {w["rank"]: w for w in s.workers()}
                    t.start()
                    wait_until("steps", lambda: any(w["steps"] > before[w["rank"]]["steps"] + 10
                                                    for w in s.workers() if w["rank"] in before))
                    os.kill(before[rank]["pid"], signal.SIGKILL)
                    t.join(60 * SLOW)
                    self.assertEqual(got, self.want_long)
                    wait_until("a new rank", lambda: len(s.workers()) == tp * pp and before[rank]["pid"] not in
                               [w["pid"] for w in s.workers()])

    def test_nccl_that_fails(self):
        """Once: the ranks come together again. Whenever it starts: they go on through the host."""
        with self.on_devices(2, 1, FAULT="ncclGroupEnd:30:ncclRemoteError:late") as s:
            self.assertEqual(answers(s, 8), self.want)
            self.assertRegex(s.text(), r"is lost \(nccl: |lost its group: nccl: ")
        never = ",".join(f"ncclCommInitRankConfig:{i}:ncclInternalError" for i in range(1, 8))
        with self.on_devices(2, 1, FAULT=never) as s:
            self.assertEqual(answers(s, 8), self.want)
            self.assertIn("exchange through the host", s.text())


class Faults(unittest.TestCase):
    """Each call that the program makes to the CUDA runtime fails once, at its first, second, middle and last
    time: at once, for want of memory, or late."""
    FLAGS = ("--prompt", "hello world", "--max-tokens", "4", "--temperature", "0", "--max-num-seqs", "4",
             "--max-model-len", "64", "--backend", "cuda-emu")
    ERRORS = ("cudaErrorMemoryAllocation", "cudaErrorECCUncorrectable", "cudaErrorLaunchFailure:late")

    def complete(self, **env):
        return run("complete", TINY, *self.FLAGS, env={f"SLUICE_CUDA_EMU_{k}": v for k, v in env.items()})

    def calls(self):
        with tempfile.TemporaryDirectory() as d:
            self.complete(COUNTS=os.path.join(d, "counts"))
            with open(glob.glob(os.path.join(d, "counts*"))[0]) as f:
                rows = [line.split() for line in f]
        return {r[0]: int(r[1]) for r in rows if len(r) == 2 and r[1].isdigit() and int(r[1])}

    def test_every_call(self):
        want = self.complete()
        self.assertEqual(want[0], 0, want)
        calls, failed = self.calls(), 0
        self.assertGreater(len(calls), 15)
        for name, n in calls.items():
            for i, k in enumerate(sorted({1, 2, n // 2, n} - {0})):
                if k > n:
                    continue
                fault = f"{name}:{k}:{self.ERRORS[(i + len(name)) % 3]}"
                with self.subTest(fault):
                    rc, out, err = self.complete(FAULT=fault, SEED=str(k % 5))
                    failed += rc != 0
                    if rc:
                        self.assertEqual(rc, 5, err)
                        self.assertIn("sluice: ", err)
                        self.assertEqual(out.strip(), want[1].strip()[:len(out.strip())])
                    else:
                        self.assertEqual(out, want[1])
        self.assertGreater(failed, 20)


if __name__ == "__main__":
    unittest.main()
