"""Samples to pretrain on: a split of one or more corpora, in which sample i depends on nothing but the settings and i.

Indices are built on demand and kept (``index_cache``); which tokens a sample holds is the matter of ``sample_index``, from
which corpus it comes that of ``blending``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmctl.config import pretrain
from llmctl.config.pretrain import SPLITS, PretrainDataConfig
from llmctl.data.corpus import blend as blending
from llmctl.data.corpus import sample_index
from llmctl.data.corpus.index_cache import WAIT, Cache
from llmctl.data.corpus.indexed import Corpus
from llmctl.data.corpus.sample_index import SampleIndex
from llmctl.data.sft.encoding import IGNORED
from llmctl.errors import DataError

FORMAT = 1
"""Raised when the arrays of an index change their meaning, so that old entries of the cache are not taken."""


@dataclass(frozen=True)
class Setting:
    """What decides all samples.

    Attributes:
        corpora: Prefixes or folders, with weights or without (``blending.parse``).
        split: Weights of train, valid and test.
        seq_length: Tokens of a sample.
        seed: Of the order of documents and samples.
        cache: Folder for indices; None = beside each corpus.
        wait: Seconds to wait for another process that builds an index.
        separate: Whether a sample tells where documents begin in it, and asks for no token across such a border.
    """

    corpora: Sequence[str]
    split: str = "949,50,1"
    seq_length: int = 1024
    seed: int = 42
    cache: Path | None = None
    wait: float = WAIT
    separate: bool = False

    @classmethod
    def of(cls, data: PretrainDataConfig) -> Setting:
        """What the configuration of a pretraining says."""
        cache = Path(data.index_cache).expanduser() if data.index_cache else None
        return cls(
            data.corpora, data.split, data.seq_length, data.seed, cache, data.index_wait, data.separate_documents
        )


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        input_ids: int64 [T].
        labels: The token that follows each, int64 [T].
        document_starts: Positions at which a document begins, and 0: int64 [documents in the sample].
        source: For messages: corpus and number of the sample in it.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    document_starts: NDArray[np.int64]
    source: str


@dataclass(frozen=True)
class Part:
    """What one corpus gives to a split.

    Attributes:
        corpus: The corpus.
        documents: Those of the split.
        samples: Samples taken from it.
        index: Which tokens they hold; None if it gives none.
        kept: Where the index lies on disk, if it does.
    """

    corpus: Corpus
    documents: range
    samples: int
    index: SampleIndex | None
    kept: Path | None

    @property
    def tokens_per_pass(self) -> int:
        """Tokens of all documents of the split."""
        return sample_index.tokens_of(self.corpus.sizes, self.documents)

    def tokens(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of a sample and the positions at which documents begin, 0 among them.

        Args:
            number: Which of this corpus, in the order of training.
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
    """The samples of a split, in the order of training.

    Attributes:
        parts: What each corpus gives.
        chosen: The corpus of each sample, int16 [samples].
        within: Which sample of that corpus it is, int64 [samples].
        seq_length: Tokens of a sample.
        separate: As in ``Setting``.
        fingerprint: Changes when any sample does.
        vocab: Ids that a model knows; 0 = not checked.
    """

    parts: Sequence[Part]
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
            DataError: It holds an id that the model does not know.
            IndexError: There is no such sample.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        part, number = self.parts[int(self.chosen[i])], int(self.within[i])
        ids, starts = part.tokens(number)
        assert len(ids) == self.seq_length + 1
        source = f"{part.corpus.prefix}#{number}"
        foreign = foreign_id(ids, self.vocab) if self.vocab else None
        if foreign is not None:
            raise DataError(
                f"{source} holds the id {foreign}, but the model has {self.vocab} tokens; make the corpus with the "
                "model's own tokenizer"
            )
        labels = ids[1:].copy()
        if self.separate:
            labels[starts[1:] - 1] = IGNORED
        return Sample(ids[:-1], labels, starts[starts < self.seq_length], source)


def open_split(setting: Setting, split: str, samples: int = 0, vocab: int = 0) -> Samples:
    """The samples of a split, their indices read or built.

    Args:
        setting: Corpora, lengths, seed.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        samples: How many; 0 = one pass over a single corpus.
        vocab: Ids that the model knows; 0 = not checked.

    Raises:
        DataError: A corpus cannot be read, has no documents or too few tokens for the split, or another process is
            building an index for too long.
    """
    blend = blending.parse(setting.corpora)
    corpora = [token_corpus(prefix) for prefix in blend.prefixes]
    if samples == 0 and len(corpora) > 1:
        raise DataError(
            f"how many samples of {len(corpora)} corpora to blend must be said; one pass is only of one corpus"
        )
    ranges = [_documents(corpus, setting, split) for corpus in corpora]
    if samples == 0:
        part = _part(corpora[0], ranges[0], 0, setting, split)
        parts, chosen = [part], np.zeros(part.samples, np.int16)
        within = np.arange(part.samples, dtype=np.int64)
    else:
        chosen, within = _assigned(blend, samples, setting)
        wanted = np.bincount(chosen, minlength=len(corpora)).tolist()
        parts = [
            _part(corpus, documents, count, setting, split) if count else Part(corpus, documents, 0, None, None)
            for corpus, documents, count in zip(corpora, ranges, wanted, strict=True)
        ]
    mark = [[part.corpus.fingerprint, part.corpus.content_mark, part.samples] for part in parts]
    what = [FORMAT, mark, blend.weights, setting.split, split, setting.seq_length, setting.seed, setting.separate]
    fingerprint = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    return Samples(parts, chosen, within, setting.seq_length, setting.separate, fingerprint, vocab)


def token_corpus(prefix: str) -> Corpus:
    """The corpus of a prefix.

    Raises:
        DataError: It cannot be read, or holds other numbers than token ids.
    """
    corpus = Corpus(prefix)
    if corpus.dtype.kind not in "iu":
        raise DataError(f"{prefix} holds {corpus.dtype.name}, no token ids")
    return corpus


def foreign_id(ids: NDArray, vocab: int) -> int | None:
    """An id that is none of 0 to ``vocab - 1``; None where all are."""
    extremes = (int(ids.max()), int(ids.min())) if len(ids) else ()
    return next((token for token in extremes if not 0 <= token < vocab), None)


def _documents(corpus: Corpus, setting: Setting, split: str) -> range:
    documents = sample_index.split_documents(pretrain.parse_split(setting.split), len(corpus))[SPLITS.index(split)]
    if not documents:
        raise DataError(
            f"{corpus.prefix} has no documents for {split}: {len(corpus)} documents are split as {setting.split}; give "
            f"{split} a greater weight or use more documents"
        )
    return documents


def _assigned(blend: blending.Blend, samples: int, setting: Setting) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    if len(blend.weights) == 1:
        return blending.assign(blend.weights, samples)
    cache = Cache.beside(blend.prefixes[0], setting.cache, wait=setting.wait)

    def build() -> dict[str, NDArray]:
        chosen, within = blending.assign(blend.weights, samples)
        return {"chosen": chosen, "within": within}

    arrays, _ = cache.get({"format": FORMAT, "weights": blend.weights, "samples": samples}, build)
    return arrays["chosen"], arrays["within"]


def _part(corpus: Corpus, documents: range, samples: int, setting: Setting, split: str) -> Part:
    try:
        epochs = sample_index.plan(sample_index.tokens_of(corpus.sizes, documents), samples, setting.seq_length)
    except DataError as error:
        raise DataError(
            f"{corpus.prefix}, documents {documents.start} to {documents.stop - 1} for {split}: {error}"
        ) from None
    description = {
        "format": FORMAT,
        "sizes": corpus.fingerprint,
        "documents": [documents.start, documents.stop],
        "samples": samples,
        "seq_length": setting.seq_length,
        "seed": setting.seed,
    }

    def build() -> dict[str, NDArray]:
        made = sample_index.build(corpus.sizes, documents, samples, setting.seq_length, setting.seed)
        return {"documents": made.documents, "starts": made.starts, "order": made.order}

    arrays, kept = Cache.beside(corpus.prefix, setting.cache, wait=setting.wait).get(description, build)
    index = SampleIndex(arrays["documents"], arrays["starts"], arrays["order"])
    return Part(corpus, documents, samples or epochs.samples, index, kept)
