"""The corpus holds language, not the skill that is to be learned: what it says is true, and it never sorts."""

import itertools
import math
import random
import re

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from earl_jax.base_model import orders
from earl_jax.environments import base
from tests.base_model import orders_checker as checker

SEEDS = (0, 1)
COUNT = 1500  # documents per seed


def document(seed, index, settings=orders.DEFAULT):
  return orders.document(random.Random(f'{seed} {index}'), settings)


def text(segments):
  return ''.join(segment.text for segment in segments)


@pytest.fixture(scope='module')
def documents():
  """(user, assistant) texts."""
  return [tuple(map(text, document(seed, i))) for seed in SEEDS for i in range(COUNT)]


@pytest.fixture(scope='module')
def readers(documents):
  return [checker.check(*document) for document in documents]


def test_every_statement_is_true_and_of_a_known_form(readers):
  assert len(readers) == len(SEEDS) * COUNT


def test_every_form_occurs(documents):
  said = {says[1:] for _, assistant in documents for says in re.split(r'[.\n]', assistant)}
  for form, _ in checker.FORMS:
    assert any(re.fullmatch(form, says) for says in said), form
  assert checker.GLOSSARY <= said


@hypothesis.given(
    seed=st.integers(0), index=st.integers(0), descending=st.floats(0, 1), variety=st.floats(0, 1),
    brief=st.booleans(),
    sizes=st.tuples(*[st.floats(0, 1)] * 4).filter(lambda weights: sum(weights) > 0.01),
)
def test_true_whatever_the_mix(seed, index, descending, variety, brief, sizes):
  checker.check(*map(text, document(seed, index, orders.Settings(sizes, descending, variety, brief))))


def test_deterministic():
  assert document(3, 4) == document(3, 4) != document(4, 3)


def test_settings_choose_size_and_direction():
  for n in range(2, 6):
    sizes = tuple(float(k == n) for k in range(2, 6))
    for descending in (0.0, 1.0):
      for i in range(30):
        reader = checker.Reader(text(document(0, i, orders.Settings(sizes, descending))[0]))
        assert (len(reader.items), reader.descending) == (n, bool(descending))


def test_without_variety_the_smaller_or_earlier_item_comes_first():
  other_forms = re.compile(r'>|than|the (smaller|larger) one is|comes after|(?:know|holds) that|[-;!?|/~*+#%&@^$_"] ')
  assert all(other_forms.search(says) for says in (' A > B', ' so A comes after B', ' mark A and B; A < B'))
  plain = orders.Settings(variety=0.0)
  for i in range(300):
    for part in document(0, i, plain):
      assert not other_forms.search(text(part)), text(part)


def test_only_items_of_a_list_are_answers():
  assert orders.listed('CAB', 'order') == [(' C', 'order'), (',', ''), (' A', 'order'), (',', ''), (' B', 'order')]


def test_how_matters_stand_is_said_once_after_each_change(documents):
  # A repetition would only show that a model can copy.
  changes = re.compile(rf' (?:{"|".join(form for form, act in checker.FORMS if act is checker._now)})')
  said = 0
  for user, assistant in documents:
    fresh = True
    for says in re.split(r'(?<=[^ ])[.\n]', assistant):
      if re.match(r' (undecided|displaced|nothing)', says):
        assert fresh, (user, assistant)
        fresh, said = False, said + 1
      elif changes.fullmatch(says) or checker.relation(says[1:]):
        fresh = True
  assert said > len(documents)


def test_brief_documents_say_the_order_before_how_matters_stand():
  # And long ones never do it for that reason: there it has to be worked out.
  states = 0
  for i in range(300):
    brief, long = (
        [answer for _, answer in document(7, i, orders.Settings(brief=brief))[1]] for brief in (True, False)
    )
    if 'state' in brief:
      states += 1
      assert 'conclusion' in brief[:brief.index('state')]
    assert brief.count('conclusion') <= 1 and 'conclusion' not in long
  assert states > 50


def test_a_new_sequence_often_is_in_the_order_asked_for():
  # Both must be learned, that it is and that it is not: by chance one in 120 would be.
  settings = orders.Settings((0.0, 0.0, 0.0, 1.0))
  readers = [checker.check(*map(text, document(6, i, settings))) for i in range(600)]
  in_order = [new == order for reader in readers for _, new, order in reader.draws if order]
  np.testing.assert_allclose(np.mean(in_order), 0.7 * 0.7, atol=4 * (0.49 * 0.51 / len(in_order)) ** 0.5)
  assert len(in_order) > 100


def test_no_call_of_an_environment(documents):
  # From the environments themselves, so that a new one is kept out too.
  specs = [base.find(name).spec for name in base.available()]
  calls = {spec.routing.description + action.description for spec in specs for action in spec.actions}
  call = re.compile('|'.join(rf'{re.escape(words)}(?![a-z])' for words in sorted(calls)))
  assert call.search(' first compare A and') and call.search(' swap B') and call.search(' check if C is')
  for document in documents:
    for part in document:
      assert not call.search(part), part


def test_no_observation_and_no_tag(documents):
  # Every observation begins with a colon or an arrow, every tag is a word in angle brackets.
  written = re.compile(r'[:=]|</|<\w|\w>')
  for example in (': A < B\n', ' => B, A\n', ': True\n', ' <compare>', '</answer>'):
    assert written.search(example)
  for document in documents:
    for part in document:
      assert not written.search(part), part


