"""Options + model + machine -> a frozen configuration with every field set, and the reason of each.

The one place where defaults are made. What cannot be had together raises ConfigError here, before
anything is allocated; `explain` prints the decisions and the memory ledger.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ridgeline.cost.memory import MemoryLedger, human_bytes, memory_ledger
from ridgeline.engine.errors import ConfigError
from ridgeline.engine.hardware_probe import NativeProbe, probe_native
from ridgeline.engine.options import EngineOptions
from ridgeline.facts.formulas import held_matrices
from ridgeline.facts.hardware import ISA_TIERS, HardwareSpec
from ridgeline.facts.kv_layout import KvLayout, kv_layout
from ridgeline.facts.model_spec import ModelSpec
from ridgeline.facts.precision import ROUNDED, Weights

DEFAULT_BLOCK_SIZE = 32
DEFAULT_MAX_NUM_SEQS = 64
DEFAULT_MAX_NUM_BATCHED_TOKENS = 512
DEFAULT_MAX_QUEUE = 1_024
KV_SHARE = 0.25
NATIVE_BLOCK_MULTIPLE = 16
NATIVE_HEAD_MULTIPLE = 16
MAX_NUM_BLOCKS = 1 << 20
MIN_MODEL_LEN = 2
"""A token of prompt and one generated."""
_KV_BYTES = {"int8": 1, "bf16": 2, "float32": 4}
_KV_SCALE_BYTES = {"int8": 4}
"""Beside the numbers of a token and head, K and V each."""
_INT8_KV_COST = (
    "as asked: about half of bf16's bytes, a scale for each token and head; not lossless: "
    "logits move about twice as far from float32's as with bf16, and greedy text may part from it"
)
_NATIVE_WEIGHTS = ("stored", "bf16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything an engine is built from. Lengths and sizes named len/size are in tokens.

    `seed` None means that nobody asked for runs to be repeatable.
    """

    model_name: str
    served_model_name: str
    backend: Literal["native", "reference"]
    isa_tier: str
    weights: Weights
    head_weights: Weights
    kv_dtype: Literal["bf16", "int8", "float32"]
    max_model_len: int
    block_size: int
    num_blocks: int
    kv_memory_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_threads: int
    enable_prefix_caching: bool
    policy: Literal["fcfs", "priority"]
    max_queue: int
    seed: int | None
    offline: bool
    overlap: bool

    @property
    def kv_bytes_per_element(self) -> int:
        return _KV_BYTES[self.kv_dtype]

    def kv_layout(self, spec: ModelSpec) -> KvLayout:
        """The cache's layout for this configuration."""
        return _layout(spec, self.block_size, self.kv_dtype)


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a field has its value. `asked` says that the user set it."""

    field: str
    value: object
    reason: str
    asked: bool = False


def resolve(
    options: EngineOptions,
    spec: ModelSpec,
    hardware: HardwareSpec,
    *,
    served_name: str | None = None,
    native: NativeProbe | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[EngineConfig, tuple[Decision, ...]]:
    """Settle every field. `native` and `environment` stand in for the probe and `os.environ` in tests.

    Raises ConfigError for a field that cannot be honoured, or when the whole does not fit in memory.
    """
    resolving = _Resolving(options, spec, hardware)
    native = native or probe_native()
    environment = os.environ if environment is None else environment
    resolving.names(served_name)
    resolving.compute(native)
    resolving.isa(environment.get("RIDGELINE_ISA", ""), native)
    resolving.schedule()
    resolving.cache()
    config = EngineConfig(**resolving.values)  # type: ignore[arg-type]
    ledger = ledger_of(spec, config, hardware)
    if not ledger.fits:
        raise ConfigError(*_too_big(ledger))
    return config, tuple(resolving.decisions)


def ledger_of(spec: ModelSpec, config: EngineConfig, hardware: HardwareSpec | None = None) -> MemoryLedger:
    """What this configuration will take, against what the machine has."""
    return memory_ledger(
        spec,
        config.kv_layout(spec),
        num_blocks=config.num_blocks,
        weights=config.weights,
        head_weights=config.head_weights,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        available_bytes=None if hardware is None else hardware.memory_bytes,
    )


class _Resolving:
    """Values and decisions as they are made; each method may rely on those before it."""

    def __init__(self, options: EngineOptions, spec: ModelSpec, hardware: HardwareSpec) -> None:
        self.options, self.spec, self.hardware = options, spec, hardware
        self.values: dict[str, object] = {}
        self.decisions: list[Decision] = []

    def settle(self, field: str, value: object, reason: str, asked: bool = False) -> None:
        self.values[field] = value
        self.decisions.append(Decision(field, value, reason, asked))

    def choose(self, field: str, default: object, reason: str) -> None:
        """The option as given, else the default with its reason."""
        given = getattr(self.options, field)
        if given is None or given == "auto":
            self.settle(field, default, reason)
        else:
            self.settle(field, given, "as asked", asked=True)

    def number(self, field: str) -> int:
        value = self.values[field]
        assert isinstance(value, int)
        return value

    def names(self, served_name: str | None) -> None:
        self.settle("model_name", self.spec.name, "the model that was found", self.options.model is not None)
        self.choose("served_model_name", served_name or self.spec.name, "the model's own name")

    def compute(self, native: NativeProbe) -> None:
        """backend, weights, kv_dtype, num_threads."""
        backend = self._backend(native)
        self._weights(backend)
        if backend == "native" and self.options.kv_dtype == "float32":
            raise ConfigError(
                "kv_dtype",
                "the native backend caches keys and values as bf16 or int8; float32 needs the reference",
            )
        if self.options.kv_dtype == "int8":
            self.settle("kv_dtype", "int8", _INT8_KV_COST, asked=True)
        elif backend == "native":
            self.choose(
                "kv_dtype",
                "bf16",
                "half of float32's bytes; greedy text differs from float32's at near ties only",
            )
        else:
            self.choose("kv_dtype", "float32", "the reference keeps everything in float32")
        self.choose(
            "num_threads", self.hardware.num_cores, self.hardware.cores_reason or "cores of the machine"
        )

    def _backend(self, native: NativeProbe) -> str:
        asked = self.options.backend
        if asked == "native" and not native.available:
            raise ConfigError(
                "backend",
                f"native was asked for, but {native.reason}; build it with `make` or `pip install .`",
            )
        if asked == "native" and self.spec.head_dim % NATIVE_HEAD_MULTIPLE:
            raise ConfigError("backend", self._head_dim_reason())
        if asked != "auto":
            self.settle("backend", asked, "as asked", asked=True)
        elif self.options.weights == "float32" or self.options.kv_dtype == "float32":
            self.settle("backend", "reference", "float32 was asked for, which only the reference holds")
        elif self.spec.head_dim % NATIVE_HEAD_MULTIPLE:
            self.settle("backend", "reference", self._head_dim_reason())
        elif native.available:
            self.settle("backend", "native", native.reason)
        else:
            self.settle("backend", "reference", f"{native.reason}: numpy serves, slowly")
        return str(self.values["backend"])

    def _head_dim_reason(self) -> str:
        multiple = f"a multiple of {NATIVE_HEAD_MULTIPLE}"
        return f"the native kernels need a head_dim that is {multiple}, the model has {self.spec.head_dim}"

    def _weights(self, backend: str) -> None:
        asked = self.options.weights
        if backend == "reference":
            if asked not in ("auto", "float32"):
                raise ConfigError(
                    "weights", f"{asked} needs the native backend; the reference computes in float32"
                )
            self.choose("weights", "float32", "the reference computes in float32")
            self.settle("head_weights", "float32", "as the other weights")
            return
        if asked not in ("auto", *_NATIVE_WEIGHTS):
            raise ConfigError(
                "weights", f"the native backend holds {', '.join(_NATIVE_WEIGHTS)}, not {asked}"
            )
        held = held_matrices(self.spec, "stored")
        if all(each.precision == "bf16" for each in held):
            stored = self.spec.stored_quantization
            reason = f"the file has {stored}; int8 and int4 read fewer bytes, but change greedy text"
            self.choose("weights", "bf16", reason)
        else:
            self.choose("weights", "stored", self._stored_reason())
        if self.values["weights"] in ("stored", "bf16"):
            self.settle("head_weights", self.values["weights"], "as the other weights")
        else:
            reason = "8 bits and a scale a group of 32: four are too few for the head"
            self.settle("head_weights", "int8", reason)

    def _stored_reason(self) -> str:
        """What "stored" means for this file."""
        types = {name for stored in self.spec.stored for name in stored.types}
        sizes: Counter[str] = Counter()
        for each in held_matrices(self.spec, "stored"):
            sizes[each.precision] += each.num_values
        held = ", ".join(f"{count / 1e6:.1f}M as {precision}" for precision, count in sizes.items())
        rounded = sorted(types & ROUNDED)
        kept = f"all but {', '.join(rounded)} (rounded to 8 bits a group of 32)" if rounded else "exactly"
        return f"the file's own grids ({', '.join(sorted(types))}), kept {kept}: {held}"

    def isa(self, forced: str, native: NativeProbe) -> None:
        """The kernels' instruction set tier; `forced` is the variable RIDGELINE_ISA.

        The kernels know best what was compiled and what the system grants; without them, the CPU's flags say.
        """
        tier = native.tiers[-1] if native.tiers else self.hardware.isa_tier
        if not forced:
            source = "was compiled and runs on" if native.tiers else "suits"
            self.settle("isa_tier", tier, f"the highest that {source} {self.hardware.name}")
            return
        if forced not in ISA_TIERS:
            raise ConfigError("RIDGELINE_ISA", f"must be one of {', '.join(ISA_TIERS)}, got {forced!r}")
        if ISA_TIERS.index(forced) > ISA_TIERS.index(tier):
            raise ConfigError("RIDGELINE_ISA", f"{forced} is more than runs on this machine ({tier})")
        self.settle("isa_tier", forced, "RIDGELINE_ISA says so", asked=True)

    def schedule(self) -> None:
        """What the scheduler needs besides the cache."""
        self.choose(
            "max_num_seqs",
            DEFAULT_MAX_NUM_SEQS,
            "a step reads the weights once for all of its sequences; beyond 64 a CPU gains little more",
        )
        sequences = self.number("max_num_seqs")
        budget = max(DEFAULT_MAX_NUM_BATCHED_TOKENS, sequences)
        self.choose(
            "max_num_batched_tokens",
            budget,
            f"a step computes at most {budget} tokens: longer prompts go in chunks, "
            "so that running requests wait for a short while only",
        )
        self.choose(
            "enable_prefix_caching", True, "equal prefixes are computed once; a lookup costs microseconds"
        )
        self.settle("policy", self.options.policy, *self._policy_reason())
        self.choose("max_queue", DEFAULT_MAX_QUEUE, "further requests are refused with a time to retry after")
        self.choose("seed", None, "a request without a seed of its own gets a fresh one")
        self.settle(
            "offline", self.options.offline, "downloads are " + ("off" if self.options.offline else "allowed")
        )
        self.choose("overlap", False, "the engine plans on the same cores that compute")

    def _policy_reason(self) -> tuple[str, bool]:
        if self.options.policy == "fcfs":
            return "first come, first served", False
        return "as asked: smaller priority first", True

    def cache(self) -> None:
        """block_size, max_model_len, num_blocks and kv_memory_bytes."""
        self._block_size()
        layout = _layout(self.spec, self.number("block_size"), str(self.values["kv_dtype"]))
        if self.options.num_blocks is not None and self.options.kv_memory_bytes is not None:
            raise ConfigError("num_blocks", "and kv_memory_bytes both size the KV cache; give one of them")
        asked_len = self.options.max_model_len
        if asked_len is not None and asked_len > self.spec.context_length:
            raise ConfigError(
                "max_model_len",
                f"{asked_len} is over the model's context of {self.spec.context_length} tokens",
            )
        wanted_len = asked_len or self.spec.context_length
        num_blocks, field, reason = self._num_blocks(layout, wanted_len)
        self._max_model_len(layout, num_blocks, wanted_len, field)
        self.settle("num_blocks", num_blocks, reason, self.options.num_blocks is not None)
        self.settle(
            "kv_memory_bytes",
            num_blocks * layout.page_bytes,
            f"{num_blocks} blocks of {human_bytes(layout.page_bytes)}",
            self.options.kv_memory_bytes is not None,
        )

    def _block_size(self) -> None:
        asked = self.options.block_size
        if asked is not None and self.values["backend"] == "native" and asked % NATIVE_BLOCK_MULTIPLE:
            raise ConfigError(
                "block_size", f"the native backend needs a multiple of {NATIVE_BLOCK_MULTIPLE}, got {asked}"
            )
        self.choose(
            "block_size",
            DEFAULT_BLOCK_SIZE,
            f"whole matrix tiles, and at most {DEFAULT_BLOCK_SIZE - 1} tokens wasted a sequence",
        )

    def _num_blocks(self, layout: KvLayout, length: int) -> tuple[int, str, str]:
        """Blocks of the pool, the option that an error about them should name, and the reason."""
        if self.options.num_blocks is not None:
            return self.options.num_blocks, "num_blocks", "as asked"
        if self.options.kv_memory_bytes is not None:
            asked = self.options.kv_memory_bytes
            if asked < layout.page_bytes:
                raise ConfigError(
                    "kv_memory_bytes", f"{asked} is less than one block ({layout.page_bytes} bytes)"
                )
            reason = f"what fits in {human_bytes(asked)} at {human_bytes(layout.page_bytes)} a block"
            return asked // layout.page_bytes, "kv_memory_bytes", reason
        sequences = self.number("max_num_seqs")
        enough = sequences * layout.blocks_for(length, self.number("max_num_batched_tokens"))
        share = int(self.hardware.memory_bytes * KV_SHARE) // layout.page_bytes
        available = human_bytes(self.hardware.memory_bytes)
        reason = (
            f"min({KV_SHARE:.0%} of {available} available = {share} blocks, "
            f"enough for {sequences} sequences x {length} tokens = {enough} blocks)"
        )
        if min(share, enough) > MAX_NUM_BLOCKS:
            return MAX_NUM_BLOCKS, "max_model_len", f"{reason}, but at most {MAX_NUM_BLOCKS}"
        return max(1, min(share, enough)), "max_model_len", reason

    def _max_model_len(self, layout: KvLayout, num_blocks: int, wanted: int, field: str) -> None:
        """As asked when the cache holds one such sequence; unasked, the most that it holds.

        Counted at one token a step: alone in the pool, a sequence can always go on so.
        """
        if wanted < MIN_MODEL_LEN:
            raise ConfigError("max_model_len", f"{wanted} leaves no room to generate after a prompt")
        if layout.blocks_for(wanted) <= num_blocks:
            reason = f"the model's context of {self.spec.context_length} tokens"
            self.choose("max_model_len", wanted, reason)
            return
        longest = _longest(layout, num_blocks, wanted)
        needed = layout.bytes_for(wanted)
        if self.options.max_model_len is not None or longest < MIN_MODEL_LEN:
            raise ConfigError(
                field,
                f"a sequence of {wanted} tokens needs {layout.blocks_for(wanted)} KV blocks "
                f"({human_bytes(needed)}), but there are {num_blocks}; they hold at most {longest} tokens",
            )
        self.settle(
            "max_model_len", longest, f"what {num_blocks} KV blocks hold of the model's {wanted} tokens"
        )


def _layout(spec: ModelSpec, block_size: int, kv_dtype: str) -> KvLayout:
    return kv_layout(spec, block_size, _KV_BYTES[kv_dtype], _KV_SCALE_BYTES.get(kv_dtype, 0))


def _longest(layout: KvLayout, num_blocks: int, limit: int) -> int:
    """The longest sequence that `num_blocks` hold, at most `limit` tokens, by bisection."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if layout.blocks_for(middle) <= num_blocks:
            low = middle
        else:
            high = middle - 1
    return low


def _too_big(ledger: MemoryLedger) -> tuple[str, str]:
    """The option to blame and the message, for a configuration that memory cannot hold."""
    largest = ledger.largest
    blame = {
        "weights": ("weights", "choose a smaller precision or model"),
        "kv_cache": ("kv_memory_bytes", "ask for less, or lower max_model_len or max_num_seqs"),
        "activations": ("max_num_batched_tokens", "lower it"),
        "logits": ("max_num_seqs", "lower it"),
        "block_tables": ("max_num_seqs", "lower it"),
        "rope_tables": ("max_model_len", "lower it"),
        "runtime": ("memory", "free some"),
    }
    field, advice = blame[largest.name]
    available = human_bytes(ledger.available_bytes or 0)
    return field, (
        f"{human_bytes(ledger.total_bytes)} are needed and {available} are available; the largest part is "
        f"{largest.name} with {human_bytes(largest.num_bytes)} ({largest.formula}); {advice}"
    )
