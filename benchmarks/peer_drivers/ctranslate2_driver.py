"""CTranslate2: argv = FOLDER THREADS COMPUTE_TYPE. Static batches; prompts are given as token texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from protocol import open_answers, serve

answers = open_answers()

import ctranslate2  # noqa: E402

folder, threads, compute = sys.argv[1:4]
generator = ctranslate2.Generator(folder, device="cpu", intra_threads=int(threads), compute_type=compute)
texts = json.loads((Path(folder) / "vocabulary.json").read_text())


def run(prompts, max_tokens, concurrency, tell):
    """One static batch; a callback for every token."""
    if len(set(max_tokens)) > 1 or len(prompts) > concurrency:
        raise ValueError("several lengths: not batched")

    def told(step) -> bool:
        tell(step.batch_id, 1)
        return False

    generator.generate_batch(
        [[texts[token] for token in prompt] for prompt in prompts],
        max_length=max_tokens[0],
        min_length=max_tokens[0],
        beam_size=1,
        include_prompt_in_result=False,
        callback=told,
        end_token=[],
    )


serve(run, answers)
