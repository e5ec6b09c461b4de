"""A plugin whose card uses a symbol that is not a field of it."""

from llmctl import HF_DECODER, Family, Param, hookimpl


@hookimpl
def describe_family():
    return Family(
        name="badcard",
        architectures=("BadCard",),
        params=(Param("x.weight", "hidden, latent"), Param("y.{depth}.weight", "hidden, hidden")),
        settings=HF_DECODER,
        sizes={},
        modeling="nowhere",
    )
