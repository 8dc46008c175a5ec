"""A TCP proxy that makes a bad network out of a good one, from a seed: delay with jitter, flipped bits,
connections cut, and links clogged one by one and unclogged in another order (swizzle-clogging).

    proxy.py --seed N [--delay-ms A:B] [--flip P] [--cut P] [--clog] LISTEN=TARGET [LISTEN=TARGET ...]

LISTEN and TARGET are HOST:PORT. One link is one pair; all connections of a link share its fate. Writes
one line of counters to stdout for each line on stdin, and ends when stdin does."""
import argparse
import asyncio
import random
import sys


class Link:
    def __init__(self, number, listen, target, o):
        self.listen, self.target, self.o = listen, target, o
        self.random = random.Random(f"{o.seed}/{number}")
        self.open = asyncio.Event()
        self.open.set()
        self.n = {"delayed": 0, "flipped": 0, "cut": 0, "clogged": 0}

    async def pump(self, reader, writer):
        r = self.random
        try:
            while data := await reader.read(16384):
                await self.open.wait()
                if self.o.delay:
                    await asyncio.sleep(r.uniform(*self.o.delay) / 1e3)
                    self.n["delayed"] += 1
                if r.random() < self.o.flip:
                    data = bytearray(data)
                    data[r.randrange(len(data))] ^= 1 << r.randrange(8)
                    self.n["flipped"] += 1
                if r.random() < self.o.cut:
                    self.n["cut"] += 1
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(self, reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self.pump(reader, far_writer), self.pump(far_reader, writer))


async def swizzle(links, o):
    """Clogs a random set of links one after the other, then opens them in another order."""
    r = random.Random(f"{o.seed}/clog")
    while True:
        some = r.sample(links, r.randint(1, len(links)))
        for link in some:
            link.open.clear()
            link.n["clogged"] += 1
            await asyncio.sleep(r.uniform(0, 0.2))
        await asyncio.sleep(r.uniform(0, 2.5))
        r.shuffle(some)
        for link in some:
            link.open.set()
            await asyncio.sleep(r.uniform(0, 0.2))
        await asyncio.sleep(r.uniform(0.2, 1))


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


async def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--delay-ms", default="")
    p.add_argument("--flip", type=float, default=0)
    p.add_argument("--cut", type=float, default=0)
    p.add_argument("--clog", action="store_true")
    p.add_argument("links", nargs="+")
    o = p.parse_args()
    o.delay = tuple(map(float, o.delay_ms.split(":"))) if o.delay_ms else None
    links = [Link(i, *map(address, text.split("=")), o) for i, text in enumerate(o.links)]
    servers = [await asyncio.start_server(k.serve, *k.listen) for k in links]
    clogging = asyncio.create_task(swizzle(links, o)) if o.clog else None
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print({k: sum(link.n[k] for link in links) for k in links[0].n}, flush=True)
    if clogging:
        clogging.cancel()
    for s in servers:
        s.close()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
