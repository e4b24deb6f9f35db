"""Facades are small, errors keep their message across processes, shared values are frozen and picklable."""

from __future__ import annotations

import builtins
import dataclasses
import enum
import importlib
import inspect
import pickle
import types
import typing

import pytest

from largeforge_ray import errors
from largeforge_ray import types as shared
from tests.contracts._tree import ROOT, name, sources

MAX_NAMES = 8
FACADES = [path for path in sources("largeforge_ray") if path.name == "__init__.py"]
VALUES = [
    value for value in vars(shared).values() if inspect.isclass(value) and value.__module__ == shared.__name__
]


def _module(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FACADES, ids=name)
def test_a_package_is_a_small_facade(path) -> None:
    module = importlib.import_module(_module(path))
    assert (module.__doc__ or "").strip(), f"{name(path)} has no docstring that shows its use"
    exported = module.__all__
    assert len(exported) <= MAX_NAMES, f"{name(path)} exports {len(exported)} names, at most {MAX_NAMES}"
    assert len(set(exported)) == len(exported)
    missing = [each for each in exported if not hasattr(module, each)]
    assert missing == [], f"{name(path)} promises names it does not have"


def test_every_error_is_a_forge_error_a_builtin_and_picklable() -> None:
    for path in sources("largeforge_ray"):
        importlib.import_module(_module(path))
    found, queue = [], [errors.ForgeError]
    while queue:
        queue += (subclasses := queue.pop().__subclasses__())
        found += [each for each in subclasses if each.__module__.startswith("largeforge_ray")]
    assert found
    for error in found:
        general = {Exception, BaseException, object}
        bases = [
            base
            for base in error.__mro__
            if vars(builtins).get(base.__name__) is base and base not in general
        ]
        assert bases, (
            f"{error.__name__} is no built-in type; add ValueError, OSError or RuntimeError to its bases"
        )
        message = "rank 128 exceeds max_lora_rank 64; raise max_lora_rank"
        copy = pickle.loads(pickle.dumps(error(message)))
        assert (type(copy), str(copy)) == (error, message)


def example(hint: object) -> object:
    """Some value of an annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return args[0]
    if origin in (typing.Union, types.UnionType):
        return example(args[0])
    if dataclasses.is_dataclass(hint):
        fields = typing.get_type_hints(hint)
        return hint(**{field.name: example(fields[field.name]) for field in dataclasses.fields(hint)})
    if isinstance(hint, enum.EnumType):
        return next(iter(hint))
    if hint in (typing.Any, None, type(None)):
        return None
    return {str: "x", int: 1, float: 0.5, bool: True}.get(hint) or (origin or hint)()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_values_that_cross_processes_are_frozen_slotted_and_picklable(value: type) -> None:
    if issubclass(value, enum.Enum):
        return
    assert dataclasses.is_dataclass(value)
    assert value.__dataclass_params__.frozen
    assert "__slots__" in vars(value)
    instance = example(value)
    assert pickle.loads(pickle.dumps(instance)) == instance
