"""Classical sorting baselines."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
import pytest

from earl_jax.config import UserError
from earl_jax.tasks import sorting_algorithms

ALGORITHMS = [
    sorting_algorithms.optimal, sorting_algorithms.merge_sort, sorting_algorithms.insertion_sort,
    sorting_algorithms.sorting_network,
]


def least_swaps(ranks):
  """n minus the cycles of the permutation."""
  target = {rank: k for k, rank in enumerate(sorted(ranks))}
  seen, cycles = set(), 0
  for k in range(len(ranks)):
    cycles += k not in seen
    while k not in seen:
      seen.add(k)
      k = target[ranks[k]]
  return len(ranks) - cycles


def replayed(ranks, steps):
  """The ranks after the swaps of a trace, which names items by where they were at first."""
  row = list(range(len(ranks)))
  for kind, first, second in steps:
    if kind == 'swap':
      i, j = row.index(first), row.index(second)
      row[i], row[j] = row[j], row[i]
  return [ranks[item] for item in row]


@pytest.mark.parametrize('algorithm', ALGORITHMS, ids=lambda a: a.__name__)
@pytest.mark.parametrize('n', range(6))
def test_sorts_every_permutation(algorithm, n):
  for ranks in itertools.permutations(range(n)):
    items = sorting_algorithms.Items(ranks)
    algorithm(items)
    assert items.ranks == sorted(ranks)
    kinds = [kind for kind, _, _ in items.steps]
    assert sorting_algorithms.spent(algorithm, ranks) == (kinds.count('compare'), kinds.count('swap'))
    assert replayed(ranks, sorting_algorithms.trace(algorithm, ranks)) == sorted(ranks)


@pytest.mark.parametrize('algorithm', ALGORITHMS[1:], ids=lambda a: a.__name__)
@given(ranks=st.lists(st.integers(), unique=True, max_size=20))
def test_sorts_any_distinct_integers(algorithm, ranks):
  items = sorting_algorithms.Items(ranks)
  algorithm(items)
  assert items.ranks == sorted(ranks)


# From the definition: optimal means are known (path lengths 2/2, 16/6, 112/24, 832/120), swaps are n - H_n.
@pytest.mark.parametrize('n, comparisons, swaps', [
    (2, 1, 0.5), (3, 8 / 3, 7 / 6), (4, 14 / 3, 23 / 12), (5, 104 / 15, 163 / 60),
])
def test_optimal_means(n, comparisons, swaps):
  assert sorting_algorithms.table(itertools.permutations(range(n)))['optimal'] == pytest.approx((comparisons, swaps))


@given(ranks=st.lists(st.integers(), unique=True, max_size=12))
def test_swaps(ranks):
  inversions = sum(a > b for a, b in itertools.combinations(ranks, 2))
  assert sorting_algorithms.spent(sorting_algorithms.insertion_sort, ranks)[1] == inversions
  assert sorting_algorithms.spent(sorting_algorithms.merge_sort, ranks)[1] == least_swaps(ranks)
  if len(ranks) <= 5:
    assert sorting_algorithms.spent(sorting_algorithms.optimal, ranks)[1] == least_swaps(ranks)


@pytest.mark.parametrize('n, size', [(2, 1), (3, 3), (4, 5), (5, 9), (6, 12), (7, 16), (8, 19)])
def test_network_size_is_fixed_and_smallest(n, size):
  for ranks in (range(n), range(n, 0, -1)):
    assert sorting_algorithms.spent(sorting_algorithms.sorting_network, ranks)[0] == size


@pytest.mark.parametrize('n', range(6, 9))
def test_network_sorts_all_zero_one_inputs(n):
  """The zero-one principle: then it sorts everything."""
  for bits in itertools.product((0, 1), repeat=n):
    items = sorting_algorithms.Items(bits)
    sorting_algorithms.sorting_network(items)
    assert items.ranks == sorted(bits)


def test_table_leaves_out_what_cannot_sort_all():
  names = {'merge_sort', 'insertion_sort', 'sorting_network'}
  assert set(sorting_algorithms.table([(2, 0, 1), range(6)])) == names
  assert set(sorting_algorithms.table([(2, 0, 1)])) == names | {'optimal'}


def test_bad_input():
  with pytest.raises(UserError, match='6 items'):
    sorting_algorithms.trace(sorting_algorithms.optimal, range(6))
  with pytest.raises(UserError, match='equal ranks'):
    sorting_algorithms.trace(sorting_algorithms.merge_sort, [1, 1])
  with pytest.raises(UserError, match='none given'):
    sorting_algorithms.table([])
