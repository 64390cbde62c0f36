"""Metrics as a fold over the engine's events, in the engine's thread, and counts of HTTP answers.

    events of a step --EngineMetrics.fold--> counters, histograms --EngineCollector (a scrape)--> text

Two names for one number: clean `ridgeline_*`, and the `vllm:*` that existing dashboards, routers and the
Gateway API's endpoint picker read. A histogram is fed once and shown under both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ridgeline import __version__
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
from ridgeline.serve.histogram import FIRST_TOKEN_S, LATENCY_S, PHASE_S, STEP_TOKENS, Histogram, one_two_five

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISH_REASONS = ("stop", "length", "abort", "error")


class _Live:
    """What is remembered of a request until it finishes. Times are the engine's clock, seconds."""

    __slots__ = ("admitted_s", "arrived_s", "first_s", "last_s", "num_prompt_tokens")

    def __init__(self, arrived_s: float, num_prompt_tokens: int) -> None:
        self.arrived_s = arrived_s
        self.num_prompt_tokens = num_prompt_tokens
        self.admitted_s = -1.0
        self.first_s = -1.0
        self.last_s = -1.0


class EngineMetrics:
    """Folds events. One thread calls `fold`; others only read."""

    def __init__(self, max_model_len: int = 131072) -> None:
        self._live: dict[str, _Live] = {}
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.preemptions = 0
        self.steps = 0
        self.failed_steps = 0
        self.finished: Counter[str] = Counter(dict.fromkeys(FINISH_REASONS, 0))
        self.last_step: StepCompleted | None = None
        token_bounds = one_two_five(max_model_len)
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.inter_token_s = Histogram(LATENCY_S)
        self.per_output_token_s = Histogram(LATENCY_S)
        self.e2e_s = Histogram(PHASE_S)
        self.queue_s = Histogram(PHASE_S)
        self.prefill_s = Histogram(PHASE_S)
        self.decode_s = Histogram(PHASE_S)
        self.inference_s = Histogram(PHASE_S)
        self.step_s = Histogram(LATENCY_S)
        self.step_tokens = Histogram(STEP_TOKENS)
        self.request_prompt_tokens = Histogram(token_bounds)
        self.request_generated_tokens = Histogram(token_bounds)
        self.request_preemptions = Histogram((0.0, 1.0, 2.0, 5.0, 10.0))
        self._rules: dict[type, Callable[..., None]] = {
            TokensGenerated: self._tokens,
            StepCompleted: self._step,
            Arrived: self._arrived,
            Admitted: self._admitted,
            Preempted: self._preempted,
            Finished: self._finished,
            PromptComputed: lambda event: None,
        }

    def fold(self, events: list[Event]) -> None:
        """Absorb the events of a step."""
        rules = self._rules
        for event in events:
            rules[type(event)](event)

    def _arrived(self, event: Arrived) -> None:
        self._live[event.request_id] = _Live(event.time_s, event.num_prompt_tokens)

    def _admitted(self, event: Admitted) -> None:
        live = self._live.get(event.request_id)
        if live is None or live.admitted_s >= 0:
            return
        live.admitted_s = event.time_s
        self.queue_s.observe(max(0.0, event.time_s - live.arrived_s))
        self.prefix_queries += live.num_prompt_tokens
        self.prefix_hits += event.num_cached_tokens

    def _preempted(self, event: Preempted) -> None:
        self.preemptions += 1

    def _tokens(self, event: TokensGenerated) -> None:
        count = len(event.tokens)
        self.generated_tokens += count
        live = self._live.get(event.request_id)
        if live is None:
            return
        if live.first_s < 0:
            live.first_s = event.time_s
            self.prompt_tokens += live.num_prompt_tokens
            self.first_token_s.observe(event.time_s - live.arrived_s)
            if live.admitted_s >= 0:
                self.prefill_s.observe(event.time_s - live.admitted_s)
        elif count:
            self.inter_token_s.observe((event.time_s - live.last_s) / count, count)
        live.last_s = event.time_s

    def _finished(self, event: Finished) -> None:
        self.finished[event.reason] += 1
        live = self._live.pop(event.request_id, None)
        if live is None:
            return
        self.e2e_s.observe(event.time_s - live.arrived_s)
        self.request_prompt_tokens.observe(event.num_prompt_tokens)
        self.request_generated_tokens.observe(event.num_generated_tokens)
        self.request_preemptions.observe(event.num_preemptions)
        if live.admitted_s >= 0:
            self.inference_s.observe(event.time_s - live.admitted_s)
        if live.first_s >= 0:
            self.decode_s.observe(live.last_s - live.first_s)
            if event.num_generated_tokens > 1:
                self.per_output_token_s.observe(
                    (live.last_s - live.first_s) / (event.num_generated_tokens - 1)
                )

    def _step(self, event: StepCompleted) -> None:
        self.last_step = event
        self.steps += 1
        if event.error is not None:
            self.failed_steps += 1
        self.step_s.observe(event.seconds)
        self.step_tokens.observe(event.num_tokens)


