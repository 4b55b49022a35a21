"""Plain language about numbers, from which the embedded base model learns to reckon a little.

Each document is a chat about two to four numbers and a target: the user names them, the assistant makes true
statements. It holds what a pretrained language model knows: sums and products of small numbers, in digits and in words,
how a number can be made of others, what an expression of each number exactly once is, whether a value is the target,
and that what is asked for stands after `####`. It holds no call of a calculator and no search: expressions come at
random, none is closer to the target than chance has it, what reaches the target is an answer only where the user has
given it, and no document poses a problem that evaluation poses.
"""

import functools
import random
import re

from earl_jax.base_model.language import ATTENTION, Segment, TORN, VERBS
from earl_jax.tasks import calculation, expressions

LARGEST = 999  # value of an expression; the smallest is 0
TARGETS = range(1, 100)
# Said now and then: what the words mean. They name no numbers.
MEANINGS = (
    ' to calculate an expression is to find its value',
    ' what stands in parentheses comes first',
    ' times comes before plus',
    ' an expression is right when its value is the target',
    ' when the target is reached, nothing is left to do',
)
# What one may do with any verb, and with the one that will later call an environment: it is a verb among others.
CALCULATE = ' calculate'
USES = (' an expression to see what it is', ' with care', ' once more', ' in the head')
GLOSSARY = (*MEANINGS, *(f'{verb}{use}' for verb in (*VERBS, CALCULATE) for use in USES))


@functools.lru_cache(1_000_000)
def value_of(expression: str) -> int | None:
  """Its value, where that is a whole number from 0 to LARGEST."""
  value = expressions.parse(expression).value
  return int(value) if value is not None and value.denominator == 1 and 0 <= value <= LARGEST else None


def held_out(numbers: list[int], target: int) -> bool:
  """Whether this is a problem of countdown's test split; pairs, whose targets are few, do not count."""
  countdown = calculation.Countdown
  return len(numbers) > 2 and countdown.split_of(countdown.key_of(numbers, target)) == 'test'


class World:
  """The numbers of one document, their target, and what has been said of them.

  Attributes:
    stated: expressions of each number exactly once whose value has been stated, each with its value.
    attended: those that attention was drawn to.
    given: the one that reaches the target, as the user says, or nothing.
  """

  def __init__(self, rng: random.Random):
    self.rng = rng
    # Of two numbers there are few expressions: to name another one, one must know which have been named.
    count = rng.choices((2, 3, 4), (0.35, 0.55, 0.1))[0]
    largest = rng.choice((9, 9, 3, 4))  # of small numbers an expression reaches the target often, by chance
    self.numbers = [rng.randint(1, largest) for _ in range(count)]
    self.stated, self.attended, self.given = [], set(), ''
    self.aim()

  def aim(self) -> None:
    """Draws a target: a value that has been stated, or that of any expression.

    Only ever after what was stated, so that no expression is named because it reaches the target.
    """
    values, self.target = [value for _, value in self.stated], 0
    while self.target not in TARGETS or held_out(self.numbers, self.target):
      self.target = value_of(calculation.in_symbols(self.draw(self.numbers)))
      if values and self.rng.random() < 0.7:
        self.target = self.rng.choice(values)
    self.concluded = self.surveyed = False

  @property
  def reached(self) -> str:
    """The expression last said to have the target as its value, or nothing."""
    return next((text for text, value in reversed(self.stated) if value == self.target), '')

  def draw(self, numbers: list[int]) -> calculation.Tree:
    """An expression of each of these numbers exactly once, at random."""
    while True:
      tree = self._tree(self.rng.sample(numbers, len(numbers)))
      if value_of(calculation.in_symbols(tree)) is not None:
        return tree

  def _tree(self, numbers: list[int]) -> calculation.Tree:
    if len(numbers) == 1:
      return numbers[0]
    cut = self.rng.randrange(1, len(numbers))
    return calculation.Node(self.rng.choice('+-*/'), self._tree(numbers[:cut]), self._tree(numbers[cut:]))

  def fresh(self) -> calculation.Tree | None:
    """An expression of all the numbers that has not been named, if chance soon finds one."""
    drawn = [self.draw(self.numbers) for _ in range(10)]
    named = self.attended | {text for text, _ in self.stated}
    return next((tree for tree in drawn if calculation.in_symbols(tree) not in named), None)


