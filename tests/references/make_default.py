"""Write default_model.json: greedy text and logits of the default model by transformers in float32.

python -m venv /some/where && pip install torch transformers accelerate gguf numpy
python tests/references/make_default.py THE_MODEL.gguf        (`ridgeline pull` says where it is)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers

NUM_GREEDY = 64
NUM_TOP = 10
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "The three laws of thermodynamics are",
    "List the planets of the solar system in order:\n1.",
    "Die Hauptstadt von Deutschland ist",
]
CHATS = [
    [{"role": "user", "content": "What is gravity? Answer in one sentence."}],
    [
        {"role": "system", "content": "You are a poet."},
        {"role": "user", "content": "Write two lines about the moon."},
    ],
]


def main(path: Path) -> None:
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    chats = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in CHATS]
    prompts += [tokenizer(text, add_special_tokens=False)["input_ids"] for text in chats]
    entries = [entry(model, tokenizer, ids) for ids in prompts]
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    out = Path(__file__).parent / "default_model.json"
    document = {"file": path.name, "made_with": versions, "prompts": entries}
    out.write_text(json.dumps(document, indent=1) + "\n")


def entry(model: torch.nn.Module, tokenizer: object, ids: list[int]) -> dict[str, object]:
    """Greedy continuation, and of the prompt's last position: mean, deviation and the largest logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
        generated = model.generate(
            torch.tensor([ids]), max_new_tokens=NUM_GREEDY, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(ids) :].tolist()
        margins = model(torch.tensor([ids + generated])).logits[0, len(ids) - 1 : -1].topk(2).values
    top = logits.topk(NUM_TOP)
    print(repr(tokenizer.decode(generated)))
    return {
        "prompt": tokenizer.decode(ids),
        "prompt_token_ids": ids,
        "greedy_token_ids": generated,
        "greedy_text": tokenizer.decode(generated),
        "smallest_margin": round(float((margins[:, 0] - margins[:, 1]).min()), 4),
        "logits_mean": float(logits.mean()),
        "logits_std": float(logits.std()),
        "top_ids": top.indices.tolist(),
        "top_logits": top.values.tolist(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
