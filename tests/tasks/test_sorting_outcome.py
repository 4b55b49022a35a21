"""What the sorting tasks pay: numbers worked out by hand, brute force, and the known optima."""

import fractions
import functools
import itertools
import math
import re

from hypothesis import example, given
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from earl_jax.environments import base as environments
from earl_jax.environments.hidden_items import HiddenItems, MAX_ITEMS
from earl_jax.tasks.sorting import Compare, fewest_swaps, last_answer, Order, Sort, swap_efficiency
from tests.environments.tokenizers import StubTokenizer

TAG = re.compile('</?answer>')


def instance(values, descending=False, asked=(-1, -1)):
  return {
      'values': np.array([*values, *[0] * (MAX_ITEMS - len(values))], np.int32), 'count': np.int32(len(values)),
      'descending': np.bool_(descending), 'asked': np.array(asked, np.int32),
  }


def final(sequence, pairs=(), comparisons=None, swaps=0):
  """Final states with `sequence` (item names) and the pairs compared, each once unless `comparisons` says more."""
  order = ['ABCDEFGH'.index(name) for name in sequence]
  compared = np.zeros((MAX_ITEMS, MAX_ITEMS), bool)
  for a, b in pairs:
    i, j = 'ABCDEFGH'.index(a), 'ABCDEFGH'.index(b)
    compared[i, j] = compared[j, i] = True
  made = len(pairs) if comparisons is None else comparisons
  return {'HiddenItems': HiddenItems(
      values=np.zeros(MAX_ITEMS, np.int32), count=np.int32(len(order)),
      sequence=np.array([*order, *range(len(order), MAX_ITEMS)], np.int32), selected=np.int32(-1), compared=compared,
      comparisons=np.int32(made), swaps=np.int32(swaps),
  )}


# A, B, C, D = 5, 3, 9, 1. Ascending: D B A C, the cycle A -> D -> C -> A and B in its place, so two swaps at best.
VALUES = (5, 3, 9, 1)
PROOF = ('DB', 'BA', 'AC')  # the neighbours
ALL = ('AB', 'AC', 'AD', 'BC', 'BD', 'CD')
NO_PROOF = ('DB', 'BA', 'BC', 'DA', 'DC')  # five comparisons, yet A and C remain open


@pytest.mark.parametrize('state, finished, reward, certified', [
    (final('DBAC', PROOF, swaps=2), True, 1.0, 1),  # C̃ = S̃ = 0
    (final('DBAC', PROOF + ('DA', 'BC'), swaps=2), True, 0.5 + (0.5 / 3 + 0.5) / 2, 1),  # C̃ = 2/3
    (final('DBAC', PROOF, comparisons=4, swaps=4), True, 0.5 + (0.5 * 2 / 3 + 0.25) / 2, 1),  # C̃ = 1/3, S̃ = 2/4
    (final('DBAC', ALL, swaps=6), True, 0.5, 1),  # everything spent
    (final('DBAC', ALL, comparisons=20, swaps=20), True, 0.5, 1),  # more than everything: clipped
    (final('DBAC', NO_PROOF, swaps=2), True, 0.5, 0),  # right by luck
    (final('DBAC', swaps=2), True, 0.5, 0),
    (final('BDAC', PROOF, swaps=2), True, 0.0, 0),  # wrong
    (final('CABD', PROOF, swaps=2), True, 0.0, 0),  # right in the other direction
    (final('DBAC', PROOF, swaps=2), False, 0.0, 0),  # not finished
])
def test_certified_reward_by_hand(state, finished, reward, certified):
  outcome = Sort(4).outcome(instance(VALUES), state, '', finished)
  assert outcome.reward == pytest.approx(reward, abs=1e-12)
  assert outcome.exact_match == (reward > 0)
  assert outcome.metrics['certified'] == certified
  assert outcome.metrics['efficiency'] == pytest.approx(max(0.0, 2 * reward - 1), abs=1e-12)
  assert outcome.metrics['comparisons'] == state['HiddenItems'].comparisons
  assert outcome.metrics['swaps'] == state['HiddenItems'].swaps


def test_descending_by_hand():
  # C A B D: A -> C -> B -> A, D in its place.
  outcome = Sort(4).outcome(instance(VALUES, descending=True), final('CABD', PROOF, swaps=2), '', True)
  assert outcome.reward == 1.0
  assert Sort(4).outcome(instance(VALUES, descending=True), final('DBAC', PROOF, swaps=2), '', True).reward == 0


