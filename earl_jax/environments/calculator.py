"""` calculate 3 * (4 - 1) = 9`: exact arithmetic on an expression typed symbol by symbol.

Legality is an automaton over what has been typed, which never leads where no expression can be completed. The value is
worked out while the expression is typed, with the sum and the product under way for every open parenthesis.

No intermediate result is too large for `residues`: by induction, an expression of k symbols has a numerator and a
denominator below 10^k (a sum at most doubles the product of two such numbers, and its sign is a symbol too).
"""

from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec
from earl_jax.environments import countdown_rules, residues
from earl_jax.environments.base import concatenate, Environment, Observation, observation_table, Phrasing
from earl_jax.environments.countdown_rules import (
  CLOSE,
  DIVIDE,
  EQUALS,
  MAX_DEPTH,
  MAX_SYMBOLS,
  MINUS,
  OPEN,
  POINT,
  SYMBOLS,
  TIMES,
)

INTEGERS, DECIMALS = 12, 3  # digits of a result; from 10^12 on it is written as overflow

# The automaton: a mode per line, where each class of symbols leads from it (_ = not legal), and how many symbols it
# takes until what is open may end.
_CLASS = np.array(['01.+-*/()='.index(symbol) for symbol in '0111111111.+-*/()='])
_MODES = (
    # 01.+-*/()=
    ('S', 'ZIPUU__S__', 1),  # an operand comes
    ('U', 'ZIP____S__', 1),  # an operand comes, its sign was typed
    ('D', 'zIfVV__S__', 1),  # a divisor comes
    ('V', 'zIf____S__', 1),  # a divisor comes, its sign was typed
    ('Z', '__PSSSD_CS', 0),  # the number 0
    ('I', 'IIPSSSD_CS', 0),  # the digits of another number
    ('P', 'FF________', 1),  # a point
    ('F', 'FF_SSSD_CS', 0),  # decimals
    ('C', '___SSSD_CS', 0),  # a closing parenthesis
    ('z', '__f_______', 2),  # 0 as the beginning of a divisor, which must not be zero
    ('f', 'fF________', 1),  # its point, and zeros so far
)
_NAMES = ''.join(name for name, _, _ in _MODES)
_LEADS = np.array([[_NAMES.find(to) for to in leads] for _, leads, _ in _MODES], np.int32)
_NEEDS = np.array([needs for _, _, needs in _MODES], np.int32)  # symbols until a parenthesis may close
_START = _NAMES.index('S')
_BEGINS = np.array([name in 'SUDV' for name in _NAMES])  # a digit or a point would begin a number
_DECIMAL = np.array([name in 'PFf' for name in _NAMES])  # a digit would be a decimal

# Pieces of a result, what stands before and after it, and then groups of digits: all of one digit, of two, …
_PIECES = ('-', '.', 'undefined', 'overflow', '')
_SIGN, _DOT, _UNDEFINED, _OVERFLOW, _NOTHING, _BEFORE, _AFTER, _DIGITS = range(8)

ZERO, ONE, MINUS_ONE = (residues.fraction(number) for number in (0, 1, -1))


class Calculation(NamedTuple):
  """The open call. Fractions as in `residues`; D = 8 entries, entry k inside k parentheses.

  Attributes:
    mode: int32[], state of the automaton.
    typed: int32[], symbols so far.
    depth: int32[], open parentheses.
    operand: int32[2, 8], the number being typed, or the value of the parenthesis just closed.
    product: int32[D, 2, 8], the product that the operand belongs to, as far as it goes, sign included.
    total: int32[D, 2, 8], the sum of the products before.
    divides: bool[D], the operand divides the product.
    undefined: bool[], something was divided by zero.
    calls: int32[], expressions evaluated in this episode.
    rules: what the rules of countdown go by.
  """

  mode: jax.Array
  typed: jax.Array
  depth: jax.Array
  operand: jax.Array
  product: jax.Array
  total: jax.Array
  divides: jax.Array
  undefined: jax.Array
  calls: jax.Array
  rules: countdown_rules.Rules


def _nothing_typed(calls: jax.Array, rules: countdown_rules.Rules) -> Calculation:
  ones, zeros = (jnp.tile(fraction, (MAX_DEPTH, 1, 1)) for fraction in (ONE, ZERO))
  return Calculation(
      mode=jnp.int32(_START), typed=jnp.int32(0), depth=jnp.int32(0), operand=jnp.asarray(ZERO), product=ones,
      total=zeros, divides=jnp.zeros(MAX_DEPTH, bool), undefined=jnp.bool_(False), calls=calls,
      rules=rules,
  )


