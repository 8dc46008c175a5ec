"""Malformed HTTP: every row gets one clear refusal and a closed connection, nothing behind it is read,
whether it comes in one piece or byte by byte, and the server goes on answering."""
import socket
import unittest

from harness import SLOW, Server

OK = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b'{"prompt":"x","max_tokens":1}'


def post(headers, body=BODY):
    return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + headers + \
        b"\r\n" + body


ROWS = [
    ("CL with TE and a request behind it", post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                                                b"0\r\n\r\n" + OK), 400),
    ("TE with CL", post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), 400),
    ("two Content-Lengths", post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello" + OK), 400),
    ("two equal Content-Lengths", post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"), 400),
    ("Content-Length list", post(b"Content-Length: 5, 5\r\n", b"hello"), 400),
    ("negative length", post(b"Content-Length: -1\r\n"), 400),
    ("signed length", post(b"Content-Length: +5\r\n"), 400),
    ("hex length", post(b"Content-Length: 0x5\r\n"), 400),
    ("huge length", post(b"Content-Length: 99999999999999999999999\r\n"), 413),
    ("too large", post(b"Content-Length: 8388609\r\n"), 413),
    ("TE gzip", post(b"Transfer-Encoding: gzip\r\n"), 400),
    ("TE chunked twice", post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), 400),
    ("TE hidden", post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), 400),
    ("bare LF", b"GET /health HTTP/1.1\nHost: x\n\n", 400),
    ("bare LF in header", b"GET /health HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    ("obs-fold", b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
    ("space before colon", b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    ("NUL in header", b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400),
    ("NUL in path", b"GET /hea\0lth HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ("no Host", b"GET /health HTTP/1.1\r\n\r\n", 400),
    ("two Hosts", b"GET /health HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    ("bad chunk size", post(b"Transfer-Encoding: chunked\r\n", b"zz\r\n"), 400),
    ("chunk size overflow", post(b"Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\n"), 400),
    ("header too large", b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 8000 + b"\r\n" * 1 +
     (b"A: " + b"b" * 8000 + b"\r\n") * 5 + b"\r\n", 431),
    ("too many fields", b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    ("content encoding", post(b"Content-Encoding: gzip\r\nContent-Length: 29\r\n"), 415),
]


def statuses(answer):
    return [int(p[:3]) for p in answer.split(b"HTTP/1.1 ")[1:] if p[:3].isdigit()]


class BadHttp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.s = Server()

    @classmethod
    def tearDownClass(cls):
        cls.s.stop()

    def test_each_row_in_one_piece(self):
        for name, data, status in ROWS:
            self.assertEqual(statuses(self.s.raw(data)), [status], name)
            self.assertEqual(self.s.get("/health")[0], 200, name)

    def test_each_row_byte_by_byte(self):
        for name, data, status in ROWS:
            if len(data) > 1000:
                continue
            s = socket.create_connection(("127.0.0.1", self.s.port), timeout=10 * SLOW)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            got = b""
            try:
                for i in range(len(data)):
                    s.sendall(data[i:i + 1])
                while True:
                    more = s.recv(65536)
                    if not more:
                        break
                    got += more
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server closed as soon as it knew
            s.close()
            self.assertLessEqual(len(statuses(got)), 1, name)
            self.assertTrue(not got or statuses(got) == [status], (name, got[:100]))
        self.assertEqual(self.s.get("/health")[0], 200)

    def test_pipelined_good_requests_are_answered_in_order(self):
        last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        got = self.s.raw(OK * 3 + last)
        self.assertEqual(statuses(got), [200] * 4)
        self.assertIn(b"version", got.split(b"HTTP/1.1 ")[4])

    def test_chunked_body_in_tiny_chunks(self):
        chunks = b"".join(b"1\r\n%c\r\n" % b for b in BODY) + b"0\r\n\r\n"
        got = self.s.raw(post(b"Transfer-Encoding: chunked\r\nConnection: close\r\n", chunks))
        self.assertEqual(statuses(got), [200])


if __name__ == "__main__":
    unittest.main(verbosity=2)
