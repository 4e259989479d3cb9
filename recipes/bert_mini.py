"""BERT-mini for `bert-mini.yaml`: the architecture of prajjwal1/bert-mini, random weights from a seed, no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from random_weights import fill

if TYPE_CHECKING:
    import torch

LABELS = 2


def classifier() -> torch.nn.Module:
    """input_ids, attention_mask, token_type_ids int64[batch, sequence ≤ 512] → logits f32[batch, 2]."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30522,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=512,
        num_labels=LABELS,
    )
    return fill(BertForSequenceClassification(config))
