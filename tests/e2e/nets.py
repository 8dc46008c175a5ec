"""Networks of namespaces, for tests of several machines or sites on one. Needs root and iproute2."""
import os
import shutil
import socket
import struct
import subprocess
import sys


def sh(*args):
    subprocess.run([str(a) for a in args], check=True, capture_output=True)


def own_network(*programs):
    """Runs this program again in a network namespace of its own; exits with 77 where that cannot be."""
    if os.environ.get("SL_NET_INSIDE") == "1":
        return
    missing = [t for t in ("ip", "unshare", *programs) if not shutil.which(t)]
    if missing or os.geteuid():
        print("skipped: needs " + (f"the programs {', '.join(missing)}" if missing else "root"))
        sys.exit(77)
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        print("skipped: no network namespaces here")
        sys.exit(77)
    os.environ["SL_NET_INSIDE"] = "1"
    os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])


class Net:
    """The hub is this namespace; machine k, counted from 0, is PREFIX.k.2, and sees the hub as PREFIX.k.1."""

    def __init__(self, names, prefix):
        sh("ip", "link", "set", "lo", "up")
        self.ns = [f"sl{os.getpid()}{name[0]}" for name in names]
        for k, ns in enumerate(self.ns):
            sh("ip", "netns", "add", ns)
            sh("ip", "link", "add", f"hub{k}", "type", "veth", "peer", "name", "wan", "netns", ns)
            sh("ip", "addr", "add", f"{prefix}.{k}.1/24", "dev", f"hub{k}")
            sh("ip", "link", "set", f"hub{k}", "up")
            for cmd in (["addr", "add", f"{prefix}.{k}.2/24", "dev", "wan"], ["link", "set", "wan", "up"],
                        ["link", "set", "lo", "up"]):
                sh("ip", "-n", ns, *cmd)

    def close(self):
        for ns in self.ns:
            subprocess.run(["ip", "netns", "del", ns], capture_output=True)

    def inside(self, k):
        """What to put before a command."""
        return ["ip", "netns", "exec", self.ns[k]]

    @staticmethod
    def link(k, up):
        sh("ip", "link", "set", f"hub{k}", "up" if up else "down")

    @staticmethod
    def link_bytes(k):
        """Bytes so far on machine k's link, both ways."""
        with open("/proc/net/dev") as f:
            words = next(line for line in f if line.strip().startswith(f"hub{k}:")).split(":")[1].split()
        return int(words[0]) + int(words[8])


class Tap:
    """What TCP connections over machine k's link say first: {(from, port, to, port): the first bytes}. A
    packet that was lost to us may hide a beginning, so the link should not be busy then."""

    def __init__(self, k):
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self.sock.bind((f"hub{k}", 0))
        self.sock.setblocking(False)

    def beginnings(self):
        opened, first = set(), {}
        while True:
            try:
                frame = self.sock.recv(65535)
            except BlockingIOError:
                break
            if frame[12:14] != b"\x08\x00" or frame[23] != 6:  # IPv4, TCP
                continue
            tcp = 14 + 4 * (frame[14] & 15)
            size = 14 + struct.unpack("!H", frame[16:18])[0]
            way = (frame[26:30], *struct.unpack("!H", frame[tcp:tcp + 2]), frame[30:34],
                   *struct.unpack("!H", frame[tcp + 2:tcp + 4]))
            if frame[tcp + 13] & 2:  # SYN, or its answer
                opened.add(way)
            payload = frame[tcp + 4 * (frame[tcp + 12] >> 4):size]
            if payload and way in opened:
                first.setdefault(way, payload[:16])
        return first

    def close(self):
        self.sock.close()
