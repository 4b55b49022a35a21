"""Sorting hidden items: compare, order and sort (paper, section 4, the sorting experiments).

Items A, B, C, … have different hidden values. All three tasks share the keys of their instances:
  values: int32[8], entries from `count` on are 0.
  count: int32[].
  descending: bool[], the direction asked for; only the reward looks at it.
  asked: int32[2], the two items a question is about; -1 where there is none.
"""

from collections.abc import Sequence
import itertools
import math
import re
from typing import Annotated, Any, Literal

import numpy as np

from earl_jax.config import Range
from earl_jax.environments.hidden_items import HiddenItems, ITEMS, MAX_ITEMS
from earl_jax.tasks import base, sorting_algorithms
from earl_jax.tasks.base import Call, Column, Example, Instance, Outcome, Task

_ENUMERATED_MAX = 5  # items; 240 problems of 5, 1440 of 6
_LOWEST, _HIGHEST = -99, 999  # hidden values
_SPLIT_MIN = 3  # items, from which on order has enough texts for two splits: n = 2 has 8, n = 3 has 672
Items = Annotated[int, Range(2, MAX_ITEMS)]
Direction = Literal['both', 'ascending', 'descending']
_DIRECTIONS = {'both': (False, True), 'ascending': (False,), 'descending': (True,)}  # -> allowed `descending`
_NAMES = tuple(item.description.strip() for item in ITEMS)


class _ItemTask(Task):
  """`n` items, arranged in a direction or only asked about."""

  numbered = 'n'

  def __init__(self, n: Items, direction: Direction = 'both'):
    self.n = n
    self.label = f'{self.name}{n}' + ('' if direction == 'both' else f'-{direction}')
    self._directions = _DIRECTIONS[direction]
    self._items = ', '.join(_NAMES[:n])

  def _draw(self, rng: np.random.Generator, split: str) -> tuple[list[int], bool]:
    """Distinct values and `descending`, drawn again until the problem belongs to `split`."""
    while True:
      values = (_LOWEST + rng.choice(_HIGHEST - _LOWEST + 1, self.n, replace=False)).tolist()
      descending = self._directions[rng.integers(len(self._directions))]
      if base.split_of(f'{self.n} {descending} {values}') == split:
        return values, descending

  def _instance(self, values: Sequence[int], descending: bool, asked: Sequence[int] = (-1, -1)) -> Instance:
    padded = np.zeros(MAX_ITEMS, np.int32)
    padded[:self.n] = values
    return {
        'values': padded,
        'count': np.int32(self.n),
        'descending': np.bool_(descending),
        'asked': np.array(asked, np.int32),
    }

  def _solution(self, instance: Instance, variant: int) -> list[Call]:
    """Calls of compare and swap by the optimal decision tree, its choices among equals by chance."""
    order = np.random.default_rng(variant).permutation(self.n)  # which item the tree takes for its first, second, …
    sign = -1 if instance['descending'] else 1
    ranks = (sign * instance['values'][order]).tolist()
    sort = sorting_algorithms.optimal if self.n <= sorting_algorithms.OPTIMAL_MAX else sorting_algorithms.merge_sort
    comparisons = [
        Call('compare', (int(order[i]), int(order[j])))
        for kind, i, j in sorting_algorithms.trace(sort, ranks) if kind == 'compare'
    ]
    # Swaps are those of the row as it stands, whatever the tree called its items.
    ranks = (sign * instance['values'][:self.n]).tolist()
    swaps = [Call(kind, (i, j)) for kind, i, j in sorting_algorithms.trace(sort, ranks) if kind == 'swap']
    return comparisons + swaps

  def _says_order(self, instance: Instance) -> str:
    return f' the order asked for is {", ".join(_NAMES[item] for item in self._goal(instance))}\n'

  def _goal(self, instance: Instance) -> list[int]:
    """The arrangement asked for: `goal[i]` is the item at place i."""
    values = instance['values'].tolist()
    return sorted(range(self.n), key=values.__getitem__, reverse=bool(instance['descending']))


