"""Plain language about order, from which the embedded base model learns to read and to reason a little.

Each document is a chat about a few named items: the user says in which sequence they stand and which direction is
wanted, the assistant makes true statements. It holds what a pretrained language model knows: what smaller, before and
ascending mean, what follows from given relations and what does not, which order that makes, where an item stands and
belongs. Attention goes, in whatever words, to what is open: two items nobody can put in order yet or, once the order is
known, an item that is out of place and the one that stands there instead. It holds no call of an environment, no
observation, no sequence of comparisons or swaps, and no procedure for sorting: statements come in random order, but for
the order asked for, which is mostly stated as soon as it is known, and nobody acts on them.
"""

from collections.abc import Sequence
import random
from typing import NamedTuple

from earl_jax.base_model.language import ATTENTION, GLOSSARY, IDIOMS, MEANINGS, MENTIONS, Segment, TURNS

LETTERS = 'ABCDEFGH'
ORDINALS = ('first', 'second', 'third', 'fourth', 'fifth')
DIRECTIONS = ('ascending', 'descending')


class Settings(NamedTuple):
  """Mix of the documents: weights of n = 2 … 5, the share of descending ones and the variety of expression.

  With `variety` 0 each relation has one plain form, the smaller or earlier item first; with 1 it has every form.
  `brief` documents may end after any statement, say the order asked for as soon as it is known, and say more often what
  the words mean: a model of long ones alone goes on and on before it ends a turn, and hardly knows how to begin a
  sentence with ` compare`. Long ones leave the order unsaid at first, and who reads them must work it out: a model that
  has always been told reads worse later.
  """

  sizes: tuple[float, float, float, float] = (0.1, 0.2, 0.5, 0.2)
  descending: float = 0.5
  variety: float = 1.0
  brief: bool = True


DEFAULT = Settings()


class World:
  """The items of one document, their hidden order, and what has been said of it."""

  def __init__(self, rng: random.Random, settings: Settings):
    self.rng = rng
    self.variety, self.brief = settings.variety, settings.brief
    self.n = rng.choices((2, 3, 4, 5), settings.sizes)[0]
    names = LETTERS[: self.n] if rng.random() < 0.8 else sorted(rng.sample(LETTERS, self.n))
    self.ascending = rng.sample(names, self.n)
    self.names = list(names)
    self.direction = DIRECTIONS[rng.random() < settings.descending]
    self.sequence = list(names) if rng.random() < 0.5 else rng.sample(names, self.n)
    self.rank = {x: i for i, x in enumerate(self.ascending)}
    self.smaller = {x: set() for x in names}  # smaller[x]: items known to be smaller than x
    self.concluded = not settings.brief  # whether the order asked for has been said, or need not be
    self.changed()

  @property
  def order(self) -> list[str]:
    return self.ascending if self.direction == 'ascending' else self.ascending[::-1]

  def changed(self) -> None:
    """Whatever has been said of how matters stand holds no longer."""
    self.surveyed = False  # whether `state` has been said
    self.attended = None  # the two items that attention has been drawn to

  @property
  def displaced(self) -> list[str]:
    """Items that stand where another belongs."""
    return [x for x, y in zip(self.sequence, self.order) if x != y]

  def holder(self, item: str) -> str:
    """The item that stands where `item` belongs."""
    return self.sequence[self.order.index(item)]

  def known(self, x: str, y: str) -> bool:
    return x in self.smaller[y] or y in self.smaller[x]

  def pairs(self, known: bool) -> list[tuple[str, str]]:
    return [(x, y) for x in self.names for y in self.names if x != y and self.known(x, y) == known]

  @property
  def open(self) -> int:
    """How many pairs are undecided."""
    return self.n * (self.n - 1) // 2 - sum(map(len, self.smaller.values()))

  @property
  def complete(self) -> bool:
    return self.open == 0

  def learn(self, x: str, y: str) -> None:
    """Takes in the true relation of x and y, and what follows from it."""
    self.changed()
    low, high = sorted((x, y), key=self.rank.get)
    below = self.smaller[low] | {low}
    for item in self.names:
      if item == high or high in self.smaller[item]:
        self.smaller[item] |= below


def listed(items: Sequence[str], answer: str = '') -> list[Segment]:
  """` C, A, B`, of which only the items can be answers: a comma shows no knowledge."""
  first, *others = items
  says = [Segment(f' {first}', answer)]
  for item in others:
    says += [Segment(','), Segment(f' {item}', answer)]
  return says


