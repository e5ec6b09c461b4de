"""What loaders of other tools make of folders that ``llmctl quantize`` writes, beside the float model that ``llmctl convert`` makes of them.

python benchmarks/loaders.py --peer-python PYTHON [--case NAME]

PYTHON has torch and transformers, and of compressed-tensors, auto-gptq, autoawq and gptqmodel those that are to be compared; of
auto-gptq and autoawq only the modules that unpack weights are loaded, as the packages no longer import beside a new transformers.
Weights are compared exactly (rounding of float16 apart), logits of a few tokens by transformers in float32.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

STARTER = Path(__file__).resolve().parents[1] / "plugins" / "llama" / "llmctl_llama" / "starter"
ASYMMETRIC = ("--set", "quantize.asymmetric=true")
CASES = {
    "gptq, 4 bits": ("gptq", "--method", "gptq", "--group", "32"),
    "gptq, 4 bits, zero points": ("gptq", "--method", "gptq", "--group", "32", *ASYMMETRIC),
    "gptq, 8 bits": ("gptq", "--method", "weight-only-int8", "--group", "0"),
    "awq, 4 bits": ("awq", "--method", "awq", "--group", "32"),
    "awq, 4 bits, zero points": ("awq", "--method", "awq", "--group", "32", *ASYMMETRIC),
    "compressed-tensors, 4 bits": ("compressed-tensors", "--method", "gptq", "--group", "32"),
    "compressed-tensors, 4 bits, zero points": ("compressed-tensors", "--method", "awq", "--group", "32", *ASYMMETRIC),
    "compressed-tensors, 4 bits, qkv in 8": ("compressed-tensors", "--method", "gptq", "--group", "32", "--qkv", "int8"),
    "compressed-tensors, 4 bits, k and v in 8": ("compressed-tensors", "--method", "gptq", "--group", "32", "--qkv", "mixed"),
    "compressed-tensors, 8 bits": ("compressed-tensors", "--method", "weight-only-int8", "--group", "32"),
    "compressed-tensors, W8A8": ("compressed-tensors", "--method", "ptq-a8w8", "--set", "quantize.shift=false"),
    "compressed-tensors, W8A8, zero points": (
        "compressed-tensors", "--method", "ptq-a8w8", "--set", "quantize.shift=false", *ASYMMETRIC,
    ),
}  # fmt: skip
"""Name -> format and options of ``llmctl quantize``."""

IDS = [[1, 3, 623, 289, 688, 293, 289, 424, 14, 2]]


def main() -> None:
    """Quantizes the starter model in each layout, and prints what the loaders read."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peer-python", help="Python with torch, transformers and the loaders")
    options.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    options.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.peer:
        print(json.dumps(peer(*map(Path, given.peer))))
        return
    if not given.peer_python:
        options.error("--peer-python is missing")
    for name in given.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(name, given.peer_python, Path(folder)):
                print(f"{name:42} {row['loader']:34} {row['result']}", flush=True)


def measure(name: str, python: str, work: Path) -> list[dict[str, str]]:
    """What the loaders that read a case make of it."""
    form, *words = CASES[name]
    text = STARTER / "data" / "dev.jsonl"
    made, floats = work / "made", work / "floats"
    few = ("--tokens", "3000", "--max-kl", "10")
    llmctl("quantize", STARTER / "model", "--calibration", text, *few, "--format", form, "--output", made, *words)
    llmctl("convert", made, floats, "--to", "hf", "--dtype", "float32")
    done = subprocess.run(
        [python, "-W", "ignore", __file__, "--peer", str(made), str(floats)], stdout=subprocess.PIPE, text=True, check=True
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def llmctl(*words: object) -> None:
    """Runs a command."""
    subprocess.run(
        [sys.executable, "-m", "llmctl", *map(str, words)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


# What follows runs in the other Python.


def peer(made: Path, floats: Path) -> list[dict[str, str]]:
    """Results of each loader that reads the folder."""
    import torch
    from transformers import AutoModelForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = json.loads((made / "config.json").read_text())["quantization_config"]
    wanted = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
    rows = []
    for package, load in LOADERS[config["quant_method"]].items():
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            continue
        try:
            found = load(made, config, floats)
            result = compare(found, wanted)
        except Exception as error:  # a loader that fails is a result
            result = f"fails: {type(error).__name__}: {str(error).splitlines()[0]}"
        version = importlib.metadata.version({"awq": "autoawq"}.get(package, package))
        rows.append({"loader": f"{package} {version}", "result": result})
    return rows


def compare(found: object, wanted: object) -> str:
    """Greatest differences of weights and of logits, both as shares of the greatest value."""
    import torch

    modules, worst, count = dict(found.named_modules()), 0.0, 0
    for name, module in wanted.named_modules():
        if type(module).__name__ != "Linear" or name == "lm_head":
            continue
        weight = module.weight.detach()
        apart = (weight_of(modules[name]) - weight).abs().max() / weight.abs().max()
        worst, count = max(worst, float(apart)), count + 1
    with torch.no_grad():
        right = wanted(torch.tensor(IDS)).logits
        logits = found(torch.tensor(IDS)).logits.float()
    far = float((logits - right).abs().max() / right.abs().max())
    return f"{count} weights within {worst:.1e}, logits within {far:.1e}"


def weight_of(module: object) -> object:
    """The weight [out, in] of a linear that computes."""
    import torch

    if isinstance(module, torch.nn.Linear):
        return module.weight.detach().float()
    inputs = getattr(module, "infeatures", None) or module.in_features
    with torch.no_grad():
        return module(torch.eye(inputs)).float().T


def by_transformers(made: Path, config: dict, floats: Path) -> object:
    """The model as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    with torch.no_grad():
        model(torch.tensor(IDS))  # unpacks what is unpacked late
    return model


def by_auto_gptq(made: Path, config: dict, floats: Path) -> object:
    """The model with AutoGPTQ's linears of torch."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    linear = module_of("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    tensors = load_file(made / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        parts = {key: tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx")}
        outputs = parts["scales"].shape[1]
        made_of = linear(
            config["bits"], config["group_size"], len(parts["g_idx"]), outputs, False, weight_dtype=torch.float32
        )
        made_of.load_state_dict({**parts, "scales": parts["scales"].float()})
        made_of.autogptq_cuda_available = False
        model.set_submodule(name, made_of)
    return model


def by_auto_awq(made: Path, config: dict, floats: Path) -> object:
    """The model with weights that AutoAWQ unpacks."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    unpack = module_of("awq", "utils/packing_utils.py").dequantize_gemm
    tensors = load_file(made / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32)
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        parts = [tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales")]
        weight = unpack(parts[0], parts[1], parts[2].float(), config["bits"], config["group_size"])
        model.get_submodule(name).weight.data = weight.T.contiguous()
    return model


def module_of(package: str, file: str) -> object:
    """A module of a package whose other modules are not imported."""
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    spec = importlib.util.spec_from_file_location("one_module", Path(folder) / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOADERS = {
    "compressed-tensors": {"compressed-tensors": by_transformers},
    "gptq": {"auto-gptq": by_auto_gptq, "gptqmodel": by_transformers},
    "awq": {"awq": by_auto_awq, "gptqmodel": by_transformers},
}
"""Method -> package and how it loads."""

if __name__ == "__main__":
    main()
