"""``llmctl data``: builds, merges, inspects and indexes pretraining corpora, and checks fine-tuning data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmctl.commands.data_doctor import command as doctor
from llmctl.commands.messages import messages, results
from llmctl.commands.model_option import model_option
from llmctl.commands.renamed import Renamed
from llmctl.commands.tokenizer_folder import TokenizerFolder
from llmctl.io.progress import Progress
from llmctl.runtime.process import available_cores

if TYPE_CHECKING:
    from llmctl.config.pretrain import PretrainConfig
    from llmctl.data.corpus.samples import SampleSpec

SINGLE_PROCESS_BELOW = 4 << 20
"""Inputs below this size, in bytes, are tokenized in this process: starting others takes longer."""


@click.group()
def group() -> None:
    """Build, check and inspect training data."""


group.add_command(doctor)


@group.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", "prefix", required=True, metavar="PREFIX", help="Writes PREFIX.bin and PREFIX.idx.")
@model_option("Model whose tokenizer is used: a folder, or a name on a hub.")
@click.option(
    "--tokenizer", metavar="FOLDER", type=TokenizerFolder(), help="Folder of the tokenizer; the same as --model FOLDER."
)
@click.option("--files", "kind", cls=Renamed, former=["--format"], type=click.Choice(["auto", "text", "jsonl", "csv", "parquet", "arrow"]), default="auto", show_default=True,
              help="Which files of a folder to read; auto = all.")  # fmt: skip
@click.option("--documents", type=click.Choice(["blank-lines", "files"]), default="blank-lines", show_default=True,
              help="What separates documents in text files.")  # fmt: skip
@click.option("--key", "keys", multiple=True, default=["text"], show_default=True,
              help="Key or column of the text; with several, a document is their texts joined by a blank line.")  # fmt: skip
@click.option("--append-eos", is_flag=True, help="Append the EOS token to each document.")
@click.option("--workers", type=click.IntRange(0), default=0, metavar="N",
              help="Number of processes; 0 (the default) = chosen by the size of the input. The corpus does not depend on it.")  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Skip malformed lines instead of failing.")
@click.option("--overwrite", is_flag=True, help="Replace an existing corpus.")
@results
@click.pass_context
def build(
    ctx: click.Context,
    inputs: tuple[Path, ...],
    prefix: str,
    tokenizer: Path | None,
    kind: str,
    documents: str,
    keys: tuple[str, ...],
    append_eos: bool,
    workers: int,
    skip_bad: bool,
    overwrite: bool,
) -> None:
    """Tokenize texts into a corpus in Megatron's format (.bin and .idx).

    INPUTS are files of text, JSON, CSV or TSV, which may be compressed (.gz, .zst), Parquet or Arrow files, or folders of
    them.
    """
    from llmctl.data.corpus import build as corpus
    from llmctl.data.corpus import documents as reading
    from llmctl.data.corpus import indexed
    from llmctl.errors import DataError

    folder = ctx.obj.folder_or(tokenizer, "--tokenizer", weights=False)
    prefix = indexed.without_suffix(prefix)
    indexed.check_free(prefix, overwrite)
    encoder = corpus.BatchEncoder(folder, append_eos, ctx.obj.family)
    source = reading.DocumentFiles(reading.find(inputs, kind), keys, documents == "files")
    with Progress("checking", source.nbytes) as progress:
        problems = reading.check(source, progress)
    if problems and not skip_bad:
        raise DataError(f"{reading.format_problems(problems)}\nfix them, or leave them out with --skip-bad")
    if problems:
        click.echo(f"warning: left out: {reading.format_problems(problems)}", err=True)
    workers = workers or (1 if source.nbytes < SINGLE_PROCESS_BELOW else available_cores())
    began = time.perf_counter()
    with Progress("tokenizing", source.nbytes) as progress:
        made = corpus.build(source, prefix, encoder, workers, overwrite, progress)
    seconds = time.perf_counter() - began
    say = messages(ctx)
    say.result(
        f"{prefix}.bin and .idx: {made.documents:,} documents, {made.tokens:,} tokens as {made.dtype} "
        f"({made.vocab_size:,} ids), {made.tokens / seconds:,.0f} tokens/s",
        output=prefix, documents=made.documents, tokens=made.tokens, dtype=str(made.dtype), vocab_size=made.vocab_size,
        empty=made.empty, seconds=round(seconds, 3),
    )  # fmt: skip
    if made.empty:
        say.note(f"{made.empty:,} empty documents left out")
    if not append_eos:
        say.note("documents do not end with EOS; --append-eos appends it")


@group.command()
@click.argument("prefixes", nargs=-1, required=True)
@click.option("--output", "target", required=True, metavar="PREFIX", help="Writes PREFIX.bin and PREFIX.idx.")
@click.option("--overwrite", is_flag=True, help="Replace an existing corpus.")
def merge(prefixes: tuple[str, ...], target: str, overwrite: bool) -> None:
    """Concatenate corpora of the same data type."""
    from llmctl.data.corpus import build as corpus
    from llmctl.data.corpus import indexed

    target = indexed.without_suffix(target)
    documents, tokens = corpus.merge(prefixes, target, overwrite)
    click.echo(f"{target}.bin and .idx: {documents:,} documents, {tokens:,} tokens of {len(prefixes)} corpora")


@group.command()
@click.argument("prefix")
@model_option("Model whose tokenizer shows the document as text: a folder.")
@click.option("--doc", "number", type=click.IntRange(0), metavar="N", help="Show document N, counting from 0.")
@click.option(
    "--tokenizer",
    metavar="FOLDER",
    type=TokenizerFolder(),
    help="Folder of a tokenizer, to show the document as text; the same as --model FOLDER.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def inspect(ctx: click.Context, prefix: str, number: int | None, tokenizer: Path | None, as_json: bool) -> None:
    """Show statistics of the corpus PREFIX, or one of its documents."""
    named = tokenizer is not None or ctx.obj.names_folder
    folder = ctx.obj.folder_or(tokenizer, "--tokenizer", weights=False) if named else None
    if folder is not None and number is None:
        raise click.UsageError("--tokenizer and --model FOLDER need --doc, the document to show")
    from llmctl.data.corpus.indexed import Corpus
    from llmctl.data.corpus.inspect import document, summary, summary_text

    corpus = Corpus(prefix)
    if number is not None:
        shown = document(corpus, number, folder, ctx.obj.family)
        click.echo(_json(shown) if as_json else shown.get("text", " ".join(map(str, shown["ids"]))))
        return
    facts = summary(corpus)
    click.echo(_json(facts) if as_json else summary_text(facts))


@group.command()
@click.argument("config_file", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path))
@click.option("--corpora", "-c", multiple=True,
              help='Prefixes or folders of corpora, optionally with weights: "0.3 a 0.7 b". May be repeated.')  # fmt: skip
@click.option(
    "--split", help="Weights of the splits train, valid and test. [default: 949,50,1 if there are enough documents]"
)
@click.option("--seq-length", type=click.IntRange(2), help="Tokens in a sample. [default: 1024]")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="Random seed of the order of documents and samples. [default: 42]"
)
@click.option(
    "--train", type=click.IntRange(0), metavar="N", help="Number of samples of the train split; 0 = one epoch."
)
@click.option("--valid", type=click.IntRange(0), metavar="N", help="Number of samples of the valid split.")
@click.option("--test", type=click.IntRange(0), metavar="N", help="Number of samples of the test split.")
@click.option("--index-cache", "cache", cls=Renamed, former=["--cache"], metavar="FOLDER",
              help="Folder for the indices, as data.index_cache. [default: index-cache next to each corpus]")  # fmt: skip
def index(
    config_file: Path | None,
    corpora: tuple[str, ...],
    split: str | None,
    seq_length: int | None,
    seed: int | None,
    train: int | None,
    valid: int | None,
    test: int | None,
    cache: str | None,
) -> None:
    """Build the sample indices of a pretraining run in advance.

    CONFIG is a configuration of llmctl pretrain; options override it. Without CONFIG, only the splits given by --train,
    --valid and --test are indexed, or one epoch of train if none is given.
    """
    from llmctl.data.corpus.samples import SampleSpec, with_split

    config = _configured(config_file, corpora=list(corpora), split=split, seq_length=seq_length, seed=seed,
                         index_cache=cache)  # fmt: skip
    config.data = with_split(config.data)
    asked = {name: count for name, count in (("train", train), ("valid", valid), ("test", test)) if count is not None}
    planned = {name: count for name, count in config.samples().items() if count} if config_file else {"train": 0}
    for name, count in (asked or planned).items():
        _index(SampleSpec.of(config.data), name, count)


def _configured(config_file: Path | None, **options: Any) -> PretrainConfig:
    """The configuration of a file, or the defaults, with the given options."""
    from llmctl.config import file, schema
    from llmctl.config.pretrain import PretrainConfig

    content = file.read_file(config_file) if config_file else {}
    config = schema.build(PretrainConfig, content, str(config_file or ""))
    for key, value in options.items():
        if value not in (None, []):
            setattr(config.data, key, value)
    return config


def _index(spec: SampleSpec, split: str, count: int) -> None:
    """Builds the indices of a split and prints what they hold."""
    from llmctl.data.corpus.samples import open_split

    began = time.perf_counter()
    samples = open_split(spec, split, count)
    seconds = time.perf_counter() - began
    click.echo(f"{split}: {len(samples):,} samples of {spec.seq_length} tokens in {seconds:.2f} s")
    for share in samples.shares:
        epochs = share.samples * spec.seq_length / share.tokens_per_epoch
        where = f", index in {share.cached}" if share.cached else ""
        click.echo(
            f"  {share.corpus.prefix}: documents {share.documents.start:,} to {share.documents.stop - 1:,}, "
            f"{share.tokens_per_epoch:,} tokens, {share.samples:,} samples, {epochs:.2f} epochs{where}"
        )


def _json(content: object) -> str:
    import json

    return json.dumps(content, indent=1, ensure_ascii=False)
