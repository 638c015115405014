"""Compares what peft and transformers compute from written adapters with the logits beside them.

Usage: python3 scripts/parity_peft.py MODEL_DIR BATCH.json OUT_DIR NAME; see scripts/parity_peft.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

TOLERANCE = 1e-5


def main():
    model, batch, out, name = sys.argv[1:]
    out = Path(out)
    batch = json.loads(Path(batch).read_text())
    shape = batch["shape"][:2]
    ids = {key: torch.tensor(batch[ours]).reshape(shape)
           for key, ours in [("input_ids", "token_ids"), ("token_type_ids", "type_ids"),
                             ("attention_mask", "attention_mask")]}
    flat = torch.tensor(json.loads((out / "logits.json").read_text()))

    causal = json.loads((out / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    if causal:
        del ids["token_type_ids"]
        base = AutoModelForCausalLM.from_pretrained(model)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=flat.numel() // shape[0])
    # Logits under padding carry no meaning.
    real = ids["attention_mask"].bool() if causal else slice(None)

    @torch.no_grad()
    def logits_of(network):
        return network.eval()(**ids).logits[real]

    expected = flat.reshape(*(shape if causal else shape[:1]), -1)[real]
    plain = logits_of(base)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(base, out / "adapter")
    missing = [str(warning.message) for warning in caught if "missing" in str(warning.message).lower()]
    assert not missing, missing
    merged, report = type(base).from_pretrained(out / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    AutoTokenizer.from_pretrained(out / "adapter")

    logits = {"peft": logits_of(adapted), "merged": logits_of(merged)}
    differences = {way: ((value - expected).abs().max() / expected.abs().max()).item() for way, value in logits.items()}
    moved = (plain - expected).abs().max().item()
    print(json.dumps({"model": Path(model).name, "target_modules": name, "moved": moved, **differences}))
    assert moved > 0.1 and all(difference < TOLERANCE for difference in differences.values())


if __name__ == "__main__":
    main()
