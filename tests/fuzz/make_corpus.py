#!/usr/bin/env python3
"""Writes the seed corpora beside this file. Usage: make_corpus.py TINY-MODEL-PROGRAM
Small and few on purpose: one file for each thing a format can say."""
import json
import os
import struct
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def put(target, name, data):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


def main(tiny):
    for dtype in ("f32", "q4_0"):
        path = os.path.join(HERE, "corpus", "gguf", dtype)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        subprocess.run([tiny, path, "--dtype", dtype, "--dim", "32", "--heads", "2", "--kv-heads", "1",
                        "--layers", "1", "--ctx", "64"], check=True)

    full = {"model": "m", "prompt": ["a", "b"], "max_tokens": 5, "temperature": 0.5, "top_p": 0.9,
            "top_k": 40, "min_p": 0.1, "typical_p": 0.9, "presence_penalty": 1, "frequency_penalty": -1,
            "repetition_penalty": 1.1, "seed": -7, "n": 2, "stop": ["x", "\u00e9"], "stop_token_ids": [1, 2],
            "logit_bias": {"5": -100, "6": 3.5}, "logprobs": 3, "echo": True, "stream": True,
            "stream_options": {"include_usage": True}, "ignore_eos": True, "min_tokens": 1, "user": "u",
            "priority": -3, "cache_salt": "s", "return_token_ids": True}
    put("json", "completion", json.dumps(full))
    chat = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [
        {"type": "text", "text": "y"}]}], "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 9,
        "chat_template_kwargs": {"a": [1, None, {"b": False}]}, "response_format": {"type": "text"}}
    put("json", "chat", json.dumps(chat))
    put("json", "ids", '{"prompt":[1,2,3],"stop":"\\ud83d\\ude00"}')
    put("json", "guided", '{"prompt":"x","guided_json":{},"tools":[]}')
    put("json", "depth", '{"a":' + "[" * 63 + "]" * 63 + "}")
    put("json", "numbers", '{"n":1e2,"seed":9223372036854775807,"top_p":1E-400,"temprature":-0.0}')

    golden = json.load(open(os.path.join(HERE, "..", "golden", "chat.json")))
    for name, source in list(golden["templates"].items())[:40]:
        put("template", name, source)
    put("template", "with_vars", "{{ a[1:] | join('-') }}{% for k, v in b.items() %}{{ k ~ v }}{% endfor %}\0"
        '{"a":["x","y","z"],"b":{"c":1}}')
    put("template", "macro", "{% macro m(x, y=2) %}{{ x + y }}{% endmacro %}{{ m(1) }}{{ m(1, y=3) | string | length }}")
    put("template", "loops", "{% for i in range(0, 9, 2) if i != 4 %}{{ loop.index0 }}{{ loop.last }}{% else %}e{% endfor %}")
    put("template", "set", "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}")
    put("template", "deep", "{{ " + "(" * 40 + "1" + ")" * 40 + " }}")
    put("template", "raise", "{{ raise_exception('no') }}")

    for i, text in enumerate(["hello world", "  two  spaces\n\n\ttab", "it's we'll 123 4567", "\u00e9\u4e2d\u6587\U0001f600",
                              "<|im_start|>user\nhi<|im_end|>", "a" * 300, "\u200d\ufe0f\u0301e\u0301", "x=1;\r\n\r\n#!/bin/sh"]):
        put("tokenizer", str(i), text)

    reqs = [b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\nHost: y\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nT: v\r\n\r\n",
            b"GET /a?b=c HTTP/1.0\r\n\r\n", b"HEAD http://h/p HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n"]
    for i, r in enumerate(reqs):
        put("http", str(i), bytes([0, len(r) // 2 & 255]) + r)

    def field(n, data):
        return bytes([n << 3 | 2, len(data)]) + data

    tensor = field(1, b"text_input") + field(2, b"BYTES") + b"\x1a\1\1"
    head = field(1, b"tiny") + field(2, b"1") + field(3, b"id")
    values = [b"\x08\1", b"\x10\5", field(3, b"x"), b"\x21" + bytes(8), b"\x28\7", b""]
    params = b"".join(field(4, field(1, b"p%d" % i) + field(2, v)) for i, v in enumerate(values))
    put("grpc", "contents", head + params + field(5, tensor + field(5, field(8, b"hello"))) + field(6, field(1, b"o")))
    put("grpc", "raw", head + field(5, tensor) + field(7, b"\5\0\0\0hello"))
    put("grpc", "raw_short", field(5, tensor) + field(7, b"\5\0\0\0hell"))
    put("grpc", "numbers", field(5, tensor + field(5, field(2, b"\1\2") + field(6, bytes(4)) + field(1, b"\1"))))
    put("grpc", "empty", b"")

    def plan(tokens, pos, q, pg, pages, rows, seqs, kind=1, exports=()):
        head = struct.pack("=IIQQIIIIIIII", 0x50364C53, kind, 9, 8, len(q) - 1, len(tokens), len(rows), len(pages),
                           len(exports), 0, 0, 0)
        exports = [x for e in exports for x in e]
        return head + b"".join(struct.pack("=I", x) for part in (tokens, pos, q, pg, pages, rows, seqs, exports)
                               for x in part)

    def transfer(kind, first, keys, pages=(), note=b""):
        head = struct.pack("=IIQQIIIIIIII", 0x50364C53, kind, 9, 8, 0, 0, 0, keys, 0, first, len(note), 0)
        return head + b"".join(struct.pack("=I", x) for x in pages) + bytes(range(32)) * keys + note

    put("plan", "export", transfer(4, 0, 2, note=b"ticket"))
    put("plan", "import", transfer(5, 1, 3, (7, 19, 0), b"where"))
    put("plan", "end", transfer(6, 0, 0))
    put("plan", "charter", transfer(7, 0, 0, note=bytes(40)))
    put("plan", "exports", plan(list(range(16)), list(range(16)), [0, 16], [0, 4], [1, 2, 3, 4], [], [],
                                exports=[(0, 4, 1, 0)]))

    put("plan", "decode", plan([7], [5], [0, 1], [0, 2], [3, 19], [0], [0]))
    put("plan", "mixed", plan([7, 99, 1, 2, 3, 4, 5, 6], [5, 12, 8, 9, 10, 11, 12, 13], [0, 1, 2, 8], [0, 2, 6, 10],
                              [3, 19, 0, 1, 2, 4, 5, 6, 7, 8], [0, 1], [0, 1]))
    put("plan", "chunk", plan(list(range(16)), list(range(16)), [0, 16], [0, 4], [1, 2, 3, 4], [], []))
    put("plan", "status", plan([], [], [0], [0], [], [], [], kind=2)[:56])

    def frame(kind, page=0, layer=0, seq=0, value=0, payload=b""):
        return struct.pack("<IBBHIIIIIIQQ", 0x564b4c53, kind, 2, 0, 0, 1, page, layer, len(payload), seq, value,
                           0) + payload

    ask = struct.pack("<IIIIII", 0, 4, 16, 2, 1, 8) + bytes(32) + struct.pack("<IIIIII", 0, 2, 0, 1, 1, 0)
    ranks = struct.pack("<I", 2) + b"".join(struct.pack("<IIIIII", i, 1, 0, 1, 1, 5) + b"shm:a" for i in (0, 1))
    put("bulk", "map", frame(8) + frame(8, payload=ranks))
    rows = [frame(3, page, layer, 2 * page + layer, 1, bytes(8)) for page in (0, 1) for layer in (0, 1)]
    put("bulk", "transfer", frame(1, value=7, payload=ask) + frame(2) + b"".join(rows) +
        frame(4, 0, payload=bytes(32)) + frame(4, 1, payload=b"\1" + bytes(31)) + frame(5) + frame(6))
    put("bulk", "ack", frame(7, seq=3) + frame(1, page=16, payload=ask))
    put("bulk", "twice", rows[0] + rows[0] + rows[1] + frame(4, 0, payload=bytes(32)) * 2)

    def text(z):
        return bytes([0xa0 | len(z)]) + z.encode()

    def blob(b):
        return b"\xc4" + bytes([len(b)]) + b

    batch = b"\x93\xcb" + struct.pack(">d", 1.5)
    key = blob(bytes(range(32)))
    stored = [text("block_hashes") + b"\x92" + key + key, text("parent_block_hash") + b"\xc0",
              text("token_ids") + b"\x94\x01\xcc\xff\xcd\xff\xff\xce\xff\xff\xff\xff", text("block_size") + b"\x02",
              text("lora_id") + b"\xc0", text("medium") + text("GPU"), text("extra_keys") + b"\x92\xc0\x91\xa1x"]
    put("kv_events", "maps", batch + b"\x93\x88" + text("type") + text("BlockStored") + b"".join(stored) +
        b"\x83" + text("type") + text("BlockRemoved") + text("block_hashes") + b"\x91" + key + text("medium") + b"\xc0" +
        b"\x81" + text("type") + text("AllBlocksCleared") + b"\x07")
    put("kv_events", "arrays", batch + b"\x93\x97" + text("BlockStored") + b"\x91" + key + key + b"\x91\x01\x01\xc0\xc0" +
        b"\x93" + text("BlockRemoved") + b"\x90\xc0" + b"\x91" + text("AllBlocksCleared") + b"\xc0")
    put("kv_events", "extra", b"\x95" + batch[1:] + b"\x90\x00\x81\xa1x\xd9\x01y\xdc\x00\x01\xd8\x05" + bytes(16))
    sampling = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "presence_penalty": 0,
                "frequency_penalty": 0, "repetition_penalty": 1.5, "min_tokens": 0, "max_tokens": 3,
                "ignore_eos": False, "logit_bias": [[5, -1.5]], "stop_token_ids": [7]}
    proof = {"version": 1, "stop": ["x"], "include_stop": False, "skip_special": True, "echo": False,
             "prompts": [[1, 2]], "choices": [{"index": 0, "prompt": 0, "choice": 0, "class": "c", "seed": -3,
                                               "sampling": sampling, "tokens": [4, 5], "chain": "0f" * 32}]}
    probs = {"content": [{"token": "a", "logprob": -1.5, "top_logprobs": [{"token": "a", "logprob": -1}]}] * 2}
    put("stored", "chat", json.dumps({"choices": [{"index": 0, "message": {"content": "ab"}, "logprobs": probs,
                                                   "finish_reason": "length"}], "sluice": proof}))
    put("stored", "text", json.dumps({"response": {"choices": [{"index": 0, "text": "ab", "logprobs": {
        "token_logprobs": [-1, -2], "top_logprobs": [{"a": -1}, {"b": -2}]}}], "sluice": proof}}))
    put("stored", "events", 'id: 1\ndata: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata:' +
        json.dumps({"choices": [], "sluice": proof}) + "\r\n\ndata: [DONE]\n\n")
    put("stored", "nul", json.dumps({"choices": [{"index": 0, "text": "a\0b\0", "finish_reason": "stop\0", "logprobs": {
        "tokens": ["a", "\0"], "token_logprobs": [-1, -2], "top_logprobs": [{"a": -1}, {"\ufffd": -2, "b": -3}]}}],
        "sluice": dict(proof, stop=["\0x"])}))
    put("stored", "nul_key", json.dumps({"choices": [{"index": 0, "text": "\0", "logprobs": {
        "token_logprobs": [-1, -2], "top_logprobs": [{"\0": -1}, {}]}}], "sluice": proof}))
    put("stored", "id", "1.fedcba9876543210.0000000000000abc.00c0ffee.1-01020304050607ff.0.12f-0000000000000000"
        ".999999999e-abcd000000000000")

    def short(x):
        return bytes([len(x)]) + x

    join = struct.pack("<IIIQQBI", 0x314A4C53, 1, 3, 7, 99, 0, 1234) + bytes(32)
    answer = struct.pack("<IH", 0x31414C53, 0) + short(b"") + struct.pack("<QIB", 99, 2, 2) + bytes(32)
    put("comm", "join", b"\0" + join + short(b"tp") + short(b"127.0.0.1:4000"))
    put("comm", "join_control", b"\0" + join + short(b"t\n") + short(b""))
    put("comm", "answer", b"\1" + answer + short(b"sluice-0123") + short(b"127.0.0.1:1") + short(b"[::1]:2"))
    put("comm", "refusal", b"\1" + struct.pack("<IH", 0x31414C53, 3) + short(b"comm: no") +
        struct.pack("<QIB", 99, 0, 0) + bytes(32) + short(b""))
    put("comm", "beat", b"\2" + struct.pack("<II", 125, 3))
    put("comm", "alert", b"\2" + struct.pack("<II", 1, 5))
    put("comm", "hail", b"\2" + struct.pack("<II", 0x31484C53, 2) + bytes(32))
    put("comm", "heads", b"\3" + struct.pack("<IBBBBQ", 16376, 2, 0, 0, 0, 4096))


if __name__ == "__main__":
    main(sys.argv[1])
