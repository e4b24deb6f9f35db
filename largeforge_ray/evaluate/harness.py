"""lm-eval as a library of task definitions: prompts, choices, few-shot examples, filters and metrics.

Nothing else touches lm-eval. Its models, its evaluator and its running of generated code are not used.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from largeforge_ray.errors import ConfigError

READ_IN_LM_EVAL = "0.4.13"
"""The version whose source this file was written against."""
PLAIN_METRICS = {"acc", "acc_norm"}
"""Of choices, those that are computed here without lm-eval."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A document as lm-eval asks it. ``prompt`` is text or a chat; ``choices`` begin with ``delimiter``."""

    doc: dict[str, Any]
    prompt: str | list[dict[str, str]]
    target: Any
    choices: list[str] | None
    delimiter: str
    stop: list[str]
    max_tokens: int


class Documents(list[dict[str, Any]]):
    """As much of a ``datasets.Dataset`` as tasks use, without its files and its one type for each field."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])

    def map(self, function: Callable[[dict[str, Any]], dict[str, Any]]) -> Documents:
        return Documents([doc | function(doc) for doc in self])


def installed() -> str:
    """The version of lm-eval in this environment."""
    return str(_lm_eval().__version__)


@cache
def _lm_eval() -> Any:
    try:
        import lm_eval
    except ImportError:
        raise ConfigError(
            f"tasks of the library need lm-eval; install lm-eval=={READ_IN_LM_EVAL} or leave them out"
        ) from None
    # It reports every choice it makes by default; what matters here is an error of ours.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


def tasks_folder() -> Path:
    return Path(_lm_eval().__file__).parent / "tasks"


@cache
def read_config(path: str, *, functions: bool = True) -> dict[str, Any]:
    """The definition in a file of lm-eval's tasks folder; not to be changed. ``functions`` imports those that
    it names."""
    _lm_eval()
    from lm_eval.tasks._yaml_loader import load_yaml

    config: dict[str, Any] = load_yaml(tasks_folder() / path, resolve_func=functions)
    return {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}


def splits(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The split that is evaluated, and the one that examples come from if that is another."""
    evaluated = config.get("test_split") or config["validation_split"]
    written = config.get("fewshot_config") or {}
    if "samples" in written:
        return evaluated, None
    named = (written.get("split"), config.get("fewshot_split"), config.get("training_split"))
    examples = next((split for split in named if split), None) or config.get("validation_split")
    return evaluated, None if examples == evaluated else examples


def shots(config: Mapping[str, Any], num_fewshot: int | None) -> int:
    """How many examples are shown. Raises ``ConfigError`` if the task has its own in its prompt."""
    own: int | None = config.get("num_fewshot")
    if own == 0 and num_fewshot:
        raise ConfigError(
            f"num_fewshot {num_fewshot} of task '{config['task']}', whose prompt is fixed; leave it out"
        )
    return (own or 0) if num_fewshot is None else num_fewshot


def open_task(
    config: Mapping[str, Any],
    documents: Mapping[str, Sequence[dict[str, Any]]] | None,
    *,
    num_fewshot: int = 0,
    seed: int = 0,
) -> Any:
    """lm-eval's task over ``documents`` (split -> documents), or those of the hub if None.

    Raises ``ConfigError`` if the hub cannot be reached or there are too few examples.
    """
    from lm_eval.api.task import ConfigurableTask

    made = dict(config) | {"num_fewshot": num_fewshot}
    if documents is not None:
        _, examples = splits(config)
        if num_fewshot and examples and examples not in documents:
            raise ConfigError(
                f"num_fewshot {num_fewshot} of task '{config['task']}', and split '{examples}' has no "
                "document of it; add some or set num_fewshot: 0"
            )
        local = {split: Documents(docs) for split, docs in documents.items()}
        kinds = ("training_split", "validation_split", "test_split", "fewshot_split")
        made |= {kind: None for kind in kinds if made.get(kind) not in local}
        made |= {"custom_dataset": lambda **_: local, "dataset_kwargs": None}
    try:
        task = ConfigurableTask(config=made)
    except (OSError, ValueError) as error:
        if documents is not None:
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the documents of task '{config['task']}' cannot be had from the hub: {why}; give source: a "
            "folder of them"
        ) from error
    task.set_fewshot_seed(seed)
    pool = len(task.sampler.df) - (task.fewshot_cfg.split == task.config.test_split)
    if num_fewshot > pool:
        raise ConfigError(
            f"num_fewshot {num_fewshot} of task '{config['task']}', and there are {pool} examples to show; "
            "give more documents or a smaller number"
        )
    return task


def ask(task: Any, places: Sequence[int], *, chat: bool) -> Iterator[Asked]:
    """The documents at ``places`` as lm-eval asks them, in this order: examples are drawn along it."""
    template = (lambda messages, **_: messages) if chat else None
    for place in places:
        doc = task.task_docs[place]
        prefix = task.doc_to_prefix(doc)
        if chat and prefix:
            raise ConfigError(
                f"task '{task.config.task}' begins the assistant's turn with {prefix!r}; set chat: false"[
                    :300
                ]
            )
        prompt = task.fewshot_context(
            doc,
            num_fewshot=task.config.num_fewshot,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=template,
            gen_prefix=prefix,
        )
        requests = task.construct_requests(
            doc, prompt, apply_chat_template=chat, metadata=(task.config.task, place, 1)
        )
        several = isinstance(requests, list)
        choices = [request.arguments[1] for request in requests] if several else None
        options = {} if several else requests.arguments[1]
        yield Asked(
            doc, prompt, task.doc_to_target(doc), choices, _delimiter(task, doc, choices), *_ends(options)
        )


