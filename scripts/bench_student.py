"""Training steps of several student shapes: PyTorch and the student, turn by turn in one run.

Usage: bench_student.py BENCH_BINARY [--device cpu|cuda:0] [--cases minilm,bert,deberta,llama] [--rounds N] [--steps N]
                        [--profile] [--seconds N]

A step is the joint step of the method: the aligner's loss, gradient and update, then the student's against the detached
aligner, with clipping and AdamW on both. The case `minilm` is the backbone alone under a squared error. On a GPU the
shapes are the published ones and matrix products are bf16; on a CPU they are small and f32. PyTorch runs eagerly and, on
a GPU or with --compile, through torch.compile too. Every round runs each contender in a process of its own; the best
round counts. Memory is the process's peak on a CPU, and on a GPU what all of the card held at most over what it held
before: there must be no other user.

With --profile a table says where the time goes: the parts of the layers in isolation on both sides, how long the host was
busy, how long a step of 8 tokens takes (launches and the optimiser), and on a GPU the kernels of a step by kind.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
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
    "bert-long": ("armada", BERT, 4, 512, None),
    "deberta": ("armada", DEBERTA, 16, 128, None),
    "llama": ("armada", LLAMA, 4, 512, LORA),
}
NARROW = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
ON_CPU = {
    "minilm": ("backbone", MINILM, 16, 128, None),
    "bert": ("armada", MINILM, 16, 128, None),
    "bert-long": ("armada", MINILM, 4, 512, None),
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
    if device.type == "cpu":
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

    def train_aligner(feature, labels):
        taught = aligner_heads(trunk(feature))
        aligner_optimiser.zero_grad()
        (F.cross_entropy(taught[0], labels) + F.cross_entropy(taught[1], labels)).backward()
        torch.nn.utils.clip_grad_norm_(aligner, 1.0)
        aligner_optimiser.step()
        return [part.detach() for part in taught]

    def move_student():
        torch.nn.utils.clip_grad_norm_(student, 1.0)
        optimiser.step()

    def step(ids, feature, labels):
        taught = train_aligner(feature, labels) if case["trains"] == "armada" else None
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
            vectors = pooled(ids)
        if taught is None:
            loss = (vectors.float() - target).square().mean()
        else:
            loss = student_loss(heads(vectors.float()), taught, labels)
        optimiser.zero_grad()
        loss.backward()
        move_student()
        return loss

    def synchronise():
        if on_gpu:
            torch.cuda.synchronize()

    best, host, loss = float("inf"), None, None
    for _ in range(case["steps"] + case["warmup"]):
        batch = (torch.randint(100, config.vocab_size - 100, shape, device=device),
                 torch.randn(rows, FEATURE_WIDTH, device=device), torch.arange(rows, device=device) % CLASSES)
        synchronise()
        start = time.perf_counter()
        for _ in range(case["repeats"]):
            loss = step(*batch)
        busy = (time.perf_counter() - start) / case["repeats"]
        synchronise()
        taken = (time.perf_counter() - start) / case["repeats"]
        if taken < best:
            best, host = taken, busy
    figures = {"step": best, "host": host, "loss": loss.item()}
    if on_gpu:
        figures["reserved"] = torch.cuda.max_memory_reserved() / 2**20
    if case["profile"]:
        def seconds(compute):
            return mean_seconds(compute, case["repeats"], synchronise)

        figures["parts"] = {"optimiser": seconds(move_student)}
        if case["trains"] == "armada":
            figures["parts"]["aligner"] = seconds(lambda: train_aligner(*batch[1:]))
        figures["profile"] = {"layers": torch_layers(case, config, seconds)}
    return figures


def mean_seconds(compute, repeats, synchronise):
    for _ in range(2):
        compute()
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        compute()
    synchronise()
    return (time.perf_counter() - start) / repeats


def torch_layers(case, config, seconds):
    """Seconds of the parts that the student's side times, forward and backward in all layers."""
    import torch
    import torch.nn.functional as F

    device = torch.device(case["device"])
    bf16 = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows, positions, width, inner = case["rows"], case["positions"], config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    groups = getattr(config, "num_key_value_heads", None)
    drop = 0.0 if groups else config.hidden_dropout_prob
    attended = heads * head_width
    if groups:
        shared = (width, groups * head_width)
        maps = [(width, attended), shared, shared, (attended, width), (width, inner), (width, inner), (inner, width)]
    else:
        maps = [(width, width)] * 4 + [(width, inner), (inner, width)]

    def leaf(*shape, grows=True):
        return torch.full(shape, 0.01, device=device, requires_grad=grows)

    frozen = case["lora"] is not None
    operands = [(leaf(rows * positions, i), leaf(o, i) if not frozen else leaf(o, i, grows=False).to(bf16)) for i, o in maps]
    query, key, value = (leaf(rows, heads, positions, head_width) for _ in range(3))
    hidden, residual, weight = leaf(rows * positions, width), leaf(rows * positions, width), leaf(width)
    raised, gate = leaf(rows * positions, inner), leaf(rows * positions, inner)
    ids = torch.randint(0, config.vocab_size, (rows, positions), device=device)
    table = leaf(config.vocab_size, width, grows=not frozen)

    def linear_maps():
        for data, matrix in operands:
            F.linear(data.to(bf16), matrix.to(bf16)).float().sum().backward()

    def attention():
        F.scaled_dot_product_attention(query.to(bf16), key.to(bf16), value.to(bf16), dropout_p=drop,
                                       scale=1.0).float().sum().backward()

    def norms():
        for _ in range(2):
            total = F.dropout(hidden, drop) + residual
            normed = F.rms_norm(total, (width,), weight, 1e-5) if groups else F.layer_norm(total, (width,), weight, weight)
            normed.sum().backward()

    def activation():
        data = raised.to(bf16)
        (F.silu(data) * gate.to(bf16) if groups else F.gelu(data)).float().sum().backward()

    def embedding():
        output = F.embedding(ids, table)
        if not frozen:
            output.sum().backward()

    layers = config.num_hidden_layers
    return {"linear maps": layers * seconds(linear_maps), "attention": layers * seconds(attention),
            "norms, residuals": layers * seconds(norms), "activation": layers * seconds(activation),
            "embedding": seconds(embedding)}


