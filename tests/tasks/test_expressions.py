"""The grammar of answers: exact where it accepts, and nothing gets through that is not an expression."""

import ast
from fractions import Fraction
import operator
import re
import time

from hypothesis import given
from hypothesis import strategies as st
import pytest

from earl_jax.tasks.expressions import is_answer, last_answer, MAX_LENGTH, parse, write

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}

NUMBERS = st.one_of(st.integers(0, 99999).map(str), st.decimals(0, 999, places=2).map(str))
EXPRESSIONS = st.recursive(NUMBERS, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from([' + ', '-', '*', ' / ']), inner).map(''.join),
    inner.map('({})'.format), inner.map('-({})'.format),
), max_leaves=8)


def by_python(text: str) -> Fraction | None:
  """The value by Python's own syntax tree; None after a division by zero."""
  def value(node):
    match node:
      case ast.Constant():
        return Fraction(ast.get_source_segment(text, node))
      case ast.UnaryOp(op=ast.USub()):
        return -value(node.operand)
      case ast.UnaryOp(op=ast.UAdd()):
        return value(node.operand)
      case ast.BinOp():
        return OPERATORS[type(node.op)](value(node.left), value(node.right))
    raise AssertionError(ast.dump(node))

  try:
    return value(ast.parse(text, mode='eval').body)
  except ZeroDivisionError:
    return None


@given(EXPRESSIONS)
def test_value_is_that_of_python(text):
  parsed = parse(text)
  if len(text) > MAX_LENGTH:
    assert parsed is None
  else:
    assert parsed.value == by_python(text)


def test_numbers_are_listed_without_signs():
  assert parse('3 * (-4 + .5) / 12').numbers == (3, 4, Fraction(1, 2), 12)


@pytest.mark.parametrize('text', [
    '', ' ', '()', '3+', '*3', '1 2', '1.2.3', '1.', '.', '(1', '1)', '--3', '2**3', '7//2', '2**9**9', '1e5', '1_000',
    '1,000', '0x10', 'nan', 'inf', '１+２', '٣', '²', '1\n+2', '1\u00a0+2', '__import__("os")', 'x', '3 % 2', '1+2=3',
    '9' * 10_000, '(' * 5_000 + '1' + ')' * 5_000, '1' * 199 + 'x', '1.5' * 60 + 'x', ' ' * 199 + 'x', '(1.5 ' * 39,
])
def test_hostile_text_is_refused_at_once(text):
  start = time.perf_counter()
  assert parse(text) is None
  assert not is_answer(text, '3')
  assert time.perf_counter() - start < 0.1


@given(st.text('0123456789.+-*/() ', max_size=30))
def test_any_text_is_refused_or_what_python_says(text):
  parsed = parse(text)
  if parsed is not None:
    # Python takes 007 for a mistake, 7 // 2 for something else, and `1.` for a number.
    value = by_python(' '.join(token.lstrip('0') or '0' if token.isdecimal() else token for token in split(text)))
    assert parsed.value == value


def split(text):
  return re.findall(r'[\d.]+|[-+*/()]', text)


@pytest.mark.parametrize('value, text', [
    ('6', '6'), ('-7', '-7'), ('1/3', '0.333'), ('-2/3', '-0.667'), ('1/16', '0.062'), ('3/16', '0.188'),
    ('1999/2000', '1.000'), ('-1/2000', '-0.000'),
])
def test_write(value, text):
  assert write(Fraction(value)) == text


@pytest.mark.parametrize('answer, value, right', [
    ('72', '72', True), ('72.0', '72', True), ('072', '72', True), ('-5', '-5', True), ('- 5', '-5', False),
    ('0.333', '0.333', True), ('0.33333', '0.333', True), ('.333', '0.333', True), ('0.33', '0.333', False),
    ('1/3', '0.333', False), ('2', '2.000', True), ('72 apples', '72', False), ('7２', '72', False), ('', '0', False),
])
def test_is_answer(answer, value, right):
  assert is_answer(answer, value) is right


@pytest.mark.parametrize('text, answer', [
    ('no answer', ''), ('#### 3', '3'), ('#### 3\n#### 4 ', '4'), ('#### 3 + 4\nso it is', '3 + 4'), ('####', ''),
    ('##### 3', '3'), ('#### 3 ####', ''),
])
def test_the_last_answer_counts(text, answer):
  assert last_answer(text) == answer
