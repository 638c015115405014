"""Training steps of several student shapes: PyTorch and the student, turn by turn in one run.

Usage: bench_student.py BENCH_BINARY [--device cpu|cuda:0] [--cases minilm,bert,deberta,llama] [--rounds N] [--steps N]

A step is the joint step of the method: the aligner's loss, gradient and update, then the student's against the detached
aligner, with clipping and AdamW on both. The case `minilm` is the backbone alone under a squared error. On a GPU the
shapes are the published ones and matrix products are bf16; on a CPU they are small and f32. PyTorch runs eagerly and, on
a GPU or with --compile, through torch.compile too. Every round runs each contender in a process of its own; the best
round counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

THREADS = 2
FEATURE_WIDTH, HIDDEN, PROJECTION, CLASSES = 1024, 768, 768, 2

BERT = {"model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1}
MINILM = BERT | {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
DEBERTA = {"model_type": "deberta-v2", "vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24,
           "num_attention_heads": 24, "intermediate_size": 6144, "max_position_embeddings": 512, "type_vocab_size": 0,
           "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
           "pos_att_type": ["p2c", "c2p"], "layer_norm_eps": 1e-7, "max_relative_positions": -1,
           "position_biased_input": False, "hidden_act": "gelu", "conv_kernel_size": 3, "conv_act": "gelu",
           "pooler_hidden_size": 1536, "pooler_dropout": 0, "pooler_hidden_act": "gelu", "hidden_dropout_prob": 0.1,
           "attention_probs_dropout_prob": 0.1, "pad_token_id": 0}
LLAMA = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192,
         "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
         "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                          "original_max_position_embeddings": 8192, "rope_type": "llama3"},
         "tie_word_embeddings": True, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001}
LORA = {"rank": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}

# name: what is trained, configuration, rows, positions, LoRA
ON_GPU = {
    "minilm": ("backbone", MINILM, 16, 128, None),
    "bert": ("armada", BERT, 32, 128, None),
    "deberta": ("armada", DEBERTA, 16, 128, None),
    "llama": ("armada", LLAMA, 4, 512, LORA),
}
NARROW = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
ON_CPU = {
    "minilm": ("backbone", MINILM, 16, 128, None),
    "bert": ("armada", MINILM, 16, 128, None),
    "deberta": ("armada", DEBERTA | NARROW | {"vocab_size": 8000, "pooler_hidden_size": 256}, 8, 128, None),
    "llama": ("armada", LLAMA | NARROW | {"vocab_size": 8000, "num_key_value_heads": 2, "head_dim": 64}, 4, 128, LORA),
}


class Heads:
    """What sits on a pooled vector: main head, orthogonal projection, auxiliary head."""

    def __new__(cls, width):
        import torch
        from torch.nn.utils.parametrizations import orthogonal

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.main = torch.nn.Linear(width, CLASSES)
                self.projection = orthogonal(torch.nn.Linear(width, PROJECTION, bias=False), orthogonal_map="householder")
                self.auxiliary = torch.nn.Linear(PROJECTION, CLASSES)
                self.dropout = torch.nn.Dropout(0.1)

            def forward(self, pooled):
                projected = self.projection(pooled)
                return self.main(self.dropout(pooled)), self.auxiliary(self.dropout(projected)), projected

        return Module()


def student_loss(student, teacher, labels, alpha=0.5, beta=1.0, gamma=1.0, temperature=5.0):
    """The preset `paper` with the cosine manifold loss."""
    import torch.nn.functional as F

    def distance(taught, said):
        return (F.softmax(taught / temperature, -1) - F.softmax(said / temperature, -1)).norm(dim=-1).mean()

    (main, auxiliary, projected), (main_t, auxiliary_t, projected_t) = student, teacher
    task = F.cross_entropy(main, labels) + gamma * F.cross_entropy(auxiliary, labels)
    taught = distance(main_t, main) + gamma * distance(auxiliary_t, auxiliary)
    manifold = 1 - F.cosine_similarity(projected_t.mean(0), projected.mean(0), dim=0)
    return (1 - alpha) * task + alpha * taught + beta * manifold


def torch_steps(case):
    """Seconds of one step, and what it took; run in a process of its own."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoConfig, AutoModel

    device = torch.device(case["device"])
    torch.set_num_threads(THREADS)
    torch.manual_seed(42)
    fields = dict(case["config"])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    on_gpu = device.type == "cuda"
    with device:
        model = AutoModel.from_config(config)
    if case["lora"]:
        import peft

        if on_gpu:
            model = model.to(torch.bfloat16)
        lora = case["lora"]
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=lora["target_modules"]))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    model.train()
    heads = Heads(config.hidden_size).to(device)
    trunk = torch.nn.Sequential(torch.nn.Linear(FEATURE_WIDTH, HIDDEN), torch.nn.ReLU(), torch.nn.Dropout(0.1),
                                torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU(), torch.nn.Dropout(0.1)).to(device)
    aligner_heads = Heads(HIDDEN).to(device)
    student = [p for module in (model, heads) for p in module.parameters() if p.requires_grad]
    aligner = [p for module in (trunk, aligner_heads) for p in module.parameters()]
    optimiser = torch.optim.AdamW(student, lr=2e-5, weight_decay=0.01)
    aligner_optimiser = torch.optim.AdamW(aligner, lr=3e-3, weight_decay=0.01)
    rows, positions = case["rows"], case["positions"]
    shape = (rows, positions)
    mask = torch.ones(shape, dtype=torch.long, device=device)
    target = torch.randn(*shape, config.hidden_size, device=device)

    def pooled(ids):
        output = model(input_ids=ids, attention_mask=mask)
        hidden = output.last_hidden_state
        if case["trains"] == "backbone":
            return hidden
        if config.model_type == "bert":
            return output.pooler_output
        return (hidden[:, -1] if config.model_type == "llama" else hidden[:, 0]).float()

    if case["compile"]:
        pooled = torch.compile(pooled)

    def step(ids, feature, labels):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
            vectors = pooled(ids)
        if case["trains"] == "backbone":
            loss = (vectors.float() - target).square().mean()
        else:
            taught = aligner_heads(trunk(feature))
            aligner_optimiser.zero_grad()
            (F.cross_entropy(taught[0], labels) + F.cross_entropy(taught[1], labels)).backward()
            torch.nn.utils.clip_grad_norm_(aligner, 1.0)
            aligner_optimiser.step()
            loss = student_loss(heads(vectors.float()), [part.detach() for part in taught], labels)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student, 1.0)
        optimiser.step()
        return loss

    def synchronise():
        if on_gpu:
            torch.cuda.synchronize()

    best, loss = float("inf"), None
    for _ in range(case["steps"] + case["warmup"]):
        batch = (torch.randint(100, config.vocab_size - 100, shape, device=device),
                 torch.randn(rows, FEATURE_WIDTH, device=device), torch.arange(rows, device=device) % CLASSES)
        synchronise()
        start = time.perf_counter()
        for _ in range(case["repeats"]):
            loss = step(*batch)
        synchronise()
        best = min(best, (time.perf_counter() - start) / case["repeats"])
    return {"step": best, "loss": loss.item()}


