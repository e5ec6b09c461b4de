"""Writes rows as every kind of file that examples come in."""

import csv
import gzip
import json

import pyarrow
import pyarrow.parquet


def lines_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*rows[0]], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_zstandard(path, content):
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)


def write_arrow(path, rows, kind=pyarrow.ipc.new_file):
    table = pyarrow.Table.from_pylist(rows)
    with kind(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_dataset(folder, rows):
    """A folder as ``datasets`` saves it: an Arrow stream, and what it says of it."""
    folder.mkdir(parents=True)
    write_arrow(folder / "data-00000-of-00001.arrow", rows, pyarrow.ipc.new_stream)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def write_datasets(folder, splits):
    """A folder of several datasets: split -> rows."""
    for name, rows in splits.items():
        write_dataset(folder / name, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))


WRITERS = {
    "list.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "one-line.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "lines.jsonl": lambda path, rows: path.write_bytes(b"\xef\xbb\xbf" + lines_of(rows)),
    "no-suffix": lambda path, rows: path.write_bytes(b"\n" + lines_of(rows)),
    "lines.txt": lambda path, rows: path.write_bytes(lines_of(rows)),
    "lines.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines_of(rows))),
    "two.json.gz": lambda path, rows: path.write_bytes(b"".join(gzip.compress(lines_of([row])) for row in rows)),
    "list.json.zst": lambda path, rows: write_zstandard(path, json.dumps(rows).encode()),
    "gzip-without.jsonl": lambda path, rows: path.write_bytes(gzip.compress(lines_of(rows))),
    "plain.jsonl.gz": lambda path, rows: path.write_bytes(lines_of(rows)),
    "table.csv": write_csv,
    "table.tsv": write_csv,
    "table.parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2),
    "misnamed.json": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
    "file.arrow": write_arrow,
    "stream.arrow": lambda path, rows: write_arrow(path, rows, pyarrow.ipc.new_stream),
}  # fmt: skip
"""Name of a file -> writes rows of texts as one."""
