"""Runs tasks of lm-evaluation-harness on a model, and reads its results. The harness itself needs no torch."""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError, LlmctlError, require
from llmctl.infer.harness.scorer import Scorer
from llmctl.tokenizers.conversation import Conversation, Message

PURPOSE = "llmctl eval --tasks"


@dataclass(frozen=True)
class Tasks:
    """What is asked.

    Attributes:
        names: Names of tasks, groups or tags, as the harness knows them.
        manager: The harness's ``TaskManager``.
        few_shot: Examples in a prompt; None = as the task says.
        limit: Documents of a task, or a share of them below 1; None = all.
        chat: Whether prompts are written with the chat template.
    """

    names: Sequence[str]
    manager: Any
    few_shot: int | None = None
    limit: float | None = None
    chat: bool = False


@dataclass(frozen=True)
class Metric:
    """A result.

    Attributes:
        task: Name of a task or group.
        name: The metric, with the filter of answers in brackets if the task has one.
        value: Its value.
        error: Standard error of the mean; None = the harness gives none.
        documents: Number of documents; None = a group.
    """

    task: str
    name: str
    value: float
    error: float | None
    documents: int | None


def open_tasks(names: Sequence[str], include: Path | None = None, **more: Any) -> Tasks:
    """The tasks of these names; their data are read when they are run.

    Args:
        names: Names of tasks, groups or tags, or patterns of them (``mmlu_*``).
        include: Folder of tasks of one's own (``.yaml``).
        **more: Other attributes of ``Tasks``.

    Raises:
        ConfigError: There is no task of a name.
        MissingDependencyError: The harness is not installed.
    """
    require("lm_eval", "eval", PURPOSE)
    manager = require("lm_eval.tasks", "eval", PURPOSE).TaskManager(include_path=include and str(include))
    found = []
    for name in names:
        matching = manager.match_tasks([name])
        if not matching:
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            raise ConfigError(
                f"--tasks {name}: lm-evaluation-harness has no task, group or tag of this name"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
                + ("" if include else ". Tasks of your own are found with --include-path FOLDER")
            )
        found += matching
    return Tasks(list(dict.fromkeys(found)), manager, **more)


def run(scorer: Scorer, tasks: Tasks) -> list[Metric]:
    """Results of a model, by tasks.

    Raises:
        LlmctlError: The data of a task cannot be read, or the model cannot answer a request.
    """
    import lm_eval

    evaluate = lm_eval.simple_evaluate
    try:
        with _quiet(evaluate):
            results = evaluate(
                model=language_model(scorer), tasks=list(tasks.names), num_fewshot=tasks.few_shot, limit=tasks.limit,
                task_manager=tasks.manager, apply_chat_template=tasks.chat, log_samples=False, torch_random_seed=None,
            )  # fmt: skip
    except LlmctlError:
        raise
    except Exception as error:  # what tasks, their data and the network raise
        raise ConfigError(
            f"--tasks {','.join(tasks.names)}: lm-evaluation-harness stopped: {type(error).__name__}: {error}"
        ) from error
    return metrics(results)


@contextlib.contextmanager
def _quiet(evaluate: Any) -> Iterator[None]:
    """Nothing is said of what was asked (a number of examples other than the task's), nor by git where the folder is no repository.

    Args:
        evaluate: The harness's function, whose module asks git for the commit of the current folder.
    """
    names, logger = sys.modules[evaluate.__module__].__dict__, logging.getLogger("lm_eval")
    level, ask = logger.level, names.get("get_git_commit_hash")
    logger.setLevel(logging.ERROR)
    names["get_git_commit_hash"] = str
    try:
        yield
    finally:
        logger.setLevel(level)
        names["get_git_commit_hash"] = ask


def metrics(results: Mapping[str, Any]) -> list[Metric]:
    """The metrics of tasks and groups, from what ``lm_eval.simple_evaluate`` returns."""
    rows = {**results["results"], **results.get("groups", {})}
    documents = results.get("n-samples", {})
    found = []
    for task, values in rows.items():
        for key, value in values.items():
            name, comma, way = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = values.get(f"{name}_stderr,{way}")
            found.append(
                Metric(
                    task,
                    name if way == "none" else f"{name} ({way})",
                    float(value),
                    float(error) if isinstance(error, (int, float)) and math.isfinite(error) else None,
                    documents.get(task, {}).get("effective"),
                )  # fmt: skip
            )
    return found


def language_model(scorer: Scorer) -> Any:
    """The scorer as a model of the harness (``lm_eval.api.model.LM``)."""
    from lm_eval.api.model import LM

    class Model(LM):  # type: ignore[misc]
        tokenizer_name = str(scorer.tokenizer.folder)

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return scorer.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return scorer.loglikelihood_rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return scorer.generate_until([request.args for request in requests])

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return chat_text(scorer, chat_history, add_generation_prompt)

    return Model()


def chat_text(scorer: Scorer, history: Sequence[Mapping[str, str]], ask: bool = True) -> str:
    """Messages as the model's chat template writes them.

    Args:
        scorer: The model.
        history: Messages with ``role`` and ``content``.
        ask: True: the prompt of the next answer. False: the last message is an unfinished answer, which the model continues.

    Raises:
        ConfigError: There is no template, or it does not write the last answer as it is.
    """
    template = scorer.tokenizer.chat_template
    if template is None:
        raise ConfigError(
            f"--apply-chat-template: {scorer.tokenizer.folder} has no chat template; name one with --chat-template, or leave it out"
        )
    messages = [Message(one["role"], one["content"]) for one in history]
    text = template.text(Conversation(messages=messages, add_generation_prompt=ask))
    if ask:
        return text
    begun = messages[-1].content or ""
    place = text.rfind(begun)
    if not begun or place < 0:
        raise ConfigError("the chat template does not write the last answer as it is, so it cannot be continued")
    return text[: place + len(begun)]
