"""One training step of a 58M decoder here and in transformers on torch, in one run: forward, backward, AdamW.

Both sides hold the same weights and see the same tokens; a run whose losses differ by more than 1e-4 fails. How the two
take turns is in ``turns.py``, where our time goes is shown by ``step_profile.py``.

    python benchmarks/train_step.py --peer-python /path/to/python/with/transformers
"""

from __future__ import annotations

from types import SimpleNamespace

from lib import turns

LAYERS, HIDDEN, HEADS, FFN, VOCAB, BATCH, TOKENS = 8, 512, 8, 1376, 32000, 4, 256
ADAMW = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
TOLERANCE = 1e-4


def tensors():
    """Names as in transformers, and arrays [out, in]; the same on both sides."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (FFN, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (HIDDEN, FFN)}
    return {name: rng.standard_normal(shape, dtype="float32") * 0.02 for name, shape in shapes.items()}


def tokens():
    """Ids and next ids [BATCH, TOKENS]."""
    import numpy as np

    ids = np.random.default_rng(1).integers(0, VOCAB, (BATCH, TOKENS + 1))
    return ids[:, :-1], ids[:, 1:]


def our_model():
    """The model here, with the weights of ``tensors``; paddle must be configured."""
    from llmctl_llama.modeling import LlamaForCausalLM

    dims = SimpleNamespace(
        layers=LAYERS, hidden=HIDDEN, heads=HEADS, kv_heads=HEADS, head_dim=HIDDEN // HEADS, ffn=FFN, vocab=VOCAB,
        tied=False, attention_bias=False, mlp_bias=False, norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None,
        max_positions=2048, init_std=0.02,
    )  # fmt: skip
    model = LlamaForCausalLM(dims)
    fill(model, {name.replace("model.", "llama.", 1): value for name, value in tensors().items()})
    return model


def fill(model, values):
    """Sets a model's weights from arrays [out, in] under its own names."""
    state = model.state_dict()
    for name, value in values.items():
        state[name].set_value(value if "embed" in name else value.T.copy())


def our_optimizer(model):
    """AdamW over what moves in the model."""
    from llmctl.train.optim.adamw import AdamW

    settings = {key: value for key, value in ADAMW.items() if key != "lr"}
    return AdamW(dict(model.named_parameters()), **settings)


def our_step(options):
    """A function that makes one step and returns the loss before it; and our name."""
    from llmctl import runtime

    runtime.configure()
    import paddle

    model = our_model()
    return our_update(model, our_optimizer(model)), f"llmctl, paddle {paddle.__version__}"


def our_update(model, optimizer, data=tokens):
    """A function that makes one step on ids and next ids, and returns the loss before it."""
    import paddle

    from llmctl.nn.loss import token_loss

    ids, labels = (paddle.to_tensor(array) for array in data())
    model.train()

    def step():
        hidden = model.hidden_states(ids)
        logits = model.logits(hidden.reshape([-1, hidden.shape[-1]]))
        loss = token_loss(logits, labels.reshape([-1]), overwrite=True) / labels.size
        loss.backward()
        optimizer.step(ADAMW["lr"])
        return float(loss)

    return step


def peer_model(threads):
    """The model in transformers, eager, with torch's SDPA attention and the weights of ``tensors``."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FFN,
        vocab_size=VOCAB, max_position_embeddings=2048, rms_norm_eps=1e-6, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).float().train()
    peer_fill(model, tensors())
    return model


def peer_fill(model, values):
    """Sets a torch model's weights from arrays under its names; all but the norms must be there."""
    import torch

    missing = model.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
    assert not missing.unexpected_keys and all("norm" in key for key in missing.missing_keys)


def peer_optimizer(model, lr=ADAMW["lr"], fused=True):
    """Torch's AdamW over what moves in the model."""
    import torch

    settings = {"lr": lr, "eps": ADAMW["eps"], "weight_decay": ADAMW["weight_decay"], "fused": fused}
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(moving, betas=(ADAMW["beta1"], ADAMW["beta2"]), **settings)


def peer_update(model, optimizer, data=tokens):
    """As ``our_update``."""
    import torch

    ids, labels = (torch.from_numpy(array) for array in data())

    def step():
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def peer_name():
    """Transformers and torch with their versions."""
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def peer_step(options):
    """The same with transformers and torch."""
    fused = options.peer_adamw == "fused"
    model = peer_model(options.threads)
    return peer_update(model, peer_optimizer(model, fused=fused)), f"{peer_name()}, fused AdamW {fused}"


def arguments(parser):
    parser.add_argument(
        "--peer-adamw", choices=("fused", "loop"), default="fused", help="fused is HF Trainer's default"
    )


if __name__ == "__main__":
    turns.main(__doc__, __file__, {"ours": our_step, "peer": peer_step}, TOLERANCE, arguments)