def gpu_memory(process):
    """Peak MiB that the driver counts for a process, sampled."""
    peak = 0
    while process.poll() is None:
        answer = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
                                capture_output=True, text=True, check=False)
        for line in answer.stdout.splitlines():
            pid, used = (field.strip() for field in line.split(","))
            if pid == str(process.pid) and used.isdigit():
                peak = max(peak, int(used))
        time.sleep(0.2)
    return peak


def run(command, on_gpu):
    environment = os.environ | {"RAYON_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    peak = gpu_memory(process) if on_gpu else None
    _, status, usage = os.wait4(process.pid, 0) if not on_gpu else (0, process.wait(), None)
    reader.join()
    if status:
        return None
    return json.loads(lines[-1]) | {"memory": peak if on_gpu else usage.ru_maxrss / 1024}


def contenders(binary, case, folder, compiled):
    spec = Path(folder) / "case.json"
    spec.write_text(json.dumps(case))
    config = Path(folder) / "config.json"
    config.write_text(json.dumps(case["config"]))
    yield "PyTorch eager", [sys.executable, __file__, "--torch", json.dumps(case | {"compile": False})]
    if compiled:
        yield "torch.compile", [sys.executable, __file__, "--torch", json.dumps(case | {"compile": True})]
    ours = [binary, str(config), "--trains", case["trains"], "--device", case["device"], "--rows", str(case["rows"]),
            "--positions", str(case["positions"]), "--steps", str(case["steps"]), "--warmup", str(case["warmup"]),
            "--repeats", str(case["repeats"]), "--precision", case["precision"]]
    if case["lora"]:
        ours += ["--lora", json.dumps(case["lora"])]
    yield "student", ours


def compare(binary, name, case, rounds, compiled):
    best = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for contender, command in contenders(binary, case, folder, compiled):
                figures = run(command, case["device"] != "cpu")
                if figures and (contender not in best or figures["step"] < best[contender]["step"]):
                    best[contender] = figures
    tokens = case["rows"] * case["positions"]
    print(f"{name}: {case['trains']}, {case['rows']} x {case['positions']}, {case['precision']}, {case['device']}", flush=True)
    for contender, figures in best.items():
        ratio = best["PyTorch eager"]["step"] / figures["step"] if "PyTorch eager" in best else float("nan")
        print(f"  {contender:<14} {figures['step']:>9.4f} s {tokens / figures['step']:>10.0f} tokens/s {ratio:>6.2f} of eager"
              f" {figures['memory']:>8.0f} MiB  loss {figures['loss']:.4f}")
    if "student" in best and "parts" in best["student"]:
        parts = best["student"]["parts"]
        whole = sum(parts.values())
        print("  of the student's step: " + ", ".join(f"{part} {100 * value / whole:.0f} %" for part, value in parts.items()),
              flush=True)


def main():
    if sys.argv[1] == "--torch":
        print(json.dumps(torch_steps(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", default="minilm,bert,deberta,llama")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile on the CPU too")
    parser.add_argument("--dropout", type=float, help="of every case; 0 compares all but random numbers")
    arguments = parser.parse_args()
    on_gpu = arguments.device != "cpu"
    for name in arguments.cases.split(","):
        trains, config, rows, positions, lora = (ON_GPU if on_gpu else ON_CPU)[name]
        if arguments.dropout is not None and "hidden_dropout_prob" in config:
            config = config | {"hidden_dropout_prob": arguments.dropout, "attention_probs_dropout_prob": arguments.dropout}
        case = {"trains": trains, "config": config, "rows": rows, "positions": positions, "lora": lora,
                "device": arguments.device, "precision": "bf16" if on_gpu else "f32", "steps": arguments.steps,
                "warmup": 3 if on_gpu else 1, "repeats": 10 if on_gpu else 1}
        compare(arguments.binary, name, case, arguments.rounds, on_gpu or arguments.compile)


if __name__ == "__main__":
    main()