@pytest.mark.parametrize('n, comparisons, swaps, reward', [
    # ceil(log2 n!) = 1, 3, 5, 7; reference n ceil(log2 n) = 2, 6, 8, 15. The sequence is in order from the start, and
    # the swaps' reference is n (n - 1) / 2.
    (4, 3, 0, 0.5), (4, 4, 0, 0.5), (4, 5, 0, 1.0), (4, 6, 0, 0.5 + (1 / 3 + 0.5) / 2), (4, 8, 0, 0.75),
    (4, 99, 0, 0.75), (4, 5, 3, 0.5 + 0.75 / 2), (4, 5, 6, 0.75),
    (2, 0, 0, 0.5), (2, 1, 0, 1.0), (2, 2, 0, 0.75), (2, 1, 1, 0.75),
    (3, 2, 0, 0.5), (3, 3, 0, 1.0), (3, 4, 0, 0.5 + (0.5 * 2 / 3 + 0.5) / 2), (3, 6, 0, 0.75),
    (5, 6, 0, 0.5), (5, 7, 0, 1.0), (5, 11, 0, 0.5 + 0.75 / 2), (5, 15, 0, 0.75),
])
def test_released_reward_by_hand(n, comparisons, swaps, reward):
  state = final('ABCDE'[:n], comparisons=comparisons, swaps=swaps)
  outcome = Sort(n, efficiency='released').outcome(instance(range(n)), state, '', True)
  assert outcome.reward == pytest.approx(reward, abs=1e-12)
  assert outcome.metrics['certified'] == 0


def test_released_swap_reference_exceeds_the_fewest():
  # n = 2, to be exchanged: one swap at best, reference max(1 + 1, 1) = 2.
  for swaps, reward in ((1, 1.0), (3, 0.75)):
    state = final('BA', ('AB',), swaps=swaps)
    for efficiency in ('certified', 'released'):
      assert Sort(2, efficiency=efficiency).outcome(instance((2, 1)), state, '', True).reward == reward


@pytest.mark.parametrize('state, finished, reward', [
    (final('BCA', swaps=2), True, 1.0),  # a cycle of three
    (final('BCA', swaps=3), True, 0.5),  # S̃ = 1/1
    (final('BAC', swaps=2), True, 0.0),
    (final('BCA', swaps=2), False, 0.0),
])
def test_order_reward_by_hand(state, finished, reward):
  outcome = Order(3).outcome(instance((9, 1, 4)), state, '', finished)
  assert outcome.reward == reward
  assert outcome.exact_match == (reward > 0)
  assert outcome.metrics == {'swaps': state['HiddenItems'].swaps, 'efficiency': max(0.0, 2 * reward - 1)}


@pytest.mark.parametrize('text, finished, reward', [
    ('<answer>C</answer>', True, 1.0),
    (' compare A and C: A < C\n so <answer> C </answer>.', True, 1.0),
    ('<answer>A</answer> no, <answer>C</answer>', True, 1.0),  # the last one counts
    ('<answer>C</answer> no, <answer>A</answer>', True, 0.0),
    ('<answer>C</answer> <answer>', True, 1.0),  # the last complete one
    ('<answer>C</answer></answer>', True, 1.0),
    ('</answer><answer>C</answer> <answer>A', True, 1.0),
    ('<answer>A<answer>C</answer>', True, 1.0),  # the first one was never closed
    ('<answer>A<answer>C</answer>A</answer>', True, 1.0),  # of two inside one another the inner one
    ('<answer>C</answer> <answer></answer>', True, 0.0),  # complete, and says nothing
    ('<answer>B</answer>', True, 0.0),  # larger than both, but not asked about
    ('<answer>c</answer>', True, 0.0),
    ('<answer>C, A</answer>', True, 0.0),
    ('C', True, 0.0),
    ('</answer>C<answer>', True, 0.0),
    ('<answer></answer>', True, 0.0),
    ('<answer>C</answer>', False, 0.0),
])
def test_compare_reward_by_hand(text, finished, reward):
  outcome = Compare(3).outcome(instance((-5, 90, 4), asked=(0, 2)), final('ABC', ('AC',)), text, finished)
  assert (outcome.reward, outcome.exact_match) == (reward, reward == 1)
  assert outcome.metrics == {'comparisons': 1.0}


@given(st.lists(st.sampled_from(['<answer>', '</answer>', '<', '>', '/', 'A', ' ', '\n']), max_size=30).map(''.join))
@example('</answer>')
def test_last_answer_against_all_pairs(text):
  """By trying every stretch of text: one in tags, with no tag within. The last one counts."""
  found = ''
  for end in range(len(text)):
    for start in range(end + 1):
      inner = text[start:end]
      if text[:start].endswith('<answer>') and text.startswith('</answer>', end) and not TAG.search(inner):
        found = inner.strip()
  assert last_answer(text) == found


def test_last_answer_is_linear_in_hostile_text():
  for text in ('<answer>' * 300_000, '</answer>' * 300_000, '<answer>' * 300_000 + '</answer>', '<' * 3_000_000):
    assert last_answer(text) == ''


@functools.cache
def swaps_by_search(n):
  """Fewest swaps to every arrangement of 0 … n-1, by breadth-first search."""
  distance, frontier = {tuple(range(n)): 0}, [tuple(range(n))]
  for steps in range(1, n):
    reached = []
    for row in frontier:
      for i, j in itertools.combinations(range(n), 2):
        swapped = list(row)
        swapped[i], swapped[j] = row[j], row[i]
        if distance.setdefault(tuple(swapped), steps) == steps and tuple(swapped) not in reached:
          reached.append(tuple(swapped))
    frontier = reached
  return distance


