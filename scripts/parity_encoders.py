"""Exports of the encoder and tokenizer fixtures beside transformers, which loads them.

Usage: parity_encoders.py EXPORT_CLASSIFIER_BINARY; see scripts/parity_encoders. Fails over 1e-4 relative.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

LIMIT = 1e-4
FIXTURES = Path(__file__).resolve().parent.parent / "tests/fixtures"
CLASSES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "deberta-v3": "DebertaV2ForSequenceClassification",
    "deberta-separate": "DebertaV2ForSequenceClassification",
    "deberta-c2p": "DebertaV2ForSequenceClassification",
}


def checkpoint(name, scratch):
    """The fixture, or RoBERTa's under the name of its kin."""
    if name not in ("xlm-roberta", "camembert"):
        return FIXTURES / "encoders" / name
    directory = scratch / f"{name}-source"
    shutil.copytree(FIXTURES / "encoders/roberta", directory)
    config = json.loads((directory / "config.json").read_text()) | {"model_type": name}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def compare_model(name, source, exported):
    model, report = AutoModelForSequenceClassification.from_pretrained(exported, output_loading_info=True)
    wrong = {kind: names for kind, names in report.items() if names}
    assert not wrong, (name, wrong)
    assert type(model).__name__ == CLASSES[name], type(model)
    expected = load_file(source / "expected.safetensors")
    with torch.no_grad():
        outputs = model.eval()(input_ids=expected["token_ids"], token_type_ids=expected["type_ids"],
                               attention_mask=expected["attention_mask"], output_hidden_states=True)
    mask = expected["attention_mask"].unsqueeze(2)
    pairs = [(outputs.hidden_states[-1] * mask, expected["hidden"] * mask), (outputs.logits, expected["logits"])]
    return [((found - wanted).abs().max() / wanted.abs().max()).item() for found, wanted in pairs]


def compare_tokenizer(name, exported):
    cases = json.loads((FIXTURES / "tokenizers" / name / "cases.json").read_text())["cases"]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    for case in cases:
        second = None if case["second"] is None else [case["second"]]
        ids = tokenizer([case["first"]], second, truncation="longest_first", max_length=case["max_length"])["input_ids"]
        assert ids[0] == case["ids"], (name, case["first"], ids[0], case["ids"])
    return len(cases)


def main():
    binary = Path(sys.argv[1]).resolve()
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        exported = scratch / "exported"
        print(f"{'encoder':<20}{'hidden':>12}{'logits':>12}")
        for name in CLASSES:
            source = checkpoint(name, scratch)
            subprocess.run([binary, source, FIXTURES / "tokenizers/roberta", exported, "20"], check=True)
            differences = compare_model(name, source, exported)
            worst = max(worst, *differences)
            print(f"{name:<20}" + "".join(f"{value:>12.2e}" for value in differences))
        for directory in sorted((FIXTURES / "tokenizers").iterdir()):
            subprocess.run([binary, FIXTURES / "encoders/bert", directory, exported, "200"], check=True)
            print(f"{directory.name:<20}{compare_tokenizer(directory.name, exported):>12} texts with equal ids")
    print(f"largest difference {worst:.2e}, limit {LIMIT:.0e}: {'ok' if worst <= LIMIT else 'FAILED'}")
    sys.exit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
