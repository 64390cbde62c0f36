"""transformers, eager: argv = FOLDER THREADS DTYPE. Prompts of a batch must be of one length (no padding)."""

from __future__ import annotations

import sys

from protocol import open_answers, serve

answers = open_answers()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.generation.streamers import BaseStreamer  # noqa: E402

folder, threads, dtype = sys.argv[1:4]
torch.set_num_threads(int(threads))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


class Telling(BaseStreamer):
    """Called once with the prompt and then with each step's tokens."""

    def __init__(self, tell, count):
        self.tell, self.count, self.first = tell, count, True

    def put(self, value):
        """A step's tokens, one a sequence."""
        if self.first:
            self.first = False
            return
        for index in range(self.count):
            self.tell(index, 1)

    def end(self):
        """Nothing to do."""


def run(prompts, max_tokens, concurrency, tell):
    """One static batch."""
    if len({len(prompt) for prompt in prompts}) > 1 or len(set(max_tokens)) > 1 or len(prompts) > concurrency:
        raise ValueError("prompts of several lengths: not batched by generate()")
    streamer = Telling(tell, len(prompts))
    with torch.inference_mode():
        generate = model.generate if len(prompts) == 1 else _without_check
        generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
            max_new_tokens=max_tokens[0],
            min_new_tokens=max_tokens[0],
            do_sample=False,
            streamer=streamer,
        )


def _without_check(ids, *, streamer, max_new_tokens, **kwargs):
    """generate() streams batches of one only: the same greedy loop over the model's own cache."""
    past, tokens = None, ids
    for _ in range(max_new_tokens):
        out = model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
        past, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
        streamer.first = False
        streamer.put(tokens)


serve(run, answers)
