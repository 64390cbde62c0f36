"""Flags that several verbs share, each set a dataclass; `flattened` shows its fields to typer as options.

    @flattened
    def explain(model: Model = None, engine: EngineFlags = EngineFlags(), json: Json = False) -> None: ...

is called by typer with every field of `EngineFlags` as an option of its own, and calls the verb
with one `EngineFlags`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ridgeline.cli.printing import Progress
    from ridgeline.engine.llm import LLM
    from ridgeline.engine.options import EngineOptions
    from ridgeline.engine.sampling_params import SamplingParams

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def parse_bytes(text: str) -> int:
    """`"2GiB"`, `"512MB"`, `"1.5G"` or a plain count of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size; write for example 2GiB, 512MB or 1000000")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


Model = Annotated[
    str | None,
    typer.Argument(
        help="A .gguf file, a folder with config.json and safetensors, a hub id; default smollm2-135m."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


@dataclass(frozen=True)
class EngineFlags:
    """One flag for each field of `EngineOptions` but `model`; None leaves the choice to `resolve`."""

    backend: Annotated[str | None, typer.Option(help="auto, native (C++ kernels) or reference (numpy).")] = (
        None
    )
    weights: Annotated[
        str | None, typer.Option(help="Weights in memory: auto, stored, bf16, int8, int4 or float32.")
    ] = None
    kv_dtype: Annotated[str | None, typer.Option(help="KV cache in memory: auto, bf16, int8 or float32.")] = (
        None
    )
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest prompt plus output, in tokens; at most the model's context.")
    ] = None
    block_size: Annotated[int | None, typer.Option(help="Tokens in a KV block.")] = None
    kv_memory_bytes: Annotated[
        int | None,
        typer.Option(
            "--kv-memory", parser=parse_bytes, metavar="SIZE", help="Memory of the KV cache: 2GiB, 512MB."
        ),
    ] = None
    num_blocks: Annotated[
        int | None, typer.Option(help="Blocks in the KV cache, instead of --kv-memory.")
    ] = None
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests that run at the same time.")] = None
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Token budget of one step; long prompts are cut into chunks of it.")
    ] = None
    num_threads: Annotated[int | None, typer.Option(help="Threads of the kernels.")] = None
    enable_prefix_caching: Annotated[
        bool | None,
        typer.Option("--prefix-caching/--no-prefix-caching", help="Share the KV blocks of equal prefixes."),
    ] = None
    policy: Annotated[str | None, typer.Option(help="Who goes first: fcfs or priority.")] = None
    max_queue: Annotated[int | None, typer.Option(help="Requests that may wait before a 429.")] = None
    engine_seed: Annotated[
        int | None, typer.Option(help="Seed of the requests that bring none of their own.")
    ] = None
    served_model_name: Annotated[str | None, typer.Option(help="The model's name in the API.")] = None
    offline: Annotated[
        bool | None,
        typer.Option("--offline/--online", help="Never download: the model must be here already."),
    ] = None
    overlap: Annotated[
        bool | None, typer.Option("--overlap/--no-overlap", help="Plan the next step while this one runs.")
    ] = None

    def options(self, model: str | None) -> EngineOptions:
        """The engine's options: what was given, with the engine's own defaults for the rest."""
        from ridgeline.engine.options import EngineOptions

        return EngineOptions(model=model, **self._values())

    def load(self, model: str | None, progress: Progress | None) -> LLM:
        """Load the model for offline use in this thread."""
        from ridgeline.engine.llm import LLM

        return LLM(model, progress=progress, **self._values())

    def _values(self) -> dict[str, Any]:
        values = given(self)
        if "engine_seed" in values:  # `--seed` is the request's
            values["seed"] = values.pop("engine_seed")
        return values


@dataclass(frozen=True)
class SamplingFlags:
    """The sampling options of one request; None leaves the default of `SamplingParams`."""

    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-m", help="Tokens to generate.")] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", help="0 is greedy; higher is more random.")
    ] = None
    top_p: Annotated[float | None, typer.Option(help="Nucleus: the likeliest tokens up to this sum.")] = None
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens; 0 is all.")] = None
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens less likely than this share of the likeliest.")
    ] = None
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 discourages repetition.")] = None
    presence_penalty: Annotated[float | None, typer.Option(help="Once for a token that was generated.")] = (
        None
    )
    frequency_penalty: Annotated[float | None, typer.Option(help="For each time it was generated.")] = None
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None
    n: Annotated[int | None, typer.Option("--n", "-n", help="Number of completions.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text (may be repeated).")] = None
    include_stop: Annotated[
        bool | None,
        typer.Option("--include-stop/--no-include-stop", help="Keep the stop text in the output."),
    ] = None
    stop_token_ids: Annotated[
        list[int] | None, typer.Option("--stop-token-id", help="Stop at this token (may be repeated).")
    ] = None
    min_tokens: Annotated[int | None, typer.Option(help="No stop before this many tokens.")] = None
    ignore_eos: Annotated[
        bool | None, typer.Option("--ignore-eos/--no-ignore-eos", help="Go on past the end-of-text token.")
    ] = None
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=BIAS", help="Add to a token's logit (may be repeated).")
    ] = None
    logprobs: Annotated[
        int | None, typer.Option(help="Log probability of each token and of the k likeliest.")
    ] = None
    prompt_logprobs: Annotated[int | None, typer.Option(help="The same for the prompt's tokens.")] = None
    skip_special_tokens: Annotated[
        bool | None,
        typer.Option(
            "--skip-special-tokens/--show-special-tokens", help="Leave special tokens out of the text."
        ),
    ] = None

    def params(self) -> SamplingParams:
        """The checked parameters; raises InvalidParameter naming the field and its limit."""
        from ridgeline.engine.sampling_params import SamplingParams

        values = given(self)
        if self.logit_bias:
            values["logit_bias"] = dict(_bias(entry) for entry in self.logit_bias)
        return SamplingParams(**values)


def given(flags: Any) -> dict[str, Any]:
    """The fields of a set of flags that were given, lists as tuples."""
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None and value != []
    }


def _bias(entry: str) -> tuple[int, float]:
    from ridgeline.engine.sampling_params import InvalidParameter

    token, _, bias = entry.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise InvalidParameter(
            "logit_bias", f"write TOKEN_ID=BIAS, for example 42=-100; got {entry!r}"
        ) from None


def flattened(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with each parameter that is a dataclass of flags replaced by that dataclass's fields."""
    signature = inspect.signature(verb, eval_str=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if not dataclasses.is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        fields = inspect.signature(groups[parameter.name], eval_str=True).parameters.values()
        parameters += [field.replace(kind=inspect.Parameter.KEYWORD_ONLY) for field in fields]

    @functools.wraps(verb)
    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in dataclasses.fields(group)})
        verb(**given)

    del call.__wrapped__  # typer must see the flattened signature, not the verb's
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
