"""What a field may hold: its annotation says so, and every value is held to that before anything is done with it.

  prompts: Annotated[int, Range(1, 1000)] = 32
  remat: Literal['none', 'dots', 'full'] = 'none'
  tasks: tuple[Annotated[tuple[str, dict, float], Example("('sort', {'n': 4}, 1.0)")], ...] = ()

A kind is bool, int, float, str, a Literal of strings, a dict of what JSON holds, a tuple of such, or a dataclass of
such fields. An annotation of another kind is left unchecked: options of a task may be anything. What `Annotated` adds
is a Range, an Example, or a function of (value, where) that gives the value to be kept.
"""

from collections.abc import Callable
import dataclasses
import typing
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import ml_collections

from earl_jax.config.errors import UserError

KINDS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a text'}
DEEPEST = 16  # dicts and lists within each other, in a dict


class Range(NamedTuple):
  """The numbers that a field takes, both ends included. What is not finite is in none."""

  low: float
  high: float

  def __str__(self):
    return f'from {self.low} to {self.high}'


class Example(NamedTuple):
  """How a field with a structure is written."""

  text: str


def build(cls: type, values: Any, where: str, example: str = '') -> Any:
  """The dataclass `cls` of a dict of its fields; those that are absent have their defaults.

  Args:
    where: names the group in errors, such as 'config.rollout'.
    example: ends what is said of values that are not a dict.

  Raises:
    UserError: no dict, a field that there is not, or a value that a field cannot have.
  """
  hints = typing.get_type_hints(cls, include_extras=True)
  if not isinstance(values, dict):
    _refuse(where, values, f'expected a group of fields: {", ".join(hints)}{example}')
  for name in values:
    if name not in hints:
      raise UserError(f'{where}.{shown(name, str)}: no such field; known: {", ".join(hints)}')
  return cls(**{name: check(hints[name], value, f'{where}.{name}') for name, value in values.items()})


def check(kind: Any, value: Any, where: str, example: str = '') -> Any:
  """`value` as a field of this kind holds it: whole numbers become floats, lists tuples, and dicts dataclasses.

  Args:
    kind: an annotation.
    where, example: as in `build`.

  Raises:
    UserError: the kind excludes it.
  """
  kind, notes, example = _read(kind, example)
  value = _of_kind(kind, value, where, example)
  for note in notes:
    if isinstance(note, Range) and not note.low <= value <= note.high:
      _refuse(where, value, f'choose {KINDS[kind]} {note}{example}')
    elif callable(note):
      value = note(value, where)
  return float(value) if kind is float else value


def _of_kind(kind: Any, value: Any, where: str, example: str) -> Any:
  """As `check`, of a kind without notes; a whole number is also a number."""
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if isinstance(value, ml_collections.ConfigDict):
    value = value.to_dict()
  if dataclasses.is_dataclass(kind):
    return build(kind, value, where, example)
  if origin is tuple:
    return _tuple(parts, value, where, example)
  if origin is Literal and not (isinstance(value, str) and value in parts):
    _refuse(where, value, f'choose one of {", ".join(parts)}{example}')
  if kind is dict and not _is_json(value):
    _refuse(where, value, f'expected a dict of texts, finite numbers, lists and dicts{example}')
  if kind in KINDS:
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
      _refuse(where, value, f'expected {KINDS[kind]}{example}')
  return value


def _read(kind: Any, example: str) -> tuple[Any, list, str]:
  """(kind without its notes, its notes, the example among them or else the one given)."""
  if typing.get_origin(kind) is not Annotated:
    return kind, [], example
  kind, *notes = typing.get_args(kind)
  return kind, notes, next((f', such as {note.text}' for note in notes if isinstance(note, Example)), example)


def _tuple(kinds: tuple, value: Any, where: str, example: str) -> tuple:
  """Of any length where `kinds` ends in `...`."""
  many = kinds[-1] is Ellipsis
  if not isinstance(value, (tuple, list)) or not (many or len(value) == len(kinds)):
    _refuse(where, value, f'expected a {"tuple" if many else f"tuple of {len(kinds)}"}{example}')
  kinds = kinds[:1] * len(value) if many else kinds
  return tuple(check(kind, x, f'{where}[{i}]', example) for i, (kind, x) in enumerate(zip(kinds, value)))


def _is_json(value: Any, deep: int = DEEPEST) -> bool:
  """Whether a dict, or what is in one, comes back from JSON as it was, but for tuples."""
  if isinstance(value, dict):
    inside = deep and all(isinstance(key, str) for key in value)
    return bool(inside) and all(_is_json(x, deep - 1) for x in value.values())
  if deep == DEEPEST:
    return False
  if isinstance(value, (list, tuple)):
    return deep > 0 and all(_is_json(x, deep - 1) for x in value)
  if isinstance(value, (int, float)):
    return -(2**63) <= value < 2**63
  return value is None or isinstance(value, str)


def _refuse(where: str, value: Any, remedy: str) -> NoReturn:
  raise UserError(f'{where}={shown(value)}: {remedy}')


def shown(value: Any, write: Callable[[Any], str] = repr) -> str:
  """A value in a line of text; what is long is cut."""
  try:
    text = ' '.join(write(value).split())
  except Exception:  # of somebody else's class, or a number of too many digits
    text = f'<{type(value).__name__}>'
  return text if len(text) <= 120 else f'{text[:100]} … {text[-10:]}'
