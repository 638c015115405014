"""Writes tests/golden/generation_losses.json: the losses of generation tasks and their gradients, in double precision.

Usage: python3 scripts/golden/generation.py tests/golden/generation_losses.json

Written from docs/method.md alone, with NumPy; gradients are central differences of the losses, extrapolated once
(Richardson), and so know nothing of any formula for a derivative.

z features, r = dec(h'), a = dec_aux(p_t) [b, D]; p_t, p_s [b, k]; logits [r, v] of the response's tokens.
Aligner: MSE(r, z) + gamma MSE(a, z). Student: mean next-token cross-entropy + beta M(p_t, p_s).
"""

import json
import sys
from pathlib import Path

import numpy as np

MANIFOLDS = ["inner", "cosine", "euclid", "elementwise"]


def mean_squared(one, other):
    return np.mean((one - other) ** 2)


def cross_entropy(logits, tokens):
    largest = logits.max(axis=1, keepdims=True)
    log_sum = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    return np.mean(log_sum - logits[np.arange(len(tokens)), tokens])


def manifold(preset, name, teacher, student):
    mean_t, mean_s = teacher.mean(axis=0), student.mean(axis=0)
    norm = np.linalg.norm
    if name == "inner":
        return 1 - mean_t @ mean_s
    if name == "cosine":
        return 1 - mean_t @ mean_s / (norm(mean_t) * norm(mean_s))
    if name == "euclid":
        return norm(mean_t - mean_s) if preset == "paper" else np.mean((mean_t - mean_s) ** 2)
    return norm(teacher - student, axis=1).mean() if preset == "paper" else mean_squared(teacher, student)


def gradient(loss, point):
    def central(step):
        result = np.zeros_like(point)
        for index in np.ndindex(point.shape):
            moved = [point.copy(), point.copy()]
            moved[0][index] += step
            moved[1][index] -= step
            result[index] = (loss(moved[0]) - loss(moved[1])) / (2 * step)
        return result
    return (4 * central(5e-4) - central(1e-3)) / 3


def rounded(values):
    return np.asarray(values).round(10).tolist()


def case(generator, preset, name, beta, gamma):
    draw = lambda *shape: generator.normal(size=shape).astype(np.float32).astype(float).round(4)
    rows, features, shared, tokens, words = 3, 5, 4, 6, 7
    z, r, a = draw(rows, features), draw(rows, features), draw(rows, features)
    p_t, p_s, logits = draw(rows, shared), draw(rows, shared), draw(tokens, words) * 2
    y = generator.integers(0, words, tokens)
    aligner = lambda r, a: mean_squared(r, z) + gamma * mean_squared(a, z)
    student = lambda logits, p_s: cross_entropy(logits, y) + beta * manifold(preset, name, p_t, p_s)
    return {
        "preset": preset, "manifold": name, "beta": beta, "gamma": gamma,
        "inputs": {"z": rounded(z), "r": rounded(r), "a": rounded(a), "p_t": rounded(p_t), "p_s": rounded(p_s),
                   "logits": rounded(logits), "tokens": y.tolist()},
        "reconstruction": mean_squared(r, z), "reconstruction_aux": mean_squared(a, z),
        "aligner_loss": aligner(r, a), "task": cross_entropy(logits, y),
        "manifold_term": manifold(preset, name, p_t, p_s), "total": student(logits, p_s),
        "gradients": {"r": rounded(gradient(lambda r: aligner(r, a), r)),
                      "a": rounded(gradient(lambda a: aligner(r, a), a)),
                      "logits": rounded(gradient(lambda logits: student(logits, p_s), logits)),
                      "p_s": rounded(gradient(lambda p_s: student(logits, p_s), p_s))}}


def main():
    generator = np.random.default_rng(11)
    weights = [(1.0, 1.0), (0.5, 0.25)]
    cases = [case(generator, preset, name, *weights[(index + shift) % 2])
             for shift, preset in enumerate(["paper", "reference"]) for index, name in enumerate(MANIFOLDS)]
    lines = ",\n".join(json.dumps(case) for case in cases)
    Path(sys.argv[1]).write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    main()
