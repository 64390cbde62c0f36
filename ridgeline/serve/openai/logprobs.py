"""Log probabilities in three forms: OpenAI chat, OpenAI completions, vLLM prompt_logprobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ridgeline.engine.outputs import PositionLogprobs, TokenLogprob

FLOOR = -9999.0
"""What OpenAI writes for minus infinity, which JSON has no word for."""


def chat_logprobs(positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat answer."""
    content = []
    for position in positions:
        entry = _entry(position.token)
        entry["top_logprobs"] = [_entry(token) for token in position.top]
        content.append(entry)
    return {"content": content, "refusal": None}


def completion_logprobs(
    positions: Iterable[PositionLogprobs | None], offset: int, first_text: str = ""
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion; `offset` is where the first token starts, in characters.

    A None position (the first token of an echoed prompt, text `first_text`) has a token but no probability.
    """
    result: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for position in positions:
        result["text_offset"].append(offset)
        if position is None:
            result["tokens"].append(first_text)
            result["token_logprobs"].append(None)
            result["top_logprobs"].append(None)
            offset += len(first_text)
            continue
        name = token_name(position.token)
        result["tokens"].append(name)
        result["token_logprobs"].append(_finite(position.token.logprob))
        top = {token_name(token): _finite(token.logprob) for token in position.top}
        top.setdefault(name, _finite(position.token.logprob))
        result["top_logprobs"].append(top)
        offset += len(position.token.text)
    return result


def prompt_logprobs(positions: Sequence[PositionLogprobs | None]) -> list[Any]:
    """vLLM's form: for each prompt token None or {token id: {logprob, rank, decoded_token}}."""
    result: list[Any] = []
    for position in positions:
        if position is None:
            result.append(None)
            continue
        tokens = {token.token_id: token for token in position.top}
        tokens[position.token.token_id] = position.token
        result.append(
            {
                str(token.token_id): {
                    "logprob": _finite(token.logprob),
                    "rank": token.rank,
                    "decoded_token": token.text,
                }
                for token in tokens.values()
            }
        )
    return result


def token_name(token: TokenLogprob) -> str:
    """The token's text, or OpenAI's `bytes:\\xe2\\x80` where it is only a part of a character."""
    try:
        token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)
    return token.text


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token_name(token), "logprob": _finite(token.logprob), "bytes": list(token.raw)}


def _finite(logprob: float) -> float:
    return logprob if logprob > FLOOR else FLOOR
