"""Generation as one would first write it: the whole sequence recomputed for each token, no cache, no batch.

Independent of the scheduler, the executor and the sampler: the definition that the engine must equal.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ridgeline.engine.sampling_params import SamplingParams

LogitsOf = Callable[[list[int]], np.ndarray]
"""Token ids of a sequence -> logits of its last position `[vocab]`."""


def naive_generate(
    logits_of: LogitsOf, prompt: Sequence[int], params: SamplingParams, stop_token_ids: frozenset[int]
) -> list[int]:
    """Generate until a stop token (kept) or `params.max_tokens`."""
    tokens, generated = list(prompt), list[int]()
    assert params.max_tokens is not None
    while len(generated) < params.max_tokens:
        logits = adjusted(logits_of(tokens), tokens, generated, params, stop_token_ids)
        if params.temperature == 0:
            token = int(np.argmax(logits))
        else:
            token = drawn(logits, params, number(params.seed or 0, len(tokens)))
        tokens.append(token)
        generated.append(token)
        if token in stop_token_ids:
            break
    return generated


def adjusted(
    logits: np.ndarray, tokens: list[int], generated: list[int], params: SamplingParams, stops: frozenset[int]
) -> np.ndarray:
    """Bias, penalties and the mask of stop tokens, one token at a time."""
    out = logits.astype(np.float32).copy()
    for token, bias in params.logit_bias.items():
        out[token] += np.float32(bias)
    for token in set(tokens):
        penalty = np.float32(params.repetition_penalty)
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    for token, count in Counter(generated).items():
        out[token] -= np.float32(params.presence_penalty)
        out[token] -= np.float32(params.frequency_penalty) * np.float32(count)
    if len(generated) < params.min_tokens:
        out[sorted(stops)] = -np.inf
    return out


def drawn(logits: np.ndarray, params: SamplingParams, uniform: float) -> int:
    """Sort everything, cut, walk over what is kept by id until the running sum passes `uniform`."""
    scaled = (logits - logits.max()).astype(np.float64) / params.temperature
    kept = np.argsort(-scaled, kind="stable").tolist()
    shares = np.exp(scaled).tolist()
    if params.min_p:
        kept = [token for token in kept if shares[token] >= params.min_p]
    if params.top_k:
        kept = kept[: params.top_k]
    target, count, reached = params.top_p * math.fsum(shares[token] for token in kept), 0, 0.0
    while reached < target and count < len(kept):
        reached += shares[kept[count]]
        count += 1
    kept = sorted(kept[:count])
    target, reached = uniform * math.fsum(shares[token] for token in kept), 0.0
    for token in kept:
        reached += shares[token]
        if reached > target:
            return token
    return kept[-1]


def number(seed: int, position: int) -> float:
    """Philox 4x32-10 of (seed, position) on Python integers, as a number in [0, 1)."""
    low = 2**32 - 1
    seed %= 2**64
    c0, c1, c2, c3, k0, k1 = position & low, position >> 32, 0, 0, seed & low, seed >> 32
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & low, (left >> 32) ^ c3 ^ k1, left & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return float(((c0 >> 5) * 2**26 + (c1 >> 6)) / 2**53)