def _type(state: Calculation, symbol: jax.Array) -> Calculation:
  """The state after a legal symbol. After ` = ` and `)`, `operand` is the value of the expression they end.

    a digit, a point     join the number
    a sign               negates the product if it is a minus
    (                    begins an expression
    operator, ) or ` = ` multiplies the product by the operand, or divides it
    + - ) ` = `          then add the product to the total, and a new one begins
  """
  k, mode = state.depth, state.mode
  opens, closes = symbol == OPEN, (symbol == CLOSE) | (symbol == EQUALS)
  begins = jnp.asarray(_BEGINS)[mode]
  ends_operand = (symbol > POINT) & ~opens & ~begins  # where an operand begins, + and - are signs
  ends_product = ends_operand & (symbol != TIMES) & (symbol != DIVIDE)

  number = jnp.where(begins, ZERO, state.operand)
  longer = residues.append_digit(number, symbol, jnp.asarray(_DECIMAL)[mode])
  number = jnp.where(symbol < POINT, longer, number)

  factor = jnp.where(state.divides[k], residues.inverse(state.operand), state.operand)
  product = jnp.where(ends_operand, residues.multiply(state.product[k], factor), state.product[k])
  total = jnp.where(ends_product, residues.add(state.total[k], product), state.total[k])
  signed = residues.multiply(jnp.where(ends_product, ONE, product), jnp.where(symbol == MINUS, MINUS_ONE, ONE))

  entry = jnp.arange(MAX_DEPTH)

  def put(stack, at, value):
    return jnp.where((entry == at).reshape(-1, *[1] * (stack.ndim - 1)), value, stack)

  inner = jnp.where(opens, k + 1, -1)
  return Calculation(
      mode=jnp.asarray(_LEADS)[mode, jnp.asarray(_CLASS)[symbol]],
      typed=state.typed + 1,
      depth=k + opens - (symbol == CLOSE),
      operand=jnp.where(symbol <= POINT, number, jnp.where(closes, total, state.operand)),
      product=put(put(state.product, k, signed), inner, ONE),
      total=put(put(state.total, k, total), inner, ZERO),
      divides=put(put(state.divides, k, jnp.where(ends_operand, symbol == DIVIDE, state.divides[k])), inner, False),
      undefined=state.undefined | (ends_operand & state.divides[k] & residues.is_zero(state.operand)),
      calls=state.calls,
      rules=countdown_rules.after(state.rules, symbol, state.typed, k, ends_operand),
  )


def _groups(size: int) -> list[str]:
  """All strings of one digit, of two, … of `size`."""
  return [f'{n:0{length}}' for length in range(1, size + 1) for n in range(10**length)]


def _digits_at_once(encode: Encode) -> int:
  """How many digits of a number the tokenizer reads at a time, from the left; warns where it reads otherwise."""
  numerals = [str(7**n)[:length] for n in range(20, 60) for length in range(4, INTEGERS + 2)]
  numerals += map(str, range(1000))
  read, end = encode('\n'.join(['', *numerals, ''])), encode('\n')
  for size in (1, 2, 3):
    tokens = {group: encode(group) for group in _groups(size)}
    lines = [[tokens[n[i : i + size]] for i in range(0, len(n), size)] + [end] for n in numerals]
    if read == end + [token for line in lines for group in line for token in group]:
      if size > 1:
        logging.warning(
            'The tokenizer reads numbers %d digits at a time. The calculator writes its results so; the digits of an '
            'expression stay one by one, as they are typed.', size
        )
      return size
  logging.warning(
      'The tokenizer reads numbers in groups of digits that the calculator does not know; the calculator writes them '
      'digit by digit.'
  )
  return 1


