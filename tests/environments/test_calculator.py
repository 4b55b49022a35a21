"""The calculator against Python's fractions, and its automaton against a grammar written down another way."""

from fractions import Fraction
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.environments import calculator as calculator_lib
from earl_jax.environments import residues
from earl_jax.environments.calculator import Calculator, MAX_DEPTH, MAX_SYMBOLS, SYMBOLS
from tests.environments.tokenizers import GroupingTokenizer, MergingTokenizer, StubTokenizer

EQUALS = len(SYMBOLS) - 1
TOKENIZER = StubTokenizer()
WALKS, STEPS = 2048, 256
# What computes much is compiled as in a run, not as tests compile: see conftest.py.
OPTIMISED = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}


@pytest.fixture(scope='module')
def calculator():
  return Calculator(TOKENIZER.encode)


def value(expression: str) -> Fraction:
  """By recursive descent; ZeroDivisionError where Python would raise it."""
  tokens = re.findall(r'[\d.]+|[-+*/()]', expression)

  def operand():
    token = tokens.pop(0)
    if token == '(':
      inside = total()
      assert tokens.pop(0) == ')'
      return inside
    if token in '+-':
      return -operand() if token == '-' else operand()
    return Fraction(token)

  def product():
    result = operand()
    while tokens and tokens[0] in '*/':
      result = result * operand() if tokens.pop(0) == '*' else result / operand()
    return result

  def total():
    result = product()
    while tokens and tokens[0] in '+-':
      result = result + product() if tokens.pop(0) == '+' else result - product()
    return result

  result = total()
  assert not tokens
  return result


def written(expression: str) -> str:
  """What the method says is written of an expression."""
  try:
    exact = value(expression)
  except ZeroDivisionError:
    return 'undefined\n'
  if abs(exact) >= 10**12:
    return 'overflow\n'
  if exact.denominator == 1:
    return f'{exact}\n'
  whole, decimals = divmod(round(abs(exact) * 1000), 1000)  # Python rounds a Fraction half to even
  return f'{"-" if exact < 0 else ""}{whole}.{decimals:03d}\n'


def is_expression(text: str) -> bool:
  """A grammar by repeated reduction of innermost parentheses to `p`."""
  number = r'(?:(?:0|[1-9]\d*)?\.\d+|0|[1-9]\d*)'
  operand, divisor = rf'[-+]?(?:p|{number})', rf'[-+]?(?:p|(?!0*\.?0*(?![\d.])){number})'
  flat = re.compile(rf'{operand}(?:[-+*]{operand}|/{divisor})*')
  while inner := re.search(r'\(([^()]*)\)', text):
    if not flat.fullmatch(inner[1]):
      return False
    text = text[:inner.start()] + 'p' + text[inner.end():]
  return bool(flat.fullmatch(text))


def can_be_completed(text: str) -> bool:
  closing = ')' * (text.count('(') - text.count(')'))
  return any(is_expression(text + end + closing) for end in ('', '7', '.7'))


@functools.cache
def evaluator():
  """Types symbols int32[N, T], -1 after the end -> (all valid: bool[N], observations of the last step)."""
  calculator = Calculator(TOKENIZER.encode)

  def one(symbols):
    def step(carried, symbol):
      state, observation, valid = carried
      legal = calculator.valid_actions(state)[symbol]
      new, after, _ = calculator.step(state, symbol)
      typed = symbol >= 0
      after, new = jax.tree.map(lambda a, b: jnp.where(typed, a, b), (after, new), (state, observation))
      return (after, new, valid & (legal | ~typed)), None

    state = calculator.reset({})
    start = state, jax.tree.map(jnp.zeros_like, calculator.step(state, jnp.int32(0))[0]), jnp.bool_(True)
    (_, observation, valid), _ = jax.lax.scan(step, start, symbols)
    return valid, observation

  return jax.jit(jax.vmap(one), compiler_options=OPTIMISED)