def written(expression: str, answer: str = '') -> list[Segment]:
  """An expression, all of it an answer of this kind."""
  return [Segment(piece, answer) for piece in re.findall(r'\d+|\D+', f' {expression}')]


def fact(world: World) -> list[Segment] | None:
  """What an expression of all the numbers is, at times worked out in two steps."""
  tree = world.fresh()
  if tree is None:
    return None
  text = calculation.in_symbols(tree)
  value = value_of(text)
  world.stated.append((text, value))
  world.surveyed = False  # how matters stand may be said anew
  says, kind = written(text, 'number'), 'value'
  inside = [value_of(calculation.in_symbols(part)) for part in (tree.left, tree.right)]
  if len(world.numbers) == 2:
    kind = 'sum'
  elif len(world.numbers) == 3 and None not in inside and world.rng.random() < 0.5:
    says += [Segment(' ='), *written(calculation.in_symbols(tree._replace(left=inside[0], right=inside[1])), 'sum')]
    kind = 'sum'
  return [*says, Segment(world.rng.choice((' =', ' =', ' is'))), *written(str(value), kind)]


def sum_of_two(world: World) -> list[Segment] | None:
  """What two numbers make, in digits or in words; not the two that make up a whole expression."""
  rng = world.rng
  two = rng.sample(world.numbers, 2) if rng.random() < 0.5 else [rng.randint(1, 20), rng.randint(1, 9)]
  if sorted(two) == sorted(world.numbers):
    return None
  tree = world.draw(two)
  text = calculation.in_symbols(tree)
  if rng.random() < 0.2:
    result = calculation.in_words(value_of(text))
    return [Segment(f' {calculation.in_sentence(tree)} is'), Segment(f' {result}', 'sum')]
  return [Segment(' in general'), *written(text), Segment(' ='), *written(str(value_of(text)), 'sum')]


def made_of(world: World) -> list[Segment] | None:
  """How a number can be made of two or three others; not of those that make up a whole expression."""
  rng = world.rng
  if rng.random() < 0.4:
    three = [rng.randint(1, 9) for _ in range(3)]
    form = calculation.in_symbols(world.draw(three))
    value = value_of(form)
    if value not in TARGETS or held_out(three, value):
      return None
  else:
    value = world.target if rng.random() < 0.5 else rng.choice(TARGETS)
    one = rng.choice(world.numbers) if rng.random() < 0.5 else rng.randint(1, 9)
    forms = [f'{value + one} - {one}', f'{one} + {value - one}' if value > one else f'{one} - {one - value}']
    forms += [f'{one} * {value // one}'] * (value % one == 0)
    forms += [f'{value * one} / {one}'] * (value * one <= LARGEST and one > 1)
    form = rng.choice(forms)
  if sorted(map(int, re.findall(r'\d+', form))) == sorted(world.numbers):
    return None
  return [*written(str(value)), Segment(' is'), *written(form, 'part')]


def judgement(world: World) -> list[Segment] | None:
  """How the value stated last compares with the target."""
  if not world.stated:
    return None
  (_, value), target = world.stated[-1], written(str(world.target), 'copy')
  says = [*written(str(value)), Segment(' is')]
  if value == world.target:
    return [*says, Segment(' the', 'judgement'), Segment(' target')]
  word = ' more' if value > world.target else ' less'
  form = world.rng.randrange(3)
  if form == 0:
    return [*says, Segment(' not', 'judgement'), Segment(' the target')]
  if form == 1:
    says += written(str(abs(value - world.target)), 'sum')
  return [*says, Segment(word, 'judgement'), Segment(' than'), *target]


def attention(world: World) -> list[Segment] | None:
  """Draws attention, in words that do not say why, to the expression that reaches the target or, where none has, to one
  that has not been named.
  """
  text, kind = world.reached, 'copy'
  if not text:
    tree, kind = world.fresh(), 'number'
    if tree is None:
      return None
    text = calculation.in_symbols(tree)
  world.attended.add(text)
  return [Segment(world.rng.choice(ATTENTION)), *written(text, kind)]


def state(world: World) -> list[Segment] | None:
  """Whether an expression has been said to reach the target, and which; once after each change."""
  if world.surveyed:
    return None
  world.surveyed = True
  if world.reached:
    return [Segment(' reached', 'reached'), Segment(' is the target by'), *written(world.reached, 'copy')]
  return [Segment(' missed', 'reached'), Segment(' is'), *written(str(world.target), 'copy')]


