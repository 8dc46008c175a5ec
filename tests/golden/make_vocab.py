#!/usr/bin/env python3
"""Writes smollm2-vocab.gguf: the tokenizer's keys of a model file, without its tensors.

    python3 make_vocab.py MODEL.gguf smollm2-vocab.gguf        (needs the package `gguf`)
"""
import sys

import gguf


def main(source, target):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("tokenizer.") and name not in ("general.name", "general.license"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
