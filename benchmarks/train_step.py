"""One training step of a 58M decoder here and in transformers on torch, in one run: forward, backward, AdamW.

Both sides hold the same weights and see the same tokens; a run whose losses differ by more than 1e-4 fails. The two are
worker processes that take turns and never compute at the same time. Other load does not slow both alike (torch's OpenMP
suffers several times more from a stolen core than paddle's), so interleaving alone would flatter us: the processor time
that other processes take is measured during each turn, and only rounds in which it was small on both sides count. Where our time
goes is shown by ``step_profile.py``.

    python benchmarks/train_step.py --peer-python /path/to/python/with/transformers
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

LAYERS, HIDDEN, HEADS, FFN, VOCAB, BATCH, TOKENS = 8, 512, 8, 1376, 32000, 4, 256
ADAMW = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
PAUSE = 0.3  # seconds; longer than OpenMP's threads of the other worker spin after their last work
TOLERANCE = 1e-4
FOREIGN = 0.10  # cores that others may use during a turn that counts


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


def our_step():
    """A function that makes one step and returns the loss before it; and our name."""
    from llmctl import runtime

    runtime.configure()
    import paddle

    from llmctl.nn.loss import token_loss
    from llmctl.train.optimizer import AdamW
    from llmctl_llama.modeling import LlamaForCausalLM

    dims = SimpleNamespace(
        layers=LAYERS, hidden=HIDDEN, heads=HEADS, kv_heads=HEADS, head_dim=HIDDEN // HEADS, ffn=FFN, vocab=VOCAB,
        tied=False, attention_bias=False, mlp_bias=False, norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None,
        max_positions=2048, init_std=0.02,
    )  # fmt: skip
    model = LlamaForCausalLM(dims)
    state = model.state_dict()
    for name, value in tensors().items():
        ours = name.replace("model.", "llama.")
        state[ours].set_value(value if "embed" in name else value.T.copy())
    settings = {key: value for key, value in ADAMW.items() if key != "lr"}
    optimizer = AdamW(dict(model.named_parameters()), **settings)
    ids, labels = (paddle.to_tensor(array) for array in tokens())

    def step():
        hidden = model.hidden_states(ids)
        loss = token_loss(model.logits(hidden.reshape([-1, HIDDEN])), labels.reshape([-1])) / labels.size
        loss.backward()
        optimizer.step(ADAMW["lr"])
        return float(loss)

    return step, f"llmctl, paddle {paddle.__version__}"


def peer_step(fused):
    """The same with transformers and torch, eager, with torch's SDPA attention."""
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FFN,
        vocab_size=VOCAB, max_position_embeddings=2048, rms_norm_eps=1e-6, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).float().train()
    missing = model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors().items()}, strict=False)
    assert not missing.unexpected_keys and all("norm" in key for key in missing.missing_keys)
    settings = {"lr": ADAMW["lr"], "eps": ADAMW["eps"], "weight_decay": ADAMW["weight_decay"]}
    betas = (ADAMW["beta1"], ADAMW["beta2"])
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, fused=fused, **settings)
    ids, labels = (torch.from_numpy(array) for array in tokens())

    def step():
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, VOCAB), labels.reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step, f"transformers {transformers.__version__}, torch {torch.__version__}, fused AdamW {fused}"


def work(make):
    """Serves one side: for each line ``n`` on stdin makes n steps and prints their seconds and losses as JSON."""
    step, name = make()
    print(json.dumps({"name": name}), flush=True)
    for line in sys.stdin:
        seconds, losses, cpu = [], [], time.process_time()
        for _ in range(int(line)):
            start = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds, "losses": losses, "cpu": time.process_time() - cpu}), flush=True)


class Worker:
    """The process of one side."""

    def __init__(self, python, side, threads, extra=()):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "LLMCTL_THREADS": str(threads)}
        command = [python, os.path.abspath(__file__), "--worker", side, *extra]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.name = self._read()["name"]

    def turn(self, steps):
        """Makes steps; seconds and losses of each, and the cores that other processes used meanwhile."""
        time.sleep(PAUSE)
        busy, start = busy_seconds(), time.perf_counter()
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._read()
        foreign = busy_seconds() - busy - answer["cpu"]
        return {**answer, "foreign": foreign / (time.perf_counter() - start)}

    def _read(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a worker ended with status {self.process.wait()}: {' '.join(self.process.args)}")


def busy_seconds():
    """Processor seconds that all processes used since boot, time stolen by the hypervisor included (Linux)."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, interrupts, soft, steal = (int(field) for field in stat.readline().split()[1:9])
    return (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")


def compare(options):
    """Runs rounds until enough were quiet; prints a table and a line of JSON.

    Raises:
        SystemExit: The losses differ, or too few rounds were quiet for a ratio.
    """
    workers = [
        Worker(sys.executable, "ours", options.threads),
        Worker(options.peer_python, "peer", options.threads, ["--peer-adamw", options.peer_adamw]),
    ]
    rounds, worst = [], 0.0
    for index in range(options.attempts + 1):
        ours, peer = (worker.turn(options.steps) for worker in workers)
        worst = max([worst, *(abs(a - b) for a, b in zip(ours["losses"], peer["losses"], strict=True))])
        if worst > TOLERANCE:
            raise SystemExit(
                f"the losses differ by {worst:.2g}, more than {TOLERANCE}: the sides do not do the same work"
            )
        pair = [statistics.median(side["seconds"]) for side in (ours, peer)]
        foreign = max(ours["foreign"], peer["foreign"])
        verdict = "warm-up" if index == 0 else "counts" if foreign <= FOREIGN else "busy, dropped"
        print(
            f"{index:>3} ours {pair[0]:.3f} s  peer {pair[1]:.3f} s  ratio {pair[0] / pair[1]:.3f}  "
            f"others {ours['foreign']:.2f} / {peer['foreign']:.2f} cores  {verdict}",
            flush=True,
        )
        rounds += [pair] if verdict == "counts" else []
        if len(rounds) == options.rounds:
            break
    if len(rounds) < options.rounds:
        raise SystemExit(
            f"only {len(rounds)} of {options.rounds} rounds were quiet: no ratio; run it on an idle machine"
        )
    ratios = [a / b for a, b in rounds]
    result = {
        "ours": workers[0].name,
        "peer": workers[1].name,
        "threads": options.threads,
        "ours_s": statistics.median(a for a, _ in rounds),
        "peer_s": statistics.median(b for _, b in rounds),
        "ours_best_s": min(a for a, _ in rounds),
        "peer_best_s": min(b for _, b in rounds),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "largest_loss_difference": worst,
    }
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("LLMCTL_PEER_PYTHON"))
    parser.add_argument(
        "--peer-adamw", choices=("fused", "loop"), default="fused", help="fused is HF Trainer's default"
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--attempts", type=int, default=40, help="rounds at most, quiet or not")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn; their median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "ours":
        work(our_step)
    elif options.worker == "peer":
        work(lambda: peer_step(options.peer_adamw == "fused"))
    elif not options.peer_python:
        parser.error("--peer-python (or LLMCTL_PEER_PYTHON) must name a python with torch and transformers")
    else:
        compare(options)


if __name__ == "__main__":
    main()
