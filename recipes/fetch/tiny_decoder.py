"""Makes recipes/models/tiny-decoder: a Llama of 20,000 parameters, trained on LICENSE, and its ONNX export.

Everything is seeded. Needs torch and transformers (`make test-torch` installs them); what it makes is in git, so that
the recipe and the tests of decoders need neither. Run it from the repository's root.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from engineworks.model.decoder.from_huggingface import export_decoder

OUT, TEXT = Path("recipes/models/tiny-decoder"), Path("LICENSE")
HELD_OUT = Path("recipes/data/tiny-decoder.txt")
VOCABULARY, CONTEXT, STEPS, BATCH, LENGTH = 256, 96, 700, 16, 64


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [c for c in pre_tokenizers.ByteLevel.alphabet() if ord(c) < 0x7F or c in "ĠĊ"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(TEXT)], trainer)
    return tokenizer


def train(ids: torch.Tensor) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        starts = torch.randint(0, len(ids) - LENGTH - 1, (BATCH,))
        batch = torch.stack([ids[s : s + LENGTH] for s in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    torch.set_num_threads(1)
    text = TEXT.read_text(encoding="utf-8")
    tokenizer = make_tokenizer()
    model = train(torch.tensor(tokenizer.encode(text).ids))
    model.save_pretrained(OUT)
    tokenizer.save(str(OUT / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": CONTEXT}
    (OUT / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    report, _ = export_decoder(str(OUT), Path(), CONTEXT, OUT)
    print(*report.notes, sep="\n")
    HELD_OUT.write_text(text[3000:7000], encoding="utf-8")


if __name__ == "__main__":
    main()