def card_memory(device):
    """MiB that the card holds for whoever; drivers within containers do not tell it by process."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", device.partition(":")[2] or "0"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return int(answer) if answer.isdigit() else 0


def run(contender, command, device, seconds, folder=None):
    """The JSON of a process's last line with its memory; None where it failed or was too slow."""
    on_gpu = device != "cpu"
    threads = {} if on_gpu else {"RAYON_NUM_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    before = card_memory(device) if on_gpu else 0
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | threads, cwd=folder)
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    peak, late = 0, False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, card_memory(device)) if on_gpu else peak
        if time.monotonic() - started > seconds and not late:
            late = True
            process.kill()
        time.sleep(0.2)
    process.returncode = os.waitstatus_to_exitcode(status)
    reader.join()
    if process.returncode:
        why = f"not through within {seconds:.0f} s" if late else f"ended with status {process.returncode}"
        print(f"  {contender}: {why}", flush=True)
        return None
    return json.loads(lines[-1]) | {"memory": peak - before if on_gpu else usage.ru_maxrss / 1024}


def student_command(binary, case, folder):
    config = Path(folder) / "config.json"
    config.write_text(json.dumps(case["config"]))
    command = [binary, str(config), "--trains", case["trains"], "--device", case["device"], "--rows", str(case["rows"]),
               "--positions", str(case["positions"]), "--steps", str(case["steps"]), "--warmup", str(case["warmup"]),
               "--repeats", str(case["repeats"]), "--precision", case["precision"]]
    return command + (["--lora", json.dumps(case["lora"])] if case["lora"] else [])


def contenders(binary, case, folder, compiled):
    yield "PyTorch eager", [sys.executable, __file__, "--torch", json.dumps(case | {"compile": False})]
    if compiled:
        yield "torch.compile", [sys.executable, __file__, "--torch", json.dumps(case | {"compile": True, "profile": False})]
    yield "student", student_command(binary, case, folder) + (["--profile"] if case["profile"] else [])