def _rows(digits: jax.Array, shown: jax.Array, size: int) -> jax.Array:
  """Rows of the table int32[⌈N / size⌉]: the groups of `size` digits, from the left, in which int32[N] are written.

  Args:
    shown: bool[N], those that are written: the last so many.
  """
  places = jnp.arange(-(-len(digits) // size) * size)
  there = (places < shown.sum()).reshape(-1, size)
  digits = digits[(places + jnp.argmax(shown)) % len(digits)].reshape(-1, size)
  value = jnp.zeros(len(digits), jnp.int32)
  for i in range(size):
    value = jnp.where(there[:, i], 10 * value + digits[:, i], value)
  shorter = jnp.array([0, *((10**length - 10) // 9 for length in range(1, size + 1))])  # groups before, in the table
  length = there.sum(axis=1)
  return jnp.where(length > 0, _DIGITS + shorter[length] + value, _NOTHING)


class Calculator(Environment):
  """Digits, a point, operators and parentheses; ` = ` writes the value and exits.

  An integer is written as such, another value with three decimals, rounded half to even; after a division by zero
  `undefined`, from 10^12 on `overflow`. Digits of a result are joined as the tokenizer joins them in a text, where it
  reads one, two or three at a time. An action that is not valid leaves the state as it is, writes nothing and does
  not exit.

  A task whose instances have the keys `strict` (bool[]) and `numbers` (int32[N], -1 = none) can have it play by the
  rules of countdown (`countdown_rules`).
  """

  spec = EnvironmentSpec(
      'calculator', ActionSpec(' calculate '), tuple(map(ActionSpec, SYMBOLS)), closing=ActionSpec(SYMBOLS[EQUALS])
  )
  phrasing = Phrasing('', '', '\n')
  usage = 'calculate:{routing}(12 + 6) / 3{closing}{before}6{after}'
  state_type = Calculation

  def __init__(self, encode: Encode):
    around = (self.phrasing.before, self.phrasing.after)
    self._size = _digits_at_once(encode)
    self._tokens, self._lengths = observation_table(encode, [*_PIECES, *around, *_groups(self._size)])
    groups = -(-(INTEGERS + 1) // self._size) - (-DECIMALS // self._size)
    number = groups * self._lengths[_DIGITS:].max() + self._lengths[[_SIGN, _DOT]].sum()
    word = max(self._lengths[_UNDEFINED], self._lengths[_OVERFLOW])
    self.max_observation = int(max(number, word) + self._lengths[[_BEFORE, _AFTER]].sum())

  def reset(self, instance: dict[str, jax.Array]) -> Calculation:
    return _nothing_typed(jnp.int32(0), countdown_rules.begin(instance))

  def valid_actions(self, state: Calculation) -> jax.Array:
    symbol = jnp.arange(len(SYMBOLS))
    mode = jnp.asarray(_LEADS)[state.mode, _CLASS]
    depth = state.depth + (symbol == OPEN) - (symbol == CLOSE)
    # All that is open must still find room.
    complete = state.typed + 1 + jnp.asarray(_NEEDS)[mode] + depth <= MAX_SYMBOLS
    possible = jnp.where(symbol == EQUALS, state.depth == 0, (depth >= 0) & (depth < MAX_DEPTH) & complete)
    begins = jnp.asarray(_BEGINS)[state.mode]
    return countdown_rules.possible(state.rules, (mode >= 0) & possible, state.typed, state.depth, begins)

  def step(self, state: Calculation, action: jax.Array) -> tuple[Observation, Calculation, jax.Array]:
    valid = self.valid_actions(state)[action]
    leaves = valid & (action == EQUALS)
    typed = _type(state, action)
    written = self._result(typed, leaves)
    kept = jax.tree.map(lambda new, old: jnp.where(valid, new, old), typed, state)
    fresh = _nothing_typed(state.calls + 1, countdown_rules.evaluated(state.rules))
    after = jax.tree.map(lambda new, old: jnp.where(leaves, new, old), fresh, kept)
    return written._replace(length=jnp.where(leaves, written.length, 0)), after, leaves

  def _result(self, state: Calculation, wanted: jax.Array) -> Observation:
    """What is written of the value in `state.operand`."""
    value = jnp.where(state.undefined, ZERO, state.operand)
    negative, digits, whole, overflow = residues.decimal(value, INTEGERS, DECIMALS, wanted)
    is_number = ~state.undefined & ~overflow
    integer, decimals = digits[:-DECIMALS], digits[-DECIMALS:]
    significant = (jnp.cumsum(integer) > 0).at[-1].set(True)
    word = jnp.where(state.undefined, _UNDEFINED, jnp.where(overflow, _OVERFLOW, _NOTHING))
    pieces = (
        [_BEFORE],
        jnp.where(negative & is_number, _SIGN, _NOTHING)[None],
        _rows(integer, significant & is_number, self._size),
        jnp.where(~whole & is_number, _DOT, _NOTHING)[None],
        _rows(decimals, jnp.repeat(~whole & is_number, DECIMALS), self._size),
        word[None],
        [_AFTER],
    )
    rows = jnp.concatenate([jnp.asarray(piece, jnp.int32) for piece in pieces])
    lengths = jnp.asarray(self._lengths)[rows]
    return concatenate(list(zip(jnp.asarray(self._tokens)[rows], lengths)), self.max_observation)
