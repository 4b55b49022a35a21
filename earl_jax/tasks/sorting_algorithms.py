"""What classical algorithms spend to sort hidden items: reference rows for evaluation tables. Host side only.

Every algorithm brings `Items` into ascending order of their ranks, distinct integers. For descending order negate them.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import itertools

import numpy as np

from earl_jax.config import UserError

__all__ = ['insertion_sort', 'Items', 'merge_sort', 'optimal', 'sorting_network', 'spent', 'table', 'trace']

OPTIMAL_MAX = 5  # 4231 partial orders of 5 items; of 6 items there are 130023


class Items:
  """Hidden items: an algorithm learns about them by `less` alone and moves them by `swap` alone.

  `steps` has both in their order, as ('compare' or 'swap', item, item); items are named by where they were at first.
  """

  def __init__(self, ranks: Sequence[int]):
    self.ranks = list(ranks)
    self.steps = []
    self._names = list(range(len(ranks)))

  def __len__(self) -> int:
    return len(self.ranks)

  def less(self, i: int, j: int) -> bool:
    """Is the item at position i smaller than the one at j?"""
    self.steps.append(('compare', self._names[i], self._names[j]))
    return self.ranks[i] < self.ranks[j]

  def swap(self, i: int, j: int) -> None:
    self.steps.append(('swap', self._names[i], self._names[j]))
    for row in (self.ranks, self._names):
      row[i], row[j] = row[j], row[i]


Algorithm = Callable[[Items], None]


def trace(sort: Algorithm, ranks: Sequence[int]) -> list[tuple[str, int, int]]:
  """What an algorithm does to sort items of these ranks: `Items.steps`.

  Raises:
    UserError: equal ranks.
  """
  if len(set(ranks)) < len(ranks):
    raise UserError(f'ranks={list(ranks)}: equal ranks; give each item a rank of its own')
  items = Items(ranks)
  sort(items)
  return items.steps


def spent(sort: Algorithm, ranks: Sequence[int]) -> tuple[int, int]:
  """(comparisons, swaps) of an algorithm; raises as `trace` does."""
  kinds = [kind for kind, _, _ in trace(sort, ranks)]
  return kinds.count('compare'), kinds.count('swap')


def optimal(items: Items) -> None:
  """The decision tree with the fewest comparisons on average, then the fewest swaps. At most 5 items.

  Mean over all permutations of n = 2 … 5 items: 1, 8/3, 14/3, 104/15 comparisons and n - H_n swaps.

  Raises:
    UserError: more than 5 items.
  """
  n = len(items)
  if n > OPTIMAL_MAX:
    raise UserError(f'optimal: {n} items, but its tree is searched for at most {OPTIMAL_MAX}; use merge_sort')
  orders, less, tree = _decision_tree(n)
  possible = (1 << len(orders)) - 1
  while possible & (possible - 1):  # more than one order left
    i, j = tree(possible)[1]
    possible &= less[i, j] if items.less(i, j) else ~less[i, j]
  _arrange(items, orders[possible.bit_length() - 1])


@functools.cache
def _decision_tree(n: int):
  """(orders, less, tree) of n items.

  A set of orders is an integer whose bit k says that `orders[k]` is in it. `less[i, j]` is the set in which item i
  comes before item j. `tree(possible)` gives (cost, best pair to compare next): cost is the number of comparisons
  still to make, summed over the orders in `possible`.
  """
  orders = list(itertools.permutations(range(n)))
  less = {
      (i, j): sum(1 << k for k, order in enumerate(orders) if order.index(i) < order.index(j))
      for i, j in itertools.combinations(range(n), 2)
  }

  @functools.cache
  def tree(possible: int) -> tuple[int, tuple[int, int] | None]:
    if not possible & (possible - 1):
      return 0, None
    splits = {pair: (possible & before, possible & ~before) for pair, before in less.items()}
    return min(
        (possible.bit_count() + tree(yes)[0] + tree(no)[0], pair) for pair, (yes, no) in splits.items() if yes and no
    )

  return orders, less, tree


def merge_sort(items: Items) -> None:
  """Top-down merge sort. The order is found first, then made with the fewest swaps."""

  def merge(left: list[int], right: list[int]) -> list[int]:
    merged = []
    while left and right:
      source = right if items.less(right[0], left[0]) else left
      merged.append(source.pop(0))
    return merged + left + right

  def ordered(positions: list[int]) -> list[int]:
    if len(positions) < 2:
      return positions
    half = len(positions) // 2
    return merge(ordered(positions[:half]), ordered(positions[half:]))

  _arrange(items, ordered(list(range(len(items)))))


def insertion_sort(items: Items) -> None:
  """Insertion sort by swaps of neighbours: as many swaps as inversions."""
  for i in range(1, len(items)):
    while i > 0 and items.less(i, i - 1):
      items.swap(i, i - 1)
      i -= 1


def sorting_network(items: Items) -> None:
  """Batcher's merge exchange (Knuth, The Art of Computer Programming, 5.2.2 M): compare-exchanges fixed in advance.

  1, 3, 5, 9, 12, 16, 19 comparisons for n = 2 … 8, the fewest any network needs.
  """
  for i, j in _batcher(len(items)):
    if items.less(j, i):
      items.swap(i, j)


def _batcher(n: int) -> Iterable[tuple[int, int]]:
  top = (1 << (n - 1).bit_length()) >> 1  # the largest power of two below n
  p = top
  while p:
    q, r, d = top, 0, p
    while True:
      yield from ((i, i + d) for i in range(n - d) if i & p == r)
      if q == p:
        break
      q, r, d = q // 2, p, q - p
    p //= 2


def _arrange(items: Items, order: Sequence[int]) -> None:
  """Moves the item now at `order[k]` to position k, for every k, by n - (cycles of the permutation) swaps."""
  order = list(order)
  for k, source in enumerate(order):
    if source != k:
      items.swap(k, source)
      order[order.index(k, k)] = source  # the item that was at k is now at `source`


def table(permutations: Iterable[Sequence[int]]) -> dict[str, tuple[float, float]]:
  """Name -> (mean comparisons, mean swaps) over `permutations`, for every algorithm that can sort them all.

  Raises:
    UserError: no permutations, or one has equal ranks.
  """
  permutations = list(permutations)
  if not permutations:
    raise UserError('permutations: none given; give at least one')
  algorithms = [merge_sort, insertion_sort, sorting_network]
  if max(map(len, permutations)) <= OPTIMAL_MAX:
    algorithms.insert(0, optimal)
  return {sort.__name__: tuple(np.mean([spent(sort, p) for p in permutations], axis=0).tolist()) for sort in algorithms}
