"""What the JSON files hold that llmctl writes and reads again, and the one reader that checks it.

A file may be damaged, or edited, or of another release: readers get what is stated here, or an error that names file and key. Keys
that are not stated are passed through. The records of packed models and of exported programs are dataclasses where they
are used, ``infer.packed`` and ``infer.eager.exported``, and checked in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict

from llmctl.errors import FileError
from llmctl.io.json_object import parse_json, read_json
from llmctl.io.typed import Count, Least, check_type


class Sample(TypedDict, total=False):
    """A prompt of the held-out data and its answer."""

    prompt: str
    expected: str | None
    answer: str | None


class Evaluated(TypedDict, total=False):
    """``before`` and ``after`` of a run."""

    metrics: dict[str, float | None]
    samples: list[Sample]


class Best(TypedDict):
    """``best.json``: the best checkpoint so far."""

    metric: str
    value: float
    step: Count


class Outcome(TypedDict, total=False):
    """How far a run is, and how it ended."""

    state: str
    step: Count
    steps_planned: Count
    message: str


class Run(TypedDict, total=False):
    """``run.json`` of a run; which keys are there depends on how far it is."""

    family: str
    task: str
    parameters: Count
    trained_parameters: Count
    chosen: list[str]
    template_time: str
    base: dict[str, Any]
    created: str
    command: list[str]
    versions: dict[str, str]
    hook_api: str
    card_hash: str
    config: dict[str, dict[str, Any]]
    precision: dict[str, str]
    before: Evaluated
    after: Evaluated
    outcome: Outcome
    peak_memory: dict[str, float]
    best: Best | None
    test: dict[str, float]
    steps: Count
    seconds: float
    next: list[str]


class _Row(TypedDict):
    step: Count


class MetricsRow(_Row, total=False):
    """A line of ``metrics.jsonl``: a step, with ``loss``, or an evaluation."""

    epoch: float


class TrainerState(TypedDict):
    """``trainer_state.json`` of a checkpoint."""

    step: Count
    seed: int
    fingerprint: str


class _Size(TypedDict):
    bytes: Count


class FileSum(_Size, total=False):
    """Size and checksum of a file."""

    crc32: str
    sha256: str


class Manifest(TypedDict, total=False):
    """``manifest.json`` of a model, a checkpoint or a conversion."""

    files: dict[str, FileSum]
    made_from: str


class Description(TypedDict):
    """``description.json`` of an entry of the index cache: array -> its file."""

    arrays: dict[str, FileSum]


class WrittenEntry(Description):
    """The same, of an entry that is larger than memory: sizes of its other files, and what was found."""

    others: dict[str, Count]
    result: dict[str, Any]


class Places(TypedDict):
    """``result`` of the index of a file: what is before the numbers of its records."""

    label: str


class UnreadKey(TypedDict):
    """A key with text that is not read: how many records have it, and the numbers of the first."""

    count: Count
    places: list[str]


class Seen(TypedDict):
    """``result`` of checking a file: format -> records, key -> where it is not read."""

    formats: dict[str, Count]
    unread: dict[str, UnreadKey]


class Lengths(TypedDict):
    """``result`` of encoding a split."""

    truncated: Count
    shortened: Count
    digest: str


class FamilyEvidence(TypedDict, total=False):
    """Tests of a family that passed, in ``evidence.json`` of its plugin."""

    version: str
    core: str
    api: str
    code: str
    outcomes: dict[str, dict[str, str]]


class AdapterRecord(TypedDict, total=False):
    """``llmctl.json`` of an adapter."""

    base: dict[str, Any]
    blocks: dict[str, dict[str, Count]]
    quantised: str
    ignored_config_keys: list[str]


class Connection(TypedDict):
    """A connection between devices as it was measured: bytes per second, and seconds of a message without content."""

    bandwidth: Annotated[float, Least(1)]
    latency: Annotated[float, Least(0)]


class Measured(TypedDict, total=False):
    """The file of ``llmctl bench comm --output``: connections inside of a machine, or between machines."""

    inside: Connection
    between: Connection


class Holder(TypedDict):
    """A lock file: the process that holds it."""

    pid: int
    host: str
    started: str
    command: str


def read_written(path: Path, kind: Any, remedy: str, required: bool = False) -> dict[str, Any]:
    """The object in a file that llmctl wrote.

    Args:
        path: The file.
        kind: What it holds, a class of this module.
        remedy: What the message of a damaged file says to do.
        required: Whether it must exist; else a missing file reads as an empty object.

    Raises:
        FileError: It is missing and required, cannot be read, or does not hold what llmctl writes.
    """
    content = read_json(path, required)
    if content or required or path.is_file():
        try:
            check_type(content, kind)
        except ValueError as error:
            raise FileError(f"{path} is damaged: {error}; {remedy}") from None
    return content


def parse_written(text: str | bytes, kind: Any) -> Any:
    """The value of JSON text that llmctl wrote, such as a line of a file.

    Raises:
        ValueError: It is not what llmctl writes.
    """
    content = parse_json(text)
    check_type(content, kind)
    return content
