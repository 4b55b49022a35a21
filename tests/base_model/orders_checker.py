"""Reads a document as a sceptic would: nothing is true that its own words do not say.

Takes the text alone, knows neither the hidden order nor how the text was made, and works out afresh at every
statement what follows from the relations stated so far. A sentence of a form not listed here is an error, so the list
is the whole of what the corpus may say.
"""

import itertools
import re

from tests.base_model.forms import require_form

ITEM = '[A-H]'
LIST = f'{ITEM}(?:, {ITEM})*'
ORDINALS = ['first', 'second', 'third', 'fourth', 'fifth']

VERBS = (
    'consider|note|mark|mind|watch|mention|regard|face|discuss|study|see|take|pick|hold|keep|name|read|find|meet|call|try'
    '|use|show|ask|touch|join|turn|move|test|view')
# Words that draw attention to two items and ask for nothing.
ATTENTION = (
    f'{VERBS}|look at|think of|point at|speak of|the talk is of|the matter is|of interest are|worth a thought are')
# Word for word, so that a new one is looked at before it is trained on: what words mean, not what to do.
GLOSSARY = {f'{verb} two items to see what they are' for verb in VERBS.split('|')} | {
    'compare two items to see which one is smaller', 'to compare two items is to see which one is larger',
    'swap two items to change their places', 'to swap two items is to change their places in the sequence',
    'check if an item is negative or positive, even or odd',
    'in ascending order the smaller comes before the larger', 'in descending order the larger comes before the smaller',
    'when the sequence is in the order asked for, nothing is left to do',
}
# Before facts only: common phrases that have nothing to do with items.
IDIOMS = {
    'compare notes', 'compare prices', 'compare notes and prices', 'compare words and deeds',
    'compare stories and songs', 'swap stories', 'swap roles', 'swap notes and stories', 'swap songs and roles',
    'swap words and places', 'check notes', 'check prices and words',
}

_PAIR = f'({ITEM}) and ({ITEM})'
_RELATIONS = [  # -> (smaller, larger)
    (rf'({ITEM}) (?:<|is smaller than) ({ITEM})', lambda x, y: (x, y)),
    (rf'({ITEM}) (?:>|is larger than) ({ITEM})', lambda x, y: (y, x)),
    (rf'of {_PAIR}, the (smaller|larger) one is ({ITEM})', lambda x, y, word, one: (
        (one, y if one == x else x) if word == 'smaller' else (y if one == x else x, one))),
]
_LEAD = (
    rf'(?:(?:{ATTENTION}|of|for|between|as to|about|with|considering|noting|regarding|given|on) {_PAIR}'
    rf'|{"|".join(sorted(GLOSSARY | IDIOMS))})'
    r'(?: (?:we know that|it holds that|it is|we find|now|then)|[-,;!?|/~*+#%&@^$_"]) ')


def relation(text):
  """(smaller, larger) if `text` states a relation, else None."""
  lead = re.match(_LEAD, text)
  readings = [(text, set())] + ([(text[lead.end():], set(lead.groups()) - {None})] if lead else [])
  for says, announced in readings:
    for pattern, read in _RELATIONS:
      match = re.fullmatch(pattern, says)
      if match:
        pair = read(*match.groups())
        named = set(re.findall(rf'\b{ITEM}\b', match[0]))
        assert len(set(pair)) == 2 and named == set(pair), f'about one item, or three: {text!r}'
        assert not announced or announced == set(pair), f'announces other items: {text!r}'
        return pair
  return None


def closure(facts):
  """All (smaller, larger) that follow from `facts`."""
  known = set(facts)
  while True:
    more = {(a, d) for a, b in known for c, d in known if b == c} - known
    if not more:
      return known
    known |= more


