"""Small pretraining corpora."""

import numpy as np

from llmctl.data.corpus.indexed import Corpus, new_corpus

DOCUMENTS = [[5, 6, 7], [9], [1, 2]]


def write(prefix, documents=DOCUMENTS, dtype=np.uint16):
    lengths = np.array([len(ids) for ids in documents], np.int32)
    with new_corpus(prefix, np.dtype(dtype), overwrite=True) as writer:
        writer.add(np.array([token for ids in documents for token in ids], dtype), lengths)
    return Corpus(prefix)
