"""Prints the expected values in the tests of distill/src/metrics and distill/src/statistics.rs.

Needs scikit-learn and SciPy: ${PYTHON:-python3} scripts/golden/metrics.py
"""

import warnings

import numpy as np
from scipy import stats
from sklearn import metrics

warnings.simplefilter("ignore")


def show(name, function):
    try:
        value = function()
    except Exception as error:
        value = f"{type(error).__name__}: {error}"
    print(f"{name:34} {value!r}" if isinstance(value, str) else f"{name:34} {float(value):.17g}")


binary_expected = [1, 0, 1, 1, 0, 1, 0, 0, 1, 1]
binary_predicted = [1, 0, 0, 1, 1, 1, 0, 1, 1, 0]
three_expected = [0, 1, 2, 2, 1, 0, 0, 2, 1, 2]
three_predicted = [0, 2, 2, 2, 1, 0, 1, 0, 1, 2]
numbers_expected = [0.5, 1.0, 2.5, 3.0, 4.5, 5.0]
numbers_predicted = [1.0, 1.0, 2.0, 3.5, 3.5, 4.75]

classes = {
    "binary": (binary_expected, binary_predicted),
    "three": (three_expected, three_predicted),
    "constant prediction": ([0, 1, 1, 0], [1, 1, 1, 1]),
    "constant both": ([1, 1], [1, 1]),
    "no positive anywhere": ([0, 0], [0, 0]),
    "all wrong": ([0, 1], [1, 0]),
    "class only predicted": ([0, 0, 1], [0, 2, 1]),
    "empty": ([], []),
}
for name, (expected, predicted) in classes.items():
    show(f"accuracy, {name}", lambda: metrics.accuracy_score(expected, predicted))
    show(f"matthews, {name}", lambda: metrics.matthews_corrcoef(expected, predicted))
    show(f"f1 macro, {name}", lambda: metrics.f1_score(expected, predicted, average="macro"))
    if name not in ("three", "class only predicted"):
        show(f"f1, {name}", lambda: metrics.f1_score(expected, predicted))

numbers = {
    "numbers": (numbers_expected, numbers_predicted),
    "large offset": ([1e8, 1e8 + 1, 1e8 + 3], [2.0, 1.0, 5.0]),
    "constant prediction": ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
    "reversed": ([1.0, 2.0, 3.0], [9.0, 4.0, 1.0]),
    "two rows": ([1.0, 2.0], [3.0, 5.0]),
    "one row": ([1.0], [2.0]),
}
for name, (expected, predicted) in numbers.items():
    show(f"pearson, {name}", lambda: stats.pearsonr(predicted, expected)[0])
    show(f"spearman, {name}", lambda: stats.spearmanr(predicted, expected)[0])

samples = {
    "five seeds": ([71.2, 70.4, 72.9, 71.8, 70.1], [69.8, 70.6, 70.9, 70.2, 69.9]),
    "three seeds": ([0.62, 0.64, 0.63], [0.60, 0.61, 0.62]),
    "large effect": ([10.0, 11.0, 12.0, 13.0], [0.1, 0.9, 2.2, 2.9]),
}
for name, (treatment, control) in samples.items():
    show(f"mean, {name}", lambda: np.mean(treatment))
    show(f"deviation, {name}", lambda: np.std(treatment, ddof=1))
    test = stats.ttest_rel(treatment, control)
    show(f"t, {name}", lambda: test.statistic)
    show(f"p, {name}", lambda: test.pvalue)
