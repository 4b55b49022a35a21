"""Reads a document about numbers as a sceptic would: every equation is worked out, every form is listed here.

Takes the text alone. A sentence of a form not listed is an error, so the list is the whole of what may be said.
"""

import ast
from fractions import Fraction
import operator
import re

from tests.base_model.forms import require_form

NUMBER = r'\d+'
EXPRESSION = r'[\d(][\d+*/() -]*'
VERBS = (
    'consider|note|mark|mind|watch|mention|regard|face|discuss|study|see|take|pick|hold|keep|name|read|find|meet|call|try'
    '|use|show|ask|touch|join|turn|move|test|view')
ATTENTION = (
    f'{VERBS}|look at|think of|point at|speak of|the talk is of|the matter is|of interest are|worth a thought are')
# Word for word, so that a new one is looked at before it is trained on: what words mean, not what to do.
GLOSSARY = {
    f'{verb} {use}' for verb in f'{VERBS}|calculate'.split('|')
    for use in ('an expression to see what it is', 'with care', 'once more', 'in the head')
} | {
    'to calculate an expression is to find its value',
    'what stands in parentheses comes first', 'times comes before plus',
    'an expression is right when its value is the target', 'when the target is reached, nothing is left to do',
}
ONES = ('zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen '
        'seventeen eighteen nineteen').split()
TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()
WORD = dict(zip(ONES, range(20)))
WORD |= {ten: 20 + 10 * i for i, ten in enumerate(TENS)}
WORD |= {f'{ten}-{ONES[k]}': 20 + 10 * i + k for i, ten in enumerate(TENS) for k in range(1, 10)}
WORD |= {f'one hundred{" and " * bool(k)}{w * bool(k)}': 100 + k for w, k in [*WORD.items()]}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(text):
  """Of an expression, by Python's own parser."""
  def of(node):
    if isinstance(node, ast.Constant):
      return Fraction(node.value)
    return OPERATORS[type(node.op)](of(node.left), of(node.right))
  return of(ast.parse(text, mode='eval').body)


class Reader:
  """What a document has said so far.

  Attributes:
    given: expressions that the user says reach the target.
    numbers, target: as the user says, the target as last said; None before.
    stated: [(expression, value, target at that time)] of all the numbers.
    drawn: expressions of all the numbers that attention was drawn to.
  """

  def __init__(self, user):
    match = re.fullmatch(
        r'(?:It is known that ([^.]*)\. )?(?:Use ([\d, and]+), each exactly once(?:, with \+, -, \* and /)?'
        r'(?: to reach (\d+)|'
        r', to reach (\d+)|\. The target is (\d+))|The numbers are ([\d, and]+)\. The target is (\d+))\.'
        r'(?: It is known that ([^.]*)\.)?(?: Give ([\w ]+) after ####\.)?', user)
    assert match, f'no such question: {user!r}'
    before, numbers, *targets = match[1], match[2] or match[6], match[3], match[4], match[5], match[7]
    self.numbers = sorted(map(int, re.findall(NUMBER, numbers)))
    assert 2 <= len(self.numbers) <= 4 and all(1 <= number <= 9 for number in self.numbers)
    self.listed = list(map(int, re.findall(NUMBER, numbers)))
    self.target, self.stated, self.drawn, self.wish = None, [], [], match[9]
    for facts, target in ((before, next(filter(None, targets))), (match[8], None)):
      for fact in facts.split(', ') if facts else ():
        self.read(fact)
      self.target = int(target) if target else self.target
    self.given = self.reaching
    assert 1 <= self.target <= 99 and self.wish in {*WISHES, None}

  @property
  def reaching(self):
    return [text for text, known, _ in self.stated if known == self.target]

  @property
  def named(self):
    return {text for text, *_ in [*self.stated, *self.drawn]}

  def of_all(self, expression):
    return sorted(map(int, re.findall(NUMBER, expression))) == self.numbers

  def read(self, says):
    """Raises AssertionError if `says` is not true, does not follow, or has no form it may have."""
    if says in GLOSSARY:
      return
    require_form(self, says, FORMS)


