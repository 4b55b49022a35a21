"""The rules of countdown against all expressions that there are, written down one by one."""

import collections
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.environments import countdown_rules
from earl_jax.environments.calculator import Calculator, SYMBOLS
from earl_jax.tasks.calculation import Countdown
from tests.environments.tokenizers import StubTokenizer

KEYS = [symbol.strip() for symbol in SYMBOLS]
EQUALS = len(KEYS) - 1


def operands(numbers):
  """All that can stand for these numbers between two operators."""
  if len(numbers) == 1:
    return {str(numbers[0])}
  return {f'({inside})' for inside in sums(numbers)}


@functools.cache
def sums(numbers):
  """All expressions of exactly these numbers with an operator outside of parentheses."""
  found = set()
  for size in range(1, len(numbers)):
    for chosen in itertools.combinations(range(len(numbers)), size):
      first = tuple(numbers[i] for i in chosen)
      rest = tuple(number for i, number in enumerate(numbers) if i not in chosen)
      for left, operator, right in itertools.product(operands(first), '+-*/', operands(rest) | sums(rest)):
        found.add(left + operator + right)
  return found


@functools.cache
def grammar(numbers):
  """Prefix -> (symbols that can follow, how many expressions begin so), of expressions of some of the numbers."""
  following, count = collections.defaultdict(set), collections.Counter()
  parts = {
      tuple(sorted(part)) for size in range(2, len(numbers) + 1) for part in itertools.combinations(numbers, size)
  }
  for expression in set().union(*(sums(part) for part in parts)):
    for i in range(len(expression) + 1):
      count[expression[:i]] += 1
      following[expression[:i]].add(expression[i] if i < len(expression) else '=')
  return following, count


def sees(numbers, typed, symbol):
  """Whether the rules look at what can follow: no more than two numbers, and it is clear which one was begun last."""
  runs = re.findall(r'\d+', typed + symbol)
  if symbol not in '0123456789':
    return len(numbers) - len(runs) <= 2
  unused = list(numbers)
  for run in runs[:-1]:
    unused.remove(int(run))
  return len(numbers) - len(runs) <= 1 and len({x for x in unused if str(x).startswith(runs[-1])}) == 1


def walks(calculator, numbers, seed, count=32, steps=300, **instance):
  """(actions int32[W, T], valid bool[W, T, A]) of random walks."""
  instance = {'numbers': jnp.array([*numbers, *[-1] * (8 - len(numbers))], jnp.int32)} | instance

  def step(state, key):
    valid = calculator.valid_actions(state)
    action = jax.random.categorical(key, jnp.where(valid, 0.0, -jnp.inf)).astype(jnp.int32)
    return calculator.step(state, action)[1], (action, valid)

  def walk(key):
    return jax.lax.scan(step, calculator.reset(instance), jax.random.split(key, steps))[1]

  return jax.tree.map(np.asarray, jax.jit(jax.vmap(walk))(jax.random.split(jax.random.key(seed), count)))


@pytest.fixture(scope='module')
def calculator():
  return Calculator(StubTokenizer().encode)


@pytest.mark.parametrize('numbers', [(1, 2), (8, 8), (8, 8, 4), (7, 2, 3), (1, 12, 21), (5, 50, 5), (2, 3, 4, 6)])
def test_what_is_possible_leads_to_a_new_expression(calculator, numbers):
  following, count = grammar(tuple(sorted(numbers)))
  actions, valid = walks(calculator, numbers, seed=len(numbers), strict=jnp.bool_(True))
  held_back = exhausted = 0
  for walk, legal in zip(actions, valid):
    typed, evaluated = '', []
    for action, may in zip(walk, legal):
      remembered = list(dict.fromkeys(reversed(evaluated)))[: countdown_rules.EVALUATED]
      possible = following[typed]
      old = {
          symbol for symbol in possible
          if sees(numbers, typed, symbol)
          and (symbol == '=' or count[typed + symbol] <= sum(x.startswith(typed + symbol) for x in remembered))
          and (symbol != '=' or typed in remembered)
      }
      assert {KEYS[i] for i in np.flatnonzero(may)} == (possible - old or possible), (typed, remembered)
      held_back += bool(possible & old)
      exhausted += not possible - old
      if action == EQUALS:
        evaluated.append(typed)
      typed = '' if action == EQUALS else typed + KEYS[action]
    assert len(evaluated) > 20
  assert held_back > 20
  assert exhausted or len(numbers) > 2  # two numbers have eight expressions, and all are remembered


def test_elsewhere_nothing_is_held_back(calculator):
  plain, valid = walks(calculator, (8, 8, 4), seed=0)
  beside, also = walks(calculator, (8, 8, 4), seed=0, strict=jnp.bool_(False))
  np.testing.assert_array_equal(plain, beside)
  np.testing.assert_array_equal(valid, also)
  rules = calculator.reset({'numbers': jnp.array([8, 8, 4])}).rules
  assert rules.digits.size == rules.memory.size == rules.used.size == 0


@pytest.mark.parametrize('numbers, digits', [(3, 1), (4, 2), (4, 4), (6, 2)])
def test_every_demonstration_keeps_to_the_rules(calculator, numbers, digits):
  task = Countdown(numbers, digits, strict=True)
  step, valid_actions = jax.jit(calculator.step), jax.jit(calculator.valid_actions)
  for index in range(10):
    example = task.example(0, 'train', index)
    calls = [step for step in task.demonstration(0, 'train', index, 0) if not isinstance(step, str)]
    state = calculator.reset({key: jnp.asarray(value) for key, value in example.instance.items()})
    for action in calls[0].actions:
      assert valid_actions(state)[action]
      state = step(state, jnp.int32(action))[1]
    assert state.calls == 1


@pytest.mark.parametrize('numbers, digits', [(6, 4), (8, 3), (4, 9)])
def test_expressions_that_do_not_fit_are_refused(numbers, digits):
  with pytest.raises(UserError, match='strict=True: an expression of . numbers of . digits can have'):
    Countdown(numbers, digits, strict=True)
