"""Training step of the MiniLM shape: PyTorch and the student, turn by turn in one run.

Usage: bench_student.py BENCH_BINARY; see scripts/bench_student.
6 layers, 384 wide, 12 heads, 1,536 feed-forward; batch 16 x 128; f32; AdamW; 2 threads; best of 5
steps in each of two rounds, with and without dropout.
"""

import json
import os
import subprocess
import sys
import time

ROUNDS, STEPS, THREADS = 2, 5, 2
ROWS, POSITIONS, WIDTH = 16, 128, 384


def torch_step(dropout):
    """Best step and best forward without gradients, in seconds; run in a process of its own."""
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(42)
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
                        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = BertModel(config).train()
    assert model.config._attn_implementation == "sdpa"
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    target = torch.randn(ROWS, POSITIONS, WIDTH)
    mask = torch.ones(ROWS, POSITIONS, dtype=torch.long)
    parts = {"step": float("inf")}
    for step in range(STEPS + 1):
        ids = torch.randint(100, 30100, (ROWS, POSITIONS))
        start = time.perf_counter()
        loss = (model(ids, attention_mask=mask).last_hidden_state - target).square().mean()
        loss.item()
        forward = time.perf_counter() - start
        optimiser.zero_grad()
        loss.backward()
        backward = time.perf_counter() - start - forward
        optimiser.step()
        total = time.perf_counter() - start
        if step and total < parts["step"]:
            parts = {"step": total, "forward": forward, "backward": backward, "optimiser": total - forward - backward}
    model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(STEPS + 1):
            start = time.perf_counter()
            model(ids, attention_mask=mask).last_hidden_state.mean().item()
            times.append(time.perf_counter() - start)
    return parts | {"inference": min(times)}


def run(command):
    environment = os.environ | {"RAYON_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(answer.stdout.splitlines()[-1])


def main():
    binary = sys.argv[1]
    if binary == "--torch":
        print(json.dumps(torch_step(float(sys.argv[2]))))
        return
    columns = ["step", "forward", "backward", "optimiser", "inference"]
    print(f"{'':<34}" + "".join(f"{column:>11}" for column in columns) + f"{'tokens/s':>11}")
    for dropout in ["0.0", "0.1"]:
        best = {}
        for _ in range(ROUNDS):
            for name, command in [("PyTorch", [sys.executable, __file__, "--torch", dropout]),
                                  ("student", [binary, str(STEPS), dropout])]:
                parts = run(command)
                if name not in best or parts["step"] < best[name]["step"]:
                    best[name] = parts
        for name, parts in best.items():
            label = f"{name}, dropout {dropout}, seconds"
            tokens = ROWS * POSITIONS / parts["step"]
            print(f"{label:<34}" + "".join(f"{parts[column]:>11.3f}" for column in columns) + f"{tokens:>11.0f}")
        ratio = {column: best["PyTorch"][column] / best["student"][column] for column in columns}
        print(f"{'speed of PyTorch':<34}" + "".join(f"{ratio[column]:>11.2f}" for column in columns))


if __name__ == "__main__":
    main()
