"""The rules of countdown, for a calculator that plays by them: what a task does not offer is not possible.

  - An operand is one of the problem's numbers, and each number is used once at most.
  - Parentheses hold an operator, and an expression has one outside of them: there is one way to write it.
  - No expression is evaluated twice in an episode, and no symbol is possible that leads to nothing new. This is seen
    two numbers ahead: further on it takes sixteen expressions to leave nothing. Where nothing new is left, what is old
    is possible again.

Every prefix that is possible leads to an expression, by induction: of the numbers left there are always as many as
there are parentheses (and an outside) still without an operator, since each of them needs one more operand.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SYMBOLS = (*'0123456789', '.', ' + ', ' - ', ' * ', ' / ', '(', ')', ' = ')
POINT, PLUS, MINUS, TIMES, DIVIDE, OPEN, CLOSE, EQUALS = range(10, 18)
MAX_SYMBOLS = 32  # of one expression, ` = ` not counted
MAX_DEPTH = 8  # parentheses open at a time
EVALUATED = 24  # expressions of an episode that are remembered, the newest ones
MANY = 2**30  # expressions: more than are remembered
DIGITS = 9  # of a number


class Rules(NamedTuple):
  """What the rules go by. Where no instance asks for them N = M = 0: nothing is remembered or computed.

  Attributes:
    strict: bool[], they hold.
    digits: int8[N, 9], the problem's numbers from the left; -1 where there is no digit, or no number.
    used: bool[N], stands in what was typed, but for a number that is being typed.
    joined: bool[D], an operator stands inside k parentheses, but no deeper.
    memory: int8[M, 32], symbols: those being typed, then the expressions evaluated, each once, the newest first; -1
      where there is none.
  """

  strict: jax.Array
  digits: jax.Array
  used: jax.Array
  joined: jax.Array
  memory: jax.Array


def begin(instance: dict[str, jax.Array]) -> Rules:
  """The rules of an episode: they hold where `strict` (bool[]) is set, for `numbers` (int32[N], -1 = none)."""
  numbers = instance['numbers'] if 'strict' in instance else jnp.zeros(0, jnp.int32)
  lengths = jnp.sum(numbers[:, None] >= 10 ** jnp.arange(DIGITS), axis=1)
  place = lengths[:, None] - 1 - jnp.arange(DIGITS)  # of every digit, from the right
  digits = jnp.where(place >= 0, numbers[:, None] // 10 ** jnp.maximum(place, 0) % 10, -1)
  return Rules(
      strict=jnp.asarray(instance.get('strict', False), bool), digits=digits.astype(jnp.int8),
      used=jnp.zeros(len(numbers), bool), joined=jnp.zeros(MAX_DEPTH, bool),
      memory=jnp.full((1 + EVALUATED if len(numbers) else 0, MAX_SYMBOLS), -1, jnp.int8),
  )


def after(rules: Rules, symbol: jax.Array, typed: jax.Array, depth: jax.Array, ends_operand: jax.Array) -> Rules:
  """After a possible symbol that does not end the expression; `typed` and `depth` before it, as in `possible`."""
  if not len(rules.digits):
    return rules
  _, number = _number(rules, typed)
  joins = ends_operand & (symbol <= DIVIDE)
  entry = jnp.arange(MAX_DEPTH)
  joined = (rules.joined | (joins & (entry == depth))) & ~((symbol == OPEN) & (entry == depth + 1))
  memory = rules.memory.at[0, typed].set(symbol.astype(jnp.int8))
  return rules._replace(used=rules.used | (ends_operand & number), joined=joined, memory=memory)


def evaluated(rules: Rules) -> Rules:
  """After ` = `: what was typed is remembered."""
  longer = jnp.roll(rules.memory, 1, axis=0)
  memory = jnp.where((rules.memory[1:] == rules.memory[:1]).all(axis=1).any(), rules.memory, longer)
  return rules._replace(
      used=jnp.zeros_like(rules.used), joined=jnp.zeros_like(rules.joined), memory=memory.at[:1].set(-1),
  )


def possible(rules: Rules, valid: jax.Array, typed: jax.Array, depth: jax.Array, begins: jax.Array) -> jax.Array:
  """bool[A]: the symbols that the rules leave.

  Args:
    valid: bool[A], what an expression can go on with.
    typed: int32[], symbols so far.
    depth: int32[], open parentheses.
    begins: bool[], an operand comes.
  """
  if not len(rules.digits):
    return valid
  continued, number = _number(rules, typed)
  left = (rules.digits[:, 0] >= 0) & ~rules.used & ~number
  count = jnp.sum(left)  # where an operand comes, it is one of these
  lacking = jnp.sum(~rules.joined & (jnp.arange(MAX_DEPTH) <= depth))
  complete = number.any() | (~begins & (rules.memory[0, typed - 1] == CLOSE))
  operator = complete & (count - 1 >= lacking - ~rules.joined[depth])
  kept = valid & jnp.array([
      *(jnp.any(continued == digit) for digit in range(10)), False, *[operator] * 4,
      begins & (count - 1 >= lacking + 1), complete & rules.joined[depth], complete & (lacking == 0),
  ])
  ways = _ways(rules, left, continued, unused=count + number.any(), depth=depth, lacking=lacking)
  places, symbols = jnp.arange(MAX_SYMBOLS), jnp.arange(len(SYMBOLS))
  begun = ((rules.memory[1:] == rules.memory[0]) | (places >= typed)).all(axis=1)
  followed = jnp.where(symbols == EQUALS, -1, symbols)[:, None] == rules.memory[1:, jnp.minimum(typed, MAX_SYMBOLS - 1)]
  new = kept & (jnp.sum(begun & followed, axis=1) < ways)
  return jnp.where(rules.strict, jnp.where(new.any(), new, kept), valid)


def _ways(rules: Rules, left, continued, *, unused, depth, lacking) -> jax.Array:
  """int32[A]: how many expressions each possible symbol leads to; MANY where more than two numbers are still to come.

  With one number left after an operand, it goes behind an operator, at any of the depth + 1 levels or, where an
  operator is lacking, at that level; and where none is lacking the expression may end without it. An operand that
  comes with two numbers left is either, or opens a parenthesis with both if no operator is lacking.

  Args:
    left: bool[N], the numbers to come after the one that the digits typed last are, if they are one.
    continued: int8[N], see `_number`.
    unused: int32[], how many numbers are not `used`.
    depth: int32[], open parentheses.
    lacking: int32[], how many of them, and the outside, have no operator yet.
  """
  count = jnp.sum(left)
  after_operand = jnp.where(lacking == 0, 4 * (depth + 1) + 1, 4)  # with one number left
  joined = lacking - ~rules.joined[depth]  # what is lacking once an operator stands here
  two = jnp.argsort(~left)[:2]
  orders = jnp.where((rules.digits[two[0]] == rules.digits[two[-1]]).all(), 1, 2)  # of the two numbers left
  operand = orders * jnp.where(joined == 0, 4 * (depth + 1) + 1 + 4, 4)
  operator = jnp.select([count == 1, count == 2], [1, operand], MANY)
  opens = jnp.where(count == 2, 4 * orders, MANY)
  closes = jnp.select([count == 0, count == 1], [1, jnp.where(lacking == 0, 4 * depth + 1, 4)], MANY)
  # A digit that can be of one number only is as good as that number.
  begun = continued == jnp.arange(10)[:, None]  # [10, N]
  first = rules.digits[jnp.argmax(begun, axis=1)]  # [10, 9]
  alone = ((rules.digits == first[:, None]).all(axis=2) | ~begun).all(axis=1)
  digit = jnp.where(alone, jnp.select([unused == 1, unused == 2], [1, after_operand], MANY), MANY)
  return jnp.array([*digit, 1, *[operator] * 4, opens, closes, 1])


def _number(rules: Rules, typed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(next digit int8[N] of each unused number that begins like the digits typed last, -1 = none; bool[N], the one that
  they are).
  """
  row, places = rules.memory[0], jnp.arange(MAX_SYMBOLS)
  first = jnp.max(jnp.where((places < typed) & (row >= POINT), places, -1)) + 1
  length, place = typed - first, jnp.arange(DIGITS)
  same = (place >= length) | (rules.digits == row[jnp.minimum(first + place, MAX_SYMBOLS - 1)])
  begun = same.all(axis=1) & ~rules.used & (rules.digits[:, 0] >= 0)
  following = jnp.where(length < DIGITS, rules.digits[:, jnp.minimum(length, DIGITS - 1)], -1)
  whole = begun & (following < 0) & (length > 0)
  return jnp.where(begun, following, -1), whole & (jnp.cumsum(whole) == 1)
