"""The gRPC door, spoken to by grpcio and tritonclient: KServe infers what HTTP completes, health tells a
drain, keys, limits, deadlines and cancellation hold, and every bad request is refused by name while the
server goes on."""
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import unittest

import grpc
import numpy
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import BIN, SLOW, TINY, Server, in_parallel, run, wait_until
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

Code = grpc.StatusCode
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "inference.GRPCInferenceService"
LONG = {"max_tokens": 2000, "ignore_eos": True, "temperature": 0}


def free_port():
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
    s.close()
    return port


def set_param(p, value):
    kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
    setattr(p, kind, value)


def request(text="hello world", params=None, raw=False, model="tiny", sampling=None, **more):
    """A ModelInferRequest as any client would build it."""
    q = pb.ModelInferRequest(model_name=model, **more)
    tensors = [("text_input", text)] + ([("sampling_parameters", sampling)] if sampling is not None else [])
    for name, value in tensors:
        data = value if isinstance(value, bytes) else value.encode()
        t = q.inputs.add(name=name, datatype="BYTES", shape=[1])
        if raw:
            q.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
        else:
            t.contents.bytes_contents.append(data)
    for name, value in (params or {}).items():
        set_param(q.parameters[name], value)
    return q


class Door:
    """A server with a gRPC door, and stubs to it."""

    def __init__(self, *args, credentials=None, options=(), **kw):
        self.port = free_port()
        self.server = Server("--grpc-port", self.port, "--served-model-name", "tiny", *args, **kw)
        target = f"localhost:{self.port}" if credentials else f"127.0.0.1:{self.port}"
        options = [("grpc.max_send_message_length", -1), *options]
        self.channel = (grpc.secure_channel(target, credentials, options) if credentials
                        else grpc.insecure_channel(target, options))
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def infer(self, q, **kw):
        return self.stub.ModelInfer(q, timeout=kw.pop("timeout", 120 * SLOW), **kw)

    def text(self, q, **kw):
        r = self.infer(q, **kw)
        if r.raw_output_contents:
            return r.raw_output_contents[0][4:].decode()
        return r.outputs[0].contents.bytes_contents[0].decode()

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        self.channel.close()
        self.server.__exit__(kind, *rest)


def code_of(call):
    """(status code, details) of a call that fails; (OK, answer) of one that does not."""
    try:
        return Code.OK, call()
    except grpc.RpcError as e:
        return e.code(), e.details()


