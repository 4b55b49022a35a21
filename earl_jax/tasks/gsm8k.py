"""GSM8K with other numbers: the problems of the official files, rescaled through the steps of their solutions.

A solution works its answer out in steps, `<<48/2=24>>`. The numbers of the question that some step works with are
replaced by new ones of up to six digits, wherever they stand. The steps are worked out anew, and the draw is kept if
the numbers have the order they had and the results are of the kind they were, whole where they were whole and positive
where they were positive. Problems with a number of seven digits or more are left out (docs/method.md, section 4).
"""

import collections
from fractions import Fraction
import functools
import itertools
import json
import pathlib
import re
from typing import NamedTuple
import urllib.request

import numpy as np

from earl_jax.config import UserError
from earl_jax.tasks import expressions
from earl_jax.tasks.base import SPLITS
from earl_jax.tasks.calculation import CalculationTask, in_words, Problem

_DRAWS = 1000  # of new numbers, until another problem is taken
_LARGEST = 10**6
_SMALL = 10  # up to here a value is often a count of something too
_LIMIT = 10**12  # of results
_NUMERAL = r'\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?'
# A numeral that stands for a quantity: not part of a word, a time, a date, a fraction or a percentage, no label, and
# nothing that a day or a week has no more of.
_LABELS = ''.join(rf'(?<!\b{label} )' for label in (
    'day', 'week', 'month', 'year', 'grade', 'level', 'number', 'page', 'chapter', 'room', 'round', 'step', 'group',
    'team',
))
_AFTER = r"\s*(?:%|per\s?cent|[ap]\.?m\b|o'clock|(?:minute|hour|day|week|month)s?\s(?:a|an|in|of the|per|each|every)\b)"
_QUANTITY = re.compile(
    rf'(?<![\w./:,#-]){_LABELS}(?:{_NUMERAL})(?![\w:/%-]|\.\d|,\d|{_AFTER})', re.ASCII | re.IGNORECASE
)
# Any other one, with the rest of a percentage or a fraction.
_OTHER = re.compile(rf'({_NUMERAL}|\.\d+)(?:[\s-]*(%|per\s?cent)|\s*/\s*(\d+))?', re.ASCII | re.IGNORECASE)
_STEP = re.compile(r'<<([^<>=]*)=([^<>=]*)>>')
_OPERAND = re.compile(r'\d+(?:\.\d+)?|\.\d+', re.ASCII)
_WORDS = {in_words(number): number for number in range(1, 100)}
_WORD = re.compile(rf'\b(?:{"|".join(sorted(_WORDS, key=len, reverse=True))})\b')
_HALF, _CENT = Fraction(1, 2), Fraction(1, 100)
# Values that a question says by other words, units among them.
_SAID = {re.compile(words): values for words, values in {
    r'half|halv': (2, _HALF, 3 * _HALF), r'third': (3, Fraction(1, 3), Fraction(2, 3)),
    r'quarter|fourth': (4, _HALF / 2, 3 * _HALF / 2, 25), r'fifth': (5, *(Fraction(n, 5) for n in range(1, 5))),
    r'sixth': (6, Fraction(1, 6)), r'eighth': (8, Fraction(1, 8)), r'tenth': (10, Fraction(1, 10)),
    r'twice|doubl|couple|both|pair|twin|round trip|and back|rectang|perimeter': (2,), r'thrice|tripl': (3,),
    r'quadrupl|square': (4,), r'dozen': (12,), r'hundred|centur': (100,), r'thousand': (1000,), r'million': (10**6,),
    r'second': (60, 3600), r'minute': (60, 3600, Fraction(1, 60)), r'hour': (60, 24, 3600, Fraction(1, 60)),
    r'day|daily': (7, 24), r'week': (7, 52, 4), r'weekday': (5,), r'weekend': (2,), r'month': (12, 30, 4),
    r'year|annual': (12, 52, 365), r'decade': (10,), r'%|\$|dollar|cent|penn': (100, _CENT),
    r'nickel': (5, 5 * _CENT), r'dime': (10, 10 * _CENT), r'inch|foot|feet': (12,),
    r'yard': (3, 36), r'mile': (5280,), r'gallon': (4, 16, 128), r'quart\b|quarts': (4, 2), r'pint': (2,),
    r'pound|ounce': (16,), r'ton\b|tons': (2000, 1000), r'kilo|km\b|kg\b|lit(?:er|re)|ml\b|gram': (1000,),
    r'met(?:er|re)|cm\b': (100, 1000),
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
  """The item, or None where some number's origin is in doubt or no number can be replaced.

  Every operand comes from one place: an earlier result, a quantity of the question, another numeral there (of a
  percentage, of a fraction, in `10-hour`), a word or a unit. It is in doubt
    where it comes from none (it was worked out in the head) or from several;
    where a value to be replaced is that of another kind of numeral too, which is not replaced;
    where a small one is worked with more often than it is written, and may now and then be a count;
    where a quantity, or a result before the last, is not worked with: it may have been, in the head.
  """
  numerals = tuple(numeral.replace(',', '') for numeral in _QUANTITY.findall(question))
  written, others, said = collections.Counter(map(Fraction, numerals)), _other_numerals(question), _said(question)
  known = {*written, *others, *said}
  steps, operands, results = [], [], []
  for expression, result in _STEP.findall(answer):
    parsed = expressions.parse(expression)
    if parsed is None or parsed.value is None or _number(result) != parsed.value or len(parsed.numbers) < 2:
      return None
    origins = [
        [i for i, earlier in enumerate(results) if earlier == operand] + [operand] * (operand in known)
        for operand in parsed.numbers
    ]
    if any(len(found) != 1 for found in origins):
      return None
    steps.append(_OPERAND.sub('{}', expression))
    operands.append(tuple(found[0] for found in origins))
    results.append(parsed.value)
  every = [source for sources in operands for source in sources]
  used = collections.Counter(source for source in every if isinstance(source, Fraction))
  free = tuple(value for value in used if value in written and value not in said)
  in_doubt = (
      others & set(free)
      or any(value <= _SMALL and used[value] > written[value] for value in free)
      or set(written) - set(used) - {1}
      or set(range(len(results) - 1)) - {source for source in every if isinstance(source, int)}
  )
  if in_doubt or not free or max(written) >= _LARGEST or _number(expressions.last_answer(answer)) != results[-1]:
    return None
  return Item(
      question=tuple(_QUANTITY.split(question)), numerals=numerals, steps=tuple(steps), operands=tuple(operands),
      results=tuple(results), free=free,
  )


def _other_numerals(question: str) -> set[Fraction]:
  """Values of the numerals that are no quantities, and what they are reckoned with: 20% as 0.2, 0.8, 80, 5, …"""
  values = set()
  for numeral, percent, whole in _OTHER.findall(_QUANTITY.sub('#', question)):
    part, whole = Fraction(numeral.replace(',', '')), Fraction(100 if percent else whole or 0)
    values.add(part)
    if part and whole:
      values |= {whole, whole - part, whole + part, whole / part, part / whole, 1 - part / whole, 1 + part / whole}
  return values


def _said(question: str) -> set[Fraction]:
  """Values that words of the question stand for; 1 goes without saying."""
  text = question.lower()
  values = {Fraction(1), *(Fraction(_WORDS[word]) for word in _WORD.findall(text))}
  return values.union(*(map(Fraction, values) for words, values in _SAID.items() if words.search(text)))


def _number(text: str) -> Fraction | None:
  text = text.replace(',', '').strip()
  return Fraction(text) if re.fullmatch(r'-?(?:\d+(?:\.\d+)?|\.\d+)', text, re.ASCII) else None


def rescale(item: Item, rng: np.random.Generator) -> tuple[str, list[Fraction]] | None:
  """(question, results of the steps) with new numbers; None if no draw fits.

  Numbers of the question keep their order: what was part of another stays so, and the longer way the longer one.
  """
  quantities = sorted(set(map(Fraction, item.numerals)))
  for _ in range(_DRAWS):
    # Multiples of the old numbers divide as they did more often than just any.
    new = {value: value * _factor(rng, value) for value in item.free}
    placed = [new.get(value, value) for value in quantities]
    if placed == quantities or any(a >= b for a, b in itertools.pairwise(placed)):
      continue
    if results := _work_out(item, new):
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
        content = response.read()
    else:
      content = pathlib.Path(file).read_bytes()
    lines = content.decode('utf-8-sig').split('\n')
  except (OSError, ValueError) as error:
    raise UserError(f'gsm8k: {file} cannot be read ({error}); give the folder or URL of its files as path') from None
  items = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
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
