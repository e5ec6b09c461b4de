"""Pretraining samples of a split of one or more corpora; sample i depends only on the settings and i.

Indices are built on demand and cached (``index_cache``); ``sample_index`` decides which tokens a sample holds, ``blend``
from which corpus it comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmctl.config import pretrain
from llmctl.config.pretrain import DEFAULT_SPLITS, SPLITS, PretrainDataConfig
from llmctl.data.corpus import blend as blending
from llmctl.data.corpus import sample_index
from llmctl.data.corpus.indexed import Corpus
from llmctl.data.corpus.sample_index import SampleIndex
from llmctl.data.index_cache import WAIT, Cache
from llmctl.data.sft.encoding import IGNORE_INDEX
from llmctl.errors import DataError

FORMAT = 1
"""Version of the index arrays; raise it when their meaning changes, to invalidate cached ones."""


@dataclass(frozen=True)
class SampleSpec:
    """Everything that samples depend on.

    Attributes:
        corpora: Prefixes or folders, optionally with weights; see ``blend.parse``.
        split: Weights of train, valid and test.
        seq_length: Tokens in a sample.
        seed: Random seed of the order of documents and samples.
        cache: Folder for cached indices; None = next to each corpus.
        wait: Seconds to wait for another process that builds an index.
        separate: Whether to mask the loss across documents in a sample.
    """

    corpora: Sequence[str]
    split: str = DEFAULT_SPLITS[0]
    seq_length: int = 1024
    seed: int = 42
    cache: Path | None = None
    wait: float = WAIT
    separate: bool = False

    @classmethod
    def of(cls, data: PretrainDataConfig) -> SampleSpec:
        """The specification in the section ``data`` of a pretraining configuration; see ``with_split`` for an empty split."""
        cache = Path(data.index_cache).expanduser() if data.index_cache else None
        return cls(
            data.corpora, data.split, data.seq_length, data.seed, cache, data.index_wait, data.separate_documents
        )


@dataclass(frozen=True)
class Sample:
    """A sample of T tokens.

    Attributes:
        input_ids: Token ids, int64 [T].
        labels: The next token of each, int64 [T]; ``IGNORE_INDEX`` = no loss.
        document_starts: Positions of the first tokens of documents, including 0: int64 [documents].
        source: ``corpus#sample``, for messages.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    document_starts: NDArray[np.int64]
    source: str


@dataclass(frozen=True)
class CorpusShare:
    """The samples of a split that come from one corpus.

    Attributes:
        corpus: The corpus.
        documents: Its documents in the split.
        samples: Number of samples.
        index: Their index; None if there are no samples.
        cached: Folder of the cached index, if it is cached.
    """

    corpus: Corpus
    documents: range
    samples: int
    index: SampleIndex | None
    cached: Path | None

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens in the documents of the split."""
        return sample_index.tokens_of(self.corpus.sizes, self.documents)

    def tokens(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids of a sample, and the positions of the first tokens of documents, including 0.

        Args:
            number: Index of the sample among those of this corpus, in training order.
        """
        index = self.index
        assert index is not None
        sample = int(index.order[number])
        (first, start), (last, end) = index.starts[sample].tolist(), index.starts[sample + 1].tolist()
        pieces = []
        for i in range(first, last + 1):
            stop = end + 1 if i == last else None
            pieces.append(self.corpus.get(int(index.documents[i]), start if i == first else 0, stop))
        borders = np.cumsum([0, *(len(piece) for piece in pieces[:-1])], dtype=np.int64)
        filled = np.array([len(piece) > 0 for piece in pieces])
        return np.concatenate(pieces).astype(np.int64), borders[filled]


