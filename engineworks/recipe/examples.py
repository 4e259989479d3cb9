"""One example for every key of a recipe, as YAML text. Editors' schema and the reference show them.

A test puts each of them into a recipe and validates it, and fails for a key without an example.
"""

from __future__ import annotations

from collections.abc import Mapping

from engineworks.recipe.metric import EXAMPLES as METRIC_EXAMPLES

_SAMPLES = {
    "npz": "data/calib.npz", "text": "data/intents.jsonl", "images": "photos", "columns": "[premise, hypothesis]",
    "tokenizer": "fetched/minilm", "messages": "messages", "processor": "fetched/vit", "max_length": "128",
    "padding": "max_length", "samples": "512", "names": "{image: x}",
}  # fmt: skip

EXAMPLES: Mapping[str, Mapping[str, str]] = {
    "Recipe": {
        "recipe": "bert-mini",
        "description": "Intent classifier of the support bot",
        "owner": "nlp@example.com",
        "tags": "[vision, weekly]",
        "model": "{source: {onnx: models/net.onnx}}",
        "inputs": "{image: {dtype: float32, shape: [batch, 1, 8, 8]}}",
        "outputs": "{logits: [batch, 10]}",
        "shapes": "{default: {batch: [1, 8, 64]}}",
        "batch": "batch",
        "precisions": "[fp32, fp16, int8]",
        "mixtures": "{int8-encoder: {default: fp16, int8: [encoder/*]}}",
        "data": "{evaluation: {npz: data/test.npz, labels: y}}",
        "calibration": "{method: minmax, keep: [classifier/*]}",
        "targets": "[cpu, rtx40]",
        "accuracy": "{metric: top1, limits: {int8: {metric_ratio: 0.99}}}",
        "performance": "{at: {single: {batch: 1}}, budget: {single: {p50_ms: 5}}}",
        "release": "{model: digits}",
        "time_limits": "{build: 3600}",
        "waivers": "[{check: 'cosine[logits]', owner: me@example.com, reason: old camera, expires: 2027-03-31}]",
    },
    "Model": {
        "source": "{onnx: models/net.onnx}", "decoder": "{context: 1024}", "opset": "17", "files": "[weights.pt]",
    },
    "Decoder": {
        "context": "1024", "cache": "{past_k: present_k, past_v: present_v}", "ties": "{total: past + sequence}",
    },
    "Source": {
        "onnx": "models/net.onnx", "torch": "resnet50:make_model", "huggingface": "fetched/minilm",
        "task": "text-classification", "mlflow": "models:/digits/3",
    },
    "Input": {"dtype": "float32", "shape": "[batch, 3, height, width]", "range": "[0, 255]"},
    "Data": {"calibration": "{npz: data/calib.npz, samples: 512}", "evaluation": "{npz: data/test.npz, labels: y}"},
    "Samples": _SAMPLES,
    "Evaluation": {**_SAMPLES, "npz": "data/test.npz", "samples": "1000", "labels": "y", "slices": "language"},
    "Calibration": {
        "method": "percentile", "percentile": "99.9", "averaging": "0.01", "batch": "16", "keep": "[classifier/*]",
        "unquantized": "fp16",
    },
    "Mixture": {
        "default": "fp16", "fp32": "[head/*]", "int8": "['op:Conv']", "fp8": "['*']", "int8_weights": "[embeddings/*]",
        "int4_weights": "['op:MatMul']",
    },
    "Accuracy": {
        "metric": "{top_k: 5}", "output": "logits", "limits": "{fp16: {cosine: 0.9999}, int8: {metric_ratio: 0.99}}",
    },
    "Limits": {
        "metric": "0.98", "metric_ratio": "0.99", "metric_delta": "0.005", "metric_between": "[0.9, 1.0]",
        "worst_slice_ratio": "0.95", "cosine": "0.9999", "sqnr_db": "30", "synthetic_cosine": "0.9", "max_abs": "0.01",
        "mean_abs": "0.001", "greedy_agreement": "0.9", "token_agreement": "0.95",
    },
    **METRIC_EXAMPLES,
    "Performance": {
        "at": "{single: {batch: 1}, bulk: {batch: 64}}",
        "budget": "{single: {p99_ms: 5}, bulk: {memory_mib: 500}}",
        "sweep": "{batch: [1, 8, 32], latency_ms: 3}",
        "streams": "[1, 2, 4]",
        "serving": "{cuda_graphs: true}",
        "regression": "{latency: 5%, accuracy: 0.5%}",
    },
    "Budget": {
        "p50_ms": "5", "p90_ms": "8", "p99_ms": "12", "throughput_per_s": "8000", "memory_mib": "1500",
        "load_ms": "2000", "first_run_ms": "500", "engine_mib": "90", "first_token_ms": "10", "tokens_per_s": "400",
    },
    "Sweep": {"batch": "[1, 8, 16, 32]", "streams": "[1, 4]", "prompt": "[32, 128]", "at": "single", "latency_ms": "3"},
    "ServingOptions": {"cuda_graphs": "true", "kernels": "eager", "load": "{qps: 200, p99_ms: 15}"},
    "ServedLoad": {"qps": "200", "find_qps": "true", "p99_ms": "15", "seconds": "30"},
    "Regression": {"latency": "5%", "accuracy": "0.5%", "max_s": "120"},
    "Release": {"model": "digits", "triton": "{instances: 2}", "serve": "required"},
    "Triton": {
        "dynamic_batching": "{preferred: [8, 16], max_delay_us: 500}", "instances": "2",
        "python_environment": "/opt/envs/digits.tar.gz", "runtime_cache": "/var/cache/engineworks", "warmup": "1",
    },
    "DynamicBatching": {"preferred": "[8, 16, 32]", "max_delay_us": "500", "measured": "true"},
    "Waiver": {
        "check": "cosine[logits]",
        "engine": "int8/*",
        "owner": "vision@example.com",
        "reason": "the old camera goes in March",
        "expires": "2027-03-31",
    },
    "TimeLimits": {
        "export": "600", "fold": "600", "calibrate": "3600", "lower": "1800", "build": "3600", "reference": "1800",
        "lowered_reference": "1800",
        "compare": "1800", "measure": "900", "compare_champion": "900", "serve": "900", "peer": "900", "prepare": "600",
    },
}  # fmt: skip
"""By the name of the part (as in the schema's `$defs`, `Recipe` for the top) and of the key."""
