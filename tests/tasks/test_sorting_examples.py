"""What the sorting tasks ask: prompts, splits, purity, distribution."""

import collections
import itertools
import math
import re

import chex
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.tasks.base import make_task, random_generator, split_of
from earl_jax.tasks.sorting import Compare, Order, Sort

TASKS = [Sort(4), Sort(2, 'descending'), Order(3), Order(5, 'ascending'), Compare(2), Compare(6)]


@pytest.fixture(params=TASKS, ids=lambda task: task.label)
def task(request):
  return request.param


def problem(example):
  instance = example.instance
  return int(instance['count']), bool(instance['descending']), tuple(instance['values'].tolist())


def ranks(values):
  return tuple(np.argsort(np.argsort(values)).tolist())


def test_labels_and_environments():
  described = {task.label: task.environments for task in TASKS}
  assert described == {
      'sort4': ('compare', 'swap'), 'sort2-descending': ('compare', 'swap'), 'order3': ('swap',),
      'order5-ascending': ('swap',), 'compare2': ('compare',), 'compare6': ('compare',),
  }
  assert Sort(4, 'ascending', 'released').label == 'sort4-ascending-released'


def test_prompts():
  for index in range(20):
    example = Sort(4).example(0, 'train', index)
    direction = 'descending' if example.instance['descending'] else 'ascending'
    assert example.system == 'Think first, then answer.'
    assert example.user == (f'The sequence is A, B, C, D. Put it in {direction} order with as few comparisons and '
                            'swaps as possible.')

    example = Order(3).example(0, 'train', index)
    direction = 'descending' if example.instance['descending'] else 'ascending'
    relations = r'([A-C] [<>] [A-C], ){1,2}[A-C] [<>] [A-C]'
    assert re.fullmatch(rf'The sequence is A, B, C\. It is known that {relations}\. Put it in {direction} order with '
                        r'as few swaps as possible\.', example.user)

    example = Compare(3).example(0, 'train', index)
    first, second = ('ABC'[item] for item in example.instance['asked'])
    assert first != second
    assert example.user == (f'The items are A, B, C. Which one is larger, {first} or {second}? Give the item inside '
                            '<answer> </answer>.')


def test_instances(task):
  reference = Sort(8).example(0, 'train', 0).instance
  for index in range(200):
    instance = task.example(3, 'test', index).instance
    chex.assert_trees_all_equal_shapes_and_dtypes(instance, reference)
    values = instance['values'][:task.n].tolist()
    assert instance['count'] == task.n and len(set(values)) == task.n
    assert all(-99 <= value <= 999 for value in values) and not instance['values'][task.n:].any()


def test_pure(task):
  forwards = [task.example(5, 'train', index) for index in range(50)]
  np.random.seed(1)  # noqa: NPY002 — the global generator must not matter
  backwards = [task.example(5, 'train', index) for index in reversed(range(50))][::-1]
  chex.assert_trees_all_equal(forwards, backwards)


def test_seed_split_and_index_all_matter(task):
  examples = [task.example(*key) for key in itertools.product((0, 1), ('train', 'test'), range(10))]
  different = len({(*problem(example), example.user) for example in examples})
  assert different == len(examples) or task.label == 'order3' and different > len(examples) - 10  # of 672 there are


def test_examples_never_change():
  """A new version of NumPy, or of this code, must not silently deal other problems."""
  example = Sort(4).example(0, 'train', 0)
  assert problem(example) == (4, False, (49, 930, 184, -84, 0, 0, 0, 0))
  example = Order(3).example(7, 'test', 123)
  assert problem(example) == (3, True, (1, 0, 2, 0, 0, 0, 0, 0))
  assert 'It is known that A > B, A < C, B < C. Put it in descending order' in example.user


@pytest.mark.parametrize('task', [task for task in TASKS if not isinstance(task, Order)], ids=lambda task: task.label)
def test_splits_are_disjoint(task):
  train = {problem(task.example(seed, 'train', index)) for seed in (0, 1) for index in range(2000)}
  test = {problem(task.example(seed, 'test', index)) for seed in (0, 1) for index in range(500)}
  assert not train & test
  # Not by luck: the problem itself says where it belongs.
  for split, problems in (('train', train), ('test', test)):
    assert {split_of(f'{n} {descending} {list(values[:n])}') for n, descending, values in problems} == {split}


def test_splits_of_order_are_by_what_is_told():
  """Every text of three items is in the split that its hash says, and in either all arrangements are asked about."""
  texts = {split: collections.Counter() for split in ('train', 'test')}
  for n, draws in (3, 2000), (4, 300):
    for split, counts in texts.items():
      for index in range(draws):
        example = Order(n).example(index % 2, split, index)
        assert split_of(example.user) == split
        counts[problem(example), example.user] += 1
  assert len({user for _, user in texts['train']}) > 500 and len({user for _, user in texts['test']}) > 50
  for counts in texts.values():  # the text says it all: no user message with two instances
    assert len({user for _, user in counts}) == len(counts)


