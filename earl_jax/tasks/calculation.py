"""Problems about numbers, most of them with a calculator: arithmetic, countdown, count (paper, section 4, Calc-Bench).

The answer stands after the last `####`. All tasks share the keys of their instances:
  answer: uint8[32], the number asked for as ASCII, as the calculator writes it; zeros after it. Countdown: the target.
  numbers: int32[8], what countdown has to use; -1 where there is none.
"""

import abc
from fractions import Fraction
from typing import Annotated, Any, NamedTuple

import numpy as np

from earl_jax.config import Range, UserError
from earl_jax.environments.calculator import DECIMALS, INTEGERS, MAX_SYMBOLS, SYMBOLS
from earl_jax.tasks import base, expressions
from earl_jax.tasks.base import Call, Example, Instance, Outcome, Task

MAX_NUMBERS = 8
Digits = Annotated[int, Range(1, 9)]
Operators = Annotated[int, Range(1, 7)]
DRAWS = 100_000  # for one problem; of some files nothing can be made
_ANSWER_LENGTH = 32
_LIMIT = 10**INTEGERS  # of values: from there on the calculator writes overflow
_SYMBOLS = [symbol.strip() for symbol in SYMBOLS]

_ONES = (
    'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve',
    'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen',
)
_TENS = ('', '', 'twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety')
_THOUSANDS = ('', ' thousand', ' million', ' billion', ' trillion', ' quadrillion', ' quintillion')
_OPERATORS = {'+': 'plus', '-': 'minus', '*': 'times', '/': 'divided by'}


def in_words(number: int) -> str:
  """An integer from 0 to 10^21 - 1 in English."""
  groups = []
  for thousands in _THOUSANDS:
    number, group = divmod(number, 1000)
    if group:
      groups.append(_hundreds(group) + thousands)
  return ' '.join(reversed(groups)) or _ONES[0]


def _hundreds(number: int) -> str:
  hundreds, rest = divmod(number, 100)
  words = [f'{_ONES[hundreds]} hundred'] if hundreds else []
  if rest >= 20:
    tens, ones = divmod(rest, 10)
    words.append(f'{_TENS[tens]}-{_ONES[ones]}' if ones else _TENS[tens])
  elif rest:
    words.append(_ONES[rest])
  return ' and '.join(words)


class Node(NamedTuple):
  """An operator between two expressions, each a Node or a number."""

  operator: str
  left: 'Node | int'
  right: 'Node | int'


Tree = Node | int


def random_tree(rng: np.random.Generator, numbers: list[int]) -> Tree:
  """The numbers, in this order, joined by random operators in a random shape."""
  if len(numbers) == 1:
    return numbers[0]
  cut = int(rng.integers(1, len(numbers)))
  operator = '+-*/'[rng.integers(4)]
  return Node(operator, random_tree(rng, numbers[:cut]), random_tree(rng, numbers[cut:]))


def in_symbols(tree: Tree) -> str:
  """`(12 + 6) / 3`: parentheses only where they are needed."""
  if isinstance(tree, int):
    return str(tree)
  tight = tree.operator in '*/'
  left, right = in_symbols(tree.left), in_symbols(tree.right)
  if isinstance(tree.left, Node) and tight and tree.left.operator in '+-':
    left = f'({left})'
  if isinstance(tree.right, Node) and (tree.right.operator in '+-' and tree.operator != '+' or tree.operator == '/'):
    right = f'({right})'
  return f'{left} {tree.operator} {right}'


def in_sentence(tree: Tree) -> str:
  """`(twelve plus six) divided by three`. Words have no precedence that all agree on: parentheses say it all."""
  if isinstance(tree, int):
    return in_words(tree)
  parts = [in_sentence(part) if isinstance(part, int) else f'({in_sentence(part)})' for part in (tree.left, tree.right)]
  return f' {_OPERATORS[tree.operator]} '.join(parts)


