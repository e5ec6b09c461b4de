"""Examples of files that are larger than memory: read, checked and measured once, then each is read again when it is needed.

``index`` says where each record of a file is, ``examples`` parses records when they are asked for, ``lengths`` knows how long the
encoded rows are. All three are kept in the cache of ``data.index_cache``, under what they depend on.
"""

from llmctl.data.streaming.examples import StreamedExamples, open_examples
from llmctl.data.streaming.index import FileIndex, open_index
from llmctl.data.streaming.lengths import encode_streamed

__all__ = ["FileIndex", "StreamedExamples", "encode_streamed", "open_examples", "open_index"]