class Sort(_ItemTask):
  """Put `n` items with hidden values in order, with compare and swap (docs/method.md, section 4).

  The reward of a right final state is (1 + efficiency) / 2, and efficiency the mean of what is left of the comparisons'
  and the swaps' budget. It counts only under a condition:
    certified: the comparisons made prove the final order (default).
    released: there were at least ceil(log2 n!) of them, as in the released code.

  Prompts say nothing of the values. The split is by these, and a policy sees no more of them than how they compare: of
  few items both splits have every arrangement, which is why evaluation takes all `problems`.
  """

  name = 'sort'
  environments = ('compare', 'swap')
  columns = (Column('certified', '{:.1%}'), Column('comparisons', '{:.3f}'), Column('swaps', '{:.3f}'))
  cost = 'comparisons'
  proof = 'certified'

  def __init__(
      self, n: Items, direction: Direction = 'both', efficiency: Literal['certified', 'released'] = 'certified'
  ):
    super().__init__(n, direction)
    self._released = efficiency == 'released'
    if self._released:
      self.label += '-released'

  def example(self, seed: int, split: str, index: int) -> Example:
    return self._example(*self._draw(base.random_generator(seed, split, index), split))

  def demonstration(self, seed: int, split: str, index: int, variant: int) -> list[str | Call]:
    instance = self.example(seed, split, index).instance
    calls = self._solution(instance, variant)
    swaps = [call for call in calls if call.environment == 'swap']
    return [*calls[:len(calls) - len(swaps)], self._says_order(instance), *swaps]

  def problems(self) -> list[Example] | None:
    """Every permutation in every allowed direction, with the ranks 0 … n-1 as values: n! or 2 n! examples."""
    if self.n > _ENUMERATED_MAX:
      return None
    return [
        self._example(ranks, descending)
        for descending in self._directions for ranks in itertools.permutations(range(self.n))
    ]

  def references(self, examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """What classical algorithms spend."""
    ranks = [
        (i['values'] * (-1 if i['descending'] else 1))[: self.n].tolist() for i in (e.instance for e in examples)
    ]
    return {
        name: {'comparisons': comparisons, 'swaps': swaps}
        for name, (comparisons, swaps) in sorting_algorithms.table(ranks).items()
    }

  def _example(self, values: Sequence[int], descending: bool) -> Example:
    user = (
        f'The sequence is {self._items}. Put it in {_direction(descending)} order with as few comparisons and swaps as '
        'possible.'
    )
    return Example(base.SYSTEM, user, self._instance(values, descending))

  def outcome(self, instance: Instance, states: dict[str, Any], text: str, finished: bool) -> Outcome:
    state: HiddenItems = states['HiddenItems']
    goal = self._goal(instance)
    exact = bool(finished) and state.sequence[:self.n].tolist() == goal
    comparisons, swaps = int(state.comparisons), int(state.swaps)
    # Values are distinct, so a proof of the order must compare all neighbours (nothing else implies them), and
    # transitivity gives the rest.
    compared = state.compared.tolist()
    certified = exact and all(compared[a][b] for a, b in itertools.pairwise(goal))

    enough = comparisons >= _released_least(self.n) if self._released else certified
    efficiency = 0.0
    if exact and enough:
      spare = _released_spare(comparisons, self.n) if self._released else _certified_spare(comparisons, self.n)
      efficiency = 0.5 * spare + 0.5 * swap_efficiency(swaps, goal)
    metrics = {
        'comparisons': float(comparisons),
        'swaps': float(swaps),
        'certified': float(certified),
        'efficiency': efficiency,
    }
    return Outcome((1 + efficiency) / 2 if exact else 0.0, exact, metrics)


class Order(_ItemTask):
  """Put `n` items in order when the prompt tells how they compare, with swap alone (docs/method.md, section 4).

  The prompt is all there is, so it decides the split. Two items have too few prompts to be split: both splits have all
  of them, and `problems` lists them for evaluation.
  """

  name = 'order'
  environments = ('swap',)
  columns = (Column('swaps', '{:.3f}'),)
  cost = 'swaps'

  def example(self, seed: int, split: str, index: int) -> Example:
    rng = base.random_generator(seed, split, index)
    ranks = rng.permutation(self.n).tolist()
    descending = self._directions[rng.integers(len(self._directions))]
    while True:  # what is told is drawn again, and not the arrangement: all of them are as frequent in either split
      example = self._example(ranks, descending, _relations(rng, ranks))
      if self.n < _SPLIT_MIN or base.split_of(example.user) == split:
        return example

  def problems(self) -> list[Example] | None:
    """Every prompt where they cannot be split, else None."""
    if self.n >= _SPLIT_MIN:
      return None
    return [
        self._example(ranks, descending, [relation])
        for descending in self._directions for ranks in itertools.permutations(range(self.n))
        for relation in _writings(*np.argsort(ranks))
    ]

  def _example(self, ranks: Sequence[int], descending: bool, relations: Sequence[str]) -> Example:
    user = (
        f'The sequence is {self._items}. It is known that {", ".join(relations)}. Put it in {_direction(descending)} '
        'order with as few swaps as possible.'
    )
    return Example(base.SYSTEM, user, self._instance(ranks, descending))

  def demonstration(self, seed: int, split: str, index: int, variant: int) -> list[str | Call]:
    instance = self.example(seed, split, index).instance
    swaps = [call for call in self._solution(instance, variant) if call.environment == 'swap']
    return [self._says_order(instance), *swaps]

  def outcome(self, instance: Instance, states: dict[str, Any], text: str, finished: bool) -> Outcome:
    state: HiddenItems = states['HiddenItems']
    goal = self._goal(instance)
    exact = bool(finished) and state.sequence[:self.n].tolist() == goal
    swaps = int(state.swaps)
    efficiency = swap_efficiency(swaps, goal) if exact else 0.0
    return Outcome((1 + efficiency) / 2 if exact else 0.0, exact, {'swaps': float(swaps), 'efficiency': efficiency})


class Compare(_ItemTask):
  """Say which of two of `n` items is larger, with compare (docs/method.md, section 4). Split as `Sort` is."""

  name = 'compare'
  environments = ('compare',)
  columns = (Column('comparisons', '{:.3f}'),)
  cost = 'comparisons'
  reads_text = True

  def __init__(self, n: Items = 2):
    super().__init__(n)
    self._directions = (False,)  # it asks for none

  def example(self, seed: int, split: str, index: int) -> Example:
    rng = base.random_generator(seed, split, index)
    values, _ = self._draw(rng, split)
    asked = rng.choice(self.n, 2, replace=False)
    first, second = (_NAMES[item] for item in asked)
    user = (
        f'The items are {self._items}. Which one is larger, {first} or {second}? Give the item inside '
        '<answer> </answer>.'
    )
    return Example(base.SYSTEM, user, self._instance(values, False, asked))

  def demonstration(self, seed: int, split: str, index: int, variant: int) -> list[str | Call]:
    instance = self.example(seed, split, index).instance
    asked = instance['asked'].tolist()
    larger = max(asked, key=instance['values'].__getitem__)
    return [Call('compare', tuple(asked[::-1] if variant % 2 else asked)), f' <answer>{_NAMES[larger]}</answer>']

  def outcome(self, instance: Instance, states: dict[str, Any], text: str, finished: bool) -> Outcome:
    larger = max(instance['asked'].tolist(), key=instance['values'].__getitem__)
    exact = bool(finished) and last_answer(text) == _NAMES[larger]
    return Outcome(float(exact), exact, {'comparisons': float(states['HiddenItems'].comparisons)})


def fewest_swaps(goal: Sequence[int]) -> int:
  """Swaps of two items that turn 0, 1, 2, … into `goal` at best: n minus the cycles of the permutation."""
  cycles, seen = 0, set()
  for item in goal:
    cycles += item not in seen
    while item not in seen:
      seen.add(item)
      item = goal[item]
  return len(goal) - cycles


def swap_efficiency(swaps: int, goal: Sequence[int]) -> float:
  """1 with the fewest swaps, 0 from n (n - 1) / 2 on: 1 - S̃ of the method, and of the released code alike."""
  fewest, pairs = fewest_swaps(goal), math.comb(len(goal), 2)
  return 1 - _clip((swaps - fewest) / max(1, pairs - fewest))


def _certified_spare(comparisons: int, n: int) -> float:
  """1 - C̃: 1 with the n - 1 comparisons that any proof needs, 0 with all pairs."""
  return 1 - _clip((comparisons - (n - 1)) / max(1, math.comb(n, 2) - (n - 1)))


def _released_least(n: int) -> int:
  """ceil(log2 n!), by Stirling's formula as in the released code."""
  return math.ceil(n * math.log2(n) - n / math.log(2) + 0.5 * math.log2(2 * math.pi * n))


def _released_spare(comparisons: int, n: int) -> float:
  least, reference = _released_least(n), n * math.ceil(math.log2(n))
  return 1 - _clip((comparisons - least) / max(1, reference - least))


def last_answer(text: str) -> str:
  """What the last complete <answer>…</answer> holds, stripped; empty where there is none.

  A pair is an opening tag and the closing one right after it: of pairs inside one another the inner one counts.
  """
  answer, start = '', None
  for tag in re.finditer('</?answer>', text):
    if tag[0] == '<answer>':
      start = tag.end()
    elif start is not None:
      answer, start = text[start:tag.start()].strip(), None
  return answer


def _relations(rng: np.random.Generator, values: Sequence[int]) -> list[str]:
  """Relations that determine the order: those of all neighbours, others by a coin, in random order and writing."""
  ascending = sorted(range(len(values)), key=values.__getitem__)
  relations = []
  for i, j in itertools.combinations(range(len(values)), 2):
    if j == i + 1 or rng.random() < 0.5:
      relations.append(_writings(ascending[i], ascending[j])[int(rng.random() < 0.5)])
  rng.shuffle(relations)
  return relations


def _writings(smaller: int, larger: int) -> tuple[str, str]:
  """Both ways to say how two items compare."""
  return f'{_NAMES[smaller]} < {_NAMES[larger]}', f'{_NAMES[larger]} > {_NAMES[smaller]}'


def _direction(descending: bool) -> str:
  return 'descending' if descending else 'ascending'


def _clip(x: float) -> float:
  return min(1.0, max(0.0, x))