def decode(tokens, length) -> str:
  texts = {token: text for text, token in TOKENIZER._ids.items()}
  return ''.join(texts[token] for token in tokens[:length].tolist())


def evaluate(expressions: list[str], batch: int = 4096) -> list[str]:
  """What the environment writes for each expression; every symbol must be legal."""
  index = {symbol.strip(): i for i, symbol in enumerate(SYMBOLS)}
  results = []
  for start in range(0, len(expressions), batch):
    symbols = np.full((batch, MAX_SYMBOLS + 1), -1, np.int32)
    some = expressions[start:start + batch]
    for row, expression in zip(symbols, some):
      typed = [index[character] for character in expression] + [EQUALS]
      row[:len(typed)] = typed
    valid, observation = jax.tree.map(np.asarray, evaluator()(symbols))
    assert valid.all(), some[int(valid.argmin())]
    results += map(decode, observation.tokens[:len(some)], observation.length)
  return results


@functools.cache
def walker():
  """key -> (actions, observations, exits) of random legal symbols, [STEPS, …]; every walk likes some symbols better."""
  calculator = Calculator(TOKENIZER.encode)

  def step(carried, key):
    state, liking = carried
    action = jax.random.categorical(key, jnp.where(calculator.valid_actions(state), liking, -jnp.inf))
    observation, state, exit_ = calculator.step(state, action.astype(jnp.int32))
    return (state, liking), (action, observation, exit_)

  def walk(key):
    liking = 1.5 * jax.random.normal(key, (len(SYMBOLS),))
    return jax.lax.scan(step, (calculator.reset({}), liking), jax.random.split(key, STEPS))[1]

  return jax.jit(jax.vmap(walk), compiler_options=OPTIMISED)


def random_expressions(number: int, seed: int) -> list[tuple[str, str]]:
  """At least `number` random legal expressions, with what the environment wrote of them."""
  found = []
  for key in jax.random.split(jax.random.key(seed), 10_000):
    actions, observations, exits = jax.tree.map(np.asarray, walker()(jax.random.split(key, WALKS)))
    for i in range(WALKS):
      start = 0
      for end in np.flatnonzero(exits[i]):
        expression = ''.join(SYMBOLS[action] for action in actions[i, start:end])
        found.append((expression, decode(observations.tokens[i, end], observations.length[i, end])))
        start = end + 1
    if len(found) >= number:
      return found
  raise AssertionError('walks hardly ever end')


def test_random_expressions_equal_fractions():
  walks = random_expressions(10_000, seed=0)
  for expression, observation in walks:
    assert observation == written(expression), expression
  kinds = [re.sub(r'\d+', '0', observation) for _, observation in walks]
  assert {'0\n', '-0\n', '0.0\n', '-0.0\n', 'undefined\n', 'overflow\n'} == set(kinds)
  assert max(len(re.findall(r'\S', expression)) for expression, _ in walks) == MAX_SYMBOLS


@pytest.mark.slow
def test_ten_million_random_expressions():
  for seed in range(1, 101):
    for expression, observation in random_expressions(100_000, seed):
      assert observation == written(expression), expression


CHOSEN = [
    ('10-0', '10'), ('0.5', '0.500'), ('.5*4', '2'), ('-7', '-7'), ('2*-3', '-6'), ('6/-4', '-1.500'), ('-(2-5)', '3'),
    ('1/3', '0.333'), ('2/3', '0.667'), ('1/16', '0.062'), ('3/16', '0.188'), ('-1/16', '-0.062'),  # half to even
    ('1/2000', '0.000'), ('-1/2000', '-0.000'), ('3/2000', '0.002'), ('1999/2000', '1.000'),
    ('3/(2-2)', 'undefined'), ('1/(1/(2-2))', 'undefined'), ('0/5', '0'), ('0/-5', '0'), ('1/0.5', '2'),
    ('999999999999', '999999999999'), ('1000000000000', 'overflow'), ('-1000000*1000000', 'overflow'),
    ('999999999999.9994', '999999999999.999'), ('999999999999.9996', '1000000000000.000'),
    ('99999999999999999999999999999999', 'overflow'), ('1/999999999999999999999999999999', '0.000'),
    ('999999999999999/999999999999999', '1'), ('999999999999998/999999999999999', '1.000'),
    ('(((((((2-5)))))))*3', '-9'), ('1-2-3*4/5/6+7', '5.600'), ('12/4*3', '9'),
]


