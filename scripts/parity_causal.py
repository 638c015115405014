"""Loads the exports of causal students with transformers and compares the outputs with those of the originals.

Usage: parity_causal.py EXPORT_BINARY; see scripts/parity_causal. Fails where a weight is missing or unexpected, or a
relative difference is over 1e-4.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

LIMIT = 1e-4
FIXTURES = Path("tests/fixtures")
FORMS = {"language": AutoModelForCausalLM, "backbone": AutoModel, "classifier": AutoModelForSequenceClassification}


def load(form, directory):
    model, report = FORMS[form].from_pretrained(directory, output_loading_info=True, attn_implementation="eager")
    problems = {key: found for key, found in report.items() if key.endswith("_keys") and found}
    assert not problems, (directory, problems)
    return model.eval()


def difference(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare(exports, expected, side):
    """Relative differences of logits, hidden states and class logits from the fixture's expected values."""
    ids, mask = expected[f"{side}.token_ids"], expected[f"{side}.mask"]
    language, backbone, classifier = (load(form, exports / form) for form in FORMS)
    real = mask.bool()
    head = classifier.score.weight
    ids_of_classifier = torch.where(real, ids, classifier.config.pad_token_id)
    with torch.no_grad():
        logits = language(input_ids=ids, attention_mask=mask).logits
        hidden = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        classes = classifier(input_ids=ids_of_classifier, attention_mask=mask).logits
        sines = torch.arange(1, head.numel() + 1).sin().reshape(head.shape)
        theirs = expected[f"{side}.pooled"] @ sines.T
    assert list(classifier.config.id2label.values()) == ["first", "second", "third"]
    return (difference(logits[real], expected[f"{side}.logits"][real]),
            difference(hidden[real], expected[f"{side}.hidden"][real]), difference(classes, theirs))


def main():
    binary = Path(sys.argv[1]).resolve()
    worst = 0.0
    print(f"{'model, padding':<34}{'logits':>10}{'hidden':>10}{'classes':>10}")
    with tempfile.TemporaryDirectory() as scratch:
        for fixture in sorted((FIXTURES / "causal").iterdir()):
            if not fixture.is_dir():
                continue
            exports = Path(scratch) / fixture.name
            subprocess.run([binary, fixture, FIXTURES / "bert-tiny", exports], check=True)
            expected = load_file(fixture / "expected.safetensors")
            for side in ["right", "left"]:
                differences = compare(exports, expected, side)
                worst = max(worst, *differences)
                print(f"{fixture.name + ', ' + side:<34}" + "".join(f"{value:>10.1e}" for value in differences))
    print(f"largest difference {worst:.1e}, limit {LIMIT:.0e}: {'ok' if worst <= LIMIT else 'FAILED'}")
    sys.exit(0 if worst <= LIMIT else 1)


if __name__ == "__main__":
    main()
