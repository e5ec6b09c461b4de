"""Inference here, in llama.cpp and in transformers on torch, in one run: the same random LLaMA, the same tokens.

    python benchmarks/inference.py --work decode --size 58m --weights int8 --peer llama.cpp --peer-python PYTHON

Works: ``decode``, 64 tokens after a prompt of 8 or of ``--context`` that was computed before, one sequence; ``prefill``, 512 tokens; ``throughput``, 32 requests of
mixed lengths at once; ``start``, a new process from its beginning to the first token of a model that was packed before.
llama.cpp holds int8 as Q8_0 and int4 as Q4_0, made by its own tool; the peer's python needs the packages llama-cpp-python
and gguf, or torch and transformers. Models are written to ``--models`` once. That all
compute the same is tested elsewhere (recordings, ``tests/unit/test_native.py``). How the sides take turns is in ``turns.py``.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
from pathlib import Path

from lib import random_llama, turns

PROMPT, NEW, LONG = 8, 64, 512
CACHES = {"float32": 0, "float16": 1, "int8": 8}
"""llama.cpp's types of the KV cache."""
PADDED = 8
"""Rows of a batch of the peer that pads."""


def ids(count, seed=0):
    """Token ids that stand for a text; the special ones are left out."""
    import numpy as np

    return np.random.default_rng([seed, count]).integers(3, 32000, count).tolist()


def requests():
    """Prompts and the numbers of new tokens of the work ``throughput``."""
    import numpy as np

    rng = np.random.default_rng(5)
    sizes = zip(rng.integers(16, 257, 32).tolist(), rng.integers(16, 129, 32).tolist(), strict=True)
    return [(ids(prompt, seed=1 + i), new) for i, (prompt, new) in enumerate(sizes)]


