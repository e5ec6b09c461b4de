"""A toy model for the engine: what it says next is a hash of all that a token sees, read out of a paged cache.

``ToyExecutor`` reads the cache through block tables, so a wrong block, place, interval or adapter changes the answer.
``answer`` computes the same from a whole sequence, without cache, blocks or batch.
"""

import numpy as np

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.executors.base import BLOCK
from llmctl.infer.request import Generation
from llmctl.infer.sampling.single import choose, generator_for

VOCAB = 24
LAYERS = 2


def graph(**changes):
    """A card's facts that the engine reads; the rest is idle."""
    sizes = dict(hidden=1, heads=1, kv_heads=1, head_dim=1, ffn=1, vocab=VOCAB, embed=1)
    return DecoderSpec(
        outer={}, layers=({},) * LAYERS, norm="rmsnorm", norm_eps=1e-6, activation="swiglu", **{**sizes, **changes}
    )


def prefix(length, seed=5):
    """Keys and values of virtual tokens."""
    return np.random.default_rng(seed).normal(size=(LAYERS, 2, length, 1, 1)).astype(np.float32)


def mixed(*values):
    """A hash of whole numbers, element by element (the finaliser of splitmix64)."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for value in values:
            state = (np.asarray(state) ^ np.asarray(value).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def logits(state):
    """Scores between 0 and 8, of the two first tokens, which end answers in tests, mostly below 0."""
    scores_V = (mixed(state, np.arange(VOCAB)) >> np.uint64(40)).astype(np.float32) / np.float32(2**21)
    scores_V[:2] -= 7
    return scores_V


class ToyExecutor:
    """The executor.

    Args:
        broken: Called with a batch; may return rows of L whose logits become NaN.
        forgetful: Places and positions do not count, so that what was written before is likely to come again.
    """

    vocab, block_bytes, max_tokens = VOCAB, 64, None

    def __init__(self, broken=lambda batch: [], forgetful=False):
        self.broken, self.forgetful, self.steps, self.copies = broken, forgetful, [], 0

    def allocate(self, blocks):
        self.cache = np.random.default_rng(blocks).integers(1, 2**63, (LAYERS, blocks, BLOCK)).astype(np.uint64)

    def copy(self, source, target):
        assert source != target
        self.copies += 1
        self.cache[:, target] = self.cache[:, source]

    def write_virtual_tokens(self, blocks, prefix):
        for place in range(prefix.shape[2]):
            records = prefix[:, 0, place, 0, 0].view(np.uint32).astype(np.uint64)
            self.cache[:, blocks[place // BLOCK], place % BLOCK] = records

    def run(self, batch):
        self._check(batch)
        self.steps.append(batch)
        second_position_T = batch.position_T * 0 if batch.second_position_T is None else batch.second_position_T
        position_T = batch.position_T * (not self.forgetful)
        state_T = mixed(batch.ids_T, position_T, second_position_T, batch.adapter_R[batch.sequence_T] + 1)
        blocks_T = batch.block_tables_RM[batch.sequence_T, batch.kv_position_T // BLOCK]
        for layer in range(LAYERS):
            self.cache[layer, blocks_T, batch.kv_position_T % BLOCK] = state_T
            state_T = self._seen(layer, batch, state_T)
        logits_LV = (
            np.asarray([logits(state_T[t]) for t in batch.logits_indices_L])
            .reshape(len(batch.logits_indices_L), VOCAB)
            .astype(np.float32)
        )
        logits_LV[self.broken(batch)] = np.nan
        return logits_LV

    def _seen(self, layer, batch, state_T):
        """What tokens make of their own states and of the records that they see."""
        places_TS = batch.attend_begin_T[:, None] + np.arange((batch.attend_end_T - batch.attend_begin_T).max())
        inside_TS = places_TS < batch.attend_end_T[:, None]
        places_TS = np.where(inside_TS, places_TS, batch.attend_begin_T[:, None])
        blocks_TS = batch.block_tables_RM[batch.sequence_T[:, None], places_TS // BLOCK]
        records_TS = self.cache[layer, blocks_TS, places_TS % BLOCK]
        mixed_TS = np.where(inside_TS, mixed(records_TS, places_TS * (not self.forgetful)), np.uint64(0))
        return mixed(state_T, mixed_TS.sum(axis=1, dtype=np.uint64))

    def _check(self, batch):
        sequence_T, kv_position_T = batch.sequence_T, batch.kv_position_T
        assert (
            len(sequence_T)
            and (np.diff(sequence_T) >= 0).all()
            and (np.diff(kv_position_T)[np.diff(sequence_T) == 0] == 1).all()
        )
        assert (np.diff(batch.logits_indices_L) > 0).all()
        written = list(
            zip(
                batch.block_tables_RM[sequence_T, kv_position_T // BLOCK].tolist(),
                (kv_position_T % BLOCK).tolist(),
                strict=True,
            )
        )
        assert len(set(written)) == len(written), "two tokens are written to one place"


def next_logits(model, ids, adapter=-1, virtual=None, forgetful=False):
    """Logits after a whole sequence."""
    count = 0 if virtual is None else virtual.shape[2]
    total, own = count + len(ids), np.arange(len(ids))
    begin, end = np.zeros(len(ids), int), count + own + 1
    if model.window:
        begin = np.maximum(0, end - model.window)
    position, second = count + own, 0 * own
    if model.prefix_lm:
        length = ids.index(model.prefix_lm.end)
        mark = ids.index(next(token for token in model.prefix_lm.mask_ids if token in ids[:length]))
        end[:length] = count + length
        position = np.where(own < length, own, mark)
        second = np.maximum(0, own - length + 1)
    state, counts = mixed(ids, position * (not forgetful), second, adapter + 1), not forgetful
    for layer in range(LAYERS):
        records = np.empty(total, np.uint64)
        if count:
            records[:count] = virtual[layer, 0, :, 0, 0].view(np.uint32)
        records[count:] = state
        sums = np.cumsum(np.append(np.uint64(0), mixed(records, np.arange(total) * counts)), dtype=np.uint64)
        state = mixed(state, sums[end] - sums[begin])
    return logits(state[-1])


def answer(model, request, end_ids, virtual=None, forgetful=False):
    """The answer to a request, alone and without a cache."""
    options, draws, ids = request.options, generator_for(request.options, request.index), []
    while len(ids) < options.max_new_tokens:
        sequence = [*request.prompt, *ids]
        logits_V = next_logits(model, sequence, request.adapter, virtual, forgetful)
        token = choose(logits_V, sequence, len(ids), options, end_ids, draws)
        if token in end_ids:
            return Generation(ids, "end")
        ids.append(token)
    return Generation(ids, "length")