class Reader:
  """Follows one document. Attributes besides its state: `facts`, the new relations in the order they were given, each
  with the pairs that were open at the time; `draws`, each new sequence as (the one before, the new one, the order if it
  is known)."""

  def __init__(self, user):
    match = re.fullmatch(
        rf'The sequence is ({ITEM}(?:, {ITEM})*)\.(?: It is known that ([^.]*)\.)? (?:'
        r'Put it in (ascending|descending) order(?: with as few \w+(?: and \w+)? as possible)?'
        r'|The (ascending|descending) order is asked for)\.', user)
    assert match, f'no such question: {user!r}'
    self.sequence = match[1].split(', ')
    self.items = sorted(self.sequence)
    assert 2 <= len(self.items) == len(set(self.items)) <= 5, user
    self.descending = 'descending' in (match[3], match[4])
    self.relations, self.facts, self.draws = set(), [], []
    for fact in re.split(rf'(?<!{ITEM} and {ITEM}), ', match[2]) if match[2] else ():
      pair = relation(fact)
      assert pair, f'no relation: {fact!r}'
      self.learn(pair)

  def learn(self, pair):
    known = closure(self.relations)
    assert set(pair) <= set(self.items), pair
    assert pair[::-1] not in known, f'{pair} contradicts {known}'
    if pair not in known:
      taken = {frozenset(p) for p in known}
      unknown = [p for p in itertools.combinations(self.items, 2) if frozenset(p) not in taken]
      self.facts.append((pair, known, unknown))
      self.relations.add(pair)

  def known(self, x, y):
    assert x != y and {x, y} <= set(self.items), (x, y)
    return bool({(x, y), (y, x)} & closure(self.relations))

  @property
  def complete(self):
    return len(closure(self.relations)) == len(self.items) * (len(self.items) - 1) // 2

  @property
  def order(self):
    """The order asked for."""
    assert self.complete, f'the order does not follow from {self.relations}'
    known = closure(self.relations)
    ascending = sorted(self.items, key=lambda x: sum(y == x for _, y in known))
    return ascending[::-1] if self.descending else ascending

  def read(self, says):
    """Raises AssertionError if `says` is not true, does not follow, or has no form it may have."""
    if says in GLOSSARY:
      return
    pair = relation(says)
    if pair:
      self.learn(pair)
      return
    require_form(self, says, FORMS)


def _follows(reader, text):
  return relation(text) in closure(reader.relations)


def _comes(reader, x, word, y):
  first, second = (x, y) if word == 'before' else (y, x)
  return ((second, first) if reader.descending else (first, second)) in closure(reader.relations)


def _now(reader, *announced):
  *mentioned, items = announced
  assert None in mentioned or len(set(mentioned)) in (0, 2)
  before, reader.sequence = reader.sequence, items.split(', ')
  reader.draws.append((before, reader.sequence, reader.order if reader.complete else None))
  return sorted(reader.sequence) == reader.items


def _open(reader, x, y):
  """Undecided or, once the order is known, an item and the one that stands in its place."""
  if not reader.complete:
    return not reader.known(x, y)
  return x != y and reader.sequence[reader.order.index(x)] == y


def _in_place(reader, item, wrong):
  return (reader.sequence.index(item) == reader.order.index(item)) == (wrong is None)


FORMS = [
    (rf'so ({ITEM}) comes (before|after) ({ITEM})', _comes),
    (r'(?:so|it follows that) (.*)', _follows),
    (r'the whole order is (not )?known', lambda r, no: r.complete == (no is None)),
    (rf'undecided are {_PAIR}', lambda r, x, y: not r.known(x, y)),
    (rf'displaced is ({ITEM}) by ({ITEM})', lambda r, x, y: r.complete and _open(r, x, y)),
    (r'nothing is displaced', lambda r: r.sequence == r.order),
    (rf'(?:{ATTENTION}) {_PAIR}', _open),
    (r'the (ascending|descending) order is (.*)', lambda r, word, items: (
        items.split(', ') == (r.order if (word == 'descending') == r.descending else r.order[::-1]))),
    (r'the order asked for is (.*)', lambda r, items: items.split(', ') == r.order),
    (rf'(\w+) in the order asked for is ({ITEM})', lambda r, nth, x: r.order[ORDINALS.index(nth)] == x),
    (rf'(?:now the sequence is|the new sequence is|from here on it is|they now stand in the sequence) ({LIST})', _now),
    (rf'{_LEAD}({LIST})', _now),
    (rf'({LIST}) is how they stand now', _now),
    (rf'(\w+) in the sequence is ({ITEM})', lambda r, nth, x: r.sequence[ORDINALS.index(nth)] == x),
    (r'the sequence is (not )?in the order asked for', lambda r, no: (r.sequence == r.order) == (no is None)),
    (rf'({ITEM}) is (not )?in its place', _in_place),
    (rf'in the place of ({ITEM}) stands ({ITEM})', lambda r, x, y: r.sequence[r.order.index(x)] == y),
]


def check(user, assistant):
  """Reads a whole document; raises where it says what it may not. Gives the Reader at its end."""
  reader = Reader(user)
  assert re.search(r'[.\n]$', assistant), f'does not end: {assistant!r}'
  for says in re.split(r'[.\n]', assistant)[:-1]:
    assert says.startswith(' '), f'no leading space: {says!r}'
    reader.read(says[1:])
  return reader
