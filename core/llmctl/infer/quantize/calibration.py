"""Windows of tokens to calibrate on, drawn by a seed: from plain text, examples of fine-tuning, or a corpus.

An eighth is held out to check single linears, and half as much to compare the models at the end.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmctl.config.quantize import CalibrationConfig
from llmctl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from llmctl.infer.quantize.streams import Tokens
    from llmctl.tokenizers import Tokenizer

LEAST = 16
"""Tokens of a window, at least."""

SHARE = 8
"""One window of so many is held out for checks of linears; half as many more for the comparison at the end."""

LEAST_WINDOWS = 4
SAMPLE = 4096
"""Characters of a text that show how many a token has."""

COLUMNS = "calibration.columns"
"""The key of the configuration that renames keys of examples."""

Drawn = tuple[Sequence[int], Sequence[bool]]
"""Ids of a window, and whether each predicts a token of an answer; empty = all text counts."""

UNKNOWN = 0.2
"""Share of unknown tokens above which a text is not for a tokenizer."""


@dataclass(frozen=True)
class Calibration:
    """What a model is calibrated on.

    Attributes:
        windows: Token ids of each window, in the order in which they were drawn.
        answers: Of examples: for each token whether it predicts one of an answer; empty = all text counts.
        kind: ``text``, ``examples`` or ``corpus``.
        asked: Tokens that were asked for.
    """

    windows: Sequence[Sequence[int]]
    kind: str
    asked: int
    answers: Sequence[Sequence[bool]] = ()

    @property
    def count(self) -> int:
        """Number of tokens, those held out included."""
        return sum(map(len, self.windows))

    def tokens(self) -> Tokens:
        """The windows with what each is for."""
        from llmctl.infer.quantize.streams import CALIBRATE, CHECK, HOLD, Tokens

        held = max(1, len(self.windows) // SHARE)
        roles = [CHECK] * max(1, held // 2) + [HOLD] * held
        roles += [CALIBRATE] * (len(self.windows) - len(roles))
        # Those to calibrate on come first, so that their sums do not depend on how many are held out.
        order = sorted(range(len(roles)), key=lambda index: roles[index])
        parts = (self.windows, roles, self.answers)
        return Tokens(*([part[index] for index in order] if part else [] for part in parts))


def read_calibration(
    config: CalibrationConfig, tokenizer: Tokenizer, rows: int, positions: int, causal: bool
) -> Calibration:
    """The windows that a configuration asks for.

    Args:
        config: The configuration.
        tokenizer: The model's, with its chat template.
        rows: Rows of the model's embedding.
        positions: Positions that the model has; 0 = any.
        causal: Whether tokens see only those before; otherwise the data must be examples.

    Raises:
        ConfigError: The file does not exist.
        DataError: It is too short, of another tokenizer, or cannot be read.
    """
    from llmctl.data.files.contents import is_text, read_text

    path = Path(config.file)
    window = min(config.window, positions) if positions else config.window
    chance = random.Random(config.seed)
    if any(Path(str(path).removesuffix(end) + ".idx").is_file() for end in ("", ".idx", ".bin")):
        kind, drawn = "corpus", _of_corpus(path, window, chance)
    elif not path.exists():
        raise ConfigError(f"calibration.file={config.file} does not exist; name a text, a file of examples or a corpus")
    elif path.is_file() and is_text(path):
        kind, drawn = "text", _of_text(read_text(path), window, chance, tokenizer)
    elif path.is_file() and not config.columns and _has_texts(path):
        kind, drawn = "text", _of_text(_texts(path), window, chance, tokenizer)
    else:
        kind, drawn = "examples", _of_examples(path, window, chance, tokenizer, config.columns)
    if not causal and kind != "examples":
        raise DataError(
            f"{path} is {'a corpus' if kind == 'corpus' else 'plain text'}, but this model reads a prompt in both directions: "
            "calibrate on examples with prompts and answers"
        )
    windows, answers, count = list[Sequence[int]](), list[Sequence[bool]](), 0
    for ids, counted in drawn:
        if len(ids) < LEAST:
            continue
        windows.append(ids)
        answers += [counted] if counted else []
        count += len(ids)
        if count >= config.tokens and len(windows) >= LEAST_WINDOWS:
            break
    _check(path, windows, window, tokenizer, rows)
    return Calibration(windows, kind, config.tokens, answers)


def _check(path: Path, windows: Sequence[Sequence[int]], window: int, tokenizer: Tokenizer, rows: int) -> None:
    count = sum(map(len, windows))
    if len(windows) < LEAST_WINDOWS:
        raise DataError(
            f"{path} is too short to calibrate on: it has {len(windows)} windows of {LEAST} to {window} tokens, {count} tokens in "
            f"all, and at least {LEAST_WINDOWS} windows are needed; give a longer file, or a smaller calibration.window"
        )
    most, least = max(map(max, windows)), min(map(min, windows))
    if most >= rows or least < 0:
        raise DataError(
            f"{path} has token {most if most >= rows else least}, but the model's embedding has only {rows} rows: it was made with another tokenizer; build it "
            "with the model's own"
        )
    unknown = sum(ids.count(tokenizer.unk_id) for ids in map(list, windows)) if tokenizer.unk_id is not None else 0
    if unknown > UNKNOWN * count:
        raise DataError(
            f"{path}: {unknown / count:.0%} of the tokens are unknown to the model's tokenizer; give a text in the language that the "
            "model was trained on"
        )


def _has_texts(path: Path) -> bool:
    """Whether rows are no examples, but documents as ``llmctl data build`` reads them."""
    from llmctl.data.files import records
    from llmctl.data.formats.rows import parse_object
    from llmctl.data.sft.examples import ExampleReader

    source, line = next(iter(records(path)), ("", ""))
    with contextlib.suppress(ValueError):
        row = parse_object(line)
        try:
            ExampleReader()(line, source)
        except ValueError:
            return isinstance(row.get("text"), str)
    return False


def _texts(path: Path) -> str:
    """All documents of a file.

    Raises:
        DataError: A row is not one.
    """
    from llmctl.data.corpus.documents import JOINT, DocumentFiles, check, format_problems

    source = DocumentFiles([path])
    if problems := check(source):
        raise DataError(format_problems(problems))
    return JOINT.join(document.text for document in source.documents())


def _of_text(text: str, window: int, chance: random.Random, tokenizer: Tokenizer) -> Iterator[Drawn]:
    """Passages of the text in random order, each about as long as a window."""
    # Passages of about as many tokens as a window, whatever the language.
    size = max(1, len(text[:SAMPLE]) * window // max(1, len(tokenizer.encode(text[:SAMPLE], add_special=False))))
    starts = list(range(0, len(text), size))
    chance.shuffle(starts)
    prefix = list(tokenizer.special.prefix)
    for start in starts:
        ids = tokenizer.encode(text[start : start + size], add_special=False)
        yield [*prefix, *ids][:window], ()


def _of_corpus(path: Path, window: int, chance: random.Random) -> Iterator[Drawn]:
    """Parts of documents in random order."""
    from llmctl.data.corpus.indexed import Corpus

    corpus = Corpus(path)
    numbers = list(range(len(corpus)))
    chance.shuffle(numbers)
    for number in numbers:
        size = int(corpus.sizes[number])
        start = chance.randrange(size - window + 1) if size > window else 0
        yield corpus.get(number, start, start + window).tolist(), ()


def _of_examples(
    path: Path, window: int, chance: random.Random, tokenizer: Tokenizer, columns: Sequence[str]
) -> Iterator[Drawn]:
    """Examples in random order, encoded as for fine-tuning."""
    from llmctl.data.files import find_files
    from llmctl.data.reading import read_files, way_out
    from llmctl.data.sft.encoding import IGNORE_INDEX, Encoder
    from llmctl.data.sft.examples import ExampleReader

    examples, _ = read_files(
        find_files(path, "train").files,
        ExampleReader(columns=columns, option=COLUMNS),
        "calibration",
        remedy=way_out(COLUMNS),
    )
    chance.shuffle(examples)
    encoder = Encoder(tokenizer, max(LEAST, window // 2), window, option="calibration.chat_template")
    for row in map(encoder.encode, examples):
        if row is not None:
            yield row.input_ids[:window], [label != IGNORE_INDEX for label in row.labels[:window]]