def _delimiter(task: Any, doc: dict[str, Any], choices: list[str] | None) -> str:
    """What stands before each choice and does not count to its length."""
    return "" if choices is None else choices[0].removesuffix(task.doc_to_choice(doc)[0])


def _ends(options: Mapping[str, Any]) -> tuple[list[str], int]:
    from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS

    stop = options.get("until") or []
    return [stop] if isinstance(stop, str) else list(stop), options.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS)


def metrics(task: Any) -> list[str]:
    """The metrics whose mean is 1 at best, each with its filter if it has a name, the first one first."""
    from lm_eval.api.metrics import mean

    better = task.higher_is_better()
    filters = (
        []
        if task.OUTPUT_TYPE == "multiple_choice"
        else [each["name"] for each in task.config.filter_list or ()]
    )
    names = [name for name, total in task.aggregation().items() if total is mean and better[name]]
    return [_named(name, used) for used in filters or ["none"] for name in names]


def is_plain(task: Any) -> bool:
    """Whether its choices are judged without lm-eval."""
    return task.config.process_results is None and set(task.aggregation()) <= PLAIN_METRICS


def check_supported(task: Any) -> None:
    """Raises ``ConfigError`` for a task that cannot be asked as one prompt with choices or an answer."""
    name, kind = task.config.task, task.OUTPUT_TYPE
    if kind not in ("multiple_choice", "generate_until"):
        raise ConfigError(f"task '{name}' is '{kind}'; Supported: [multiple_choice, generate_until]")
    if task.multiple_input or "acc_mutual_info" in task.aggregation():
        raise ConfigError(
            f"task '{name}' scores choices in prompts of their own; choose a task with one prompt"
        )
    if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
        raise ConfigError(f"task '{name}' needs pictures, sound or lm-eval's code runner; choose another")
    if not metrics(task):
        raise ConfigError(f"task '{name}' has no metric that is a mean from 0 to 1; choose another")


def find(name: str) -> dict[str, str]:
    """Task -> definition, for one of lm-eval's tasks, groups or tags. Raises ``ConfigError`` if unknown."""
    index = _index()
    if name not in index:
        near = difflib.get_close_matches(name, index, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(each) for each in near)}?" if near else "see lm-eval ls tasks"
        raise ConfigError(f"lm-eval {installed()} has no task '{name}'; {hint}")
    found: dict[str, str] = {}
    for each in _leaves(index, name):
        entry = index[each]
        if "class" in entry.cfg:
            raise ConfigError(
                f"task '{each}' of lm-eval is a Python class; only those written in YAML are read"
            )
        found[each] = entry.yaml_path.relative_to(tasks_folder()).as_posix()
    return found


@cache
def _index() -> dict[str, Any]:
    _lm_eval()
    from lm_eval.tasks import TaskManager

    return dict(TaskManager().task_index)


def _leaves(index: Mapping[str, Any], name: str) -> list[str]:
    entry = index[name]
    if entry.tags and entry.cfg is None:
        return sorted(entry.tags)
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        return [name]
    if any(not isinstance(member, str) or member not in index for member in members):
        raise ConfigError(f"group '{name}' of lm-eval changes its tasks; name its tasks one by one")
    return [leaf for member in members for leaf in _leaves(index, member)]


def judge(path: str, doc: dict[str, Any], answer: str | list[tuple[float, bool]]) -> dict[str, float]:
    """Every metric of one answer by lm-eval's filters and scoring, named as in its results.

    ``answer`` is a text, or (log-probability, is greedy) of each choice.
    """
    from lm_eval.api.instance import Instance

    task = _judge(path, doc)
    if isinstance(answer, list):
        return _numbers(task.process_results(doc, answer), "none")
    asked = Instance("generate_until", doc, (), 0, resps=[answer])
    scores: dict[str, float] = {}
    for each in task._filters:
        each.apply([asked])
        scores |= _numbers(task.process_results(doc, [asked.filtered_resps[each.name]]), each.name)
    return scores


_JUDGES: dict[str, Any] = {}


def _judge(path: str, doc: dict[str, Any]) -> Any:
    """The task that judges, made once a process; ``doc`` stands for all, so that no other is needed."""
    if path not in _JUDGES:
        config = read_config(path)
        evaluated, _ = splits(config)
        plain = {"process_docs": None, "fewshot_config": None, "fewshot_split": None}
        _JUDGES[path] = open_task(config | plain, {evaluated: [doc]})
    return _JUDGES[path]


def _numbers(results: Mapping[str, Any], used: str) -> dict[str, float]:
    from numbers import Real

    return {_named(name, used): float(value) for name, value in results.items() if isinstance(value, Real)}


def _named(metric: str, used: str) -> str:
    return metric if used == "none" else f"{metric},{used}"