def transformers_side(options):
    """transformers on torch, in float32."""
    if options.weights != "float32":
        raise SystemExit("transformers is a peer of --weights float32 only")
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    folder = random_llama.write_folder(Path(options.models) / options.size, options.size)
    name = f"transformers {transformers.__version__}, torch {torch.__version__}"
    if options.work == "start":
        return lambda: first_token(options, "transformers"), name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None

    def generate(rows, new):
        longest = max(map(len, rows))
        batch = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(
            batch, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        return float(out.logits[-1][0].max())

    def throughput():
        asked = requests()
        for start in range(0, len(asked), PADDED):
            batch = asked[start : start + PADDED]
            generate([prompt for prompt, _ in batch], max(new for _, new in batch))
        return 0.0

    works = {
        "decode": lambda: generate([ids(options.context)], NEW),
        "prefill": lambda: float(model(torch.tensor([ids(LONG)]), logits_to_keep=1).logits.max()),
        "throughput": throughput,
    }
    return works[options.work], name


def first_token(options, side):
    """Runs a process up to the first token of a model that lies ready."""
    command = [sys.executable, __file__, "--first-token", side, *sys.argv[1:]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 0.0


class Llama:
    """llama.cpp through its C interface: tokens of several sequences in one call.

    Args:
        options: Options of the command line.
        room: Places in the cache.
        sequences: Most sequences at once.
    """

    def __init__(self, options, room, sequences):
        import llama_cpp

        self.c, self.vocab = llama_cpp, random_llama.SIZES[options.size]["vocab"]
        # Its log goes nowhere; the callback must outlive the calls.
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        file = random_llama.write_gguf(Path(options.models) / f"{options.size}.gguf", options.size)
        file = random_llama.quantise_gguf(file, options.weights)
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = room, LONG, LONG, sequences
        settings.n_threads = settings.n_threads_batch = options.threads
        # Each sequence has a cache of its own, so that it does not look through those of others.
        settings.kv_unified = False
        settings.type_k = settings.type_v = CACHES[options.kv]
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit("llama.cpp made no context")
        self.batch, self.prompt = llama_cpp.llama_batch_init(LONG, 0, 1), []

    def forget(self):
        """Empties the cache."""
        self.prompt = []
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), False)

    def run(self, tokens):
        """Computes (id, place, sequence, whether its logits are wanted) of each token."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, place, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        status = self.c.llama_decode(self.context, batch)
        if status:
            raise SystemExit(f"llama_decode failed: {status}")

    def logits(self, i):
        """Logits of token i of the last call [V]."""
        import numpy as np

        return np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.context, i), shape=(self.vocab,))

    def generate(self, prompt, new):
        """Greedy tokens of one sequence; the largest logit of the last. All but the last token of the prompt of the call before are
        kept."""
        last = len(prompt) - 1
        if prompt != self.prompt:
            self.forget()
            for start in range(0, last, LONG):
                self.run([(token, i, 0, False) for i, token in enumerate(prompt[:last])][start : start + LONG])
            self.prompt = prompt
        self.c.llama_memory_seq_rm(self.c.llama_get_memory(self.context), 0, last, -1)
        self.run([(prompt[last], last, 0, True)])
        row = self.logits(0)
        for i in range(new - 1):
            self.run([(int(row.argmax()), len(prompt) + i, 0, True)])
            row = self.logits(0)
        return float(row.max())

    def prefill(self, prompt):
        """The largest logit after a prompt."""
        self.forget()
        self.run([(token, i, 0, i == len(prompt) - 1) for i, token in enumerate(prompt)])
        return float(self.logits(len(prompt) - 1).max())

    def serve(self, asked):
        """All requests at once: one token of each answer, and stretches of prompts up to the size of a batch."""
        self.forget()
        states = [{"prompt": prompt, "new": new, "past": 0, "made": 0, "next": 0} for prompt, new in asked]
        while any(state["made"] < state["new"] for state in states):
            tokens, asking = [], []
            for sequence, state in enumerate(states):
                if state["past"] >= len(state["prompt"]) and state["made"] < state["new"]:
                    asking.append((len(tokens), state))
                    tokens.append((state["next"], state["past"], sequence, True))
                    state["past"] += 1
            for sequence, state in enumerate(states):
                rest = state["prompt"][state["past"] :][: LONG - len(tokens)]
                if state["past"] >= len(state["prompt"]) or not rest:
                    continue
                last = state["past"] + len(rest) == len(state["prompt"])
                tokens += [(t, state["past"] + i, sequence, last and i == len(rest) - 1) for i, t in enumerate(rest)]
                state["past"] += len(rest)
                if last:
                    asking.append((len(tokens) - 1, state))
            self.run(tokens)
            for i, state in asking:
                state["next"] = int(self.logits(i).argmax())
                state["made"] += 1
        return 0.0


def llama_side(options):
    """llama.cpp."""
    asked = requests()
    longest = (max(len(prompt) + new for prompt, new in asked) + 255) // 256 * 256
    room = len(asked) * longest if options.work == "throughput" else options.context + 256
    import llama_cpp

    name = f"llama.cpp of llama-cpp-python {llama_cpp.__version__}"
    if options.work == "start":
        return lambda: first_token(options, "llama.cpp"), name
    llama = Llama(options, room, len(asked) if options.work == "throughput" else 1)
    works = {
        "decode": lambda: llama.generate(ids(options.context), NEW),
        "prefill": lambda: llama.prefill(ids(LONG)),
        "throughput": lambda: llama.serve(asked),
    }
    return works[options.work], name


def packed_folder(options):
    """The model as ``llmctl export --engine fused`` packs it; the same as before if it is there."""
    source = random_llama.write_folder(Path(options.models) / options.size, options.size)
    folder = Path(options.models) / f"{options.size}-{options.weights}-packed"
    if not folder.exists():
        from llmctl import plugins
        from llmctl.checkpoint import read_config
        from llmctl.infer.packed.folder import save_packed
        from llmctl.infer.packed.pack import pack_model

        plugin = plugins.load("llama")
        dims = plugin.card.dims_from_config(read_config(source), str(source))
        save_packed(pack_model(source, plugin, dims, options.weights), folder, source, plugin)
    return folder


def our_request(prompt, new):
    """A prompt with the number of new tokens, greedy."""
    from llmctl.infer.request import Request
    from llmctl.infer.sampling import SamplingParams

    return Request(prompt=prompt, options=SamplingParams(max_new_tokens=new))


def our_engine(options, lengths):
    """The fused engine over a packed folder; no token ends an answer."""
    from llmctl.infer.loader import engine_of
    from llmctl.infer.packed.folder import open_packed

    return engine_of(open_packed(packed_folder(options)), [], lengths, options.kv)


def our_side(options):
    """The fused engine over compiled kernels."""
    from llmctl import __version__, runtime

    runtime.configure()
    name = f"llmctl {__version__}"
    if options.work == "start":
        packed_folder(options)
        return lambda: first_token(options, "ours"), name
    asked = requests() if options.work == "throughput" else [(ids(options.context), NEW)]
    engine = our_engine(options, [len(prompt) + new for prompt, new in asked] + [LONG + 1])
    held = []

    def generate():
        for prompt, new in asked:
            engine.add(our_request(prompt, new))
        while engine.busy:
            for event in engine.step():
                if event.done and event.done.finish_reason != "length":
                    raise SystemExit(f"a request failed: {event.done}")
            state = engine.statistics()
            held.append((state.used_blocks, state.used_positions))
        return 0.0

    work = prompt_of(engine) if options.work == "prefill" else generate
    return work, name


def prompt_of(engine):
    """The work ``prefill``: equal prompts must not find their keys in the cache, so each begins with another token."""
    from itertools import count

    numbers = count(3)

    def work():
        [answer] = engine.generate([our_request([next(numbers), *ids(LONG)[1:]], 1)])
        if answer.finish_reason != "length":
            raise SystemExit(f"the request failed: {answer}")
        return 0.0

    return work


def first_token_here(options):
    """Our process from the packed folder to the first token."""
    from llmctl import runtime

    runtime.configure()
    [answer] = our_engine(options, [PROMPT + 1]).generate([our_request(ids(PROMPT), 1)])
    print(answer.ids)


def first_token_of_transformers(options):
    """The peer's process from its folder to the first token."""
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    folder = Path(options.models) / options.size
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        print(int(model(torch.tensor([ids(PROMPT)]), logits_to_keep=1).logits.argmax()))


