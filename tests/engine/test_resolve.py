"""Options, machine and model become a configuration, each field with its reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ridgeline.engine import hardware_probe
from ridgeline.engine.errors import ConfigError
from ridgeline.engine.hardware_probe import NativeProbe, probe_hardware, probe_native
from ridgeline.engine.options import CHOICES, EngineOptions
from ridgeline.engine.resolve import EngineConfig, ledger_of, resolve
from ridgeline.facts.hardware import HardwareSpec
from ridgeline.facts.model_spec import LayerSpec, ModelSpec, RopeSpec, StoredMatrices

GIB = 1 << 30
AVX512 = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
MACHINE = HardwareSpec("Test CPU", 2, 8 * GIB, AVX512, cores_reason="2 cores, says the test")
YES = NativeProbe(True, "the compiled kernels import")
NO = NativeProbe(False, "the compiled kernels are not here (no compiler)")
SPEC = ModelSpec(
    name="tiny",
    architecture="llama",
    num_layers=4,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=1_000,
    context_length=4_096,
    rms_norm_eps=1e-5,
    layers=(LayerSpec(None, RopeSpec(10_000.0, 16)),) * 4,
    activation="silu",
    tied_embeddings=True,
    attention_scale=0.25,
)


def settle(
    native: NativeProbe = YES, spec: ModelSpec = SPEC, machine: HardwareSpec = MACHINE, **options: Any
):
    return resolve(EngineOptions(**options), spec, machine, native=native, environment={})


def refusal(**kwargs: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        settle(**kwargs)
    return caught.value


def test_every_field_is_set_and_has_one_decision_with_a_reason() -> None:
    config, decisions = settle()
    names = [field.name for field in dataclasses.fields(EngineConfig)]
    assert sorted(decision.field for decision in decisions) == sorted(names)
    for decision in decisions:
        assert getattr(config, decision.field) == decision.value
        assert getattr(config, decision.field) is not None or decision.field == "seed"
        assert decision.reason and not decision.asked


def test_defaults_of_the_native_backend() -> None:
    config, decisions = settle()
    reasons = {decision.field: decision.reason for decision in decisions}
    assert (config.backend, config.weights, config.kv_dtype, config.isa_tier) == (
        "native",
        "bf16",
        "bf16",
        "avx512",
    )
    assert config.num_threads == 2 and reasons["num_threads"] == "2 cores, says the test"
    assert config.max_model_len == 4_096
    assert config.num_blocks == 64 * 128 and "64 sequences x 4096 tokens" in reasons["num_blocks"]
    assert config.kv_memory_bytes == config.num_blocks * config.kv_layout(SPEC).page_bytes


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_int8_cache_is_had_for_the_asking_and_says_what_it_costs(backend: str) -> None:
    config, decisions = settle(backend=backend, kv_dtype="int8", num_blocks=100)
    (decision,) = (decision for decision in decisions if decision.field == "kv_dtype")
    assert decision.asked and "greedy text" in decision.reason
    assert config.kv_dtype == "int8"
    bf16, _ = settle(backend="native", kv_dtype="bf16", num_blocks=100)
    assert config.kv_memory_bytes / bf16.kv_memory_bytes == (16 + 4) / (16 * 2)


@pytest.mark.parametrize(
    ("stored", "asked", "weights", "head"),
    [
        ("Q4_1", "auto", "stored", "stored"),
        ("Q6_K", "auto", "stored", "stored"),
        ("F16", "auto", "bf16", "bf16"),
        ("Q4_1", "bf16", "bf16", "bf16"),
        ("BF16", "stored", "stored", "stored"),
        ("BF16", "auto", "bf16", "bf16"),
        ("BF16", "int8", "int8", "int8"),
        ("BF16", "int4", "int4", "int8"),
    ],
)
def test_precision_is_the_least_that_keeps_greedy_text(
    stored: str, asked: str, weights: str, head: str
) -> None:
    kinds = (StoredMatrices("down", (stored,), 2), StoredMatrices("embedding", (stored,), 1))
    spec = dataclasses.replace(SPEC, stored_quantization=stored, stored=kinds)
    config, _ = settle(spec=spec, weights=asked)
    assert (config.weights, config.head_weights) == (weights, head)


def test_the_reason_for_stored_weights_says_what_is_rounded() -> None:
    kinds = (StoredMatrices("qkv", ("Q4_K", "Q4_K", "Q8_0"), 2), StoredMatrices("down", ("Q6_K",), 2))
    _, decisions = settle(spec=dataclasses.replace(SPEC, stored=kinds))
    reason = next(d.reason for d in decisions if d.field == "weights")
    assert "Q4_K, Q6_K, Q8_0" in reason and "all but Q6_K" in reason and "as int8" in reason


def test_heads_that_the_kernels_cannot_hold_go_to_the_reference() -> None:
    odd = dataclasses.replace(SPEC, head_dim=20)
    config, decisions = settle(spec=odd)
    assert config.backend == "reference"
    assert "multiple of 16" in next(d.reason for d in decisions if d.field == "backend")
    assert refusal(spec=odd, backend="native").field == "backend"


def test_without_the_kernels_the_reference_serves_and_says_so() -> None:
    config, decisions = settle(NO)
    assert (config.backend, config.weights, config.kv_dtype) == ("reference", "float32", "float32")
    assert "no compiler" in next(d.reason for d in decisions if d.field == "backend")


def test_what_is_asked_for_is_taken_and_marked() -> None:
    asked = {
        "backend": "native", "weights": "int4", "kv_dtype": "bf16", "max_model_len": 100, "block_size": 48,
        "num_blocks": 50, "max_num_seqs": 3, "max_num_batched_tokens": 77, "num_threads": 1,
        "enable_prefix_caching": False, "policy": "priority", "max_queue": 9, "seed": 5,
        "served_model_name": "me", "overlap": True,
    }  # fmt: skip
    config, decisions = settle(**asked)
    for field, value in asked.items():
        assert getattr(config, field) == value
        assert next(d for d in decisions if d.field == field).asked
    assert config.head_weights == "int8", "four bits are too coarse for the head"


def test_context_shrinks_to_what_the_cache_holds_when_unasked() -> None:
    config, decisions = settle(num_blocks=10)
    assert config.max_model_len == 320
    assert "10 KV blocks" in next(d.reason for d in decisions if d.field == "max_model_len")


def test_memory_bounds_the_cache() -> None:
    config, decisions = settle(
        machine=dataclasses.replace(MACHINE, memory_bytes=GIB // 2), max_num_seqs=8_000
    )
    assert config.kv_memory_bytes <= GIB // 8
    assert "25% of 512.0 MiB" in next(d.reason for d in decisions if d.field == "num_blocks")


@pytest.mark.parametrize(
    ("arguments", "field", "said"),
    [
        ({"native": NO, "backend": "native"}, "backend", "no compiler"),
        ({"native": NO, "weights": "int8"}, "weights", "native backend"),
        ({"backend": "native", "weights": "float32"}, "weights", "stored, bf16, int8, int4"),
        ({"backend": "native", "kv_dtype": "float32"}, "kv_dtype", "reference"),
        ({"num_blocks": 5, "kv_memory_bytes": 1_000_000}, "num_blocks", "kv_memory_bytes"),
        ({"max_model_len": 5_000}, "max_model_len", "4096"),
        ({"max_model_len": 1_000, "num_blocks": 5}, "num_blocks", "at most 160 tokens"),
        ({"max_model_len": 1_000, "kv_memory_bytes": 100_000}, "kv_memory_bytes", "at most"),
        ({"kv_memory_bytes": 10}, "kv_memory_bytes", "less than one block"),
        ({"block_size": 20}, "block_size", "multiple of 16"),
        ({"kv_memory_bytes": 100 * GIB}, "kv_memory_bytes", "8.0 GiB are available"),
        (
            {"max_num_batched_tokens": 1 << 20, "machine": dataclasses.replace(MACHINE, memory_bytes=GIB)},
            "max_num_batched_tokens",
            "lower it",
        ),
    ],
)
def test_impossible_together_is_refused_by_field(arguments: dict[str, Any], field: str, said: str) -> None:
    error = refusal(**arguments)
    assert error.field == field
    assert said in str(error)


def test_weights_that_do_not_fit_are_refused_before_anything_is_allocated() -> None:
    big = dataclasses.replace(SPEC, hidden_size=16_384, intermediate_size=65_536)
    assert refusal(spec=big).field == "weights"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, "nonsense") for name in CHOICES],
        ("num_threads", 0),
        ("num_threads", 1.0),
        ("num_threads", True),
        ("num_threads", 10**9),
        ("max_model_len", -1),
        ("max_num_seqs", "8"),
        ("kv_memory_bytes", 1 << 60),
        ("seed", 1 << 64),
        ("overlap", 1),
        ("model", 3),
        ("served_model_name", "  "),
    ],
)
def test_options_are_checked_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineOptions.from_mapping({name: value})
    assert caught.value.field == name


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_seqs: is no option"):
        EngineOptions.from_mapping({"max_seqs": 4})


@pytest.mark.parametrize(
    ("forced", "expected"), [("", "avx512"), ("portable", "portable"), ("avx2", "avx2"), ("avx512", "avx512")]
)
def test_isa_may_be_forced_down(forced: str, expected: str) -> None:
    config, _ = resolve(EngineOptions(), SPEC, MACHINE, native=YES, environment={"RIDGELINE_ISA": forced})
    assert config.isa_tier == expected


def test_compiled_tiers_count_more_than_the_cpu() -> None:
    native = NativeProbe(True, "test", ("portable", "avx2"))
    config, _ = resolve(EngineOptions(), SPEC, MACHINE, native=native, environment={})
    assert config.isa_tier == "avx2"
    with pytest.raises(ConfigError, match="avx512 is more than runs"):
        resolve(EngineOptions(), SPEC, MACHINE, native=native, environment={"RIDGELINE_ISA": "avx512"})


@pytest.mark.parametrize(
    ("forced", "said"), [("sse9", "must be one of"), ("amx", "more than runs on this machine")]
)
def test_isa_that_cannot_be_is_refused(forced: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        resolve(EngineOptions(), SPEC, MACHINE, native=YES, environment={"RIDGELINE_ISA": forced})
    assert caught.value.field == "RIDGELINE_ISA"


def test_window_models_need_less_cache() -> None:
    window = LayerSpec(64, SPEC.layers[0].rope)
    windowed = dataclasses.replace(SPEC, layers=(window, window, window, SPEC.layers[0]))
    config, _ = settle(spec=windowed, num_blocks=500, max_num_batched_tokens=64, max_model_len=4_096)
    layout = config.kv_layout(windowed)
    assert [group.window for group in layout.groups] == [None, 64, 64, 64]
    assert layout.blocks_for(4_096, 64) == 128 + 3 * (4 + 1)


def test_ledger_is_of_the_configuration() -> None:
    config, _ = settle()
    ledger = ledger_of(SPEC, config, MACHINE)
    assert ledger.entry("kv_cache").num_bytes == config.kv_memory_bytes
    assert ledger.available_bytes == 8 * GIB


# -- the probe --


def fake_machine(root: Path, *, quota: str = "max 100000", limit: str = "max") -> Path:
    files = {
        "proc/cpuinfo": "model name\t: Test CPU 9000\nflags\t\t: avx2 fma f16c sse4_2\n\nmodel name : 2\n",
        "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable:    8000000 kB\n",
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/box/cpu.max": quota,
        "sys/fs/cgroup/box/memory.max": limit,
        "sys/fs/cgroup/box/memory.current": "600000000",
        "sys/fs/cgroup/box/memory.stat": "anon 1\ninactive_file 100000000\nactive_file 0\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_probe.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


@pytest.mark.usefixtures("four_cores")
def test_probe_without_limits(tmp_path: Path) -> None:
    machine = probe_hardware(fake_machine(tmp_path))
    assert (machine.name, machine.num_cores, machine.memory_bytes) == ("Test CPU 9000", 4, 8_192_000_000)
    assert machine.isa == ("avx2", "fma", "f16c") and machine.isa_tier == "avx2"
    assert machine.cores_reason.startswith("4 cores available to this process")


@pytest.mark.usefixtures("four_cores")
def test_probe_respects_cgroup_limits(tmp_path: Path) -> None:
    machine = probe_hardware(fake_machine(tmp_path, quota="150000 100000", limit="1000000000"))
    assert machine.num_cores == 2 and "quota of 1.5 of 4" in machine.cores_reason
    assert machine.memory_bytes == 1_000_000_000 - 500_000_000
    assert "cgroup" in machine.memory_reason


@pytest.mark.usefixtures("four_cores")
def test_probe_respects_cgroup_v1(tmp_path: Path) -> None:
    root = fake_machine(tmp_path)
    (root / "proc/self/cgroup").write_text("4:memory:/box\n3:cpu,cpuacct:/box\n")
    for name, text in {
        "memory/box/memory.limit_in_bytes": "700000000",
        "memory/box/memory.usage_in_bytes": "200000000",
        "cpu/box/cpu.cfs_quota_us": "100000",
        "cpu/box/cpu.cfs_period_us": "100000",
    }.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    machine = probe_hardware(root)
    assert (machine.num_cores, machine.memory_bytes) == (1, 500_000_000)


def test_probe_of_a_system_that_says_nothing(tmp_path: Path) -> None:
    machine = probe_hardware(tmp_path)
    assert machine.num_cores >= 1 and machine.memory_bytes > 0 and machine.isa_tier == "portable"


def test_probe_of_this_machine() -> None:
    machine = probe_hardware()
    assert machine.num_cores >= 1 and machine.memory_bytes > 0 and machine.name
    assert probe_native().reason


def test_a_context_without_room_to_generate_is_refused() -> None:
    assert refusal(max_model_len=1).field == "max_model_len"
    assert refusal(spec=dataclasses.replace(SPEC, context_length=1)).field == "max_model_len"
    assert refusal(backend="reference", num_blocks=1, block_size=1).field == "num_blocks"
