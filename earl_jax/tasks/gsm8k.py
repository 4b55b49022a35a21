"""GSM8K with other numbers: the problems of the official files, rescaled through the steps of their solutions.

A solution works its answer out in steps, `<<48/2=24>>`. The numbers of the question that some step works with are
replaced by new ones of up to six digits, wherever they stand. The steps are worked out anew, and the draw is kept if
their results are of the kind they were, whole where they were whole and positive where they were positive
(docs/method.md, section 4).
"""

from fractions import Fraction
import functools
import json
import pathlib
import re
from typing import NamedTuple
import urllib.request

import numpy as np

from earl_jax.config import UserError
from earl_jax.tasks import expressions
from earl_jax.tasks.base import SPLITS
from earl_jax.tasks.calculation import CalculationTask, Problem

_DRAWS = 100  # of new numbers, until another problem is taken
_LARGEST = 10**6
_LIMIT = 10**12  # of results
_NUMERAL = r'\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?'
# A numeral that stands for a quantity: not part of a word, a time, a date, a fraction or a percentage.
_QUANTITY = re.compile(rf'(?<![\w./:,-])(?:{_NUMERAL})(?![\w:/%-]|\.\d|,\d|\s*percent)', re.ASCII)
_STEP = re.compile(r'<<([^<>=]*)=([^<>=]*)>>')
_OPERAND = re.compile(r'\d+(?:\.\d+)?|\.\d+', re.ASCII)
# What a step may work with because a word says so. Where the word stands, a numeral of that value is left alone.
_SAID = {value: re.compile(words) for value, words in {
    2: r'half|halv|twice|double|couple|both|pair|two|second', 3: r'third|thrice|tripl|three', 4: r'quarter|four|quad',
    5: r'five|fifth', 6: r'six', 7: r'seven|week|daily|every day|each day|a day|per day', 8: r'eight', 9: r'nine|ninth',
    10: r'\bten|dime|decade', 12: r'dozen|twelve|month|year|annual|foot|feet|inch', 24: r'day|hour',
    30: r'month|thirty', 52: r'week|year', 60: r'hour|minute|second|sixty', 100: r'cent|%|\$|dollar|hundred|meter',
    365: r'year|annual|day', 1000: r'kilo|thousand|km|kg|ton', 1: r'\bone|\ban?\b|each|once|another|per',
}.items()}


class Item(NamedTuple):
  """A problem of the files whose numbers can be traced.

  Attributes:
    question: pieces of text; between two of them stands a numeral.
    numerals: those between them, without thousands' commas.
    steps: expressions, with `{}` for every operand.
    operands: per step, where each comes from: the int index of an earlier step, or a Fraction, the value itself.
    results: of the steps; the last is the answer.
    free: values of numerals that steps work with: those to be replaced.
  """

  question: tuple[str, ...]
  numerals: tuple[str, ...]
  steps: tuple[str, ...]
  operands: tuple[tuple[int | Fraction, ...], ...]
  results: tuple[Fraction, ...]
  free: tuple[Fraction, ...]


def trace(question: str, answer: str) -> Item | None:
  """The item, or None where some number's origin is in doubt or no number can be replaced."""
  numerals = tuple(numeral.replace(',', '') for numeral in _QUANTITY.findall(question))
  quantities = set(map(Fraction, numerals))
  steps, operands, results, free = [], [], [], {}
  for expression, result in _STEP.findall(answer):
    parsed = expressions.parse(expression)
    if parsed is None or parsed.value is None or _number(result) != parsed.value:
      return None
    sources = []
    for operand in parsed.numbers:
      earlier = [i for i, value in enumerate(results) if value == operand]
      if len(earlier) > 1 or (earlier and operand in quantities):
        return None
      sources.append(earlier[0] if earlier else operand)
      said = _SAID.get(operand)
      if not earlier and operand in quantities and not (said and said.search(f'{question} {answer}'.lower())):
        free[operand] = None
    steps.append(_OPERAND.sub('{}', expression))
    operands.append(tuple(sources))
    results.append(parsed.value)
  if not free or _number(expressions.last_answer(answer)) != results[-1]:
    return None
  return Item(
      question=tuple(_QUANTITY.split(question)), numerals=numerals, steps=tuple(steps), operands=tuple(operands),
      results=tuple(results), free=tuple(free),
  )