@dataclass(frozen=True)
class Samples:
    """The samples of a split, in training order.

    Attributes:
        shares: The samples of each corpus.
        chosen: Index of the corpus of each sample, int16 [samples].
        within: Index of the sample within its corpus, int64 [samples].
        seq_length: Tokens in a sample.
        separate: See ``SampleSpec``.
        fingerprint: Hash that changes when any sample changes.
        vocab: Vocabulary size of the model, to check ids; 0 = no check.
    """

    shares: Sequence[CorpusShare]
    chosen: NDArray[np.int16]
    within: NDArray[np.int64]
    seq_length: int
    separate: bool
    fingerprint: str
    vocab: int = field(default=0)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> Sample:
        """The i-th sample.

        Raises:
            DataError: An id is not in the vocabulary.
            IndexError: There is no such sample.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        share, number = self.shares[int(self.chosen[i])], int(self.within[i])
        ids, starts = share.tokens(number)
        assert len(ids) == self.seq_length + 1
        source = f"{share.corpus.prefix}#{number}"
        unknown = id_out_of_range(ids, self.vocab) if self.vocab else None
        if unknown is not None:
            raise DataError(
                f"{source} holds the id {unknown}, but the model has {self.vocab} tokens; build the corpus with the "
                "model's own tokenizer"
            )
        labels = ids[1:].copy()
        if self.separate:
            labels[starts[1:] - 1] = IGNORE_INDEX
        return Sample(ids[:-1], labels, starts[starts < self.seq_length], source)


def open_split(spec: SampleSpec, split: str, samples: int = 0, vocab: int = 0) -> Samples:
    """Opens the samples of a split; reads their indices or builds them.

    Args:
        spec: Corpora, split, length, seed.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        samples: Number of samples; 0 = one epoch, of a single corpus.
        vocab: Vocabulary size of the model, to check ids; 0 = no check.

    Raises:
        DataError: A corpus cannot be read, has no documents or too few tokens for the split, or another process builds
            an index for too long.
    """
    blend = blending.parse(spec.corpora)
    corpora = [open_token_corpus(prefix) for prefix in blend.prefixes]
    if samples == 0 and len(corpora) > 1:
        raise DataError(
            f"{len(corpora)} corpora need a number of samples; one epoch is defined for a single corpus only"
        )
    ranges = [_documents(corpus, spec, split) for corpus in corpora]
    if samples == 0:
        share = _share(corpora[0], ranges[0], 0, spec, split)
        shares, chosen = [share], np.zeros(share.samples, np.int16)
        within = np.arange(share.samples, dtype=np.int64)
    else:
        chosen, within = _assigned(blend, samples, spec)
        counts = np.bincount(chosen, minlength=len(corpora)).tolist()
        shares = [
            _share(corpus, documents, count, spec, split) if count else CorpusShare(corpus, documents, 0, None, None)
            for corpus, documents, count in zip(corpora, ranges, counts, strict=True)
        ]
    hashes = [[share.corpus.sizes_hash, share.corpus.content_hash, share.samples] for share in shares]
    what = [FORMAT, hashes, blend.weights, spec.split, split, spec.seq_length, spec.seed, spec.separate]
    fingerprint = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    return Samples(shares, chosen, within, spec.seq_length, spec.separate, fingerprint, vocab)


def open_token_corpus(prefix: str) -> Corpus:
    """Opens a corpus.

    Raises:
        DataError: It cannot be read, or does not hold token ids.
    """
    corpus = Corpus(prefix)
    if corpus.dtype.kind not in "iu":
        raise DataError(f"{prefix} holds {corpus.dtype.name}, not token ids")
    return corpus


def with_split(data: PretrainDataConfig) -> PretrainDataConfig:
    """The section with ``split`` in place of an empty one: the first default for which every corpus has documents.

    Raises:
        DataError: A corpus cannot be read.
    """
    if data.split:
        return data
    corpora = [open_token_corpus(prefix) for prefix in blending.parse(data.corpora).prefixes]
    counts = [len(corpus) for corpus in corpora]
    return replace(
        data, split=next(split for split in DEFAULT_SPLITS if _suffices(split, counts) or split == DEFAULT_SPLITS[-1])
    )


def _suffices(split: str, counts: Sequence[int]) -> bool:
    """Whether corpora with these numbers of documents have at least one for each part with a weight."""
    parts = pretrain.parse_split(split)
    return all(
        documents
        for count in counts
        for part, documents in zip(parts, sample_index.split_documents(parts, count), strict=True)
        if part
    )


def id_out_of_range(ids: NDArray, vocab: int) -> int | None:
    """An id outside 0 to ``vocab - 1``; None if there is none."""
    extremes = (int(ids.max()), int(ids.min())) if len(ids) else ()
    return next((token for token in extremes if not 0 <= token < vocab), None)


def _documents(corpus: Corpus, spec: SampleSpec, split: str) -> range:
    documents = sample_index.split_documents(pretrain.parse_split(spec.split), len(corpus))[SPLITS.index(split)]
    if not documents:
        raise DataError(
            f"{corpus.prefix} has no documents for {split}: {len(corpus)} documents are split by {spec.split}; increase the "
            f"weight of {split} or use more documents"
        )
    return documents


def _assigned(blend: blending.Blend, samples: int, spec: SampleSpec) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    if len(blend.weights) == 1:
        return blending.assign(blend.weights, samples)
    cache = Cache.near(blend.prefixes[0], spec.cache, wait=spec.wait)

    def build() -> dict[str, NDArray]:
        chosen, within = blending.assign(blend.weights, samples)
        return {"chosen": chosen, "within": within}

    arrays, _ = cache.get_or_build({"format": FORMAT, "weights": blend.weights, "samples": samples}, build)
    return arrays["chosen"], arrays["within"]


def _share(corpus: Corpus, documents: range, samples: int, spec: SampleSpec, split: str) -> CorpusShare:
    try:
        epochs = sample_index.plan(sample_index.tokens_of(corpus.sizes, documents), samples, spec.seq_length)
    except DataError as error:
        raise DataError(
            f"{corpus.prefix}, documents {documents.start} to {documents.stop - 1} for {split}: {error}"
        ) from None
    description = {
        "format": FORMAT,
        "sizes": corpus.sizes_hash,
        "documents": [documents.start, documents.stop],
        "samples": samples,
        "seq_length": spec.seq_length,
        "seed": spec.seed,
    }

    def build() -> dict[str, NDArray]:
        made = sample_index.build(corpus.sizes, documents, samples, spec.seq_length, spec.seed)
        return {"documents": made.documents, "starts": made.starts, "order": made.order}

    arrays, cached = Cache.near(corpus.prefix, spec.cache, wait=spec.wait).get_or_build(description, build)
    index = SampleIndex(arrays["documents"], arrays["starts"], arrays["order"])
    return CorpusShare(corpus, documents, samples or epochs.samples, index, cached)
