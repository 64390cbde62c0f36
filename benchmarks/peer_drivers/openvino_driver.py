"""OpenVINO GenAI, continuous batching: argv = FOLDER THREADS PRECISION (of computing: "" or bf16)."""

from __future__ import annotations

import sys

from protocol import open_answers, serve

answers = open_answers()

import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402

folder, threads = sys.argv[1:3]
scheduler = genai.SchedulerConfig()
scheduler.cache_size = 1
scheduler.max_num_seqs = 64
scheduler.max_num_batched_tokens = 512
scheduler.dynamic_split_fuse = True
scheduler.enable_prefix_caching = False
properties = {"INFERENCE_NUM_THREADS": int(threads)}
pipe = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
counter = 0


def run(prompts, max_tokens, concurrency, tell):
    """Step the pipeline; a handle is read as soon as it has something."""
    global counter
    waiting = list(range(len(prompts)))[::-1]
    live = {}
    left = list(max_tokens)
    while waiting or live:
        while waiting and len(live) < concurrency:
            index = waiting.pop()
            config = genai.GenerationConfig()
            config.max_new_tokens = max_tokens[index]
            config.ignore_eos = True
            config.do_sample = False
            ids = ov.Tensor(np.array([prompts[index]], np.int64))
            live[index] = pipe.add_request(counter, ids, config)
            counter += 1
        pipe.step()
        for index, handle in list(live.items()):
            while handle.can_read():
                for output in handle.read().values():
                    tell(index, len(output.generated_ids))
                    left[index] -= len(output.generated_ids)
            if left[index] <= 0:
                del live[index]


serve(run, answers)