@pytest.mark.parametrize('n', range(2, 6))
def test_fewest_swaps(n):
  distance = swaps_by_search(n)
  assert len(distance) == math.factorial(n)
  assert {goal: fewest_swaps(goal) for goal in distance} == distance
  harmonic = sum(fractions.Fraction(1, k) for k in range(1, n + 1))
  assert fractions.Fraction(sum(distance.values()), len(distance)) == n - harmonic


def closure_proves(order, pairs):
  """Warshall's closure of the compared pairs, directed as in `order`; does every pair of items follow?"""
  place = {name: i for i, name in enumerate(order)}
  before = {(a, b) if place[a] < place[b] else (b, a) for a, b in pairs}
  for middle in order:
    before |= {(a, c) for a in order for c in order if (a, middle) in before and (middle, c) in before}
  return all((a, b) in before for a, b in itertools.combinations(order, 2))


@given(st.permutations(range(5)), st.sets(st.sampled_from(list(itertools.combinations('ABCDE', 2)))), st.booleans())
def test_certified_is_what_transitivity_proves(ranks, pairs, descending):
  order = sorted('ABCDE', key=lambda name: ranks['ABCDE'.index(name)], reverse=descending)
  outcome = Sort(5).outcome(instance(ranks, descending), final(order, tuple(pairs)), '', True)
  assert outcome.metrics['certified'] == closure_proves(order, pairs)


def optimal_tree(n):
  """(orders still possible) -> (sum of further comparisons, the pair to compare), minimal, by dynamic programming."""
  @functools.cache
  def solve(orders):
    if len(orders) == 1:
      return 0, None
    best = (math.inf, None)
    for a, b in itertools.combinations(range(n), 2):
      yes = tuple(order for order in orders if order[a] < order[b])
      if 0 < len(yes) < len(orders):
        no = tuple(order for order in orders if order[a] > order[b])
        best = min(best, (len(orders) + solve(yes)[0] + solve(no)[0], (a, b)))
    return best
  return solve


@pytest.mark.parametrize('n, comparisons, swaps, efficiency', [
    (2, 1, 1 / 2, 1), (3, 8 / 3, 7 / 6, 2 / 3), (4, 14 / 3, 23 / 12, 13 / 18), (5, 104 / 15, 163 / 60, 34 / 45),
])
def test_optimal_sorting(n, comparisons, swaps, efficiency):
  """The optimal decision tree needs what the method says (1, 2.667, 4.667, 6.933 comparisons) and is certified."""
  task, solve = Sort(n), optimal_tree(n)
  outcomes = []
  for given_ in task.problems():
    values = given_.instance['values'][:n].tolist()
    orders, pairs = tuple(itertools.permutations(range(n))), []
    while len(orders) > 1:
      a, b = solve(orders)[1]
      pairs.append('ABCDE'[a] + 'ABCDE'[b])
      orders = tuple(order for order in orders if (order[a] < order[b]) == (values[a] < values[b]))
    row = sorted(range(n), key=values.__getitem__, reverse=bool(given_.instance['descending']))
    state = final(['ABCDE'[item] for item in row], tuple(pairs), swaps=swaps_by_search(n)[tuple(row)])
    outcomes.append(task.outcome(given_.instance, state, '', True))
  mean = {key: np.mean([outcome.metrics[key] for outcome in outcomes]) for key in outcomes[0].metrics}
  assert mean['certified'] == 1
  assert mean['comparisons'] == pytest.approx(comparisons)
  assert mean['swaps'] == pytest.approx(swaps)
  assert mean['efficiency'] == pytest.approx(efficiency)


@given(st.permutations(range(4)), st.integers(0, 12))
def test_swap_efficiency_falls_from_one_to_zero(goal, more):
  fewest = fewest_swaps(goal)
  assert swap_efficiency(fewest, goal) == 1
  assert 0 <= swap_efficiency(fewest + more + 1, goal) <= swap_efficiency(fewest + more, goal)
  assert swap_efficiency(6, goal) == 0


def test_environments_and_outcome_together():
  """Real steps of compare and swap on one shared state, scored."""
  encode = StubTokenizer().encode
  steps = {name: jax.jit(environments.find(name)(encode).step) for name in Sort.environments}
  state = environments.find('compare')(encode).reset(instance(VALUES))
  calls = [('compare', 'DB'), ('compare', 'BA'), ('compare', 'CA'), ('swap', 'AD'), ('swap', 'CA')]
  for name, pair in calls:
    for item in pair:
      _, state, exit_ = steps[name](state, 'ABCD'.index(item))
    assert exit_
  outcome = Sort(4).outcome(instance(VALUES), {type(state).__name__: jax.tree.map(np.asarray, state)}, '', True)
  assert outcome.metrics == {'comparisons': 3, 'swaps': 2, 'certified': 1, 'efficiency': 1}
  assert outcome.reward == 1
