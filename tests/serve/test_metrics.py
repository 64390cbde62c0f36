"""The fold over events, against numbers worked out by hand."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ridgeline.core.event import (
    Admitted,
    Arrived,
    Event,
    Finished,
    Preempted,
    PromptComputed,
    StepCompleted,
    TokensGenerated,
)
from ridgeline.serve.histogram import FIRST_TOKEN_S, LATENCY_S, PHASE_S, Histogram, one_two_five
from ridgeline.serve.metrics import EngineMetrics, Metrics

VLLM_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
VLLM_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
VLLM_PHASE = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)


def step(time_s: float, error: str | None = None) -> StepCompleted:
    return StepCompleted(time_s, 1, 0.004, 1, 7, 6, 1, 0, 60, 2, 64, error)


EVENTS: list[Event] = [
    Arrived(1.0, "a", 10),
    Admitted(1.5, "a", 4, False),
    PromptComputed(1.6, "a", 4, 6),
    TokensGenerated(1.75, "a", (1,), True),
    step(1.75),
    TokensGenerated(1.76, "a", (2,), False),
    step(1.76),
    Preempted(1.8, "a", 12),
    Admitted(1.9, "a", 8, True),
    TokensGenerated(2.0, "a", (3, 4), False),
    Finished(2.0, "a", "length", 10, 4, 4, 1),
    step(2.0, "broken"),
]


def engine() -> Any:
    stats = SimpleNamespace(
        num_running=1, num_waiting=2, num_free_blocks=10, num_cached_blocks=6, num_blocks=64, num_steps=3
    )
    subscribers: list[Any] = []
    return SimpleNamespace(
        config=SimpleNamespace(max_model_len=4096, block_size=16, enable_prefix_caching=True),
        stats=lambda: stats,
        stage_seconds=lambda: {"schedule": 0.25, "kernels": 3.0},
        subscribe=subscribers.append,
        subscribers=subscribers,
    )


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """(name, le or reason) -> value."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            label = (
                sample.labels.get("le")
                or sample.labels.get("finished_reason")
                or sample.labels.get("reason", "")
            )
            found[(sample.name, label)] = sample.value
    return found


def test_numbers() -> None:
    metrics, fake = Metrics(), engine()
    metrics.attach(fake, "m")
    fake.subscribers[0](EVENTS)
    found = samples(metrics)
    assert found[("ridgeline_prompt_tokens_total", "")] == 10
    assert found[("vllm:generation_tokens_total", "")] == 4
    assert found[("vllm:prefix_cache_queries_total", "")] == 10
    assert found[("vllm:prefix_cache_hits_total", "")] == 4, (
        "the hit after preemption is not a hit of the prompt"
    )
    assert found[("vllm:num_preemptions_total", "")] == 1
    assert found[("vllm:request_success_total", "length")] == 1
    assert found[("vllm:request_success_total", "stop")] == 0
    assert found[("ridgeline_failed_steps_total", "")] == 1
    assert found[("vllm:time_to_first_token_seconds_sum", "")] == pytest.approx(0.75)
    assert found[("vllm:time_to_first_token_seconds_bucket", "0.75")] == 1
    assert found[("vllm:time_to_first_token_seconds_bucket", "0.5")] == 0
    assert found[("vllm:request_queue_time_seconds_sum", "")] == pytest.approx(0.5)
    assert found[("vllm:request_prefill_time_seconds_sum", "")] == pytest.approx(0.25)
    assert found[("vllm:request_decode_time_seconds_sum", "")] == pytest.approx(0.25)
    assert found[("vllm:request_inference_time_seconds_sum", "")] == pytest.approx(0.5)
    assert found[("vllm:e2e_request_latency_seconds_sum", "")] == pytest.approx(1.0)
    assert found[("vllm:inter_token_latency_seconds_count", "")] == 3
    assert found[("vllm:inter_token_latency_seconds_sum", "")] == pytest.approx(0.25)
    assert found[("vllm:request_time_per_output_token_seconds_sum", "")] == pytest.approx(0.25 / 3)
    assert found[("vllm:num_requests_waiting", "")] == 2
    assert found[("vllm:kv_cache_usage_perc", "")] == pytest.approx(0.75)
    assert found[("vllm:cache_config_info", "")] == 1
    assert found[("vllm:iteration_tokens_total_count", "")] == 3


def test_nothing_is_kept_of_finished_requests() -> None:
    metrics = EngineMetrics()
    for i in range(100):
        metrics.fold([Arrived(0.0, str(i), 3), Finished(1.0, str(i), "abort", 3, 0, 0, 0)])
    assert not metrics._live
    assert metrics.finished["abort"] == 100


@pytest.mark.parametrize(
    ("ours", "theirs"), [(LATENCY_S, VLLM_ITL), (FIRST_TOKEN_S, VLLM_TTFT), (PHASE_S, VLLM_PHASE)]
)
def test_bounds_hold_those_of_vllm(ours: tuple[float, ...], theirs: tuple[float, ...]) -> None:
    assert set(theirs) <= set(ours)
    assert list(ours) == sorted(set(ours))


def test_bounds_see_fast_tokens() -> None:
    assert LATENCY_S[0] == 0.0005
    assert FIRST_TOKEN_S[0] == 0.001
    assert one_two_five(4096)[-1] == 2000


def test_histogram_bounds_are_inclusive() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert [count for _, count in histogram.cumulative()] == [2, 4, 5]


def test_names_without_colon_follow_the_conventions() -> None:
    metrics = Metrics()
    metrics.attach(engine(), "m")
    for family in metrics.registry.collect():
        if family.name.startswith("ridgeline_"):
            assert ":" not in family.name
            assert not family.name.endswith(("_ms", "_count"))
            assert family.documentation


def test_stages_of_the_step_are_a_counter() -> None:
    metrics = Metrics()
    metrics.attach(engine(), "m")
    found = {
        sample.labels["stage"]: sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == "ridgeline_step_stage_seconds_total"
    }
    assert found == {"schedule": 0.25, "kernels": 3.0}


def test_an_event_costs_little() -> None:
    metrics = EngineMetrics()
    metrics.fold([Arrived(0.0, str(i), 3) for i in range(256)])
    batch: list[Event] = [TokensGenerated(1.0, str(i), (5,), False) for i in range(256)]
    best = min(_timed(metrics, batch) for _ in range(20))
    assert best / 256 < 5e-6, "a generous multiple of what it takes, so that a busy machine passes"


def _timed(metrics: EngineMetrics, batch: list[Event]) -> float:
    started = time.perf_counter()
    metrics.fold(batch)
    return time.perf_counter() - started


def test_text_is_valid_exposition() -> None:
    metrics = Metrics()
    metrics.attach(engine(), 'we"ird\\name\n')
    assert generate_latest(metrics.registry)
    labels = [
        sample.labels["model_name"]
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == "vllm:num_requests_running"
    ]
    assert labels == ['we"ird\\name\n']
