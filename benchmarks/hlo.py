"""What a compiled program's text says: the arrays in it, and what its devices send each other."""

from collections.abc import Iterator
import math
import re
from typing import NamedTuple

WIDTHS = {'pred': 1, 's4': 1, 'u4': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2, 's32': 4, 'u32': 4,
          'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8}
KINDS = ('all-gather', 'all-reduce', 'all-to-all', 'collective-broadcast', 'collective-permute',
         'ragged-all-to-all', 'reduce-scatter')

_ARRAY = re.compile(rf'\b({"|".join(WIDTHS)}|f8\w+)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
# What follows the result's type is the operation. An asynchronous one is counted where it is done: there its type is
# that of the result alone.
_OPERATION = re.compile(r' = (.*?) ([a-z][a-z-]*)\(')
_CALLED = re.compile(r'(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Array(NamedTuple):
  """Type and shape, on one device, of one array."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    return self.size * WIDTHS.get(self.dtype, 1)


class Collective(NamedTuple):
  """An operation between devices.

  Attributes:
    kind: one of KINDS.
    results: what one device has of it afterwards.
    times: how often it runs, as far as the text tells.
    repeated: it is in a loop of which the text does not tell how often it runs: `times` is for one turn of it.
  """

  kind: str
  results: tuple[Array, ...]
  times: int
  repeated: bool

  @property
  def bytes(self) -> int:
    """Of the results, all times together."""
    return self.times * sum(array.bytes for array in self.results)


def arrays(text: str) -> list[Array]:
  """All types of arrays in a piece of HLO text."""
  return [Array(dtype, tuple(map(int, filter(None, dims.split(','))))) for dtype, dims in _ARRAY.findall(text)]


def collectives(text: str) -> list[Collective]:
  """The collectives that one run of a compiled program comes to.

  Of the branches of a conditional the one with the most bytes counts.
  """
  computations, entry, lines = {}, None, []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      lines = computations.setdefault(match[2], [])
      entry = match[2] if match[1] else entry
    else:
      lines.append(line)

  def visit(name: str, times: int, repeated: bool) -> Iterator[Collective]:
    for line in computations[name]:
      match = _OPERATION.search(line)
      if not match:
        continue
      kind = match[2].removesuffix('-done')
      if kind in KINDS:
        yield Collective(kind, tuple(arrays(match[1])), times, repeated)
      elif kind == 'while':
        trips = _TRIPS.search(line)
        for called in _CALLED.findall(line):
          yield from visit(called, times * int(trips[1] if trips else 1), repeated or not trips)
      elif kind == 'conditional':
        branches = _BRANCHES.search(line)
        names = re.findall(r'[\w.-]+', branches[1]) if branches else _CALLED.findall(line)
        yield from max((list(visit(called, times, repeated)) for called in names), key=total)
      elif kind in ('call', 'fusion', 'async-start'):
        for called in _CALLED.findall(line):
          yield from visit(called, times, repeated)

  return list(visit(entry, 1, False))


def cycles(text: str, loop: str) -> list[int]:
  """What the compiler for TPUs takes one turn to take of each loop of this name; kernels written by hand not counted.

  Args:
    loop: its `op_name`.
  """
  named, sums, name = [], {}, None
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      name = match[2]
    elif match := re.search(r'"estimated_cycles":"(\d+)"', line):
      sums[name] = sums.get(name, 0) + int(match[1])
    if match := re.search(rf' while\(.* body=%?([\w.-]+).*op_name="{re.escape(loop)}"', line):
      named.append(match[1])
  return [sums[body] for body in named]


def total(found: list[Collective]) -> int:
  """Bytes."""
  return sum(collective.bytes for collective in found)