def test_a_new_sequence_is_drawn_without_regard_to_the_old_one():
  # A state is stated, nobody acts: a swap carried out would show as too many new sequences one swap from the old one.
  excess, spread = 0.0, 0.0
  for n in range(3, 6):
    sizes = tuple(float(k == n) for k in range(2, 6))
    for i in range(600):
      reader = checker.check(*map(text, document(5, i, orders.Settings(sizes))))
      for old, new, order in reader.draws:
        share = _chance_of_one_swap(old, order)
        excess += _one_swap(old, new) - share
        spread += share * (1 - share)
  assert spread > 100
  assert abs(excess) < 4 * spread**0.5


def _one_swap(old, new):
  return sum(a != b for a, b in zip(old, new)) == 2


def _chance_of_one_swap(old, order):
  """Of a new sequence that, where the order is known, often is it or one swap from it."""
  possible = list(map(list, itertools.permutations(old)))
  chances = np.ones(len(possible)) / math.factorial(len(old))
  if order:
    near = [0.7 * (new == order) + 0.3 * _one_swap(order, new) / math.comb(len(old), 2) for new in possible]
    chances = 0.3 * chances + 0.7 * np.array(near)
  return chances @ [_one_swap(old, new) for new in possible] / chances.sum()


def test_relations_are_given_in_no_clever_order(readers):
  # Which of the open pairs comes next is a coin's choice: one that tells more is no likelier, as it is when sorting.
  excess, spread = 0.0, 0.0
  for reader in readers:
    for pair, known, unknown in reader.facts:
      gains = [_gain(known, *other) for other in unknown]
      excess += _gain(known, *pair) - np.mean(gains)
      spread += np.var(gains)
  assert spread > 100
  assert abs(excess) < 4 * spread**0.5


def test_the_number_of_facts_does_not_tell_whether_they_determine_the_order():
  needed = []
  for seed in range(400):
    world = orders.World(random.Random(seed), orders.Settings((0.0, 0.0, 1.0, 0.0)))
    facts = 0
    while not world.complete:
      orders.given(world)
      facts += 1
    needed.append(facts)
  # Four items have six pairs: after as many facts the order is still open in many documents, in as many it is known.
  assert np.mean(np.array(needed) > 6) > 0.25
  assert np.mean(np.array(needed) < 6) > 0.25


def _gain(known, x, y):
  """How many relations the pair settles at least, whichever way it turns out."""
  return min(len(checker.closure(known | {pair})) for pair in ((x, y), (y, x))) - len(known)


USER = 'The sequence is B, A, C. It is known that A < B, C is larger than B. Put it in ascending order.'
OPEN = 'The sequence is B, A, C. It is known that A < B. Put it in descending order.'


@pytest.mark.parametrize('user, says', [
    (USER, ' B < A'), (USER, ' so C < A'), (USER, ' so C comes before A'), (USER, ' the whole order is not known'),
    (USER, ' undecided are A and C'), (USER, ' the ascending order is A, C, B'),
    (USER, ' the descending order is A, B, C'), (USER, ' second in the order asked for is A'),
    (USER, ' first in the sequence is A'), (USER, ' the sequence is in the order asked for'),
    (USER, ' A is in its place'), (USER, ' displaced is C by C'), (USER, ' nothing is displaced'),
    (USER, ' in the place of A stands C'),
    (USER, ' displaced is A by C'), (USER, ' displaced is A'),
    (OPEN, ' displaced is B by A'),
    (USER, ' now the sequence is A, B'), (USER, ' if A and B changed places, the sequence would be A, B, C'),
    (USER, ' consider B and C'), (USER, ' look at A and A'), (OPEN, ' of interest are A and B'), (OPEN, ' consider A'),
    (USER, ' of A and B we know that A < C'), (USER, ' of A and B, the smaller one is B'), (USER, ' D > A'),
    (USER, ' of A and B, the smaller one is C'), (USER, ' A > A'),
    (USER, ' compare A and B'), (USER, ' compare A and B: A < B'), (USER, ' swap A and B => A, B, C'),
    (USER, ' swap A'), (USER, ' first compare all neighbours'),
    (USER, ' check if A is even: True'), (USER, ' so swap B and A'),
    (OPEN, ' so A < C'), (OPEN, ' C < A. so C < B. so B < C'), (OPEN, ' the whole order is known'),
    (OPEN, ' undecided are A and B'), (OPEN, ' nothing is displaced'),
    (OPEN, ' so A comes before B'), (OPEN, ' the order asked for is C, B, A'), (OPEN, ' B is in its place'),
    (OPEN, ' the sequence is not in the order asked for'), (OPEN, ' in the place of B stands A'),
    (OPEN, ' first in the order asked for is B'),
])
def test_checker_sees_what_is_wrong(user, says):
  with pytest.raises(AssertionError):
    checker.check(user, says + '.')
    raise RuntimeError('accepted')


@pytest.mark.parametrize('user, says', [
    (USER, ' so A < C. so A comes before C. the whole order is known. the descending order is C, B, A'),
    (USER, ' B is not in its place. displaced is B by A. in the place of A stands B. second in the sequence is A'),
    (USER, ' C is in its place'), (USER, ' consider B and A. displaced is B by A. mark B and A'),
    (USER, ' now the sequence is A, B, C. nothing is displaced'),
    (OPEN, ' so B comes before A. undecided are A and C. speak of C and A. C < A. so C < B'),
])
def test_checker_accepts_what_is_right(user, says):
  checker.check(user, says + '.')


@pytest.mark.parametrize('user', [
    'The sequence is A, B. Compare them.', 'The sequence is A, A. Put it in ascending order.',
    'The sequence is A, B, C. It is known that A < B, B < C, C < A. Put it in ascending order.',
    'The sequence is A, B. It is known that compare A and B. Put it in ascending order.',
])
def test_checker_refuses_a_question(user):
  with pytest.raises(AssertionError):
    checker.check(user, ' the whole order is not known.')
