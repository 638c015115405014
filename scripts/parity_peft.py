"""Compares what peft and transformers compute from written adapters with the logits beside them.

Usage: python3 scripts/parity_peft.py MODEL_DIR BATCH.json OUT_DIR NAME; see scripts/parity_peft.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TOLERANCE = 1e-5


def main():
    model, batch, out, name = sys.argv[1:]
    out = Path(out)
    batch = json.loads(Path(batch).read_text())
    shape = batch["shape"][:2]
    ids = {key: torch.tensor(batch[ours]).reshape(shape)
           for key, ours in [("input_ids", "token_ids"), ("token_type_ids", "type_ids"),
                             ("attention_mask", "attention_mask")]}
    expected = torch.tensor(json.loads((out / "logits.json").read_text())).reshape(shape[0], -1)

    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=expected.shape[1])
    plain = base.eval()(**ids).logits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(base, out / "adapter").eval()
    missing = [str(warning.message) for warning in caught if "missing" in str(warning.message).lower()]
    assert not missing, missing
    merged, report = AutoModelForSequenceClassification.from_pretrained(out / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    AutoTokenizer.from_pretrained(out / "adapter")

    with torch.no_grad():
        logits = {"peft": adapted(**ids).logits, "merged": merged.eval()(**ids).logits}
    differences = {way: ((value - expected).abs().max() / expected.abs().max()).item() for way, value in logits.items()}
    moved = (plain - expected).abs().max().item()
    print(json.dumps({"target_modules": name, "moved": moved, **differences}))
    assert moved > 0.1 and all(difference < TOLERANCE for difference in differences.values())


if __name__ == "__main__":
    main()
