"""Arithmetic, countdown, count: what is asked, and what is right."""

import collections
from fractions import Fraction
import itertools
import re

import chex
import numpy as np
import pytest

from earl_jax.config import UserError
from earl_jax.environments import calculator
from earl_jax.tasks import expressions
from earl_jax.tasks.base import make_task
from earl_jax.tasks.calculation import Arithmetic, Count, Countdown, in_words

TASKS = [Arithmetic(), Arithmetic(2, 2, 2), Countdown(), Countdown(3, 1), Count(), Count(4)]
ONES = dict(zip(
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen '
    'eighteen nineteen'.split(), range(20)))
TENS = dict(zip('twenty thirty forty fifty sixty seventy eighty ninety'.split(), range(20, 100, 10)))
SCALES = {word: 1000**(i + 1) for i, word in enumerate(
    'thousand million billion trillion quadrillion quintillion'.split())}


@pytest.fixture(params=TASKS, ids=lambda task: task.label)
def task(request):
  return request.param


def answer_of(example):
  return example.instance['answer'].tobytes().rstrip(b'\0').decode()


def score(task, example, text, finished=True):
  return task.outcome(example.instance, {}, text, finished)


def read_number(words: str) -> int:
  """English words -> number, read from left to right."""
  total = group = 0
  for word in re.split(r'[ -]', words):
    if word in SCALES:
      total, group = total + group * SCALES[word], 0
    elif word == 'hundred':
      group *= 100
    elif word != 'and':
      group += ONES[word] if word in ONES else TENS[word]
  return total + group


def read_expression(question: str) -> str:
  """A worded or plain question -> symbols."""
  for word, symbol in (('divided by', '/'), ('plus', '+'), ('minus', '-'), ('times', '*')):
    question = question.replace(f' {word} ', f' {symbol} ')
  return re.sub(r'[a-z]+(?:[ -][a-z]+)*', lambda words: str(read_number(words[0])), question)


def test_labels():
  assert [task.label for task in TASKS] == [
      'arithmetic', 'arithmetic-2x2', 'countdown4', 'countdown3-1digits', 'count', 'count-4digits']


def test_numbers_in_words():
  for number in [*range(2000), *(10**i + j for i in range(3, 21) for j in (-1, 0, 1, 17)), 10**21 - 1]:
    assert read_number(in_words(number)) == number, in_words(number)
  assert in_words(1_000_203_045) == 'one billion two hundred and three thousand forty-five'


def test_instances_of_all_tasks_stack(task):
  reference = TASKS[0].example(0, 'train', 0).instance
  for index in range(100):
    chex.assert_trees_all_equal_shapes_and_dtypes(task.example(1, 'test', index).instance, reference)


def test_pure(task):
  forwards = [task.example(5, 'train', index) for index in range(30)]
  np.random.seed(1)  # noqa: NPY002 — the global generator must not matter
  chex.assert_trees_all_equal(forwards, [task.example(5, 'train', index) for index in reversed(range(30))][::-1])


def problem(task, example):
  """What is asked, however it is put."""
  if isinstance(task, Countdown):
    return answer_of(example), tuple(sorted(example.instance['numbers'].tolist()))
  if isinstance(task, Count):
    digit, number = re.search(r'the digit (\d) occur in the number (.*)\? ', example.user).groups()
    return digit, number if number.isdecimal() else str(read_number(number))
  return read_expression(re.match(r'What is (.*)\? ', example.user)[1])


def test_splits_share_no_problem(task):
  sides = [{problem(task, task.example(seed, split, index)) for seed in (0, 1) for index in range(300)}
           for split in ('train', 'test')]
  if isinstance(task, Arithmetic):  # the same expression may be written with more parentheses in words
    sides = [{(str(expressions.parse(text).value), expressions.parse(text).numbers) for text in side} for side in sides]
    both = sides[0] & sides[1]
    assert len(both) <= len(sides[1]) // 20  # different expressions with the same numbers and value
  else:
    assert not sides[0] & sides[1]


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('arithmetic', [task for task in TASKS if isinstance(task, Arithmetic)], ids=lambda t: t.label)
def test_arithmetic_means_one_thing(arithmetic, split):
  """The question, read by precedence alone, has the value that is asked for; words too."""
  worded, operators = 0, collections.Counter()
  for index in range(2000):
    example = arithmetic.example(0, split, index)
    question = re.match(r'What is (.*)\? Give the number(, rounded to 3 decimals,)? after ####\.$', example.user)
    expression = expressions.parse(read_expression(question[1]))
    assert expressions.write(expression.value) == answer_of(example)
    assert bool(question[2]) == (expression.value.denominator > 1)
    assert abs(expression.value) < 10**calculator.INTEGERS
    assert all(1 <= number < 10 ** (5 if arithmetic.label == 'arithmetic' else 2) for number in expression.numbers)
    operators[len(expression.numbers) - 1] += 1
    if re.search('[a-z]', question[1]):
      worded += 1
      # Every operand of an operator is a number or stands in parentheses.
      flat = re.sub(r'\([^()]*\)', 'x', question[1])
      while '(' in flat:
        flat = re.sub(r'\([^()]*\)', 'x', flat)
      assert len(re.findall(r' (?:plus|minus|times|divided by) ', flat)) <= 1
    assert score(arithmetic, example, f'#### {answer_of(example)}').exact_match
    assert not score(arithmetic, example, f'#### {expressions.write(expression.value + 1)}').exact_match
  assert abs(worded / 2000 - {'train': 0.1, 'test': 0.7}[split]) < 0.04
  most = 2 if arithmetic.label != 'arithmetic' else {'train': 4, 'test': 6}[split]
  assert set(operators) == set(range(1, most + 1))


