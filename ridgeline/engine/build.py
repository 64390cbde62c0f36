"""The one place where an engine is put together: source, facts, configuration, tokenizer, weights, scheduler.

`prepare` decides everything and allocates nothing; `build_engine` then loads, tokenizer and weights
side by side. The runtime is reached by name, so that nothing here needs it to be importable.
"""

from __future__ import annotations

import importlib
import random
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ridgeline.core.config import CacheGroup, SchedulerConfig
from ridgeline.core.policy import POLICIES
from ridgeline.core.scheduler import Scheduler
from ridgeline.engine.clock import MonotonicClock
from ridgeline.engine.engine import Engine
from ridgeline.engine.executor import Executor
from ridgeline.engine.intake import Intake
from ridgeline.engine.options import EngineOptions
from ridgeline.engine.output_processor import OutputProcessor
from ridgeline.engine.resolve import Decision, EngineConfig, ledger_of, resolve
from ridgeline.engine.sampling_params import MAX_SEED
from ridgeline.engine.source import ModelSource, read_header, read_spec, resolve_source
from ridgeline.engine.step_loop import StepLoop

if TYPE_CHECKING:
    from ridgeline.cost.memory import MemoryLedger
    from ridgeline.engine.chat import ChatTemplate
    from ridgeline.engine.recording import Recorder
    from ridgeline.engine.tokenizing import Tokenizer
    from ridgeline.facts.gguf import GgufHeader
    from ridgeline.facts.hardware import HardwareSpec
    from ridgeline.facts.model_spec import ModelSpec

StageProgress = Callable[[str, float | None], None]
"""`progress(stage, fraction)`: what is being done and how much of it is, None where that is not known."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known of an engine before anything is loaded."""

    source: ModelSource
    header: GgufHeader | None
    spec: ModelSpec
    hardware: HardwareSpec
    config: EngineConfig
    decisions: tuple[Decision, ...]
    ledger: MemoryLedger


@dataclass(frozen=True, slots=True)
class EngineParts:
    """A loaded engine, ready to be driven by one thread."""

    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    intake: Intake
    spec: ModelSpec
    config: EngineConfig
    prepared: Prepared | None = None
    """None for an engine put together by hand (`assemble`)."""

    @property
    def model_name(self) -> str:
        """What the API calls the model."""
        return self.config.served_model_name

    def step_loop(self) -> StepLoop:
        """The engine with its output side; one per engine."""
        return StepLoop(self.engine, OutputProcessor(self.tokenizer))


def prepare(options: EngineOptions, progress: StageProgress | None = None) -> Prepared:
    """Find the model (downloading it if need be), probe the machine and settle every option.

    Raises ModelNotFound, UnsupportedModel, MalformedFile, ConfigError.
    """
    from ridgeline.engine.hardware_probe import probe_hardware

    source = resolve_source(
        options.model, progress=_fraction_of(progress, "downloading"), offline=options.offline
    )
    header = read_header(source)
    spec = read_spec(source, header)
    hardware = probe_hardware()
    config, decisions = resolve(options, spec, hardware, served_name=source.served_name)
    return Prepared(source, header, spec, hardware, config, decisions, ledger_of(spec, config, hardware))


def build_engine(options: EngineOptions, progress: StageProgress | None = None) -> EngineParts:
    """Load a model (blocking). Raises as `prepare`, and whatever the weights' reader finds wrong."""
    prepared = prepare(options, progress)
    with ThreadPoolExecutor(1, "ridgeline-tokenizer") as pool:
        reading = pool.submit(_load_text_side, prepared)
        executor = load_executor(prepared, progress)
        try:
            tokenizer, template = reading.result()
        except BaseException:
            executor.close()
            raise
    # A configured seed makes the whole run repeatable; otherwise every request gets a fresh one.
    stream = None if options.seed is None else random.Random(options.seed)
    return assemble(
        prepared.config,
        prepared.spec,
        executor,
        tokenizer,
        template,
        prepared=prepared,
        draw_seed=None if stream is None else lambda: stream.randrange(MAX_SEED),
    )


def load_executor(prepared: Prepared, progress: StageProgress | None = None) -> Executor:
    """Weights into the chosen backend."""
    config = prepared.config
    module = importlib.import_module(f"ridgeline.runtime.{config.backend}.executor")
    executor: Executor = module.load(
        prepared.source, prepared.spec, config, _fraction_of(progress, "loading weights")
    )
    return executor


def assemble(
    config: EngineConfig,
    spec: ModelSpec,
    executor: Executor,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None = None,
    *,
    prepared: Prepared | None = None,
    draw_seed: Callable[[], int] | None = None,
    recorder: Recorder | None = None,
) -> EngineParts:
    """Parts to an engine; `build_engine` without the loading. Tests bring their own executor."""
    scheduler = Scheduler(
        SchedulerConfig(
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
            enable_prefix_caching=config.enable_prefix_caching,
        ),
        tuple(CacheGroup(group.window) for group in config.kv_layout(spec).groups),
        POLICIES[config.policy],
    )
    engine = Engine(scheduler, executor, MonotonicClock(), config.overlap, recorder)
    intake = Intake(
        tokenizer,
        vocab_size=spec.vocab_size,
        eos_token_ids=(*spec.eos_token_ids, *tokenizer.eos_token_ids),
        context_limit=scheduler.context_limit,
        draw_seed=draw_seed or (lambda: secrets.randbelow(MAX_SEED)),
    )
    return EngineParts(engine, tokenizer, chat_template, intake, spec, config, prepared)


def _load_text_side(prepared: Prepared) -> tuple[Tokenizer, ChatTemplate | None]:
    from ridgeline.engine.chat import load_chat_template
    from ridgeline.engine.tokenizing import load_tokenizer

    metadata: dict[str, Any] | None = None if prepared.header is None else prepared.header.metadata
    tokenizer = load_tokenizer(prepared.source, metadata)
    return tokenizer, load_chat_template(tokenizer)


def _fraction_of(progress: StageProgress | None, stage: str) -> Callable[[int, int], None] | None:
    """`progress` for something that reports bytes done and bytes in all."""
    if progress is None:
        return None
    return lambda done, total: progress(stage, done / total if total else None)