def attended(world: World) -> list[Segment]:
  """Two items that attention is drawn to: a pair that is undecided, or a displaced item and the one in its place.

  Until something changes it stays with the two it fell on first. Empty when all are in their places.
  """
  if world.complete and not world.displaced:
    return []
  if world.attended:
    kinds = ('again', 'again')
  elif not world.complete:
    world.attended, kinds = world.rng.choice(world.pairs(known=False)), ('undecided', 'undecided')
  else:
    item = world.rng.choice(world.displaced)
    world.attended, kinds = (item, world.holder(item)), ('displaced', 'holder')
  return [Segment(f' {item}', kind) for item, kind in zip(world.attended, kinds)]


def mention(world: World, x: str, y: str) -> list[Segment]:
  """Introduces a fact, by two items, by what a word means or an idiom: no word says that what follows is not one."""
  rng = world.rng
  words = rng.choice((*MEANINGS, *IDIOMS)) if rng.random() < 0.3 else f'{rng.choice(MENTIONS)} {x} and {y}'
  return [Segment(words + rng.choice(TURNS))]


def relation(world: World, x: str, y: str, answer: str = '') -> list[Segment]:
  """States which of x and y is smaller, in one of several ways."""
  rng = world.rng
  low, high = sorted((x, y), key=world.rank.get)
  if rng.random() >= world.variety:
    return [Segment(f' {low} <'), Segment(f' {high}', answer)]
  form = rng.randrange(10)
  if form < 7:  # symbols: these read the same everywhere
    sign = ' <' if x == low else ' >'
    return [Segment(f' {x}'), Segment(sign, answer), Segment(f' {y}')]
  if form < 9:
    sign = ' smaller' if x == low else ' larger'
    return [Segment(f' {x} is'), Segment(sign, answer), Segment(f' than {y}')]
  word = rng.choice(('smaller', 'larger'))
  return [Segment(f' of {x} and {y}, the {word} one is'), Segment(' ' + (low if word == 'smaller' else high), answer)]


def given(world: World, introduced: bool = True) -> list[Segment]:
  """A fact, of a pair whose relation did not follow yet or of one that is known; `introduced` now and then.

  What is known is said again mostly when one pair is left open: else their mere number would tell whether the facts
  determine the order.
  """
  rng = world.rng
  again = introduced and rng.random() < (0.7 if world.open == 1 else 0.2)
  x, y = rng.choice((again and world.pairs(known=True)) or world.pairs(known=False))
  lead = mention(world, x, y) if introduced and rng.random() < 0.5 * world.variety else []
  says = lead + relation(world, x, y)
  world.learn(x, y)
  return says


def follows(world: World) -> list[Segment] | None:
  """A relation that follows from those given."""
  pairs = world.pairs(known=True)
  if not pairs:
    return None
  x, y = world.rng.choice(pairs)
  if world.rng.random() < 0.5:
    return [Segment(world.rng.choice((' so', ' it follows that'))), *relation(world, x, y, 'relation')]
  first, second = sorted((x, y), key=world.order.index)
  if world.rng.random() >= world.variety:
    return [Segment(f' so {first} comes before'), Segment(f' {second}', 'before')]
  verb = ' before' if x == first else ' after'
  return [Segment(f' so {x} comes'), Segment(verb, 'before'), Segment(f' {y}')]


def knowledge(world: World) -> list[Segment]:
  """Whether the relations given determine the order."""
  return [Segment(' the whole order is'), Segment(' known' if world.complete else ' not known', 'known')]


def state(world: World) -> list[Segment] | None:
  """How matters stand: a pair that is undecided or, once the order is known, an item out of place, or that none is.

  Said once after each change: to repeat it would show that one can copy, no more.
  """
  if world.surveyed:
    return None
  world.surveyed = True
  if not (items := attended(world)):
    return [Segment(' nothing', 'state'), Segment(' is displaced')]
  first, second = items
  if world.complete:
    return [Segment(' displaced', 'state'), Segment(' is'), first, Segment(' by'), second]
  kind = 'last open' if world.open == 1 else 'open'
  return [Segment(' undecided', kind), Segment(' are'), first, Segment(' and'), second]


def attention(world: World) -> list[Segment] | None:
  """Draws attention to two items, in words that do not say why."""
  if not (items := attended(world)):
    return None
  first, second = items
  return [Segment(world.rng.choice(ATTENTION)), first, Segment(' and'), second]


def whole_order(world: World) -> list[Segment] | None:
  """The order, or an item of it, once the relations determine it: first of all the order asked for."""
  if not world.complete:
    return None
  form = world.rng.randrange(3) if world.concluded else 1
  if form == 0:
    direction = world.rng.choice(DIRECTIONS)
    items = world.ascending if direction == 'ascending' else world.ascending[::-1]
    return [Segment(f' the {direction} order is'), *listed(items, 'order')]
  if form == 1:
    lead = [Segment(' the', '' if world.concluded else 'conclusion'), Segment(' order asked for is')]
    world.concluded = True
    return [*lead, *listed(world.order, 'order')]
  k = world.rng.randrange(world.n)
  return [Segment(f' {ORDINALS[k]} in the order asked for is'), Segment(f' {world.order[k]}', 'order place')]


