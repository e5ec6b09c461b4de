"""A third party's family: one gated recurrence-free block per layer, with names and shapes of its own."""

from llmctl import ConfigField, Family, Param, Size, Unsupported, hookimpl

B = "blocks.{layer}."

CARD = Family(
    name="parrot",
    architectures=("ParrotForCausalLM",),
    model_type="parrot",
    modeling="fake_parrot.modeling:ParrotForCausalLM",
    paddle_prefix="parrot.",
    torch_prefix="transformer.",
    position="none",
    settings=(
        ConfigField("layers", "n_layer"),
        ConfigField("hidden", "n_embd"),
        ConfigField("ffn", "n_inner", derive="hidden"),
        ConfigField("vocab", "vocab_size"),
        ConfigField("max_positions", "n_positions", 512),
    ),
    sizes={"tiny": Size("", 2 * (64 * 2 + 64 * 64 * 2) + 64 * 300, dict(layers=2, hidden=64, vocab=300))},
    params=(
        Param("wte.weight", "vocab, hidden", kind="embed"),
        Param(B + "norm.weight", "hidden", kind="norm", torch=B + "ln_1.weight"),
        Param(B + "up.weight", "hidden, ffn", torch=B + "mlp.c_fc.weight"),
        Param(B + "up.bias", "ffn", torch=B + "mlp.c_fc.bias"),
        Param(B + "down.weight", "ffn, hidden", torch=B + "mlp.c_proj.weight", torch_layout="same"),
    ),
    claims={"prefix-tuning": Unsupported("the family keeps no keys and values")},
)


@hookimpl
def describe_family():
    return CARD