def first_token_of_llama(options):
    """llama.cpp's process from its file to the first token."""
    llama = Llama(options, 256, 1)
    llama.run([(token, i, 0, i == PROMPT - 1) for i, token in enumerate(ids(PROMPT))])
    print(int(llama.logits(PROMPT - 1).argmax()))


FIRST = {"ours": first_token_here, "transformers": first_token_of_transformers, "llama.cpp": first_token_of_llama}
PEERS = {"llama.cpp": llama_side, "transformers": transformers_side}


def arguments(parser):
    """The options beside those of ``turns.py``."""
    parser.add_argument("--work", choices=("decode", "prefill", "throughput", "start"), required=True)
    parser.add_argument("--size", choices=tuple(random_llama.SIZES), default="58m")
    parser.add_argument("--weights", choices=("float32", "int8", "int4"), default="float32")
    parser.add_argument("--kv", choices=tuple(CACHES), default="float16", help="type of the KV cache of both sides")
    parser.add_argument("--context", type=int, default=PROMPT, help="tokens before those of decode")
    parser.add_argument("--peer", choices=tuple(PEERS), default="llama.cpp")
    parser.add_argument("--models", default="runs/models", help="where models are written, and found again")
    parser.add_argument("--first-token", choices=tuple(FIRST), help="only: run up to the first token")


if __name__ == "__main__":
    if "--first-token" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--threads", type=int, default=2)
        arguments(parser)
        options, _ = parser.parse_known_args()
        FIRST[options.first_token](options)
    else:
        sides = {"ours": our_side, "peer": lambda options: PEERS[options.peer](options)}
        turns.main(__doc__, __file__, sides, None, arguments)
