"""Ours, in a process of its own like every peer: argv = MODEL THREADS WEIGHTS."""

from __future__ import annotations

import sys

from protocol import open_answers, serve

answers = open_answers()

from ridgeline.engine.build import build_engine  # noqa: E402
from ridgeline.engine.options import EngineOptions  # noqa: E402
from ridgeline.engine.sampling_params import SamplingParams  # noqa: E402

model, threads, weights = sys.argv[1:4]
parts = build_engine(
    EngineOptions(
        model=model or None,
        num_threads=int(threads),
        weights=weights,
        max_num_seqs=64,
        kv_memory_bytes=1 << 30,
        enable_prefix_caching=False,
    )
)
loop = parts.step_loop()
counter = 0


def run(prompts, max_tokens, concurrency, tell):
    """All jobs go in as places become free; deltas as they come."""
    global counter
    waiting = list(range(len(prompts)))[::-1]
    live: dict[str, int] = {}
    while waiting or live:
        while waiting and len(live) < concurrency:
            index = waiting.pop()
            params = SamplingParams(max_tokens=max_tokens[index], temperature=0, ignore_eos=True)
            job = parts.intake.job(str(counter), tuple(prompts[index]), params)
            counter += 1
            loop.add(job)
            live[job.id] = index
        for job_id, delta in loop.step():
            if delta.token_ids:
                tell(live[job_id], len(delta.token_ids))
            if delta.finish_reason is not None:
                del live[job_id]
        loop.take_events()


serve(run, answers)