@pytest.fixture(scope='module')
def observed():
  """Expression -> what is written of it, of those in CHOSEN."""
  expressions = [expression for expression, _ in CHOSEN]
  return dict(zip(expressions, evaluate(expressions), strict=True))


@pytest.mark.parametrize('expression, observation', CHOSEN)
def test_chosen_expressions(observed, expression, observation):
  assert observed[expression] == f'{observation}\n' == written(expression)


def test_parentheses_too_deep_cannot_be_typed():
  with pytest.raises(AssertionError):
    evaluate(['((((((((1)))))))'])


def test_steps_of_gsm8k(gsm8k_dir):
  steps = []
  for path in sorted(gsm8k_dir.glob('*.jsonl')):
    for line in path.read_text().splitlines():
      steps += re.findall(r'<<([^<>=]*)=([^<>=]*)>>', json.loads(line)['answer'])
  steps = [(expression.replace(' ', ''), result) for expression, result in steps]
  # `//` is not a symbol of the calculator; one result is not a number (3/4).
  typed, result = re.compile(r'(?!.*//)[-+*/().\d]+'), re.compile(r'-?[\d.]+')
  steps = [(e, r) for e, r in steps if typed.fullmatch(e) and result.fullmatch(r)]
  assert len(steps) > 27_900
  for (expression, result), observation in zip(steps, evaluate([expression for expression, _ in steps])):
    assert observation == written(expression) == written(result), (expression, result)


@functools.cache
def tables():
  """Legality and successor of every (mode, typed, depth): what valid_actions and step say of the automaton."""
  calculator = Calculator(TOKENIZER.encode)

  def one(mode, typed, depth):
    state = calculator.reset({})._replace(mode=mode, typed=typed, depth=depth)
    symbols = jnp.arange(len(SYMBOLS) - 1)
    after = jax.vmap(lambda symbol: calculator.step(state, symbol)[1])(symbols)
    return calculator.valid_actions(state), jnp.stack([after.mode, after.typed, after.depth], axis=-1)

  modes = len(re.findall('.', 'SUDVZIPFCzf'))
  grid = jnp.meshgrid(jnp.arange(modes), jnp.arange(MAX_SYMBOLS + 1), jnp.arange(MAX_DEPTH), indexing='ij')
  over_all = jax.vmap(jax.vmap(jax.vmap(one)))
  return jax.tree.map(np.asarray, jax.jit(over_all)(*(x.astype(jnp.int32) for x in grid)))


def test_automaton_is_the_grammar():
  """A text of up to seven symbols can be typed if some expression begins with it, and evaluated if it is one."""
  valid, after = tables()
  characters = [symbol.strip() for symbol in SYMBOLS[:EQUALS]]
  alphabet = [characters.index(character) for character in '07.+-*/()']
  reached, seen = [('', (0, 0, 0))], 0
  for _ in range(7):
    longer = []
    for text, state in reached:
      assert valid[state][EQUALS] == is_expression(text), text
      for symbol in alphabet:
        legal = bool(valid[state][symbol])
        assert legal == can_be_completed(text + characters[symbol]), text + characters[symbol]
        if legal:
          longer.append((text + characters[symbol], tuple(after[state][symbol])))
    reached = longer
    seen += len(reached)
  assert seen > 100_000


