"""Writes tests/golden/rouge_l.json: ROUGE-L F1 of some pairs of texts, from the package `rouge-score` 0.1.2.

Usage: pip install rouge-score==0.1.2 && python3 scripts/golden/rouge.py tests/golden/rouge_l.json
"""

import json
import sys
from pathlib import Path

from rouge_score import rouge_scorer

PAIRS = [
    # predicted, expected
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("the cat was found under the bed", "the cat was under the bed"),
    ("a b c d e", "e d c b a"),
    ("Police killed the gunman", "the gunman killed police"),
    ("", "something"),
    ("something", ""),
    ("!!! ???", "... ,,,"),
    ("It's 3.14, isn't it?", "Its 3 14 isn t it"),
    ("naïve café ÜBER", "naive cafe uber"),
    ("Kelvin sign \u212a and dotted \u0130stanbul", "kelvin sign k and dotted istanbul"),
    ("snake_case-and-dashes", "snake case and dashes"),
    ("running runs ran", "run runs ran"),
    ("line one\nline two\tline three", "line one line two line three"),
    ("one two three four five six seven", "one three two five four seven six eight nine"),
]


def main():
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    cases = [{"predicted": predicted, "expected": expected,
              "rouge_l": scorer.score(expected, predicted)["rougeL"].fmeasure}
             for predicted, expected in PAIRS]
    Path(sys.argv[1]).write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
