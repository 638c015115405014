"""Make the models that the servers serve: tiny, random, with real tokenisers, chat templates and file formats.

usage: make_models.py REPOSITORY OUTPUT_FOLDER

    tiny/               a Qwen2 of 2 layers in the layout of Hugging Face      for `transformers serve`
    tiny-f32.gguf       the same weights in the layout of llama.cpp            for `llama-server`
    tiny-q8_0.gguf      the same weights, rounded to 8 bits                    the other quantisation of a router
    tiny-mmproj.gguf    a CLIP of 3 layers with LLaVA's projector              the eyes of `llama-server`

Weights are drawn from a fixed seed. The two text models are the same function, so one server can be compared with the
other's arithmetic. The tokeniser is byte-level BPE, trained on the repository's own texts; some of its ids are lone
bytes of a UTF-8 sequence, which every server prints alike.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SEED = 7
VOCABULARY = 4096
WIDTH = 64
LAYERS = 2
HEADS = 4
KEY_HEADS = 2
FEED_FORWARD = 128
CONTEXT = 4096
VISION_LAYERS = 3
IMAGE = 32
PATCH = 8
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(repository: pathlib.Path) -> Tokenizer:
    """Byte-level BPE with the pre-tokeniser of GPT-2, which both servers know."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    patterns = ("data/scenes/*.jsonl", "LICENSE-*", "docs/**/*.md", "schemas/src/*.rs")
    files = sorted(str(file) for pattern in patterns for file in repository.glob(pattern))
    tokenizer.train(files, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"error: the texts gave {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    return tokenizer


def make_text_model() -> Qwen2ForCausalLM:
    """Random weights, large enough that the next token is far from uniform."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=SPECIAL.index("<|endoftext|>"),
    )
    torch.manual_seed(SEED)
    model = Qwen2ForCausalLM(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.25 if "lm_head" in name else 0.15)
        # A random model ends an answer at random; this one goes on until the limit that it was given.
        model.lm_head.weight[: len(SPECIAL)] *= 0.01
    return model


def save_hugging_face(model: Qwen2ForCausalLM, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    model.save_pretrained(folder)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=CONTEXT
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


# Hugging Face's names of a Qwen2 layer and llama.cpp's.
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def text_tensors(model: Qwen2ForCausalLM) -> dict[str, np.ndarray]:
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(LAYERS):
        for theirs, ours in LAYER_NAMES.items():
            for part in ("weight", "bias"):
                value = state.get(f"model.layers.{layer}.{theirs}.{part}")
                if value is not None:
                    tensors[f"blk.{layer}.{ours}.{part}"] = value
    return tensors


def write_text_gguf(path: pathlib.Path, model: Qwen2ForCausalLM, tokenizer: Tokenizer, quantised: bool) -> None:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if quantised else gguf.LlamaFileType.ALL_F32)

    tokens = [text for text, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if text in SPECIAL else gguf.TokenType.NORMAL for text in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(SPECIAL.index("<|im_end|>"))
    writer.add_pad_token_id(SPECIAL.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    for name, value in text_tensors(model).items():
        if quantised and value.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    write(writer)


def write_vision_gguf(path: pathlib.Path) -> None:
    """CLIP and LLaVA's two linear layers, under the names that llama.cpp's clip.cpp reads."""
    generator = np.random.default_rng(SEED)

    def random(*shape: int) -> np.ndarray:
        return generator.normal(0.0, 0.15, shape).astype(np.float32)

    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name("tiny-mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    vision = {
        "image_size": IMAGE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "block_count": VISION_LAYERS,
        "attention.head_count": HEADS,
        "projection_dim": WIDTH,
    }
    for key, value in vision.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)

    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    writer.add_tensor("v.class_embd", random(WIDTH))
    writer.add_tensor("v.patch_embd.weight", random(WIDTH, 3, PATCH, PATCH))
    writer.add_tensor("v.position_embd.weight", random((IMAGE // PATCH) ** 2 + 1, WIDTH))
    writer.add_tensor("v.pre_ln.weight", ones)
    writer.add_tensor("v.pre_ln.bias", zeros)
    for layer in range(VISION_LAYERS):
        prefix = f"v.blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            writer.add_tensor(f"{prefix}.{name}.weight", random(WIDTH, WIDTH))
            writer.add_tensor(f"{prefix}.{name}.bias", zeros)
        for name in ("ln1", "ln2"):
            writer.add_tensor(f"{prefix}.{name}.weight", ones)
            writer.add_tensor(f"{prefix}.{name}.bias", zeros)
        writer.add_tensor(f"{prefix}.ffn_up.weight", random(FEED_FORWARD, WIDTH))
        writer.add_tensor(f"{prefix}.ffn_up.bias", np.zeros(FEED_FORWARD, np.float32))
        writer.add_tensor(f"{prefix}.ffn_down.weight", random(WIDTH, FEED_FORWARD))
        writer.add_tensor(f"{prefix}.ffn_down.bias", zeros)
    for index in (0, 2):
        writer.add_tensor(f"mm.{index}.weight", random(WIDTH, WIDTH))
        writer.add_tensor(f"mm.{index}.bias", zeros)
    write(writer)


def write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    repository, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(repository)
    model = make_text_model()
    save_hugging_face(model, tokenizer, output / "tiny")
    write_text_gguf(output / "tiny-f32.gguf", model, tokenizer, quantised=False)
    write_text_gguf(output / "tiny-q8_0.gguf", model, tokenizer, quantised=True)
    write_vision_gguf(output / "tiny-mmproj.gguf")


if __name__ == "__main__":
    main()
