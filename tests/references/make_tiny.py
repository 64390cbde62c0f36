"""Write tiny.npz: logits (every third position) and greedy tokens of the tiny models, transformers float32.

python -m venv /some/where && pip install torch transformers numpy
python tests/references/make_tiny.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
import tiny

NUM_GREEDY = 24


def main() -> None:
    torch.set_num_threads(1)
    out: dict[str, np.ndarray] = {}
    for name, config in tiny.CONFIGS.items():
        hf_config = transformers.AutoConfig.for_model(**config)
        hf_config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32).eval()
        state = {k: torch.from_numpy(v) for k, v in tiny.tensors(config).items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected, unexpected
        assert set(missing) <= {"lm_head.weight"}, missing
        model.tie_weights()
        ids = tiny.prompt(config)
        with torch.no_grad():
            out[f"{name}_logits"] = model(torch.tensor([ids]), use_cache=False).logits[0, ::3].numpy()
            for _ in range(NUM_GREEDY):
                logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
                ids.append(int(logits.argmax()))
        out[f"{name}_greedy"] = np.array(ids[-NUM_GREEDY:], np.int32)
        print(name, out[f"{name}_logits"].std(), out[f"{name}_greedy"][:8])
    np.savez_compressed(Path(__file__).parent / "tiny.npz", **out)


if __name__ == "__main__":
    print(transformers.__version__, torch.__version__)
    main()
