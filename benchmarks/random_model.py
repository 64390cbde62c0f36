"""A Llama-shaped GGUF of about a billion random weights: for speed only, nothing that it says means anything.

    python benchmarks/random_model.py [PATH] [--layers 16 --hidden 2048 ...]

Weights are Q8_0 blocks; the tokenizer is the default model's, so every peer reads the file. 1.1 GB.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from sharegpt import cache_folder

from ridgeline.engine.source import read_header, resolve_source

ALIGNMENT = 32
Q8_0, F32 = 8, 0
BLOCK_BYTES, BLOCK_VALUES = 34, 32
Tensor = tuple[str, tuple[int, ...], int]
"""(name, shape outermost first, ggml type)."""


def string(text: str) -> bytes:
    """A GGUF string."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A typed GGUF value: bool, unsigned and float of 32 bits, string, arrays of these."""
    if isinstance(item, bool):
        return struct.pack("<I?", 7, item)
    if isinstance(item, int):
        return struct.pack("<II", 4, item)
    if isinstance(item, float):
        return struct.pack("<If", 6, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    kind = 8 if isinstance(item[0], str) else 6 if isinstance(item[0], float) else 5
    head = struct.pack("<IIQ", 9, kind, len(item))
    if kind == 8:
        return head + b"".join(string(entry) for entry in item)
    return head + struct.pack(f"<{len(item)}{'f' if kind == 6 else 'i'}", *item)


def tensors(args: argparse.Namespace, vocab: int) -> list[Tensor]:
    """All tensors of the shape; the head is tied to the embedding."""
    hidden, head_dim = args.hidden, args.hidden // args.heads
    found: list[Tensor] = [
        ("token_embd.weight", (vocab, hidden), Q8_0),
        ("output_norm.weight", (hidden,), F32),
    ]
    for layer in range(args.layers):
        block = f"blk.{layer}."
        found += [
            (block + "attn_norm.weight", (hidden,), F32),
            (block + "attn_q.weight", (hidden, hidden), Q8_0),
            (block + "attn_k.weight", (args.kv_heads * head_dim, hidden), Q8_0),
            (block + "attn_v.weight", (args.kv_heads * head_dim, hidden), Q8_0),
            (block + "attn_output.weight", (hidden, hidden), Q8_0),
            (block + "ffn_norm.weight", (hidden,), F32),
            (block + "ffn_gate.weight", (args.intermediate, hidden), Q8_0),
            (block + "ffn_up.weight", (args.intermediate, hidden), Q8_0),
            (block + "ffn_down.weight", (hidden, args.intermediate), Q8_0),
        ]
    return found


def num_bytes(tensor: Tensor) -> int:
    """Stored bytes, padded to the alignment."""
    count = int(np.prod(tensor[1]))
    size = 4 * count if tensor[2] == F32 else count // BLOCK_VALUES * BLOCK_BYTES
    return -(-size // ALIGNMENT) * ALIGNMENT


def data(tensor: Tensor, random: np.random.Generator) -> Iterator[bytes]:
    """Norms of one; else uniform integers with a scale that keeps activations of order one."""
    count = int(np.prod(tensor[1]))
    if tensor[2] == F32:
        yield np.ones(count, np.float32).tobytes()
        return
    scale = np.frombuffer(np.float16(1.7 / (127 * tensor[1][-1] ** 0.5)).tobytes(), np.uint8)
    left = count // BLOCK_VALUES
    while left:
        rows = min(left, 1 << 20)
        blocks = random.integers(0, 256, (rows, BLOCK_BYTES), np.uint8)
        blocks[:, :2] = scale
        yield blocks.tobytes()
        left -= rows


def metadata(args: argparse.Namespace) -> dict[str, Any]:
    """The default model's tokenizer, and the shape."""
    header = read_header(resolve_source(None))
    assert header is not None
    kept = {key: item for key, item in header.metadata.items() if key.startswith("tokenizer.")}
    return {
        "general.architecture": "llama",
        "general.name": "random",
        "general.file_type": 7,
        "llama.block_count": args.layers,
        "llama.context_length": 8192,
        "llama.embedding_length": args.hidden,
        "llama.feed_forward_length": args.intermediate,
        "llama.attention.head_count": args.heads,
        "llama.attention.head_count_kv": args.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": args.hidden // args.heads,
        "llama.rope.freq_base": 500_000.0,
        "llama.vocab_size": len(kept["tokenizer.ggml.tokens"]),
        **kept,
    }


def write(file: BinaryIO, args: argparse.Namespace) -> None:
    """Header, tensor table, data."""
    facts = metadata(args)
    wanted = tensors(args, facts["llama.vocab_size"])
    head = b"GGUF" + struct.pack("<IQQ", 3, len(wanted), len(facts))
    head += b"".join(string(key) + value(item) for key, item in facts.items())
    at = 0
    for tensor in wanted:
        name, shape, kind = tensor
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, at)
        at += num_bytes(tensor)
    file.write(head + b"\0" * (-len(head) % ALIGNMENT))
    random = np.random.default_rng(0)
    for tensor in wanted:
        written = 0
        for portion in data(tensor, random):
            written += file.write(portion)
        file.write(b"\0" * (num_bytes(tensor) - written))


def main() -> None:
    """Write the file unless it is there; print its path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, nargs="?", default=cache_folder() / "random-1b.gguf")
    for name, default in (
        ("layers", 16),
        ("hidden", 2048),
        ("intermediate", 8192),
        ("heads", 32),
        ("kv-heads", 8),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if not args.path.exists():
        args.path.parent.mkdir(parents=True, exist_ok=True)
        partial = args.path.with_suffix(".part")
        with open(partial, "wb") as file:
            write(file, args)
        partial.rename(args.path)
    print(args.path)


if __name__ == "__main__":
    main()