class Problem(NamedTuple):
  """What is drawn.

  Attributes:
    key: the same for all ways of asking the same thing; it decides the split.
    user: the user message.
    answer: as in the instance.
    numbers: countdown's.
    solution: an expression with the value asked for, or nothing.
  """

  key: str
  user: str
  answer: str
  numbers: tuple[int, ...] = ()
  solution: str = ''


class CalculationTask(Task):
  environments = ('calculator',)
  reads_text = True

  def example(self, seed: int, split: str, index: int) -> Example:
    problem = self._problem(seed, split, index)
    return Example(base.SYSTEM, problem.user, _instance(problem.answer, problem.numbers))

  def demonstration(self, seed: int, split: str, index: int, variant: int) -> list[str | Call]:
    del variant  # there is one way only
    problem = self._problem(seed, split, index)
    symbols = problem.solution.replace(' ', '')
    answer = [f'#### {problem.solution if problem.numbers else problem.answer}']
    if not symbols or len(symbols) > MAX_SYMBOLS:
      return answer
    return [Call('calculator', tuple(_SYMBOLS.index(symbol) for symbol in f'{symbols}=')), *answer]

  def _problem(self, seed: int, split: str, index: int) -> Problem:
    rng = base.random_generator(seed, split, index)
    for _ in range(DRAWS):
      problem = self._draw(rng, split)
      if problem and self._belongs(problem, split):
        return problem
    raise UserError(f'task {self.label}: no problem of split {split!r} in {DRAWS:,} draws; give it other options')

  @classmethod
  def split_of(cls, key: str) -> str:
    """The split that the problem with this key belongs to."""
    return base.split_of(f'{cls.name} {key}')

  def _belongs(self, problem: Problem, split: str) -> bool:
    return self.split_of(problem.key) == split

  @abc.abstractmethod
  def _draw(self, rng: np.random.Generator, split: str) -> Problem | None:
    """A problem for this split, or None to draw again."""

  def outcome(self, instance: Instance, states: dict[str, Any], text: str, finished: bool) -> Outcome:
    exact = bool(finished) and self._is_right(instance, expressions.last_answer(text))
    return Outcome(float(exact), exact, {})

  def _is_right(self, instance: Instance, answer: str) -> bool:
    return expressions.is_answer(answer, _answer_of(instance))


def _instance(answer: str, numbers: tuple[int, ...]) -> Instance:
  return {
      'answer': np.frombuffer(answer.encode().ljust(_ANSWER_LENGTH, b'\0'), np.uint8),
      'numbers': np.array([*numbers, *[-1] * (MAX_NUMBERS - len(numbers))], np.int32),
  }


def _answer_of(instance: Instance) -> str:
  return instance['answer'].tobytes().rstrip(b'\0').decode()


def _random_number(rng: np.random.Generator, digits: int) -> int:
  """From 1 on, with 1 to `digits` digits, each as likely."""
  length = int(rng.integers(1, digits + 1))
  return int(rng.integers(10 ** (length - 1), 10**length))


class Arithmetic(CalculationTask):
  """The value of an expression with operands of up to `digits` digits (docs/method.md, section 4).

  Training problems have up to `operators` operators, and `worded` of them are in words; test problems have up to
  `test_operators`, and seven in ten are in words.
  """

  name = 'arithmetic'

  def __init__(
      self, digits: Digits = 5, operators: Operators = 4, test_operators: Operators = 6,
      worded: Annotated[float, Range(0, 1)] = 0.1,
  ):
    self.label = self.name
    if (digits, operators, test_operators) != (5, 4, 6):
      self.label += f'-{digits}x{operators}' + (f'-{test_operators}' if test_operators != operators else '')
    self.label += f'-{worded:g}words' if worded != 0.1 else ''
    self._digits = digits
    self._operators = {'train': operators, 'test': test_operators}
    self._worded = {'train': worded, 'test': 0.7}

  def _draw(self, rng: np.random.Generator, split: str) -> Problem | None:
    operators = int(rng.integers(1, self._operators[split] + 1))
    tree = random_tree(rng, [_random_number(rng, self._digits) for _ in range(operators + 1)])
    worded = rng.random() < self._worded[split]
    value = expressions.parse(in_symbols(tree)).value
    if value is None or abs(value) >= _LIMIT:
      return None
    question = in_sentence(tree) if worded else in_symbols(tree)
    user = f'What is {question}? Give the number after ####.'
    if value.denominator > 1:
      user = f'What is {question}? Give the number, rounded to {DECIMALS} decimals, after ####.'
    return Problem(in_symbols(tree), user, expressions.write(value), solution=in_symbols(tree))