def _number(text: str) -> Fraction | None:
  text = text.replace(',', '').strip()
  return Fraction(text) if re.fullmatch(r'-?(?:\d+(?:\.\d+)?|\.\d+)', text, re.ASCII) else None


def rescale(item: Item, rng: np.random.Generator) -> tuple[str, list[Fraction]] | None:
  """(question, results of the steps) with new numbers; None if no draw fits."""
  for _ in range(_DRAWS):
    # Multiples of the old numbers divide as they did more often than just any.
    new = {value: value * _factor(rng, value) for value in item.free}
    results = _work_out(item, new)
    if results and len(set(new.values())) == len(new) and any(old != value for old, value in new.items()):
      numerals = [_written_like(numeral, new) for numeral in item.numerals]
      pieces = [piece for pair in zip(item.question, [*numerals, '']) for piece in pair]
      return ''.join(pieces), results
  return None


def _written_like(numeral: str, new: dict[Fraction, Fraction]) -> str:
  """The numeral that takes the place of `numeral`, with as many decimals at least."""
  value = new.get(Fraction(numeral))
  if value is None:
    return numeral
  places = len(numeral.partition('.')[2])
  while (value * 10**places).denominator > 1:
    places += 1
  digits = f'{value.numerator * 10**places // value.denominator:0{places + 1}d}'
  return f'{digits[:-places]}.{digits[-places:]}' if places else digits


def _factor(rng: np.random.Generator, value: Fraction) -> int:
  """From 1 on, of every order of magnitude alike, such that the product has six digits at most."""
  most = max(1, int((_LARGEST - 1) / value)) if value else 1
  return int(np.exp(rng.uniform(0, np.log(most + 1))))


def _work_out(item: Item, new: dict[Fraction, Fraction]) -> list[Fraction] | None:
  """The results of all steps; None where one is not of the kind it was."""
  results = []
  for step, operands, old in zip(item.steps, item.operands, item.results):
    values = [results[x] if isinstance(x, int) else new.get(x, x) for x in operands]
    parsed = expressions.parse(step.format(*(f'({value.numerator}/{value.denominator})' for value in values)))
    result = parsed and parsed.value
    if result is None or (result > 0) != (old > 0) or abs(result) >= _LIMIT:
      return None
    if 1000 % result.denominator or (old.denominator == 1 and result.denominator > 1):
      return None
    results.append(result)
  return results


@functools.cache
def read(path: str, split: str) -> tuple[Item, ...]:
  """The items of `split` that can be traced, from folder or URL `path` with the official train.jsonl and test.jsonl.

  Raises:
    UserError: the file is missing or a line of it malformed.
  """
  file = f'{path.rstrip("/")}/{split}.jsonl'
  try:
    if '://' in file:
      with urllib.request.urlopen(file, timeout=60) as response:
        text = response.read().decode()
    else:
      text = pathlib.Path(file).read_text()
  except (OSError, ValueError) as error:
    raise UserError(f'gsm8k: {file} cannot be read ({error}); give the folder or URL of its files as path') from None
  items = []
  for number, line in enumerate(text.splitlines(), 1):
    try:
      record = json.loads(line)
      question, answer = record['question'], record['answer']
      items.append(trace(question.strip(), answer))
    except (ValueError, KeyError, TypeError, AttributeError):
      raise UserError(
          f'gsm8k: {file}, line {number}: expected {{"question": "…", "answer": "…"}}; download the file again'
      ) from None
  items = tuple(item for item in items if item)
  if not items:
    raise UserError(f'gsm8k: {file} has no problem with traceable numbers; download the file again')
  return items


class GSM8K(CalculationTask):
  """GSM8K with other numbers in every problem."""

  name = 'gsm8k'
  label = 'gsm8k*'

  def __init__(self, path: str):
    """Raises UserError where the files are missing or malformed."""
    self._items = {split: read(str(path), split) for split in SPLITS}

  def _belongs(self, problem: Problem, split: str) -> bool:
    return True  # the files are disjoint

  def _draw(self, rng: np.random.Generator, split: str) -> Problem | None:
    items = self._items[split]
    index = int(rng.integers(len(items)))
    rescaled = rescale(items[index], rng)
    if rescaled is None:
      return None
    question, results = rescaled
    return Problem(
        f'{split} {index} {question}', f'{question} Give the number after ####.', expressions.write(results[-1])
    )