def _fact(reader, expression, steps, result):
  if reader.of_all(expression):
    assert expression not in reader.named, 'named before'
    reader.stated.append((expression, int(result), reader.target))
  else:
    assert len(re.findall(NUMBER, expression)) == 2 and not steps
  return all(value(part) == int(result) for part in [expression, *filter(None, (steps or '').split(' = '))])


def _words(reader, left, sign, right, result):
  sign = {'plus': '+', 'minus': '-', 'times': '*', 'divided by': '/'}[sign]
  expression = f'{WORD[left]} {sign} {WORD[right]}'
  return value(expression) == WORD[result] and not reader.of_all(expression)


def _differs(reader, last, amount, word, target):
  known = reader.stated[-1][1]
  right = known > reader.target if word == 'more' else known < reader.target
  return (int(last), int(target)) == (known, reader.target) and right and (
      amount is None or int(amount) == abs(known - reader.target))


def _attended(reader, expression):
  if reader.reaching:
    return expression == reader.reaching[-1]
  assert expression not in reader.named, 'named before'
  reader.drawn.append((expression, reader.target))
  return reader.of_all(expression) and value(expression) >= 0


FORMS = [
    (rf'(?:in general )?({EXPRESSION}?)((?: = {EXPRESSION}?)?) (?:=|is) ({NUMBER})', _fact),
    (rf'({NUMBER}) is ({EXPRESSION})', lambda r, v, e: (
        value(e) == int(v) and len(re.findall(NUMBER, e)) in (2, 3) and not r.of_all(e))),
    (rf'({"|".join(WORD)}) (plus|minus|times|divided by) ({"|".join(WORD)}) is (.*)', _words),
    (rf'({NUMBER}) is the target', lambda r, v: int(v) == r.target == r.stated[-1][1]),
    (rf'({NUMBER}) is not the target', lambda r, v: int(v) == r.stated[-1][1] != r.target),
    (rf'({NUMBER}) is (?:({NUMBER}) )?(more|less) than ({NUMBER})', _differs),
    (rf'(?:{ATTENTION}) ({EXPRESSION})', _attended),
    (rf'reached is the target by ({EXPRESSION})', lambda r, e: [e] == r.reaching[-1:]),
    (rf'missed is ({NUMBER})', lambda r, v: not r.reaching and int(v) == r.target),
    (rf'the expression that reaches ({NUMBER}) is ({EXPRESSION})', lambda r, v, e: (
        int(v) == r.target and [e] == r.reaching[-1:])),
]
REACHING = 'the expression that reaches the target'
WISHES = {
    REACHING: lambda r, says: says in r.given,
    'the expression that was named last': lambda r, says: says == r.stated[-1][0],
    'the expression that was named first': lambda r, says: says == r.stated[0][0],
    'the target': lambda r, says: says == str(r.target),
    'the smallest number': lambda r, says: says == str(min(r.numbers)),
    'the largest number': lambda r, says: says == str(max(r.numbers)),
    'the first number': lambda r, says: says == str(r.listed[0]),
}


def check(user, assistant, torn=False):
  """Reads a whole document; raises where it says what it may not. Gives the Reader at its end."""
  reader = Reader(user)
  text, marked, answer = assistant.partition(' ####')
  unknown = reader.wish == REACHING and not reader.given
  assert bool(marked) == bool(reader.wish and not unknown), 'after #### stands what is asked for and given'
  assert not text or re.search(r'[.\n]$', text), f'does not end: {assistant!r}'
  for says in re.split(r'[.\n]', text)[:-1]:
    assert says.startswith(' '), f'no leading space: {says!r}'
    reader.read(says[1:])
  assert torn == bool(unknown and reader.reaching), 'where the target is reached by chance the end is missing'
  if marked:
    assert answer.startswith(' ')
    assert WISHES[reader.wish](reader, answer[1:]), f'not what was asked for: {answer!r}'
  return reader