@pytest.mark.parametrize('countdown', [task for task in TASKS if isinstance(task, Countdown)], ids=lambda t: t.label)
def test_countdown_can_be_solved(countdown):
  count, digits = {'countdown4': (4, 4), 'countdown3-1digits': (3, 1)}[countdown.label]
  for index in range(40):
    example = countdown.example(0, 'train', index)
    numbers = [number for number in example.instance['numbers'].tolist() if number >= 0]
    asked = re.fullmatch(r'Use (.*), each exactly once, with \+, -, \* and / to reach (\d+)\. '
                         r'Give the expression after ####\.', example.user)
    assert [int(number) for number in re.findall(r'\d+', asked[1])] == numbers and asked[2] == answer_of(example)
    assert len(numbers) == count and all(1 <= number < 10**digits for number in numbers)
    solution = solve([(Fraction(number), str(number)) for number in numbers], Fraction(asked[2]))
    assert solution and score(countdown, example, f'So it is #### {solution}').reward == 1


def test_share_of_training_problems_in_words():
  usual, worded = Arithmetic(3, 2, 2), Arithmetic(3, 2, 2, worded=0.5)
  assert worded.label == 'arithmetic-3x2-0.5words'
  shares = {
      task: np.mean([not re.search(r'\d', task.example(0, 'train', i).user.partition('?')[0]) for i in range(1000)])
      for task in (usual, worded)
  }
  assert abs(shares[usual] - 0.1) < 0.03 and abs(shares[worded] - 0.5) < 0.05
  for index in range(50):  # the test problems are the same
    assert worded.example(0, 'test', index).user == usual.example(0, 'test', index).user


@pytest.mark.parametrize('worded', [-0.1, 1.5, 'half', None])
def test_a_share_is_from_0_to_1(worded):
  with pytest.raises(UserError, match="task 'arithmetic': worded=.*(choose a number from 0 to 1|expected a number)"):
    make_task('arithmetic', worded=worded)


def test_strict_is_a_rule_of_the_calculator_alone():
  plain, strict = Countdown(3, 1), Countdown(3, 1, strict=True)
  assert strict.label == 'countdown3-1digits-strict'
  for index in range(20):
    a, b = (task.example(4, 'test', index) for task in (plain, strict))
    assert a.user == b.user and b.instance.pop('strict')
    chex.assert_trees_all_equal(a.instance, b.instance)


def solve(terms, target):
  """An expression of all terms (value, text) that gives the target, by trying everything."""
  if len(terms) == 1:
    return terms[0][1] if terms[0][0] == target else None
  for (i, (a, x)), (j, (b, y)) in itertools.permutations(enumerate(terms), 2):
    rest = [term for k, term in enumerate(terms) if k not in (i, j)]
    results = [(a - b, f'({x} - {y})')]
    results += [(a + b, f'({x} + {y})'), (a * b, f'({x} * {y})')] if i < j else []
    results += [(a / b, f'({x} / {y})')] if b else []
    for result in results:
      if solution := solve([*rest, result], target):
        return solution
  return None


@pytest.mark.parametrize('answer, right', [
    ('8 * 3 - 4', True), ('(8*3) - 4', True), ('20', False), ('8 * 3 - 4 + 0', False), ('8 + 8 + 4', False),
    ('8 * 3 - 4 * 1', False), ('3 * 8 -4', True), ('8 * 3 - 4 = 20', False), ('8 * 3 - 4.0', True),
    ('8 * 3 / 0 - 4', False), ('4 - 3 * 8', False),
    ('83 - 4', False), ('2**9**9', False), ('8 * 3 - ４', False), ('-4 + 8 * 3', True),
])
def test_countdown_accepts_expressions_of_its_numbers_alone(answer, right):
  task = Countdown(3, 1)
  example = task.example(0, 'train', 0)
  example.instance.update(
      numbers=np.array([3, 4, 8] + [-1] * 5), answer=np.frombuffer(b'20'.ljust(32, b'\0'), np.uint8))
  assert score(task, example, f'#### {answer}').exact_match is right


def test_count():
  task = Count()
  words = 0
  lengths = set()
  for index in range(1000):
    example = task.example(0, 'train', index)
    digit, number = problem(task, example)
    assert answer_of(example) == str(number.count(digit))
    words += 'number ' + number not in example.user
    lengths.add(len(number))
  assert abs(words / 1000 - 0.9) < 0.04 and lengths == set(range(1, 21))
  assert task.environments == ()


def test_what_is_not_finished_is_worth_nothing(task):
  example = task.example(0, 'train', 0)
  assert score(task, example, f'#### {answer_of(example)}', finished=False).reward == 0
  assert score(task, example, answer_of(example)).reward == 0


@pytest.mark.parametrize('make, message', [
    (lambda: make_task('arithmetic', digits=0), 'digits=0: choose a whole number from 1 to 9'),
    (lambda: make_task('countdown', numbers=9), 'numbers=9: choose a whole number from 2 to 8'),
    (lambda: make_task('count', digits=22), 'digits=22: choose a whole number from 1 to 21'),
])
def test_bad_options(make, message):
  with pytest.raises(UserError, match=re.escape(message)):
    make()
