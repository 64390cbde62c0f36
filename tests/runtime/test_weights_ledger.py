"""The ledger's weights entry is what the native backend really packs."""

from __future__ import annotations

import pytest

from ridgeline.cost.memory import memory_ledger
from ridgeline.engine.hardware_probe import probe_native
from ridgeline.engine.source import ModelSource, read_spec
from ridgeline.facts.kv_layout import kv_layout
from ridgeline.facts.precision import Weights
from ridgeline.runtime.models import load_model
from ridgeline.runtime.weights import open_tensors


@pytest.mark.skipif(not probe_native().available, reason="the compiled kernels are not built")
@pytest.mark.parametrize(
    ("weights", "head"), [("stored", "stored"), ("bf16", "bf16"), ("int8", "int8"), ("int4", "int8")]
)
def test_ledger_foresees_packed_weights(default_model: ModelSource, weights: Weights, head: Weights) -> None:
    from ridgeline.runtime.native.backend import NativeBackend

    spec = read_spec(default_model)
    sizes = {"max_num_batched_tokens": 64, "max_model_len": 256}
    backend = NativeBackend(weights=weights, head_weights=head, num_threads=1, **sizes)
    load_model(spec, open_tensors(default_model, spec), backend)
    layout = kv_layout(spec, 16, 2)
    ledger = memory_ledger(
        spec, layout, num_blocks=1, weights=weights, head_weights=head, max_num_seqs=1, **sizes
    )
    assert backend.weight_bytes == pytest.approx(ledger.entry("weights").num_bytes, rel=0.02)
    backend.close()
