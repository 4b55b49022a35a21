"""The corpus holds what numbers are like, not how a target is found: what it says is true, and it never searches."""

import itertools
import random
import re

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from earl_jax.base_model import numbers
from earl_jax.base_model.language import TORN
from earl_jax.environments.calculator import Calculator
from earl_jax.tasks import calculation
from tests.base_model import numbers_checker as checker

COUNT = 2000


def texts(seed):
  user, assistant = numbers.document(random.Random(seed))
  return (*(''.join(segment.text for segment in part) for part in (user, assistant)), assistant[-1] == TORN)


@pytest.fixture(scope='module')
def documents():
  """(user, assistant) texts, and whether the end is missing."""
  return [texts(seed) for seed in range(COUNT)]


@pytest.fixture(scope='module')
def readers(documents):
  return [checker.check(*document) for document in documents]


@hypothesis.given(st.integers(0))
def test_every_statement_is_true_and_of_a_known_form(seed):
  checker.check(*texts(seed))


def test_every_form_occurs(documents, readers):
  said = {says[1:] for _, assistant, _ in documents for says in re.split(r'[.\n]', assistant)}
  for form, _ in checker.FORMS:
    assert any(re.fullmatch(form, says) for says in said), form
  assert checker.GLOSSARY == {says[1:] for says in numbers.GLOSSARY} and len(checker.GLOSSARY & said) > 100
  assert {reader.wish for reader in readers} == {*checker.WISHES, None}


def test_no_document_asks_what_a_task_does(documents):
  for user, *_ in documents:
    assert not re.search(r'Give the expression after|What is|How often', user)


def test_no_document_poses_a_problem_of_the_test_split(readers):
  task = calculation.Countdown(3, 1)
  asked = {task._problem(0, 'test', index).key for index in range(3000)}
  posed = {f'{reader.numbers} {reader.target}' for reader in readers if len(reader.numbers) == 3}
  assert len(asked) > 100 and len(posed) > 500 and not asked & posed


def test_no_numbers_are_without_a_target():
  for three in itertools.combinations_with_replacement(range(1, 10), 3):
    targets = {sum(three), *(a * b + c for a, b, c in itertools.permutations(three))}
    assert any(not numbers.held_out(list(three), target) for target in targets)


def test_no_call_of_the_calculator(documents):
  call = re.compile(rf'{re.escape(Calculator.spec.routing.description)}[-\d(+.]|<|undefined|overflow')
  assert call.search(' calculate 3 * (4 - 1)') and call.search(' calculate (4') and call.search(' <result>')
  for document in documents:
    for part in document[:2]:
      assert not call.search(part), part


def test_no_expression_is_named_because_it_reaches_the_target(readers):
  """An expression named after a target was set reaches it as often as one drawn without regard to it."""
  excess, spread = 0.0, 0.0
  for seed, reader in enumerate(readers):
    named = [(value, target) for _, value, target in reader.stated if target]
    named += [(checker.value(expression), target) for expression, target in reader.drawn]
    if named:
      world = numbers.World(random.Random(f'other {seed}'))
      drawn = [numbers.value_of(calculation.in_symbols(world.draw(reader.numbers))) for _ in range(100)]
      for value, target in named:
        share = np.mean([other == target for other in drawn])
        excess += (value == target) - share
        spread += share * (1 - share)
  assert spread > 20
  assert abs(excess) < 4 * spread**0.5, (excess, spread)


USER = 'It is known that 3 * 4 - 1 = 11. Use 3, 4 and 1, each exactly once, to reach 11. Give the target after ####.'
OPEN = 'Use 3, 4 and 1, each exactly once, with +, -, * and / to reach 9. It is known that 3 * 4 - 1 = 11.'
PAIR = 'The numbers are 4 and 2. The target is 6.'


@pytest.mark.parametrize('user, says', [
    (USER, ' missed is 11. #### 11'), (USER, ' #### 3 * 4 - 1'), (USER, ''), (USER, ' consider 3 + 4 + 1. #### 11'),
    (USER, ' reached is the target by 4 * 3 - 1. #### 11'), (OPEN, ' #### 9'),
    (OPEN, ' 3 + 4 = 8.'), (OPEN, ' 3 + 4 + 1 = 9.'), (OPEN, ' 3 * (4 - 1) = 3 * 2 = 9.'), (OPEN, ' 9 is 4 + 4.'),
    (OPEN, ' reached is the target by 3 * (4 - 1).'), (OPEN, ' consider 3 * 4.'), (OPEN, ' consider 3 * 4 - 2.'),
    (OPEN, ' 11 is the target.'), (OPEN, ' 11 is less than 9.'), (OPEN, ' 11 is 3 more than 9.'),
    (OPEN, ' missed is 8.'),
    (OPEN, ' 9 is the target.'), (OPEN, ' the expression that reaches 9 is 3 * (4 - 1).'), (OPEN, ' calculate 3 * 4.'),
    (OPEN, ' four plus three is eight.'), (OPEN, ' try 3 * (4 - 1) = 9.'), (OPEN, ' so add all numbers.'),
    (OPEN, ' 3 + 4 - 1 - 1 = 5.'), (PAIR, ' 6 is 4 + 2.'), (PAIR, ' four plus two is six.'),
    ('Use 3, 4 and 1, each exactly once, to reach 9. Give the expression after ####.', ' #### 3 * (4 - 1)'),
    (OPEN + ' Give the expression that reaches the target after ####.', ' 3 * (4 - 1) = 9. #### 3 * (4 - 1)'),
    (OPEN + ' Give the expression that reaches the target after ####.', ' 3 * (4 - 1) = 9.'),
])
def test_checker_sees_what_is_wrong(user, says):
  with pytest.raises(AssertionError):
    checker.check(user, says)
    raise RuntimeError('accepted')


@pytest.mark.parametrize('user, says', [
    (USER, ' reached is the target by 3 * 4 - 1. consider 3 * 4 - 1. #### 11'),
    (OPEN, ' missed is 9. 3 * (4 - 1) = 3 * 3 = 9. 9 is the target. the expression that reaches 9 is 3 * (4 - 1).'),
    (OPEN, ' 11 is 2 more than 9\n consider 4 / 1 - 3\n four plus three is seven\n 9 is 8 + 1\n'),
    (PAIR, ' 4 + 2 = 6. reached is the target by 4 + 2.'),
])
def test_checker_accepts_what_is_right(user, says):
  checker.check(user, says)