class Kserve(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.d = Door()

    @classmethod
    def tearDownClass(cls):
        cls.d.__exit__(None)

    def refused(self, code, q, word, **kw):
        got, details = code_of(lambda: self.d.infer(q, **kw))
        self.assertEqual(got, code, (details, str(q)[:200]))
        self.assertIn(word, details)

    def http(self, **body):
        status, got = self.d.server.post("/v1/completions", {"prompt": "hello world", **body})
        self.assertEqual(status, 200, got)
        return got

    def test_tritonclient(self):
        c = triton.InferenceServerClient(f"127.0.0.1:{self.d.port}")
        self.assertTrue(c.is_server_live() and c.is_server_ready())
        self.assertTrue(c.is_model_ready("tiny") and c.is_model_ready("tiny", "1"))
        self.assertEqual(c.get_server_metadata().name, "sluice")
        m = c.get_model_metadata("tiny")
        self.assertEqual((m.name, list(m.versions), m.platform), ("tiny", ["1"], "sluice"))
        self.assertEqual([(t.name, t.datatype, list(t.shape)) for t in [*m.inputs, *m.outputs]],
                         [(n, "BYTES", [1]) for n in ("text_input", "sampling_parameters", "text_output")])
        i = triton.InferInput("text_input", [1], "BYTES")
        i.set_data_from_numpy(numpy.array([b"hello world"], dtype=object))
        o = triton.InferRequestedOutput("text_output")
        params = {"max_tokens": 24, "seed": 7, "temperature": 0.8, "ignore_eos": True}
        r = c.infer("tiny", [i], outputs=[o], request_id="abc", parameters=params)
        self.assertEqual(r.as_numpy("text_output")[0].decode(), self.http(**params)["choices"][0]["text"])
        self.assertEqual(r.get_response().id, "abc")
        c.close()

    def test_same_answer_as_http(self):
        """Every way to say the sampling, contents and raw contents, gives the completion's text."""
        rows = [{"max_tokens": 12, "temperature": 0}, {"max_tokens": 24, "seed": 7, "temperature": 1},
                {"max_tokens": 24, "seed": 8, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
                {"max_tokens": 24, "seed": -9, "repetition_penalty": 1.3, "presence_penalty": 0.5}, {"seed": 1}]
        for row in rows:
            want = self.http(**row)
            for raw in (False, True):
                for q in (request(params=row, raw=raw), request(sampling=json.dumps(row), raw=raw)):
                    r = self.d.infer(q)
                    self.assertEqual(bool(r.raw_output_contents), raw)
                    self.assertEqual(self.d.text(q), want["choices"][0]["text"])
                    p = r.parameters
                    self.assertEqual(p["completion_tokens"].int64_param, want["usage"]["completion_tokens"])
                    self.assertEqual(p["prompt_tokens"].int64_param, want["usage"]["prompt_tokens"])
                    self.assertEqual(p["finish_reason"].string_param, want["choices"][0]["finish_reason"])

    def test_both_ways_together(self):
        want = self.http(max_tokens=8, seed=3, temperature=0.9, logit_bias={"65": 100})["choices"][0]["text"]
        q = request(params={"max_tokens": 8, "seed": 3}, sampling='{"temperature":0.9,"logit_bias":{"65":100}}')
        self.assertEqual(self.d.text(q), want)

    def test_stop(self):
        text = self.http(max_tokens=40, temperature=0)["choices"][0]["text"]
        stop = text[len(text) // 2:len(text) // 2 + 3]
        r = self.d.infer(request(params={"max_tokens": 40, "temperature": 0, "stop": stop}))
        self.assertEqual(r.outputs[0].contents.bytes_contents[0].decode(), text[:text.index(stop)])
        self.assertEqual(r.parameters["finish_reason"].string_param, "stop")

    def test_long_text(self):
        """Texts beyond the inline bound are tokenised aside; too long ones are refused either way."""
        for n in (70000, 300000):
            self.refused(Code.INVALID_ARGUMENT, request("x y" * n), "text_input")
        self.assertTrue(self.d.infer(request("word " * 100, {"max_tokens": 2})))

    def test_many_at_once(self):
        jobs = [lambda i=i: self.d.text(request(params={"max_tokens": 32, "seed": i})) for i in range(32)]
        self.assertEqual(in_parallel(jobs), [job() for job in jobs])

    def test_bad_values(self):
        """The HTTP table's classes: out of range or of the wrong kind, with the field's name."""
        numbers = {"temperature": (-1.0, 101.0, 101), "top_p": (-0.1, 0.0, 1.1), "min_p": (-0.1, 1.1),
                   "typical_p": (-0.1, 1.1), "presence_penalty": (-2.1, 2.1), "frequency_penalty": (-2.1, 2.1),
                   "repetition_penalty": (-1.0, 101.0), "top_k": (-2, 2**31), "max_tokens": (0, -1, 2**31, 10**6),
                   "min_tokens": (-1, 2**31), "seed": (1.5, 5.0), "priority": (2**31,), "timeout_ms": (0, -1)}
        for name, bads in numbers.items():
            for bad in (*bads, "1", True, float("nan"), float("inf")):
                self.refused(Code.INVALID_ARGUMENT, request(params={name: bad}), name)
                if bad == bad and bad != float("inf"):
                    self.refused(Code.INVALID_ARGUMENT, request(sampling=json.dumps({name: bad})), name)
        rows = [{"stop": ""}, {"stop": 3}, {"stop": "x" * 1025}, {"ignore_eos": 1}, {"cache_salt": ""},
                {"user": 5}, {"guided_json": "{}"}, {"tools": "x"}, {"temprature": 1.0}, {"model": "tiny"},
                {"stream": True}, {"n": 1}, {"logprobs": 1}, {"prompt": "x"}, {"echo": True}, {"timeout": 5}]
        for row in rows:
            self.refused(Code.INVALID_ARGUMENT, request(params=row), list(row)[0])
        for row in ({"stop": [""]}, {"stop": ["x"] * 17}, {"stop_token_ids": [-1]}, {"stop_token_ids": [10**6]},
                    {"logit_bias": {"999999": 1}}, {"logit_bias": {"1": 101}}, {"response_format": {"type": "x"}}):
            self.refused(Code.INVALID_ARGUMENT, request(sampling=json.dumps(row)), list(row)[0])
        for text in ("", "{", "[]", "null", "{}x", '{"a":1,"a":2}', '{"seed":NaN}', b"\xff", '{"a":' * 100,
                     " " * 70000):
            self.refused(Code.INVALID_ARGUMENT, request(sampling=text), "sampling_parameters")
        self.refused(Code.INVALID_ARGUMENT, request(params={"seed": 1}, sampling='{"seed":1}'), "seed")
        q = request()
        q.parameters["seed"].uint64_param = 2**63
        self.refused(Code.INVALID_ARGUMENT, q, "seed")
        q.parameters["seed"].Clear()
        self.refused(Code.INVALID_ARGUMENT, q, "seed")
        self.refused(Code.INVALID_ARGUMENT, request(params={f"p{i}": 1 for i in range(65)}), "parameters")
        self.assertTrue(self.d.text(request()))

    def test_bad_tensors(self):
        def change(what):
            q = request()
            what(q)
            return q

        def add(q, name, n=1, **kw):
            for _ in range(n):
                q.inputs.add(name=name, datatype="BYTES", shape=[1], **kw).contents.bytes_contents.append(b"x")

        rows = [(lambda q: q.ClearField("inputs"), "text_input"),
                (lambda q: add(q, "text_input"), "text_input"),
                (lambda q: add(q, "image"), "image"),
                (lambda q: add(q, "x", 20), "inputs"),
                (lambda q: setattr(q.inputs[0], "datatype", "FP32"), "text_input"),
                (lambda q: setattr(q.inputs[0], "datatype", ""), "text_input"),
                (lambda q: q.inputs[0].shape.append(1), "text_input"),
                (lambda q: q.inputs[0].ClearField("shape"), "text_input"),
                (lambda q: q.inputs[0].shape.extend([1] * 9), "text_input"),
                (lambda q: q.inputs[0].shape.__setitem__(0, -1), "text_input"),
                (lambda q: q.inputs[0].contents.bytes_contents.append(b"x"), "text_input"),
                (lambda q: q.inputs[0].ClearField("contents"), "text_input"),
                (lambda q: q.inputs[0].contents.int_contents.append(1), "text_input"),
                (lambda q: set_param(q.inputs[0].parameters["shared_memory_region"], "r"), "text_input"),
                (lambda q: q.outputs.add(name="logits"), "logits"),
                (lambda q: set_param(q.outputs.add(name="text_output").parameters["classification"], 1), "text_output"),
                (lambda q: [q.outputs.add(name="text_output") for _ in range(17)], "outputs"),
                (lambda q: q.raw_input_contents.append(b"\1\0\0\0x"), "raw_input_contents"),
                (lambda q: q.raw_input_contents.extend([b"", b""]), "raw_input_contents")]
        for what, word in rows:
            self.refused(Code.INVALID_ARGUMENT, change(what), word)
        for raw in (b"\1\0\0", b"\2\0\0\0x", b"\1\0\0\0xy", b"\xff\xff\xff\xffx", b"", b"\1\0\0\0x" * 2):
            q = request(raw=True)
            q.raw_input_contents[0] = raw
            self.refused(Code.INVALID_ARGUMENT, q, "text_input")
        for text in ("", b"\xff\xfe", "x" * 200000):
            self.refused(Code.INVALID_ARGUMENT, request(text), "text_input")
        for model, version in (("nope", ""), ("", ""), ("tiny\0", ""), ("tiny", "2")):
            q = request(model=model, model_version=version)
            self.refused(Code.NOT_FOUND, q, "version" if version else "model")
            for call, kind in ((self.d.stub.ModelReady, pb.ModelReadyRequest),
                               (self.d.stub.ModelMetadata, pb.ModelMetadataRequest)):
                self.assertEqual(code_of(lambda: call(kind(name=model, version=version)))[0], Code.NOT_FOUND)
        self.assertTrue(self.d.text(request()))

    def call_raw(self, path, data, **kw):
        c = self.d.channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        return code_of(lambda: c(data, timeout=20 * SLOW, **kw))

    def test_bad_wire(self):
        path = f"/{SERVICE}/ModelInfer"
        for data in (b"\xff", b"\x0a\xff", b"\x2a\x02\x12", b"\x0a" * 100, b"\x2a\x00" * 4000000):
            self.assertIn(self.call_raw(path, data)[0], (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED))
        self.assertEqual(self.call_raw(path, b"")[0], Code.NOT_FOUND)
        self.assertEqual(self.call_raw("/grpc.health.v1.Health/Check", b"\xff")[0], Code.INVALID_ARGUMENT)
        self.assertTrue(self.d.text(request()))

    def test_what_is_not_there(self):
        for path in (f"/{SERVICE}/ModelStreamInfer", f"/{SERVICE}/Nope", "/nope/Nope", "/",
                     "/grpc.health.v1.Health/List", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
            self.assertEqual(self.call_raw(path, b"")[0], Code.UNIMPLEMENTED, path)
        with self.assertRaises(grpc.RpcError) as e:
            list(self.d.stub.ModelStreamInfer(iter([request()])))
        self.assertEqual(e.exception.code(), Code.UNIMPLEMENTED)

    def test_limits(self):
        """Too large, compressed, and too much metadata: refused before anything is parsed."""
        self.refused(Code.RESOURCE_EXHAUSTED, request("x" * (8 << 20)), "arger than max")
        self.refused(Code.UNIMPLEMENTED, request(), "gzip", compression=grpc.Compression.Gzip)
        # The core may close a connection whose header was too large: one of its own.
        with grpc.insecure_channel(f"127.0.0.1:{self.d.port}", [("grpc.use_local_subchannel_pool", 1)]) as c:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(c)
            got = code_of(lambda: stub.ModelInfer(request(), metadata=[("x-big", "x" * 60000)]))
            self.assertEqual(got[0], Code.RESOURCE_EXHAUSTED, got)
        self.assertTrue(self.d.text(request()))

    def test_deadline(self):
        before = self.d.server.free_pages()
        self.refused(Code.DEADLINE_EXCEEDED, request(params={**LONG, "timeout_ms": 20}), "deadline")
        got = in_parallel([lambda: code_of(lambda: self.d.infer(request(params=LONG), timeout=0.05))] * 8)
        self.assertEqual({g[0] for g in got}, {Code.DEADLINE_EXCEEDED})
        self.idle(before)

    def test_cancel_frees_pages(self):
        before, aborted = self.d.server.free_pages(), self.n_aborted()
        calls = [self.d.stub.ModelInfer.future(request(params=LONG)) for _ in range(24)]
        wait_until("some run", lambda: sum(w["running"] + w["waiting"] for w in self.d.server.workers()) >= 4)
        for c in calls:
            c.cancel()
        self.idle(before)
        self.assertGreater(self.n_aborted(), aborted)  # rather than having come to their end
        self.assertTrue(self.d.text(request()))

    def n_aborted(self):
        text = self.d.server.get("/metrics")[1]
        return float(re.search(r'request_success_total\{[^}]*finished_reason="abort"[^}]*\} ([\d.]+)', text)[1])

    def idle(self, pages):
        s = self.d.server
        wait_until("all pages are free again",
                   lambda: s.free_pages() == pages and not any(w["running"] + w["waiting"] for w in s.workers()))

    def test_health(self):
        for service in ("", SERVICE):
            q = health_pb2.HealthCheckRequest(service=service)
            self.assertEqual(self.d.health.Check(q).status, SERVING)
            w = self.d.health.Watch(q)
            self.assertEqual(next(w).status, SERVING)
            w.cancel()
        q = health_pb2.HealthCheckRequest(service="nope")
        self.assertEqual(code_of(lambda: self.d.health.Check(q))[0], Code.NOT_FOUND)
        w = self.d.health.Watch(q)
        self.assertEqual(next(w).status, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        w.cancel()


class Life(unittest.TestCase):
    def test_drain(self):
        """Watchers hear of it, what is in flight ends whole, the rest is UNAVAILABLE, exit 0."""
        with Door("--shutdown-timeout", 300) as d:
            want = d.text(request(params=LONG))
            seen, ends = [], []

            def watch():
                try:
                    for r in d.health.Watch(health_pb2.HealthCheckRequest()):
                        seen.append(r.status)
                except grpc.RpcError as e:
                    ends.append(e.code())

            t = threading.Thread(target=watch)
            t.start()
            wait_until("the watcher is served", lambda: seen == [SERVING])
            calls = [d.stub.ModelInfer.future(request(params=LONG)) for _ in range(24)]
            wait_until("all run", lambda: sum(w["running"] + w["waiting"] for w in d.server.workers()) == 24)
            os.kill(d.server.proc.pid, signal.SIGTERM)
            wait_until("the watcher is told", lambda: seen == [SERVING, NOT_SERVING])
            self.assertEqual(code_of(lambda: d.infer(request()))[0], Code.UNAVAILABLE)
            for c in calls:
                self.assertEqual(c.result().outputs[0].contents.bytes_contents[0].decode(), want)
            t.join()
            self.assertEqual((seen, ends), ([SERVING, NOT_SERVING], [Code.UNAVAILABLE]))
            d.server.proc.wait(60 * SLOW)

    def test_second_signal_cuts_off(self):
        d = Door()
        calls = [d.stub.ModelInfer.future(request(params=LONG)) for _ in range(24)]
        wait_until("all run", lambda: sum(w["running"] + w["waiting"] for w in d.server.workers()) == 24)
        os.kill(d.server.proc.pid, signal.SIGTERM)
        wait_until("it drains", lambda: "draining" in d.server.text())
        os.kill(d.server.proc.pid, signal.SIGTERM)
        codes = {code_of(c.result)[0] for c in calls}
        self.assertLessEqual(codes, {Code.OK, Code.UNAVAILABLE})
        d.channel.close()
        rc = d.server.proc.wait(60 * SLOW)
        self.assertIn(rc, (0, 8), d.server.text())
        d.server.stop(expect=rc)

    def test_worker_lost_and_found(self):
        """Health follows the workers."""
        with Door() as d:
            seen = []
            w = d.health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            threading.Thread(target=lambda: code_of(lambda: [seen.append(r.status) for r in w])).start()
            wait_until("it serves", lambda: seen == [SERVING])
            os.kill(d.server.workers()[0]["pid"], signal.SIGKILL)
            wait_until("it does not", lambda: seen[:2] == [SERVING, NOT_SERVING])
            wait_until("it does again", lambda: seen == [SERVING, NOT_SERVING, SERVING], 60)
            self.assertTrue(d.text(request()))

    def test_keys(self):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as f:
            f.write("secret-one\nsecret-two\n")
            f.flush()
            with Door("--api-key-file", f.name) as d:
                live, ready = pb.ServerLiveRequest(), pb.ServerReadyRequest()
                self.assertTrue(d.stub.ServerLive(live).live and d.stub.ServerReady(ready).ready)
                self.assertEqual(d.health.Check(health_pb2.HealthCheckRequest()).status, SERVING)
                for key in (None, "Bearer secret", "Bearer secret-onex", "Bearer ", "", "secret-one"):
                    m = [("authorization", key)] if key is not None else []
                    for call in (lambda: d.infer(request(), metadata=m),
                                 lambda: d.stub.ModelReady(pb.ModelReadyRequest(name="tiny"), metadata=m),
                                 lambda: d.stub.ServerMetadata(pb.ServerMetadataRequest(), metadata=m),
                                 lambda: d.channel.unary_unary("/nope/Nope")(b"", metadata=m)):
                        self.assertEqual(code_of(call)[0], Code.UNAUTHENTICATED, key)
                for key in ("Bearer secret-one", "bearer secret-two"):
                    self.assertTrue(d.text(request(), metadata=[("authorization", key)]))
                self.assertNotIn("secret-one", d.server.text())

    def test_busy_port(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            rc, _, err = run("serve", TINY, "--port", 0, "--grpc-port", port)
            self.assertEqual(rc, 6, err)
            self.assertIn(str(port), err)
        with Door() as d:
            rc, _, err = run("serve", TINY, "--port", 0, "--grpc-port", d.port)
            self.assertEqual(rc, 6, err)

    def test_without_the_module(self):
        with tempfile.TemporaryDirectory() as folder:
            program = os.path.join(folder, "sluice")
            with open(BIN, "rb") as src, open(program, "wb") as dst:
                dst.write(src.read())
            os.chmod(program, 0o755)
            p = subprocess.run([program, "serve", TINY, "--port", "0", "--grpc-port", str(free_port())],
                               capture_output=True, text=True, timeout=60 * SLOW)
            self.assertEqual(p.returncode, 3, p.stderr)
            self.assertIn("libsluice_grpc.so", p.stderr)
        linked = subprocess.run(["ldd", BIN], capture_output=True, text=True).stdout
        self.assertNotIn("libgrpc", linked)

    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            key, cert = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
                            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                           check=True, capture_output=True)
            with open(cert, "rb") as f:
                credentials = grpc.ssl_channel_credentials(f.read())
            with Door("--ssl-certfile", cert, "--ssl-keyfile", key, credentials=credentials) as d:
                self.assertTrue(d.text(request()))
                with grpc.insecure_channel(f"127.0.0.1:{d.port}") as plain:
                    stub = service_pb2_grpc.GRPCInferenceServiceStub(plain)
                    got = code_of(lambda: stub.ServerLive(pb.ServerLiveRequest(), timeout=5 * SLOW))
                    self.assertIn(got[0], (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED))


if __name__ == "__main__":
    unittest.main(verbosity=2)
