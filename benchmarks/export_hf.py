"""A model as a Hugging Face folder (config.json, model.safetensors, tokenizer.json), for peers without GGUF.

    python benchmarks/export_hf.py FOLDER [--model M] [--dtype bf16|float32|w8a8]

The weights are those of our own stream, dequantised: every peer computes with the same numbers, up to
the rounding to bfloat16 that peers which take only 16 bits would make anyway.
`w8a8` writes the layers' matrices as int8 with a scale a row, to be multiplied with 8-bit activations
(the format "compressed-tensors" of vLLM).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ridgeline.engine.source import read_header, read_spec, resolve_source
from ridgeline.engine.tokenizing import load_tokenizer
from ridgeline.facts.model_spec import ModelSpec
from ridgeline.runtime.weights import TensorSource, open_tensors

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
            },
        }
    },
    "ignore": ["lm_head"],
}  # fmt: skip
"""vLLM's int8: symmetric, a scale an output channel; activations quantised a token when they are used."""


def config_json(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """config.json of a model whose layers are all alike. Raises SystemExit for others (Gemma's windows)."""
    if spec.architecture not in CLASSES:
        raise SystemExit(
            f"export: {spec.architecture} has no plain configuration; llama, qwen2 and qwen3 have"
        )
    rope = spec.layers[0].rope
    if rope.scaling or rope.freq_factors or any(layer.window for layer in spec.layers):
        raise SystemExit("export: scaled rotary embeddings and windows are not written")
    return {
        "architectures": [CLASSES[spec.architecture]],
        "model_type": spec.architecture,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_theta": rope.theta,
        "attention_bias": spec.attention_bias,
        "mlp_bias": spec.mlp_bias,
        "tie_word_embeddings": spec.tied_embeddings,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": spec.eos_token_ids[0] if spec.eos_token_ids else None,
        "torch_dtype": "float32" if dtype == "float32" else "bfloat16",
        **({"quantization_config": W8A8} if dtype == "w8a8" else {}),
    }


def stored(values: np.ndarray, dtype: str) -> bytes:
    """Little-endian bytes; bfloat16 rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    if dtype == "float32":
        return bits.tobytes()
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16).tobytes()


def entries(tensor: TensorSource, dtype: str) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """(name, type, shape, bytes) of what is written for a tensor, in the order in which it is."""
    count = int(np.prod(tensor.shape))
    if dtype == "w8a8" and tensor.name.endswith("_proj.weight"):
        yield tensor.name, "I8", tensor.shape, count
        yield f"{tensor.name}_scale", "BF16", (tensor.num_rows, 1), 2 * tensor.num_rows
    elif dtype == "float32":
        yield tensor.name, "F32", tensor.shape, 4 * count
    else:
        yield tensor.name, "BF16", tensor.shape, 2 * count


def written(tensor: TensorSource, dtype: str) -> Iterator[bytes]:
    """The bytes of `entries`."""
    if dtype == "w8a8" and tensor.name.endswith("_proj.weight"):
        values = tensor.float32()
        scales = np.maximum(np.abs(values).max(axis=1, keepdims=True) / 127, 1e-12)
        yield np.clip(np.rint(values / scales), -127, 127).astype(np.int8).tobytes()
        yield stored(scales, "bf16")
        return
    for _, values in tensor.portions():
        yield stored(values, dtype)


def write_safetensors(path: Path, tensors: list[TensorSource], dtype: str) -> None:
    """One file, a tensor at a time: nothing is held but the one that is written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        for name, kind, shape, num_bytes in entries(tensor, dtype):
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + num_bytes]}
            at += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for portion in written(tensor, dtype):
                file.write(portion)


def export(model: str | None, folder: Path, dtype: str = "bf16") -> None:
    """Write the folder; a finished one has config.json, written last."""
    source = resolve_source(model)
    header = read_header(source)
    spec = read_spec(source, header)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_json(spec, dtype)
    stream = open_tensors(source, spec, header)
    write_safetensors(folder / "model.safetensors", [stream.take(name) for name in stream.remaining()], dtype)
    tokenizer = load_tokenizer(source, None if header is None else header.metadata)
    tokenizer.save(folder / "tokenizer.json")
    eos = next(iter(spec.eos_token_ids), None)
    says = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.context_length,
        "bos_token": None if spec.bos_token_id is None else tokenizer.token_text(spec.bos_token_id),
        "eos_token": None if eos is None else tokenizer.token_text(eos),
        "chat_template": tokenizer.chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(says, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    """Parse and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "float32", "w8a8"])
    args = parser.parse_args()
    export(args.model, args.folder, args.dtype)
    print(args.folder)


if __name__ == "__main__":
    main()