class Metrics:
    """The registry of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_answers: Counter[tuple[str, str, int]] = Counter()
        self.http_seconds = Histogram(PHASE_S)
        self.http_active = 0
        self.disconnects = 0
        self.registry.register(_HttpCollector(self))
        ProcessCollector(registry=self.registry)
        self.engine: EngineMetrics | None = None

    def attach(self, engine: AsyncEngine, model_name: str) -> None:
        """Count the engine's events from now on."""
        self.engine = EngineMetrics(engine.config.max_model_len)
        engine.subscribe(self.engine.fold)
        self.registry.register(EngineCollector(self.engine, engine, model_name))

    def text(self) -> bytes:
        """The exposition format; a few milliseconds."""
        return generate_latest(self.registry)


class _HttpCollector(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "ridgeline_build_info", "Always 1; the version is a label.", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build
        answers = CounterMetricFamily(
            "ridgeline_http_requests", "HTTP answers.", labels=["method", "route", "status"]
        )
        for (method, route, status), count in list(self._metrics.http_answers.items()):
            answers.add_metric([method, route, str(status)], count)
        yield answers
        yield _gauge(
            "ridgeline_http_requests_active", "HTTP requests being answered.", self._metrics.http_active
        )
        yield _counter(
            "ridgeline_http_disconnects", "Answers cut short by the client.", self._metrics.disconnects
        )
        yield self._metrics.http_seconds.family(
            "ridgeline_http_request_seconds", "From the request's headers to the end of its answer.", {}
        )


class EngineCollector(Collector):
    """Shows an `EngineMetrics` under both sets of names; gauges are read from the engine at the scrape."""

    def __init__(self, metrics: EngineMetrics, engine: AsyncEngine, model_name: str) -> None:
        self._metrics = metrics
        self._engine = engine
        self._labels = {"model_name": model_name, "engine": "0"}

    def describe(self) -> list[Metric]:
        """Nothing to check at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        labels = self._labels
        idle = stats.num_free_blocks + stats.num_cached_blocks
        used = 1.0 - idle / stats.num_blocks if stats.num_blocks else 0.0
        yield _gauge("ridgeline_requests_running", "Requests in the running set.", stats.num_running, labels)
        yield _gauge("ridgeline_requests_waiting", "Requests in the queue.", stats.num_waiting, labels)
        yield _gauge(
            "ridgeline_kv_blocks_free", "KV blocks never used or forgotten.", stats.num_free_blocks, labels
        )
        yield _gauge(
            "ridgeline_kv_blocks_cached",
            "KV blocks kept for prefix hits, free to take.",
            stats.num_cached_blocks,
            labels,
        )
        yield _gauge("ridgeline_kv_blocks", "KV blocks in the pool.", stats.num_blocks, labels)
        yield _gauge("ridgeline_kv_usage_ratio", "Share of KV blocks held by requests, 0..1.", used, labels)
        yield _gauge("vllm:num_requests_running", "Requests in the running set.", stats.num_running, labels)
        yield _gauge("vllm:num_requests_waiting", "Requests in the queue.", stats.num_waiting, labels)
        yield _gauge("vllm:kv_cache_usage_perc", "Share of KV blocks held by requests, 0..1.", used, labels)
        config = self._engine.config
        info = {
            **labels,
            "block_size": str(config.block_size),
            "num_gpu_blocks": str(stats.num_blocks),
            "enable_prefix_caching": str(config.enable_prefix_caching),
        }
        yield _gauge("vllm:cache_config_info", "Always 1; the cache's configuration as labels.", 1, info)

    def _counters(self) -> Iterator[Metric]:
        m = self._metrics
        for own, compat, text, value in (
            (
                "prompt_tokens",
                "prompt_tokens",
                "Prompt tokens of requests that reached a first token.",
                m.prompt_tokens,
            ),
            ("generated_tokens", "generation_tokens", "Tokens generated.", m.generated_tokens),
            (
                "prefix_cache_queried_tokens",
                "prefix_cache_queries",
                "Prompt tokens looked up.",
                m.prefix_queries,
            ),
            (
                "prefix_cache_hit_tokens",
                "prefix_cache_hits",
                "Prompt tokens found in the cache.",
                m.prefix_hits,
            ),
            ("preemptions", "num_preemptions", "Requests preempted.", m.preemptions),
        ):
            yield _counter(f"ridgeline_{own}", text, value, self._labels)
            yield _counter(f"vllm:{compat}", text, value, self._labels)
        yield _counter("ridgeline_steps", "Engine steps.", m.steps, self._labels)
        yield _counter(
            "ridgeline_failed_steps", "Engine steps that ended in an error.", m.failed_steps, self._labels
        )
        stages = CounterMetricFamily(
            "ridgeline_step_stage_seconds",
            "Where the steps' time went; with overlap, schedule and output run beside the other stages.",
            labels=[*self._labels, "stage"],
        )
        for stage, seconds in self._engine.stage_seconds().items():
            stages.add_metric([*self._labels.values(), stage], seconds)
        yield stages
        for name, label in (
            ("ridgeline_requests_finished", "reason"),
            ("vllm:request_success", "finished_reason"),
        ):
            family = CounterMetricFamily(name, "Requests finished, by reason.", labels=[*self._labels, label])
            for reason, count in list(m.finished.items()):
                family.add_metric([*self._labels.values(), reason], count)
            yield family

    def _histograms(self) -> Iterator[Metric]:
        m = self._metrics
        for own, compat, text, histogram in (
            (
                "time_to_first_token_seconds",
                "time_to_first_token_seconds",
                "Arrival to first token.",
                m.first_token_s,
            ),
            (
                "inter_token_seconds",
                "inter_token_latency_seconds",
                "Between two tokens of a request.",
                m.inter_token_s,
            ),
            (
                "time_per_output_token_seconds",
                "request_time_per_output_token_seconds",
                "Mean time between tokens, one per request.",
                m.per_output_token_s,
            ),
            ("request_seconds", "e2e_request_latency_seconds", "Arrival to end.", m.e2e_s),
            ("queue_seconds", "request_queue_time_seconds", "Arrival to first admission.", m.queue_s),
            (
                "prefill_seconds",
                "request_prefill_time_seconds",
                "First admission to first token.",
                m.prefill_s,
            ),
            ("decode_seconds", "request_decode_time_seconds", "First token to last token.", m.decode_s),
            ("inference_seconds", "request_inference_time_seconds", "First admission to end.", m.inference_s),
            (
                "request_prompt_tokens",
                "request_prompt_tokens",
                "Prompt tokens a request.",
                m.request_prompt_tokens,
            ),
            (
                "request_generated_tokens",
                "request_generation_tokens",
                "Generated tokens a request.",
                m.request_generated_tokens,
            ),
            (
                "request_preemptions",
                "request_num_preemptions",
                "Preemptions a request.",
                m.request_preemptions,
            ),
            ("step_tokens", "iteration_tokens_total", "Tokens computed in a step.", m.step_tokens),
        ):
            yield histogram.family(f"ridgeline_{own}", text, self._labels)
            yield histogram.family(f"vllm:{compat}", text, self._labels)
        yield m.step_s.family("ridgeline_step_seconds", "Time the executor spent on a step.", self._labels)


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels or {}))
    family.add_metric(list((labels or {}).values()), value)
    return family


def _counter(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels or {}))
    family.add_metric(list((labels or {}).values()), value)
    return family
