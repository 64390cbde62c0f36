"""The benchmarks' own arithmetic: truncated data, exported weights, figures from events, ratios, tables."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def test_objects_of_a_file_that_is_cut_off() -> None:
    import sharegpt

    text = json.dumps([{"id": str(i), "text": 'a "quoted" ] and } here'} for i in range(50_000)])
    assert len(list(sharegpt.objects(io.StringIO(text)))) == 50_000
    cut = list(sharegpt.objects(io.StringIO(text[: len(text) // 2])))
    assert 24_000 < len(cut) < 26_000
    assert cut[-1]["text"].endswith("here")


@pytest.mark.parametrize("dtype", ["bf16", "float32", "w8a8"])
def test_exported_weights_are_ours(tmp_path: Path, default_model_path: Path, dtype: str) -> None:
    import export_hf

    from ridgeline.engine.source import read_header, read_spec, resolve_source
    from ridgeline.runtime.weights import open_tensors

    export_hf.export(str(default_model_path), tmp_path, dtype)
    source = resolve_source(str(default_model_path))
    spec = read_spec(source, read_header(source))
    mine = open_tensors(source, spec)
    name = "model.layers.3.self_attn.q_proj.weight"
    wanted = mine.take(name).float32()
    if dtype == "w8a8":
        file = (tmp_path / "model.safetensors").read_bytes()
        start = 8 + int.from_bytes(file[:8], "little")
        header = json.loads(file[8:start])

        def stored(name: str, dtype: type) -> np.ndarray:
            begin, end = header[name]["data_offsets"]
            return np.frombuffer(file[start + begin : start + end], dtype).reshape(header[name]["shape"])

        scales = (stored(f"{name}_scale", np.uint16).astype(np.uint32) << 16).view(np.float32)
        found = stored(name, np.int8) * scales
        step = np.abs(wanted).max(axis=1, keepdims=True) / 127
        assert np.all(np.abs(found - wanted) <= step)
        return
    folder = resolve_source(str(tmp_path))
    theirs = open_tensors(folder, read_spec(folder, None))
    assert set(theirs.remaining()) == {name, *mine.remaining()}
    np.testing.assert_allclose(theirs.take(name).float32(), wanted, rtol=0 if dtype == "float32" else 2**-8)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"]


def entrant_with(events):
    import peer_entrants

    class Scripted(peer_entrants.Entrant):
        def run(self, prompts, max_tokens, concurrency):
            return events

    return Scripted("scripted", None, 1)


def test_rates_from_events() -> None:
    import peer_entrants

    one = entrant_with([(1.0, 0, 1), (1.5, 0, 1), (2.0, 0, 2)])
    assert one.decode_rate([1, 2], 3) == 3.0
    assert one.prefill_rate([1] * 10) == 10.0
    # Both decode from 2.0 (the second's first token) to 4.0 (the first's last): 2 + 2 tokens.
    two = entrant_with(
        [(1.0, 0, 1), (2.0, 1, 1), (3.0, 0, 1), (3.0, 1, 1), (4.0, 0, 1), (4.0, 1, 1), (5.0, 1, 1)]
    )
    assert two.aggregate_rate([[1], [1]], 3) == 2.0
    assert two.offline_rate([([1], 3), ([1], 4)], 2) == 7 / 5.0
    apart = entrant_with([(1.0, 0, 1), (2.0, 0, 1), (3.0, 1, 1), (4.0, 1, 1)])
    with pytest.raises(peer_entrants.Unavailable, match="all decoded at once"):
        apart.aggregate_rate([[1], [1]], 2)


def test_ratios_heed_bits_and_direction(capsys) -> None:
    import peer_report

    bits = {"ridgeline": 4, "ridgeline-int8": 8, "a": 4, "b": 16}
    found = {
        (1, "ridgeline", "decode_128"): 100.0,
        (1, "ridgeline-int8", "decode_128"): 80.0,
        (1, "a", "decode_128"): 90.0,
        (1, "b", "decode_128"): 40.0,
        (1, "ridgeline", "cold_s"): 0.5,
        (1, "b", "cold_s"): 2.0,
    }
    assert peer_report.best_peer(found, bits, 1, "ridgeline", "decode_128") == ("a", 100 / 90)
    assert peer_report.best_peer(found, bits, 1, "ridgeline-int8", "decode_128") == ("b", 2.0)
    assert peer_report.best_peer(found, bits, 1, "ridgeline", "cold_s") == ("b", 4.0)
    machine = {"cpu": "c", "num_cores": 2}
    document = {
        "recipe": {"model": "m"},
        "machine": machine,
        "version": "0",
        "failed": {"1/x/http": "no server"},
    }
    peer_report.print_report(document, found, bits)
    text = capsys.readouterr().out
    assert "4.00x  b" in text
    assert "not measured: 1/x/http: no server" in text


def test_driver_speaks_the_protocol(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(
        "from protocol import open_answers, serve\n"
        "answers = open_answers()\n"
        "print('noise')\n"
        "def run(prompts, max_tokens, concurrency, tell):\n"
        "    if concurrency == 0: raise ValueError('none')\n"
        "    for index, count in enumerate(max_tokens): tell(index, count)\n"
        "serve(run, answers)\n"
    )
    commands = [{"prompts": [[1], [2]], "max_tokens": [3, 4], "concurrency": c} for c in (2, 0)]
    done = subprocess.run(
        [sys.executable, str(driver)],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(FOLDER / "peer_drivers")},
    )
    ready, reply, refused = (json.loads(line) for line in done.stdout.splitlines())
    assert ready == {"ready": True}
    assert [event[1:] for event in reply["events"]] == [[0, 3], [1, 4]]
    assert refused == {"error": "ValueError: none"}
    assert "noise" in done.stderr


def test_quality_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import quality

    def row(name, perplexity):
        kinds = {"weights": name, "head_weights": name, "kv_dtype": "bf16", "tokens": 1_000}
        return {"variant": name, "perplexity": perplexity, **kinds}

    page = tmp_path / "performance.md"
    page.write_text(f"before\n{quality.BEGIN}\nold\n{quality.END}\nafter\n")
    monkeypatch.setattr(quality, "PAGE", page)
    monkeypatch.setattr(quality, "RESULTS", tmp_path / "results" / "quality.json")
    results = [row("float32", 10.0), row("int8", 10.05), row("int4", 10.2)]
    quality.publish({"recipe": {"model": "m", "window": 512}, "results": results})
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| int8 | int8 | int8 | bf16 | 10.050 | +0.50% |" in text
    assert "+2.00% (opt-in)" in text


def test_breakdown_reads_the_counters() -> None:
    import step_breakdown

    text = (
        "# TYPE ridgeline_step_stage_seconds_total counter\n"
        'ridgeline_step_stage_seconds_total{engine="0",model_name="m",stage="kernels"} 1.5\n'
        'ridgeline_step_stage_seconds_total{engine="0",model_name="m",stage="batch"} 2.0e-05\n'
        'ridgeline_steps_total{engine="0",model_name="m"} 7.0\n'
    )
    assert dict(step_breakdown.COUNTER.findall(text)) == {"kernels": "1.5", "batch": "2.0e-05"}
    assert step_breakdown.STEPS.search(text)[1] == "7.0"
    spent = {"schedule": 0.0, "batch": 0.0, "kernels": 0.9, "sample": 0.05, "output": 0.0}
    report = step_breakdown.report(8, 1.0, 10, spent)
    assert report["not_kernels"] == pytest.approx(0.1)
    assert report["share"]["outside"] == pytest.approx(0.05)
    assert report["us_a_step"]["kernels"] == pytest.approx(90_000)
