"""Writes the goldens of the tests of adapters and prefixes: tiny models with what peft made for them, and their logits.

Each case in tests/goldens/adapters, tests/goldens/adapter_modules and tests/goldens/prefixes is a model folder with a folder ``adapter`` in it and
``golden.npz`` (``input_ids`` [2, 9], ``logits`` of peft's model; for prefixes also ``greedy_ids``, which begin with the first
row). Names such as ``prefixes/opt`` make only these. Needs torch, transformers and peft, which the project itself does not; the files in
the repository were made with torch 2.13, transformers 4.57.6 and peft 0.21.2. Run with: python tools/goldens/make_adapter_golden.py
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
DECODER = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, tie_word_embeddings=True,
)  # fmt: skip
MODELS = {
    "llama": DECODER,
    "llama_untied": dict(DECODER, tie_word_embeddings=False),
    "qwen2": DECODER,
    "mixtral": dict(DECODER, num_local_experts=2, num_experts_per_tok=2),
    "bloom": dict(vocab_size=64, hidden_size=16, n_layer=2, n_head=4),
    "gpt2": dict(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2),
    "opt": dict(
        vocab_size=64, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=32,
        word_embed_proj_dim=16,
    ),
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj"]
CASES = {
    "llama_plain": ("llama", dict(r=4, lora_alpha=6, target_modules="all-linear")),
    "llama_patterns": (
        "llama",
        dict(r=2, lora_alpha=4, target_modules=[*ATTENTION, "down_proj"], rank_pattern={"down_proj": 3},
             alpha_pattern={"layers.1.self_attn.k_proj": 7}),
    ),
    "qwen2_rslora": ("qwen2", dict(r=4, lora_alpha=4, target_modules=[*ATTENTION, "o_proj"], use_rslora=True)),
    "mixtral_experts": ("mixtral", dict(r=2, lora_alpha=4, target_modules=["q_proj", "w1", "w2", "w3"])),
    "bloom_dora": ("bloom", dict(r=2, lora_alpha=4, target_modules=["query_key_value", "dense"], use_dora=True)),
    "gpt2_dora_rslora": (
        "gpt2",
        dict(r=2, lora_alpha=2, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True, use_dora=True, use_rslora=True),
    ),
    "opt_pattern": ("opt", dict(r=2, lora_alpha=2, target_modules=r".*layers\.1\.(fc1|self_attn\.v_proj)")),
}  # fmt: skip
MODULES = {  # Adapters with whole tensors or rows of tokens in place of the base's.
    "llama_modules": (
        "llama_untied", dict(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head", "model.norm"]),
    ),
    "llama_grown_modules": (
        "llama_untied", dict(r=2, target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "llama_grown_tokens": ("llama", dict(r=2, target_modules=["q_proj"], trainable_token_indices=[64, 65, 66, 7])),
    "qwen2_embedding_of_tied": ("qwen2", dict(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    "bloom_tokens_of_tied": ("bloom", dict(r=2, target_modules=["dense"], trainable_token_indices=[9, 3, 40])),
    "gpt2_tied_modules": (
        "gpt2", dict(r=2, target_modules=["c_fc"], fan_in_fan_out=True, modules_to_save=["wte", "lm_head"],
                     ensure_weight_tying=True),
    ),
    "opt_tokens_of_each": (
        "opt", dict(r=2, target_modules=["fc1"], trainable_token_indices={"embed_tokens": [5, 3], "lm_head": [7, 3, 60]}),
    ),
}  # fmt: skip
TRAINED = ("llama_modules", "gpt2_tied_modules")
"""Cases with the gradients of what peft trains, of the sum of the cross entropies of ``input_ids``."""
GROWN = {"llama_grown_modules": 67, "llama_grown_tokens": 67}
"""Rows of the embedding after the tokenizer got more tokens, which peft then saves as a whole."""
PREFIXES = {
    "bloom": ("bloom", dict(num_virtual_tokens=3)),
    "gpt2": ("gpt2", dict(num_virtual_tokens=4)),
    "llama_projected": ("llama", dict(num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=12)),
    "opt": ("opt", dict(num_virtual_tokens=2)),
}


def make(folder: Path, kind: str, config: LoraConfig | PrefixTuningConfig) -> None:
    """One case, every tensor random."""
    torch.manual_seed(sum(map(ord, folder.name)))
    shutil.rmtree(folder, ignore_errors=True)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.partition("_")[0], **MODELS[kind])).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            norm = value.ndim == 1 and name.endswith("weight")
            # Values that bfloat16 holds keep the files small.
            value.copy_((torch.randn_like(value) * 0.3 + (1.0 if norm else 0.0)).bfloat16().float())
    model.bfloat16().save_pretrained(folder)
    # Read back, since tables of rotations are computed anew in float32.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if folder.name in GROWN:
        model.resize_token_embeddings(GROWN[folder.name], mean_resizing=False)
    model = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_magnitude" in name:
                value.mul_(torch.rand_like(value) + 0.5)
            elif "lora_" in name or "modules_to_save" in name or "trainable_tokens_delta" in name:
                value.copy_(torch.randn_like(value) * 0.3)
    # Here peft reads how many rows the base has.
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    ids = torch.randint(3, 64, (2, 9))
    tokens = [*range(64, GROWN.get(folder.name, 64)), *({3, 5, 7, 9, 40, 60} if "tokens" in folder.name else ())]
    ids[:, : len(tokens)] = torch.tensor(tokens)
    with torch.no_grad():
        arrays = {"input_ids": ids, "logits": model(ids).logits}
        if isinstance(config, PrefixTuningConfig):
            given = dict(input_ids=ids[:1], attention_mask=torch.ones_like(ids[:1]), eos_token_id=None, pad_token_id=0)
            arrays["greedy_ids"] = model.generate(**given, max_new_tokens=6, do_sample=False)
    if folder.name in TRAINED:
        arrays.update(gradients(model, ids))
    np.savez_compressed(folder / "golden.npz", **{name: value.numpy() for name, value in arrays.items()})
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = ".."
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")


def gradients(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """``grad/NAME`` of each trained parameter, by its name in the adapter's file."""
    logits = model(ids[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    short = {
        name: name.replace(".modules_to_save.default", "").replace(".default", "")
        for name, _ in model.named_parameters()
    }
    return {f"grad/{short[name]}": each.grad for name, each in model.named_parameters() if each.grad is not None}


if __name__ == "__main__":
    for name, cases, method in (
        ("adapters", CASES, LoraConfig),
        ("adapter_modules", MODULES, LoraConfig),
        ("prefixes", PREFIXES, PrefixTuningConfig),
    ):
        for case, (kind, settings) in cases.items():
            folder = GOLDENS / name / case
            if sys.argv[1:] and f"{name}/{case}" not in sys.argv[1:]:
                continue
            make(folder, kind, method(task_type="CAUSAL_LM", **settings))
            print(folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), "bytes")