def test_every_prefix_can_be_completed():
  """Over all states that can be reached, whatever the length: ` = ` can be reached from each."""
  valid, after = tables()
  reached, frontier = {(0, 0, 0)}, [(0, 0, 0)]
  while frontier:
    state = frontier.pop()
    assert valid[state].any(), state
    for symbol in np.flatnonzero(valid[state][:EQUALS]):
      successor = tuple(after[state][symbol])
      if successor not in reached:
        reached.add(successor)
        frontier.append(successor)
  # A symbol more is typed in every step, so that none of these can go on for ever; each ends only in ` = `.
  assert all(valid[state][EQUALS] or valid[state][:EQUALS].any() for state in reached)
  assert {typed for _, typed, _ in reached} == set(range(MAX_SYMBOLS + 1))


def test_an_invalid_action_changes_nothing(calculator):
  type_one, step = jax.jit(calculator.step), jax.jit(jax.vmap(calculator.step, (None, 0)))
  state = calculator.reset({})
  for symbol in '(1/0.':
    state = type_one(state, jnp.int32([s.strip() for s in SYMBOLS].index(symbol)))[1]
    observation, after, exit_ = jax.tree.map(np.asarray, step(state, jnp.arange(len(SYMBOLS))))
    invalid = ~np.asarray(calculator.valid_actions(state))
    assert invalid.any() and not exit_[invalid].any() and not observation.length[invalid].any()
    for before, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(after)):
      np.testing.assert_array_equal(leaf[invalid], np.broadcast_to(before, leaf.shape)[invalid])


def test_a_tokenizer_that_merges_digits_is_written_digit_by_digit(caplog):
  merging = MergingTokenizer('12')
  calculator = Calculator(merging.encode)
  assert [record.message[-16:] for record in caplog.records] == [' digit by digit.']
  state = calculator.reset({})
  for symbol in '12=':
    observation, state, _ = calculator.step(state, jnp.int32([s.strip() for s in SYMBOLS].index(symbol)))
  one, two, end = (merging.encode(piece)[0] for piece in ('1', '2', '\n'))
  assert observation.tokens[:observation.length].tolist() == [one, two, end]
  assert int(state.calls) == 1


@pytest.mark.parametrize('size, known', [(1, 1), (2, 2), (3, 3), (4, 1), (13, 1)])
def test_how_many_digits_a_tokenizer_reads_at_a_time(size, known, caplog):
  assert calculator_lib._digits_at_once(GroupingTokenizer(size).encode) == known
  said = [' digit by digit.'] if known < size else ['they are typed.'] if size > 1 else []
  assert [record.message.endswith(end) for record, end in zip(caplog.records, said, strict=True)] == [True] * len(said)


def test_results_are_written_as_a_tokenizer_reads_them():
  tokenizer = GroupingTokenizer(3)
  calculator = Calculator(tokenizer.encode)
  numbers = [Fraction(int('9876543210987'[:digits]), over) for digits in range(1, 14) for over in (1, -1, 8, -7, 900)]
  numbers += [Fraction(n) for n in (0, 100, 1000, 1001, 10**11, 10**12)] + [Fraction(10**15 - 1, 1000)]
  numbers += [Fraction(1, 250), Fraction(1 - 10**16, 10**4), Fraction(7, 10**4)]
  values = np.stack([residues.fraction(number.numerator, number.denominator) for number in numbers])
  state = calculator.reset({})
  write = jax.jit(jax.vmap(lambda operand: calculator._result(state._replace(operand=operand), jnp.bool_(True))))
  observed = jax.tree.map(np.asarray, write(values))
  for number, tokens, length in zip(numbers, *observed):
    text = written(f'{number.numerator}/{number.denominator}')
    assert tokens[:length].tolist() == tokenizer.encode(text), text
  assert observed.length.max() == calculator.max_observation  # sign, five groups, point, decimals, end


def test_numbers_near_the_bound_are_told_apart():
  largest = 10**32 - 1
  for number in (largest, -largest, largest - 1, 0, -1):
    limbs, negative = residues._to_limbs(jnp.asarray(residues.fraction(number)[0]))
    assert sum(limb * 10**(4 * i) for i, limb in enumerate(limbs.tolist())) == abs(number)
    assert bool(negative) == (number < 0)