class Countdown(CalculationTask):
  """Reach a target with `numbers` numbers of up to `digits` digits, each used once (docs/method.md, section 4).

  With `strict`, an option of our own, the calculator plays by the rules, as a sort of three items has no fourth: it
  takes the problem's numbers alone, each once at most, and no expression twice (`environments.countdown_rules`).
  """

  name = 'countdown'
  numbered = 'numbers'

  def __init__(self, numbers: Annotated[int, Range(2, MAX_NUMBERS)] = 4, digits: Digits = 4, strict: bool = False):
    """Raises UserError where `strict` expressions might not fit into the calculator."""
    longest = numbers * digits + numbers - 1 + 2 * (numbers - 2)
    if strict and longest >= MAX_SYMBOLS:
      raise UserError(
          f'strict={strict!r}: an expression of {numbers} numbers of {digits} digits can have {longest} symbols, and '
          f'the calculator takes at most {MAX_SYMBOLS - 1}; choose fewer numbers or digits'
      )
    self.label = f'{self.name}{numbers}' + ('' if digits == 4 else f'-{digits}digits') + '-strict' * strict
    self._numbers, self._digits, self._strict = numbers, digits, strict

  def example(self, seed: int, split: str, index: int) -> Example:
    example = super().example(seed, split, index)
    if self._strict:
      example.instance['strict'] = np.bool_(True)
    return example

  @staticmethod
  def key_of(numbers: list[int], target: object) -> str:
    """What a problem is known by: its numbers in any order, and its target."""
    return f'{sorted(numbers)} {target}'

  def _draw(self, rng: np.random.Generator, split: str) -> Problem | None:
    numbers = [_random_number(rng, self._digits) for _ in range(self._numbers)]
    # The target is the value of some expression, so that every problem can be solved.
    solution = in_symbols(random_tree(rng, rng.permutation(numbers).tolist()))
    value = expressions.parse(solution).value
    if value is None or value.denominator > 1 or not 0 < value < 10 ** (self._digits + 1):
      return None
    listed = f'{", ".join(map(str, numbers[:-1]))} and {numbers[-1]}'
    user = f'Use {listed}, each exactly once, with +, -, * and / to reach {value}. Give the expression after ####.'
    return Problem(self.key_of(numbers, value), user, str(value), tuple(numbers), solution)

  def _is_right(self, instance: Instance, answer: str) -> bool:
    expression = expressions.parse(answer)
    if expression is None or expression.value != Fraction(_answer_of(instance)):
      return False
    return sorted(expression.numbers) == sorted(number for number in instance['numbers'].tolist() if number >= 0)


class Count(CalculationTask):
  """How often a digit occurs in a number of up to `digits` digits, nine in ten in words (docs/method.md, section 4)."""

  name = 'count'
  environments = ()

  def __init__(self, digits: Annotated[int, Range(1, 3 * len(_THOUSANDS))] = 20):
    self.label = self.name + ('' if digits == 20 else f'-{digits}digits')
    self._digits = digits

  def _draw(self, rng: np.random.Generator, split: str) -> Problem | None:
    length = int(rng.integers(1, self._digits + 1))
    digits = rng.integers(10, size=length)
    digits[0] = rng.integers(1, 10)
    number = int(''.join(map(str, digits)))
    # Mostly a digit that does occur, so that the answer is seldom 0.
    digit = int(rng.choice(digits)) if rng.random() < 0.9 else int(rng.integers(10))
    written = in_words(number) if rng.random() < 0.9 else str(number)
    user = f'How often does the digit {digit} occur in the number {written}? Give the number after ####.'
    return Problem(f'{digit} {number}', user, str(str(number).count(str(digit))))
