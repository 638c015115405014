"""What pictures and words alone say about the labels of data/scenes.

    cargo run --release -p tests --example draw_scenes -- data/scenes target/scenes
    python3 scripts/scenes_baselines.py data/scenes target/scenes

Prints test accuracies of models trained on the 1,500 training rows: a perceptron with two hidden layers on the
pictures, a linear model on the pictures, and logistic regressions on counts of words. With `--transformer` also a
small transformer trained from scratch on the words (needs PyTorch).
Needs NumPy and scikit-learn. Exits with status 1 when a bar of data/scenes/README.md is missed.
"""

import argparse
import json
import pathlib
import re
import sys
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

FEATURE_WIDTH = 1024


def read_rows(data, split):
    with open(data / f"{split}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def labels_of(rows):
    return np.array([row["label"] == "entailment" for row in rows], dtype=np.int64)


def word_counts(train, test, fields, ngrams):
    """Counts of words, per field, so that a word of the premise is not the same as one of the hypothesis."""
    columns = []
    for field in fields:
        counter = CountVectorizer(ngram_range=(1, ngrams), token_pattern=r"[a-z]+")
        counter.fit([row[field] for row in train])
        columns.append([counter.transform([row[field] for row in rows]).toarray() for rows in (train, test)])
    return np.hstack([column[0] for column in columns]), np.hstack([column[1] for column in columns])


def words_only(train, test, fields, ngrams):
    inputs, test_inputs = word_counts(train, test, fields, ngrams)
    model = LogisticRegression(max_iter=2000).fit(inputs, labels_of(train))
    return model.score(test_inputs, labels_of(test))


def overlap_only(train, test):
    """Share of the hypothesis's words that the premise contains, and its length."""

    def measure(rows):
        sets = [(set(re.findall("[a-z]+", row["premise"].lower())), re.findall("[a-z]+", row["hypothesis"].lower())) for row in rows]
        return np.array([[sum(word in premise for word in words) / len(words), len(words), len(premise)] for premise, words in sets])

    return LogisticRegression().fit(measure(train), labels_of(train)).score(measure(test), labels_of(test))


def perceptron(features, targets, test_features, test_targets, seed):
    """The aligner's trunk and main head: Linear ReLU Linear ReLU Linear."""
    model = MLPClassifier((768, 768), alpha=0.01, learning_rate_init=1e-3, batch_size=64, max_iter=20, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is a budget
        model.fit(features, targets)
    return model.score(test_features, test_targets)


def transformer(train, test, seed, width=128, num_epochs=20):
    """Two layers trained from scratch on `[CLS] premise [SEP] hypothesis [SEP]`, read off the first token."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    words = {}

    def encode(rows):
        texts = [f"[cls] {row['premise']} [sep] {row['hypothesis']}" for row in rows]
        ids = [[words.setdefault(word, len(words) + 1) for word in re.findall(r"\[\w+\]|[a-z]+|\.", text.lower())] for text in texts]
        longest = max(len(row) for row in ids)
        return torch.tensor([row + [0] * (longest - len(row)) for row in ids])

    class Student(nn.Module):
        def __init__(self, num_words, length):
            super().__init__()
            self.words = nn.Embedding(num_words, width, padding_idx=0)
            self.places = nn.Parameter(torch.randn(length, width) * 0.02)
            layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, "gelu", batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(width, 2)

        def forward(self, ids):
            states = self.words(ids) + self.places[: ids.shape[1]]
            return self.head(self.layers(states, src_key_padding_mask=ids == 0)[:, 0])

    inputs, test_inputs = encode(train), encode(test)
    targets, test_targets = torch.tensor(labels_of(train)), labels_of(test)
    model = Student(len(words) + 1, max(inputs.shape[1], test_inputs.shape[1]))
    optimiser = torch.optim.AdamW(model.parameters(), 5e-4)
    for _ in range(num_epochs):
        model.train()
        for batch in torch.randperm(len(inputs)).split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimiser.step()
    model.eval()
    with torch.no_grad():
        return float((model(test_inputs).argmax(1).numpy() == test_targets).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("features", type=pathlib.Path)
    parser.add_argument("--transformer", action="store_true")
    arguments = parser.parse_args()
    train, test = read_rows(arguments.data, "train"), read_rows(arguments.data, "test")
    read_features = lambda split: np.fromfile(arguments.features / f"{split}.f32", "<f4").reshape(-1, FEATURE_WIDTH)
    pictures = read_features("train"), labels_of(train), read_features("test"), labels_of(test)
    assert np.array_equal(pictures[0].astype(np.float16).astype(np.float32), pictures[0]), "f16 holds every grey"

    print(f"{'model':<48} test accuracy")
    is_kept = True

    def report(name, accuracies, bar=None):
        nonlocal is_kept
        accuracies = np.atleast_1d(accuracies)
        is_met = bar is None or bar(accuracies.mean())
        is_kept &= is_met
        print(f"{name:<48} {accuracies.mean():.3f} {'' if len(accuracies) == 1 else f'± {accuracies.std(ddof=1):.3f}'}{'' if is_met else ' (missed)'}", flush=True)

    weak = lambda accuracy: accuracy < 0.65
    report("words of the hypothesis", words_only(train, test, ["hypothesis"], 1), weak)
    report("pairs of words of the hypothesis", words_only(train, test, ["hypothesis"], 2), weak)
    report("words of premise and hypothesis", words_only(train, test, ["premise", "hypothesis"], 1), weak)
    report("pairs of words of premise and hypothesis", words_only(train, test, ["premise", "hypothesis"], 2), weak)
    report("overlap of words", overlap_only(train, test), weak)
    report("picture, linear", LogisticRegression(C=0.1, max_iter=2000).fit(*pictures[:2]).score(*pictures[2:]))
    report("picture, two hidden layers (3 seeds)", [perceptron(*pictures, seed) for seed in range(3)], lambda accuracy: accuracy > 0.9)
    if arguments.transformer:
        report("words, small transformer (3 seeds)", [transformer(train, test, seed) for seed in range(3)])
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
