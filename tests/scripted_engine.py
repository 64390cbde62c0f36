"""Engines whose tokens a test decides: everything is real but the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ridgeline.core.plan import Row, StepPlan, StepResult
from ridgeline.core.request import Request
from ridgeline.engine.build import EngineParts, assemble
from ridgeline.engine.chat import load_chat_template
from ridgeline.engine.logprobs import RawLogprobs, RowLogprobs
from ridgeline.engine.resolve import EngineConfig
from ridgeline.engine.tokenizing import Tokenizer, load_from_gguf
from ridgeline.facts.model_spec import LayerSpec, ModelSpec, RopeSpec

EOS, BOS = 256, 257
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)

Script = Callable[[Request, int], int]
"""The token that follows position p - 1 of a request, p counted from the first generated one (0)."""


def byte_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """Token i is byte i; then <eos>, <bos> and "<tool>", which is user-defined text."""
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*_alphabet(), "<eos>", "<bos>", "<tool>"],
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3, 4],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.bos_token_id": BOS,
    }
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    return load_from_gguf(metadata)


def _alphabet() -> list[str]:
    from ridgeline.engine.tokenizing import _ALPHABET

    letters = [""] * 256
    for letter, byte in _ALPHABET.items():
        letters[byte] = letter
    return letters


def says(text: str | bytes, *, then: int = EOS) -> Script:
    """Every request generates the bytes of `text`, then `then` for ever."""
    tokens = text.encode() if isinstance(text, str) else text
    return lambda request, index: tokens[index] if index < len(tokens) else then


class ScriptedExecutor:
    """Samples what the script says. `gate` cleared makes it wait; `crash` makes the next plan raise."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.gate = threading.Event()
        self.gate.set()
        self.crash: Exception | None = None
        self.fault: str | None = None
        self.plans: list[StepPlan] = []
        self.closed = False
        self._requests: dict[str, Request] = {}
        self._submitted: deque[StepPlan] = deque()

    def submit(self, plan: StepPlan) -> None:
        for request_id in plan.released:
            self._requests.pop(request_id, None)
        for admission in plan.admitted:
            self._requests[admission.request.id] = admission.request
        self.plans.append(plan)
        self._submitted.append(plan)

    def collect(self) -> StepResult:
        plan = self._submitted.popleft()
        self.gate.wait()
        if self.crash is not None:
            raise self.crash
        tokens = tuple(self._sample(row) for row in plan.rows)
        logprobs = tuple(self._logprobs(row, own) for row, own in zip(plan.rows, tokens, strict=True))
        return StepResult(plan.step, tokens, 0.0, logprobs, self.fault)

    def close(self) -> None:
        self.closed = True

    def _sample(self, row: Row) -> tuple[int, ...]:
        if not row.num_samples:
            return ()
        request = self._requests[row.request_id]
        return (self.script(request, row.start + row.count - len(request.prompt)),)

    def _logprobs(self, row: Row, tokens: tuple[int, ...]) -> RowLogprobs | None:
        request = self._requests[row.request_id]
        params: Any = request.sampling
        if params.logprobs is None and params.prompt_logprobs is None:
            return None
        following = request.prompt[row.start + 1 : row.start + row.count + 1]
        return RowLogprobs(
            tuple(_raw(token, params.logprobs) for token in tokens) if params.logprobs is not None else (),
            row.start + 1,
            tuple(_raw(token, params.prompt_logprobs) for token in following)
            if params.prompt_logprobs is not None
            else (),
        )


def _raw(token: int, num_top: int) -> RawLogprobs:
    return RawLogprobs(token, -token / 256, 1, tuple(range(num_top)), tuple(-1.0 - i for i in range(num_top)))


def spec() -> ModelSpec:
    return ModelSpec(
        name="scripted",
        architecture="llama",
        num_layers=1,
        hidden_size=64,
        intermediate_size=64,
        num_heads=1,
        num_kv_heads=1,
        head_dim=64,
        vocab_size=260,
        context_length=512,
        rms_norm_eps=1e-5,
        layers=(LayerSpec(None, RopeSpec(10_000.0, 64)),),
        activation="silu",
        tied_embeddings=True,
        attention_scale=0.125,
        eos_token_ids=(EOS,),
    )


def config(**changes: Any) -> EngineConfig:
    values: dict[str, Any] = {
        "model_name": "scripted",
        "served_model_name": "scripted",
        "backend": "reference",
        "isa_tier": "portable",
        "weights": "float32",
        "head_weights": "float32",
        "kv_dtype": "float32",
        "max_model_len": 256,
        "block_size": 16,
        "num_blocks": 128,
        "kv_memory_bytes": 1,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "num_threads": 1,
        "enable_prefix_caching": True,
        "policy": "fcfs",
        "max_queue": 16,
        "seed": 0,
        "offline": True,
        "overlap": False,
    }
    return EngineConfig(**{**values, **changes})


def scripted_parts(
    script: Script,
    *,
    tokenizer: Tokenizer | None = None,
    draw_seed: Callable[[], int] | None = None,
    **changes: Any,
) -> tuple[EngineParts, ScriptedExecutor]:
    """An engine that says what the script says; `changes` are fields of its configuration."""
    executor = ScriptedExecutor(script)
    tokenizer = tokenizer or byte_tokenizer()
    template = load_chat_template(tokenizer)
    return assemble(config(**changes), spec(), executor, tokenizer, template, draw_seed=draw_seed), executor


def user(content: str | Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {"role": "user", "content": content}