def compare(binary, name, case, rounds, compiled, seconds):
    best = {}
    tokens = case["rows"] * case["positions"]
    print(f"{name}: {case['trains']}, {case['rows']} x {case['positions']}, {case['precision']}, {case['device']}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            timed = case | {"profile": case["profile"] and number == 0}
            for contender, command in contenders(binary, timed, folder, compiled):
                figures = run(contender, command, case["device"], seconds)
                if figures is None:
                    continue
                # The first round alone is profiled.
                profiled = best.get(contender, {})
                if contender not in best or figures["step"] < best[contender]["step"]:
                    best[contender] = profiled | {key: value for key, value in figures.items() if value is not None}
        kernels = kernels_of(binary, case, folder, seconds) if case["profile"] and case["device"] != "cpu" else None
    if kernels and "student" in best:
        best["student"]["kernels"] = kernels
    for contender, figures in best.items():
        ratios = "".join(f" {best[other]['step'] / figures['step']:>6.2f} of {label}"
                         for other, label in (("PyTorch eager", "eager"), ("torch.compile", "compile")) if other in best)
        print(f"  {contender:<14} {figures['step']:>9.4f} s {tokens / figures['step']:>10.0f} tokens/s{ratios}"
              f" {figures['memory']:>8.0f} MiB  loss {figures['loss']:.4f}")
    if "student" in best:
        parts = best["student"]["parts"]
        whole = sum(parts.values())
        print("  of the student's step: " + ", ".join(f"{part} {100 * value / whole:.0f} %" for part, value in parts.items()),
              flush=True)
    if case["profile"]:
        print_profile(best)
    return best


def print_profile(best):
    """Milliseconds by part, of the contenders that were profiled."""
    shown = [name for name in ("student", "PyTorch eager") if best.get(name, {}).get("profile")]
    if not shown:
        return
    milliseconds = lambda value: f"{1000 * value:>14.2f}"
    line = lambda name, values: print(f"  {name:<34}" + "".join(milliseconds(value) for value in values))
    print(f"  {'milliseconds':<34}" + "".join(f"{name:>14}" for name in shown))
    layers = [best[name]["profile"]["layers"] for name in shown]
    for part in layers[0]:
        line(f"{part}, in isolation", [parts[part] for parts in layers])
    line("step", [best[name]["step"] for name in shown])
    line("until the host is through with it", [best[name]["host"] for name in shown])
    for part in ("aligner", "optimiser"):
        line(f"{part} alone", [best[name]["parts"].get(part, 0.0) for name in shown])
    if "student" in shown:
        line("step of 8 tokens", [best["student"]["profile"]["least"]])
    if kernels := best.get("student", {}).get("kernels"):
        busy = sum(seconds for seconds, _ in kernels.values())
        line("all kernels, one by one", [busy])
        line("gaps between them", [max(0.0, best["student"]["step"] - busy)])
        print(f"  {'kernels of a step by kind':<34}{'ms':>14}{'launches':>14}")
        for name, (seconds, count) in sorted(kernels.items(), key=lambda item: -item[1][0])[:14]:
            print(f"  {name[:34]:<34}{milliseconds(seconds)}{count:>14.1f}")
    sys.stdout.flush()


UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
KERNEL = re.compile(r"\| *([0-9.]+)(ns|µs|ms|s) *\| *(.*)")


def kernels_of(binary, case, folder, seconds):
    """Seconds and launches of a step by kind of kernel, as cubecl times them; that makes every kernel wait for the last."""
    log = Path(folder) / "kernels.log"
    (Path(folder) / "cubecl.toml").write_text(f'[profiling.logger]\nlevel = "basic"\nfile = "{log}"\nappend = true\n')
    command = student_command(binary, case | {"repeats": 2}, folder) + ["--kernels", str(log)]
    figures = run("kernels", command, case["device"], seconds, folder)
    if figures is None or not log.exists():
        return None
    start, end = figures["kernels"]
    return kernels_by_kind(log.read_bytes()[start:end].decode(errors="replace"), figures["steps"])


def kernels_by_kind(log, steps):
    taken, launches = Counter(), Counter()
    for line in log.splitlines():
        if match := KERNEL.search(line):
            number, unit, name = match.groups()
            # A name is a path with the types that it was compiled for and a hash.
            path = re.split(r"[<({\s]", name.strip())[0]
            kind = re.sub(r"_[0-9a-f]{8}$", "", path.rpartition("::")[2]) or name
            taken[kind] += float(number) * UNITS[unit]
            launches[kind] += 1
    return {kind: (taken[kind] / steps, launches[kind] / steps) for kind in taken}


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
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument("--prepare", action="store_true", help="fill the cache of torch.compile, and time nothing")
    parser.add_argument("--seconds", type=float, default=3600, help="after which a contender is given up")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--dropout", type=float, help="of every case; 0 compares all but random numbers")
    arguments = parser.parse_args()
    on_gpu = arguments.device != "cpu"
    binary = str(Path(arguments.binary).resolve())
    figures, are_complete = {}, True
    for name in arguments.cases.split(","):
        trains, config, rows, positions, lora = (ON_GPU if on_gpu else ON_CPU)[name]
        if arguments.dropout is not None and "hidden_dropout_prob" in config:
            config = config | {"hidden_dropout_prob": arguments.dropout, "attention_probs_dropout_prob": arguments.dropout}
        case = {"trains": trains, "config": config, "rows": rows, "positions": positions, "lora": lora,
                "device": arguments.device, "precision": "bf16" if on_gpu else "f32", "steps": arguments.steps,
                "warmup": 3 if on_gpu else 1, "repeats": 10 if on_gpu else 1, "profile": arguments.profile}
        if arguments.prepare:
            once = case | {"steps": 1, "warmup": 0, "repeats": 1, "profile": False, "compile": True}
            command = [sys.executable, __file__, "--torch", json.dumps(once)]
            run("torch.compile", command, arguments.device, arguments.seconds)
            continue
        compiled = on_gpu or arguments.compile
        figures[name] = compare(binary, name, case, arguments.rounds, compiled, arguments.seconds)
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1))
        are_complete &= len(figures[name]) == (3 if compiled else 2)
        if on_gpu and arguments.profile:
            are_complete &= "kernels" in figures[name].get("student", {})
    sys.exit(not are_complete)


if __name__ == "__main__":
    main()