def new_sequence(world: World) -> list[Segment]:
  """Another situation, drawn afresh."""
  rng = world.rng
  form = rng.randrange(10) if rng.random() < world.variety else 0
  x, y = world.attended or rng.sample(world.names, 2)
  world.sequence = drawn(world)
  world.changed()
  items = listed(world.sequence)
  if form == 4:
    return [*items, Segment(' is how they stand now')]
  if form > 4:
    return [*mention(world, x, y), *items]
  leads = (' now the sequence is', ' the new sequence is', ' from here on it is', ' they now stand in the sequence')
  return [Segment(leads[form]), *items]


def drawn(world: World) -> list[str]:
  """A sequence that owes nothing to the one before it.

  Once the order is known, 0.7 are that order, 0.3 of these with two items exchanged: by chance alone so few would be
  in order that a model could always say `not in the order asked for`.
  """
  if not world.complete or world.rng.random() >= 0.7:
    return world.rng.sample(world.names, world.n)
  items = list(world.order)
  if world.rng.random() < 0.3:
    i, j = world.rng.sample(range(world.n), 2)
    items[i], items[j] = items[j], items[i]
  return items


def place(world: World) -> list[Segment] | None:
  """Where items stand and, once the order is known, where they belong."""
  rng = world.rng
  k = rng.randrange(world.n)
  if not world.complete or rng.random() < 0.1:
    return [Segment(f' {ORDINALS[k]} in the sequence is'), Segment(f' {world.sequence[k]}', 'place')]
  wrong = world.displaced
  form = rng.randrange(4)
  if form == 0:
    return [
        Segment(' the sequence is'),
        Segment(' not in the order asked for' if wrong else ' in the order asked for', 'sorted'),
    ]
  if form == 1:
    return [
        Segment(f' {world.sequence[k]} is'),
        Segment(' not in its place' if world.sequence[k] in wrong else ' in its place', 'in place'),
    ]
  item = rng.choice(wrong) if wrong and rng.random() < 0.9 else rng.choice(world.names)
  return [Segment(f' in the place of {item} stands'), Segment(f' {world.holder(item)}', 'holder')]


def user_message(world: World) -> list[Segment]:
  """The sequence, now and then some relations, and the direction asked for."""
  rng = world.rng
  says = [Segment('The sequence is'), *listed(world.sequence), Segment('.')]
  if rng.random() < 0.5:  # the relations come with the question
    facts = [given(world, introduced=False)]
    left = rng.choice((0, 1, 1, 3))  # undecided pairs
    while world.open > left:
      facts.append(given(world, introduced=False))
    says.append(Segment(' It is known that'))
    for i, fact in enumerate(facts):
      says += ([Segment(',')] if i else []) + fact
    says.append(Segment('.'))
  few = (' comparisons', ' swaps', ' words', ' steps', ' mistakes', ' questions')
  wish = rng.choice((
      f' Put it in {world.direction} order with as few{rng.choice(few)} and{rng.choice(few)} as possible.',
      f' Put it in {world.direction} order with as few{rng.choice(few)} as possible.',
      f' Put it in {world.direction} order.',
      f' The {world.direction} order is asked for.',
  ))
  return says + [Segment(wish)]


def glossary(world: World) -> list[Segment]:
  """What a word means."""
  return [Segment(world.rng.choice(GLOSSARY))]


def document(rng: random.Random, settings: Settings = DEFAULT) -> tuple[list[Segment], list[Segment]]:
  """The user's message and the assistant's turn after the opening, as segments."""
  world = World(rng, settings)
  user = user_message(world)
  says = []
  ends = rng.choice((('.',), ('\n',), ('.', '\n')))
  left = min(rng.randint(1, 15), rng.randint(1, 15)) if world.brief else rng.randint(7, 15)
  while left:
    conclude = world.complete and not world.concluded  # what follows is easier to see from the order than without it
    kinds, weights = zip(
        (given, 0 if world.complete else 16), (state, 0 if conclude else 10), (attention, 3), (follows, 3),
        (knowledge, 0.3), (whole_order, 60 if conclude else 4), (place, 1), (new_sequence, 7 if world.complete else 1),
        (glossary, 3 if world.brief else 1),
    )
    statement = rng.choices(kinds, weights)[0](world)
    if statement:
      says += [*statement, Segment(rng.choice(ends))]
      left -= 1
  return user, says
