"""Check that the server computes MiniLM: float and base64 answers against transformers, on 20 texts of the data set.

Also checks that every text of the data set fits the context, counted with the model's own tokeniser.
usage: verify_server.py DATA_FOLDER MODEL_FOLDER     (SERVER_URL as `serve` sets it)
"""

import pathlib
import sys

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from embeddings_client import descriptions, embed

NUM_TEXTS = 20
WIDTH = 384
MIN_COSINE = 0.9999
MAX_TOKENS = 512


def main() -> None:
    data, model_folder = pathlib.Path(sys.argv[1]), sys.argv[2]
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = [text for split in ("train", "validation", "test") for text in descriptions(data / f"{split}.jsonl")]
    lengths = np.array([len(ids) for ids in tokenizer(texts)["input_ids"]])
    over = int((lengths > MAX_TOKENS).sum())
    quantiles = ", ".join(f"{q:.0%}: {np.quantile(lengths, q):.0f}" for q in (0.5, 0.9, 0.99))
    print(f"tokens a text ({len(texts):,} texts)   {quantiles}, longest: {lengths.max()}, over {MAX_TOKENS}: {over}")

    # The longest texts are where two implementations would part; the others are the first of the data set.
    chosen = [texts[i] for i in np.argsort(-lengths, kind="stable")[:5]] + texts[: NUM_TEXTS - 5]
    model = AutoModel.from_pretrained(model_folder).eval()
    encoded = tokenizer(chosen, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden_bld = model(**encoded).last_hidden_state
    mask_bl1 = encoded["attention_mask"].unsqueeze(-1)
    pooled_bd = torch.nn.functional.normalize((hidden_bld * mask_bl1).sum(1) / mask_bl1.sum(1)).numpy()

    smallest = 1.0
    float_bd = np.array(embed(chosen))
    base64_bd = np.array(embed(chosen, "base64"))
    for name, served_bd in (("float", float_bd), ("base64", base64_bd)):
        if served_bd.shape != (NUM_TEXTS, WIDTH):
            raise SystemExit(f"error: {name} answers have shape {served_bd.shape}, not {(NUM_TEXTS, WIDTH)}")
        norms_b = np.linalg.norm(served_bd, axis=1)
        cosine_b = (served_bd * pooled_bd).sum(1) / norms_b
        smallest = min(smallest, cosine_b.min())
        print(
            f"{name:<7} against transformers   smallest cosine {cosine_b.min():.7f}, "
            f"largest difference {np.abs(served_bd - pooled_bd).max():.2e}, "
            f"norm {norms_b.min():.6f} to {norms_b.max():.6f}"
        )
    print(f"float against base64           largest difference {np.abs(float_bd - base64_bd).max():.2e}")
    alone_bd = np.array([embed([text])[0] for text in chosen])
    print(f"alone against together         largest difference {np.abs(float_bd - alone_bd).max():.2e}")
    if smallest < MIN_COSINE or over:
        raise SystemExit(f"error: a cosine is below {MIN_COSINE}, or a text is over {MAX_TOKENS} tokens")


if __name__ == "__main__":
    main()
