"""vLLM's CPU build: argv = FOLDER THREADS EAGER. The engine is stepped in this process."""

from __future__ import annotations

import os
import sys

from protocol import open_answers, serve

answers = open_answers()
folder, threads, eager = sys.argv[1:4]
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0" if threads == "1" else f"0-{int(threads) - 1}"
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"

from vllm import EngineArgs, LLMEngine, SamplingParams  # noqa: E402


def run(prompts, max_tokens, concurrency, tell):
    """Step the engine; it tells cumulative outputs."""
    waiting = list(range(len(prompts)))[::-1]
    live: dict[str, int] = {}
    seen = [0] * len(prompts)
    while waiting or live:
        while waiting and len(live) < concurrency:
            index = waiting.pop()
            params = SamplingParams(
                max_tokens=max_tokens[index], temperature=0, ignore_eos=True, detokenize=False
            )
            engine.add_request(str(index), {"prompt_token_ids": prompts[index]}, params)
            live[str(index)] = index
        for output in engine.step():
            index = live[output.request_id]
            count = len(output.outputs[0].token_ids)
            if count > seen[index]:
                tell(index, count - seen[index])
                seen[index] = count
            if output.finished:
                del live[output.request_id]


if __name__ == "__main__":
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=folder,
            dtype="bfloat16",
            max_model_len=4096,
            max_num_seqs=64,
            max_num_batched_tokens=4096,
            enable_prefix_caching=False,
            enforce_eager=eager == "eager",
        )
    )
    serve(run, answers)
