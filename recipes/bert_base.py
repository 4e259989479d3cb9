"""BERT-base for `bert-base.yaml`: the architecture of bert-base-uncased, random weights from a seed, no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from random_weights import fill

if TYPE_CHECKING:
    import torch

LABELS = 2


def classifier() -> torch.nn.Module:
    """input_ids, attention_mask, token_type_ids int64[batch, sequence ≤ 512] → logits f32[batch, 2]."""
    from transformers import BertConfig, BertForSequenceClassification

    return fill(BertForSequenceClassification(BertConfig(num_labels=LABELS)))  # its defaults are bert-base-uncased's
