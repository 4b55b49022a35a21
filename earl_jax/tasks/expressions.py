"""Numbers and expressions as people and models write them: a small grammar, exact values, and never `eval`.

    expression = product {("+" | "-") product}        operand = ["+" | "-"] (number | "(" expression ")")
    product    = operand {("*" | "/") operand}        number  = digits ["." digits] | "." digits

Digits are 0 … 9; blanks may stand around numbers and symbols. Anything else, and what is too long, is no expression.
"""

from fractions import Fraction
import re
from typing import NamedTuple

from earl_jax.environments.calculator import DECIMALS

MAX_LENGTH = 200  # characters: bounds the size of values and the depth of parentheses

# Atomic, so that no text makes the search go back and try again.
_NUMBER = r'(?>\d+(?:\.\d+)?|\.\d+)'
_TOKENS = re.compile(rf'(?:[ \t]*+(?:{_NUMBER}|[-+*/()]))*+[ \t]*', re.ASCII)
_TOKEN = re.compile(rf'{_NUMBER}|[-+*/()]', re.ASCII)
_ANSWER = re.compile(rf'-?{_NUMBER}', re.ASCII)


class Expression(NamedTuple):
  """A parsed expression.

  Attributes:
    value: exact; None if something is divided by zero.
    numbers: those in it, from left to right, without signs.
  """

  value: Fraction | None
  numbers: tuple[Fraction, ...]


def parse(text: str) -> Expression | None:
  """The expression that `text` is; None if it is none."""
  if len(text) > MAX_LENGTH or not _TOKENS.fullmatch(text):
    return None
  tokens = _TOKEN.findall(text)
  parser = _Parser(tokens)
  try:
    value = parser.expression()
  except _NotAnExpression:
    return None
  return Expression(value, tuple(parser.numbers)) if parser.at == len(tokens) else None


class _NotAnExpression(Exception):
  pass


class _Parser:
  """Recursive descent; a value is None once something was divided by zero."""

  def __init__(self, tokens: list[str]):
    self.tokens = tokens
    self.at = 0
    self.numbers = []

  def take(self, wanted: str) -> str:
    """The next token, if it is one of the characters wanted; else ''."""
    if self.at == len(self.tokens) or self.tokens[self.at] not in wanted:
      return ''
    self.at += 1
    return self.tokens[self.at - 1]

  def expression(self) -> Fraction | None:
    value = self.product()
    while sign := self.take('+-'):
      term = self.product()
      defined = value is not None and term is not None
      value = (value + term if sign == '+' else value - term) if defined else None
    return value

  def product(self) -> Fraction | None:
    value = self.operand()
    while sign := self.take('*/'):
      factor = self.operand()
      if value is None or factor is None or (sign == '/' and factor == 0):
        value = None
      else:
        value = value * factor if sign == '*' else value / factor
    return value

  def operand(self) -> Fraction | None:
    negative = self.take('+-') == '-'
    if self.take('('):
      value = self.expression()
      if not self.take(')'):
        raise _NotAnExpression
    elif self.at < len(self.tokens) and self.tokens[self.at][-1].isdecimal():
      value = Fraction(self.tokens[self.at])
      self.at += 1
      self.numbers.append(value)
    else:
      raise _NotAnExpression
    return -value if negative and value is not None else value


def write(value: Fraction) -> str:
  """As the calculator writes it: an integer as such, else three decimals, rounded half to even."""
  if value.denominator == 1:
    return str(value.numerator)
  whole, decimals = divmod(round(abs(value) * 10**DECIMALS), 10**DECIMALS)
  return f'{"-" if value < 0 else ""}{whole}.{decimals:0{DECIMALS}d}'


def last_answer(text: str) -> str:
  """What stands after the last `####`, up to the end of its line, stripped; empty where there is none."""
  _, found, answer = text.rpartition('####')
  return answer.partition('\n')[0].strip() if found else ''


def is_answer(text: str, value: str) -> bool:
  """Whether `text` is a number that is written as `value` is, three decimals at most counted."""
  if len(text) > MAX_LENGTH or not _ANSWER.fullmatch(text):
    return False
  return Fraction(write(Fraction(text))) == Fraction(value)