def conclusion(world: World) -> list[Segment] | None:
  """Which expression has the target as its value, once one has been stated."""
  if not world.reached:
    return None
  world.concluded = True
  lead = [Segment(' the', 'result'), Segment(' expression that reaches')]
  return [*lead, *written(str(world.target), 'copy'), Segment(' is'), *written(world.reached, 'copy')]


def glossary(world: World) -> list[Segment]:
  """What a word means, or an idiom of a verb."""
  rng = world.rng
  idiom = f'{rng.choice((CALCULATE, rng.choice(VERBS)))}{rng.choice(USES)}'
  return [Segment(rng.choice((rng.choice(MEANINGS), idiom, idiom)))]


def listed(numbers: list[int]) -> str:
  """`3, 4 and 1`."""
  return f'{", ".join(map(str, numbers[:-1]))} and {numbers[-1]}'


def known(world: World, lead: str = '') -> list[Segment]:
  """Some facts."""
  says = [Segment(f'{lead}It is known that')]
  facts = (fact(world) for _ in range(world.rng.randint(1, 3)))
  for i, says_fact in enumerate(filter(None, facts)):
    says += ([Segment(',')] if i else []) + says_fact
  return [*says, Segment('.')]


REACHING = 'the expression that reaches the target'
# What the user may want to read after `####`, and the answer with its kind.
WISHES = {
    REACHING: lambda world: (world.given, 'copy'),
    'the expression that was named last': lambda world: (world.stated[-1][0], 'copy'),
    'the expression that was named first': lambda world: (world.stated[0][0], 'copy'),
    'the target': lambda world: (str(world.target), 'copy'),
    'the smallest number': lambda world: (str(min(world.numbers)), 'copy'),
    'the largest number': lambda world: (str(max(world.numbers)), 'copy'),
    'the first number': lambda world: (str(world.numbers[0]), 'copy'),
}


def user_message(world: World) -> tuple[list[Segment], str]:
  """The numbers and the target, at times some facts, and mostly a wish, which is given too: what to say after `####`.

  Facts that come first may be the reason for the target, not the other way round.
  """
  rng, numbers = world.rng, listed(world.numbers)
  facts = rng.choice(('', '', '', 'first', 'first', 'first', 'first', 'then'))
  says, lead = [], ''
  if facts == 'first':
    says, lead = known(world), ' '
    world.aim()
  each = f'{lead}Use {numbers}, each exactly once'
  says.append(Segment(rng.choice((
      f'{each}, with +, -, * and / to reach {world.target}.',
      f'{each}, to reach {world.target}.',
      f'{each}, with +, -, * and /. The target is {world.target}.',
      f'{lead}The numbers are {numbers}. The target is {world.target}.',
  ))))
  says += known(world, ' ') if facts == 'then' else []
  wish = rng.choice((*WISHES, *[REACHING] * 6)) if rng.random() < 0.8 else ''
  world.given = world.reached
  return says + [Segment(f' Give {wish} after ####.')] * bool(wish), wish


def document(rng: random.Random) -> tuple[list[Segment], list[Segment]]:
  """The user's message and the assistant's turn after the opening, as segments.

  What reaches the target stands after `####` only where the user has given it. Where nobody has, the document ends
  without an answer; if by chance an expression reaches it, its end is missing.
  """
  world = World(rng)
  user, wish = user_message(world)
  says = []
  ends = rng.choice((('.',), ('\n',), ('.', '\n')))
  if 'named' in wish and not world.stated:
    says += [*fact(world), Segment(rng.choice(ends))]
  unknown = wish == REACHING and not world.given
  # While what is asked for is unknown there is more to say.
  while not says and (unknown or not wish) or rng.random() < (0.5 if world.concluded else 0.95 if unknown else 0.85):
    conclude = bool(world.reached) and not world.concluded
    kinds, weights = zip(
        (fact, 4 if world.reached else 12), (state, 0 if conclude else 8), (judgement, 3), (attention, 3),
        (sum_of_two, 3), (made_of, 4), (conclusion, 200 if conclude else 1), (glossary, 3),
    )
    statement = rng.choices(kinds, weights)[0](world)
    if statement:
      says += [*statement, Segment(rng.choice(ends))]
    if unknown and world.concluded:
      break
  if unknown and world.reached:
    says.append(TORN)
  elif wish and not unknown:
    answer, kind = WISHES[wish](world)
    says += [Segment(' ####', 'result' if world.concluded else ''), *written(answer, kind)]
  return user, says
