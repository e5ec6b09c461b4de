"""All examples of a split, as the jobs read them."""

from llmctl.data.files import find_files
from llmctl.data.reading import read_files


def read_split(paths, split, parse):
    return read_files([file for path in paths for file in find_files(path, split).files], parse, split)[0]
