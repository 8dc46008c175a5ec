"""Three network namespaces as sites, each a router with two workers, under a global router, all links keyed:
a partition that heals, a site that is lost, a network that drops packets, and one that delays, damages, cuts
and clogs. Every stream is exact: nothing lost, nothing twice.

The test runs in a network namespace of its own, in which the global router lives too; the sites hang on it
by veth pairs. Needs root and iproute2, and iptables for the losses."""
import os
import subprocess
import sys
import tempfile
import time
import unittest

from nets import Net, own_network, sh

own_network("iptables")

from harness import Router, Worker, check_streams, run, show, until_true, wait_until  # noqa: E402
from test_failover import metric, run_streams  # noqa: E402

N = 16
NAMES = ["north", "south", "west"]
PORT = 5801
PROXY_PORT = 5901
HERE = os.path.dirname(os.path.abspath(__file__))


class Site:
    """A router and two workers within one namespace."""

    def __init__(self, k, prefix, keys, port):
        self.name, run_dir = NAMES[k], f"{keys}/{NAMES[k]}-run"
        os.makedirs(run_dir, 0o700)
        self.router = Router("--connect", f"tcp://10.90.{k}.1:{port}", "--site", NAMES[k], "--curve-dir",
                             f"{keys}/{NAMES[k]}", bus=f"ipc://{run_dir}/bus", prefix=prefix)
        self.workers = [Worker(self.router, args=("--site", NAMES[k]), prefix=prefix) for _ in range(2)]
        self.router.wait_ready()

    def end(self):
        for w in self.workers:
            w.kill()
        self.router.kill()


class World:
    """The global router and its sites; `port` is where sites connect to."""

    def __init__(self, net, port=PORT):
        self.dir = tempfile.TemporaryDirectory(prefix="sluice-sites-")
        keys = self.dir.name + "/keys"
        rc, _, err = run("keygen", "--curve-dir", keys, "--nodes", ",".join(f"router:{n}" for n in ["hub"] + NAMES))
        assert rc == 0, err
        binds = ",".join(f"tcp://10.90.{k}.1:{PORT}" for k in range(3))
        self.top = Router("--curve-dir", f"{keys}/hub", bus=binds)
        self.sites = [Site(k, net.inside(k), keys, port) for k in range(3)]
        try:
            self.top.wait_ready()
            self.wait(NAMES, 60)
        except BaseException as e:
            self.__exit__(type(e), e)
            raise

    def names(self):
        return {p["site"] for p in self.top.ps() if p["role"] == "site"}

    def wait(self, names, limit=30):
        wait_until(f"sites {names}", lambda: self.names() == set(names), limit)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        if kind:
            show(error, self.top, *(s.router for s in self.sites), n_lines=12)
        for s in self.sites:
            s.end()
        self.top.kill()
        self.dir.cleanup()


class Proxy:
    """proxy.py between the sites and the global router."""

    def __init__(self, seed, *args):
        links = [f"10.90.{k}.1:{PROXY_PORT}=10.90.{k}.1:{PORT}" for k in range(3)]
        self.proc = subprocess.Popen([sys.executable, f"{HERE}/proxy.py", "--seed", str(seed), *args, *links],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.proc.stdout.readline() == "ready\n"

    def counters(self):
        self.proc.stdin.write("\n")
        self.proc.stdin.flush()
        return eval(self.proc.stdout.readline(), {})  # a dict of numbers that proxy.py printed

    def end(self):
        self.proc.kill()
        self.proc.communicate()


class Sites(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.net = Net(NAMES, "10.90")
        cls.addClassCleanup(cls.net.close)
        router = Router()
        worker = Worker(router)
        router.wait_ready()
        cls.want = run_streams(router, N, max_tokens=1500)
        worker.stop()
        router.stop()

    def check(self, answers):
        check_streams(answers, self.want)

    def test_partition_heals(self):
        """Five seconds without one site: its streams go on at the others, and it comes back."""
        def attempt():
            with World(self.net) as w:
                def partition():
                    self.net.link(0, False)
                self.check(run_streams(w.top, N, partition, max_tokens=1500))
                w.wait(NAMES[1:])
                time.sleep(5)
                self.net.link(0, True)
                w.wait(NAMES)
                self.check(run_streams(w.top, N, max_tokens=1500))
                return metric(w.top, "sluice_router_retries_total") > 0
        until_true("streams moved", attempt)

    def test_lost_site(self):
        """One of three sites is gone for good, processes and link."""
        def attempt():
            with World(self.net) as w:
                def lose():
                    self.net.link(1, False)
                    w.sites[1].end()
                try:
                    self.check(run_streams(w.top, N, lose, max_tokens=1500))
                finally:
                    self.net.link(1, True)
                w.wait(["north", "west"])
                return metric(w.top, "sluice_router_retries_total") > 0
        until_true("streams moved", attempt)

    def test_lost_packets(self):
        rule = ["INPUT", "-p", "tcp", "-s", "10.90.0.0/16", "-m", "statistic", "--mode", "random", "--probability",
                "0.02", "-j", "DROP"]
        sh("iptables", "-A", *rule)
        try:
            with World(self.net) as w:
                for _ in range(2):
                    self.check(run_streams(w.top, N, max_tokens=1500))
        finally:
            sh("iptables", "-D", *rule)

    def test_bad_network(self):
        """Delay, flipped bits, cut connections, clogged links; afterwards all sites are back."""
        seed = int(os.environ.get("SL_SEED", "1"))
        for args in (["--delay-ms", "1:40"], ["--flip", "0.003", "--cut", "0.002"], ["--clog"]):
            with self.subTest(" ".join(args), seed=seed):
                p = Proxy(seed, *args)
                try:
                    with World(self.net, PROXY_PORT) as w:
                        def attempt():
                            self.check(run_streams(w.top, N, max_tokens=1500))
                            n = p.counters()
                            return n["delayed"] + n["flipped"] + n["cut"] + n["clogged"] > 0
                        attempt()
                        until_true("the network was bad", attempt, 20)
                        w.wait(NAMES, 60)
                finally:
                    p.end()


if __name__ == "__main__":
    unittest.main(verbosity=2)
