"""Real engines over an executor that needs no model: everything is real but the tensors.

The token at a position is a function of (prompt, position) alone, so every answer can be checked, whatever
was batched, preempted or aborted around it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from ridgeline.core.plan import Row, StepPlan, StepResult
from ridgeline.engine.async_engine import AsyncEngine
from ridgeline.engine.build import assemble
from ridgeline.engine.chat import load_chat_template
from ridgeline.engine.logprobs import RawLogprobs, RowLogprobs
from ridgeline.engine.resolve import EngineConfig
from ridgeline.engine.tokenizing import Tokenizer
from ridgeline.facts.model_spec import LayerSpec, ModelSpec, RopeSpec
from ridgeline.sim.executors import prompt_hash

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz      "
VOCAB_SIZE = 260


def byte_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """One token a byte, and one special token, <eos> (id 256)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<eos>", "<pad1>", "<pad2>", "<pad3>"])
    return Tokenizer(core, spelling="byte_level", eos_token_ids=(256,), chat_template=template)


class PacedExecutor:
    """Answers a plan after `step_s` seconds. `fault` makes plans fail, `running.clear()` holds the world."""

    def __init__(self, tokenizer: Tokenizer, step_s: float = 0.0) -> None:
        self.step_s = step_s
        self.fault: str | None = None
        self.running = threading.Event()
        self.running.set()
        self.num_steps = 0
        self._ids = [tokenizer.encode(letter)[0] for letter in LETTERS]
        self._prompts: dict[str, tuple[int, tuple[int, ...], object]] = {}
        self._plans: deque[StepPlan] = deque()

    def submit(self, plan: StepPlan) -> None:
        for request_id in plan.released:
            self._prompts.pop(request_id, None)
        for admission in plan.admitted:
            request = admission.request
            self._prompts[request.id] = (prompt_hash(request.prompt), request.prompt, request.sampling)
        self._plans.append(plan)

    def collect(self) -> StepResult:
        plan = self._plans.popleft()
        self.running.wait()
        if self.step_s:
            time.sleep(self.step_s)
        self.num_steps += 1
        tokens = tuple(self._sampled(row) for row in plan.rows)
        logprobs = tuple(self._logprobs(row, sampled) for row, sampled in zip(plan.rows, tokens))
        return StepResult(plan.step, tokens, self.step_s, logprobs, self.fault)

    def close(self) -> None:
        self.running.set()

    def _sampled(self, row: Row) -> tuple[int, ...]:
        seed, _, params = self._prompts[row.request_id]
        salt = getattr(params, "seed", 0) or 0 if getattr(params, "temperature", 0) else 0
        return tuple(
            self._ids[(seed + 7 * salt + (row.start + row.count + i) * 2654435761 >> 7) % len(self._ids)]
            for i in range(row.num_samples)
        )

    def _logprobs(self, row: Row, sampled: tuple[int, ...]) -> RowLogprobs | None:
        _, prompt, params = self._prompts[row.request_id]
        top = getattr(params, "logprobs", None)
        own = tuple(self._raw(token, top) for token in sampled) if top is not None else ()
        top = getattr(params, "prompt_logprobs", None)
        first, last = row.start + 1, min(row.start + row.count, len(prompt) - 1)
        asked = () if top is None else tuple(self._raw(prompt[i], top) for i in range(first, last + 1))
        return RowLogprobs(own, first, asked)

    def _raw(self, token: int, top: int) -> RawLogprobs:
        others = [i for i in self._ids if i != token]
        ids = tuple([token, *others][:top])
        return RawLogprobs(token, math.log(0.5), 1, ids, tuple(math.log(0.5 / (i + 1)) for i in range(top)))


def tiny_spec() -> ModelSpec:
    layer = LayerSpec(window=None, rope=RopeSpec(theta=10_000.0, rotary_dim=16))
    return ModelSpec(
        name="simulated",
        architecture="llama",
        num_layers=1,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        vocab_size=VOCAB_SIZE,
        context_length=65_536,
        rms_norm_eps=1e-5,
        layers=(layer,),
        activation="silu",
        tied_embeddings=True,
        attention_scale=0.25,
        eos_token_ids=(256,),
    )


def make_engine(
    *,
    step_s: float = 0.0,
    max_model_len: int = 2048,
    num_blocks: int = 512,
    max_num_seqs: int = 32,
    max_queue: int = 64,
    overlap: bool = True,
    template: str | None = TEMPLATE,
) -> tuple[AsyncEngine, PacedExecutor]:
    config = EngineConfig(
        model_name="simulated",
        served_model_name="simulated",
        backend="reference",
        isa_tier="none",
        weights="float32",
        head_weights="float32",
        kv_dtype="float32",
        max_model_len=max_model_len,
        block_size=16,
        num_blocks=num_blocks,
        kv_memory_bytes=1,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=256,
        num_threads=1,
        enable_prefix_caching=True,
        policy="fcfs",
        max_queue=max_queue,
        seed=0,
        offline=True,
        overlap=overlap,
    )
    tokenizer = byte_tokenizer(template)
    executor = PacedExecutor(tokenizer, step_s)
    parts = assemble(config, tiny_spec(), executor, tokenizer, load_chat_template(tokenizer))
    return AsyncEngine(parts), executor
