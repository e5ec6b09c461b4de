"""Files of examples, each read as records of JSON text with their places; no numpy.

``contents`` opens a file and tells its kind by what it holds, ``json_records`` and ``tables`` read the kinds, ``records`` any of
them; ``find`` finds the files of a split in folders of every layout.
"""

from llmctl.data.files.contents import ReadBytes, open_lines
from llmctl.data.files.find import Files, find_files, note_of
from llmctl.data.files.records import Record, records

__all__ = ["Files", "ReadBytes", "Record", "find_files", "note_of", "open_lines", "records"]