def test_two_items_cannot_be_split():
  everything = {example.user for example in Order(2).problems()}
  assert len(everything) == 8 and len(Order(2, 'ascending').problems()) == 4
  for split in ('train', 'test'):
    assert {Order(2).example(0, split, index).user for index in range(100)} == everything
  assert Order(3).problems() is None


def test_one_problem_in_ten_is_for_testing():
  share = np.mean([split_of(f'{i}') == 'test' for i in range(20_000)])
  assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 20_000)


@pytest.mark.parametrize('cls', [Sort, Order])
@pytest.mark.parametrize('n, split', [(4, 'train'), (3, 'test')])
def test_permutations_and_directions_are_uniform(cls, n, split):
  draws = 100 * 2 * math.factorial(n)
  task = cls(n)
  counts = collections.Counter()
  for index in range(draws):
    _, descending, values = problem(task.example(11, split, index))
    counts[ranks(values[:n]), descending] += 1
  cells = 2 * math.factorial(n)
  assert len(counts) == cells
  chi2 = sum((count - 100) ** 2 / 100 for count in counts.values())
  assert chi2 < (cells - 1) + 4 * math.sqrt(2 * (cells - 1))  # mean and standard deviation of chi-squared


def test_questions_are_uniform():
  counts = collections.Counter(tuple(Compare(3).example(0, 'train', i).instance['asked'].tolist()) for i in range(3000))
  assert set(counts) == set(itertools.permutations(range(3), 2))
  assert all(abs(count - 500) < 4 * math.sqrt(500) for count in counts.values())


def test_one_direction():
  assert {bool(Sort(3, 'ascending').example(0, 'train', i).instance['descending']) for i in range(50)} == {False}
  assert {bool(Order(3, 'descending').example(0, 'train', i).instance['descending']) for i in range(50)} == {True}


@pytest.mark.parametrize('n', range(2, 7))
def test_relations_are_true_and_determine_the_order(n):
  extra, writings = 0, set()
  for index in range(40):
    example = Order(n).example(2, 'train', index)
    values = dict(zip('ABCDEFGH', example.instance['values'][:n].tolist()))
    relations = re.findall(r'([A-H]) ([<>]) ([A-H])', example.user)
    pairs = {frozenset((a, b)) for a, _, b in relations}
    assert len(pairs) == len(relations)
    smaller = {(a, b) if sign == '<' else (b, a) for a, sign, b in relations}
    assert all(values[a] < values[b] for a, b in smaller)
    orders = [order for order in itertools.permutations(list(values))
              if all(order.index(a) < order.index(b) for a, b in smaller)]
    assert orders == [tuple(sorted(values, key=values.get))]
    extra += len(relations) - (n - 1)
    writings |= {sign for _, sign, _ in relations}
  others = 40 * (math.comb(n, 2) - (n - 1))
  assert abs(extra - others / 2) <= 2 * math.sqrt(others)  # four standard deviations
  assert writings == {'<', '>'}


@pytest.mark.parametrize('n, direction, number', [(2, 'both', 4), (3, 'ascending', 6), (4, 'both', 48)])
def test_problems(n, direction, number):
  examples = Sort(n, direction).problems()
  assert len(examples) == len({problem(example) for example in examples}) == number
  sample = Sort(n, direction).example(0, 'train', 0)
  for example in examples:
    assert sorted(example.instance['values'][:n].tolist()) == list(range(n))
    assert ('descending' in example.user) == example.instance['descending']
    chex.assert_trees_all_equal_shapes_and_dtypes(example.instance, sample.instance)


@pytest.mark.parametrize('make, message', [
    (lambda: make_task('sort', n=1), "task 'sort': n=1: choose a whole number from 2 to 8"),
    (lambda: make_task('order', n=9), "task 'order': n=9: choose"),
    (lambda: make_task('compare', n='3'), "task 'compare': n='3': expected a whole number"),
    (lambda: make_task('sort', n=4.0), "task 'sort': n=4.0: expected a whole number"),
    (lambda: make_task('sort', n=True), "task 'sort': n=True: expected a whole number"),
    (lambda: make_task('sort', n=4, direction='up'), "task 'sort': direction='up': choose one of both, ascending"),
    (lambda: make_task('sort', n=4, efficiency='best'), "task 'sort': efficiency='best': choose one of certified, rel"),
    (lambda: Sort(4).example(0, 'dev', 0), "split='dev': choose one of train, test"),
    (lambda: Sort(4).example(-1, 'test', 0), 'seed=-1, index=0: use numbers of at least 0'),
])
def test_user_errors(make, message):
  with pytest.raises(UserError) as error:
    make()
  assert str(error.value).startswith(message) and '\n' not in str(error.value)


@given(st.integers(0, 2**63), st.sampled_from(['train', 'test']), st.integers(0, 2**63))
def test_random_generator_is_pure(seed, split, index):
  first, second = (random_generator(seed, split, index).integers(2**62, size=3).tolist() for _ in range(2))
  assert first == second
