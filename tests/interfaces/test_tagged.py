"""Environments called through tags, in whole episodes of a random policy that is made to open them."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.acting import policy, rollout
from earl_jax.acting.masked import NEGATIVE
from earl_jax.acting.prompts import Prompts
from earl_jax.acting.replay import Replay
from earl_jax.acting.rollout import Decoding
from earl_jax.acting.scoring import score, Scoring
from earl_jax.acting.trajectory import walk
from earl_jax.action_space import LANGUAGE
from earl_jax.config import UserError
from earl_jax.environments import base as environments_base
from earl_jax.environments.hidden_items import ItemEnvironment
from earl_jax.interfaces import expanded, tagged
from earl_jax.tasks import expressions
from tests import core_fixtures as core
from tests.environments.tokenizers import StubTokenizer

NAMES = ('compare', 'swap', 'calculator')
ROWS, PROMPT, SLOTS = 48, 4, 96
VALUES = [3, -7, 12, 0]
OFFERED = np.array([[True, True, True], [True, False, True]] * (ROWS // 2))
TOKENIZER, VOCAB, ENDS = StubTokenizer(), 200, (199, 120)


@functools.cache
def interface(kind=tagged.TaggedInterface):
  return kind(VOCAB, [environments_base.find(name) for name in NAMES], TOKENIZER.encode)


@functools.cache
def params(kind):
  return policy.init_params(core.params(1)['model'], interface(kind).space, kind.tied)


@functools.cache
def episodes(environment: int, key: int = 0, kind=tagged.TaggedInterface, numbers: tuple[int, ...] = ()):
  """Rows that are made to open the tag of `environment` (from 0) at their first slot, and then go on freely.

  With `numbers` under the rules of countdown.
  """
  rules = {'strict': jnp.ones(ROWS, bool), 'numbers': jnp.tile(jnp.array(numbers), (ROWS, 1))} if numbers else {}
  prompts = Prompts(
      tokens=jnp.tile(jnp.arange(50, 50 + PROMPT), (ROWS, 1)),
      start=jnp.zeros(ROWS, jnp.int32),
      instance={'values': jnp.tile(jnp.array(VALUES + [0] * 4, jnp.int32), (ROWS, 1)),
                'count': jnp.full(ROWS, 4, jnp.int32)} | rules,
      offered=jnp.asarray(OFFERED),
  )
  nothing = Replay(jnp.full((ROWS, SLOTS), -1, jnp.int32), jnp.zeros(ROWS, jnp.int32))
  replay = core.force(nothing, interface(kind).route(environment))
  trajectory = rollout.rollout(
      params(kind), prompts, jnp.arange(ROWS), jax.random.key(key), replay,
      decoding=Decoding(model=core.MODEL, interface=interface(kind), end_tokens=ENDS, pad=0, slots=SLOTS),
  )
  return jax.tree.map(np.asarray, trajectory)


def text_of(trajectory, row):
  texts = {token: text for text, token in TOKENIZER._ids.items()}
  return ''.join(texts.get(token, '~') for token in trajectory.tokens[row, PROMPT: trajectory.end[row]].tolist())


def test_there_is_no_head_of_its_own_and_no_legal_route():
  assert interface().tied and set(params(tagged.TaggedInterface)) == {'model'}
  for environment in range(3):
    trajectory = episodes(environment)
    assert not trajectory.legal[..., :3].any()
    assert (trajectory.actions[trajectory.language] < interface().space.vocab_size).all()


@pytest.mark.parametrize('name, call', [
    ('compare', r' <compare> ([A-D]), ([A-D]) </compare> <result> ([A-D]) ([<>]) ([A-D]) </result>'),
    ('swap', r' <swap> ([A-D]), ([A-D]) </swap> <result> ([A-D](?:, [A-D]){3}) </result>'),
    ('calculator', r' <calculator> ([^<=]*) </calculator> <result> (\S+) </result>'),
])
def test_a_call_reads_as_in_the_method(name, call):
  environment = NAMES.index(name)
  trajectory, complete = episodes(environment), 0
  for row in np.flatnonzero(OFFERED[:, environment]):
    text = text_of(trajectory, row)
    assert text.startswith(f' <{name}>')
    if not (match := re.match(call, text)):
      assert trajectory.end[row] == SLOTS or ' </' not in text, text
      continue
    complete += 1
    if name == 'compare':
      values = dict(zip('ABCD', VALUES))
      first, second, left, relation, right = match.groups()
      assert (left, right) == (first, second) and first != second
      assert (values[first] < values[second]) == (relation == '<')
    elif name == 'swap':
      row_after = dict(zip('ABCD', 'ABCD')) | {match[1]: match[2], match[2]: match[1]}
      assert match[3] == ', '.join(row_after[item] for item in 'ABCD')
    else:
      assert expressions.parse(match[1]) is not None
  assert complete > (ROWS // 8 if name == 'calculator' else ROWS // 3)


def test_the_rules_of_countdown_hold_in_tags():
  numbers, calls = (8, 8, 47), 0
  trajectory = episodes(NAMES.index('calculator'), numbers=numbers)
  for row in range(ROWS):
    for typed in re.findall(r' <calculator> ([^<]*) </calculator>', text_of(trajectory, row)):
      used = expressions.parse(typed).numbers
      assert 1 < len(used) and not collections.Counter(used) - collections.Counter(numbers), typed
      calls += 1
  assert calls > ROWS // 2


@pytest.mark.parametrize('environment', range(3))
def test_states_count_the_calls_in_the_text(environment):
  trajectory = episodes(environment)
  items = trajectory.states['HiddenItems']
  for row in range(ROWS):
    text = text_of(trajectory, row)
    written = [len(re.findall(f'</{name}> <result>', text)) for name in NAMES]
    counted = [items.comparisons[row], items.swaps[row], trajectory.states['Calculation'].calls[row]]
    cut = trajectory.end[row] == SLOTS  # perhaps in the middle of a result
    assert all(have <= said <= have + cut or said <= have <= said + cut for have, said in zip(counted, written)), text


@pytest.mark.parametrize('kind', [expanded.ExpandedInterface, tagged.TaggedInterface])
def test_every_end_token_ends_an_episode(kind):
  ended = set()
  for environment in range(2):
    trajectory = episodes(environment, kind=kind)
    for row in range(ROWS):
      actions = trajectory.actions[row][trajectory.language[row]]
      assert np.isin(actions, ENDS)[:-1].sum() == 0
      assert trajectory.finished[row] == (actions[-1] in ENDS)
      ended |= {int(actions[-1])} & set(ENDS)
  assert ended == set(ENDS)


@pytest.mark.parametrize('environment', range(3))
def test_a_walk_counts_the_calls(environment):
  trajectory = episodes(environment)
  items, returned = trajectory.states['HiddenItems'], 0
  for row in range(ROWS):
    walked = walk(trajectory.row(row), interface().space)
    over = items.comparisons[row] + items.swaps[row] + trajectory.states['Calculation'].calls[row]
    # After a call that has ended the policy may have had no slot left to choose in.
    assert walked.returns in (over, over - 1) and walked.returns <= walked.calls <= walked.returns + 1
    assert (walked.environment == LANGUAGE).all()
    returned += walked.returns
  assert returned > ROWS // 8


def test_the_tag_of_what_is_not_offered_is_text():
  trajectory = episodes(NAMES.index('swap'))
  for row in np.flatnonzero(~OFFERED[:, 1]):
    assert trajectory.language[row][trajectory.actions[row] >= 0].mean() > 0.5
    assert trajectory.states['HiddenItems'].swaps[row] == 0 and ' <swap>' in text_of(trajectory, row)
    at = PROMPT + len(interface().route(1))
    assert trajectory.end[row] == at or trajectory.language[row, at]
  offered = np.flatnonzero(OFFERED[:, 1])
  at = PROMPT + len(interface().route(1))
  assert not trajectory.language[offered, at].any() and trajectory.legal[offered, at].sum() == 4 * len(offered)


@pytest.mark.parametrize('kind', [expanded.ExpandedInterface, tagged.TaggedInterface])
@pytest.mark.parametrize('environment', range(3))
def test_log_probs_while_decoding_are_those_of_the_update(environment, kind):
  trajectory = episodes(environment, kind=kind)
  settings = Scoring(core.MODEL, interface(kind).space, PROMPT)
  score_all = jax.jit(functools.partial(score, scoring=settings))
  scores = score_all(params(kind), jax.tree.map(jnp.asarray, trajectory))
  np.testing.assert_allclose(scores.log_probs, trajectory.log_probs, atol=1e-5)
  inside = (trajectory.actions >= 0) & ~trajectory.language
  assert inside.sum() > ROWS / 2 and np.abs(trajectory.log_probs[inside]).max() > 0.5


def test_log_probs_inside_a_tag_are_a_softmax_over_first_tokens():
  trajectory, space = episodes(0), interface().space
  forward, checked = core.forward(), 0
  params = core.params(1) | {'expanded_head': core.params(1)['model']['embedding'][space.init_tokens]}
  for row, slot in np.argwhere((trajectory.actions >= 0) & ~trajectory.language)[:12]:
    tokens = trajectory.tokens[row, :slot].tolist()
    logits = forward(params, tokens)[: space.vocab_size]
    legal = space.init_tokens[trajectory.legal[row, slot]]
    chosen = space.init_tokens[trajectory.actions[row, slot] - space.vocab_size]
    expected = logits[chosen] - np.logaddexp.reduce(logits[legal])
    np.testing.assert_allclose(trajectory.log_probs[row, slot], expected, atol=1e-4)
    checked += 1
  assert checked == 12


def test_the_score_of_a_route_is_that_of_the_first_token_of_its_tag():
  trajectory = episodes(0)
  language = (trajectory.actions >= 0) & trajectory.language
  possible = trajectory.route_scores > NEGATIVE / 2
  np.testing.assert_array_equal(possible, language[..., None] & OFFERED[:, None])
  first = [interface().route(environment)[0] for environment in range(3)]
  slot = PROMPT  # the first token of the tag of compare was chosen here
  np.testing.assert_allclose(trajectory.route_scores[:, slot, 0], trajectory.log_probs[:, slot], atol=1e-5)
  assert len(set(first)) == 1, 'tags begin alike'


def test_instructions_read_like_calls():
  assert interface().instructions(('compare', 'calculator')) == (
      'You can compare two items: <compare> A, B </compare> <result> A < B </result>. '
      'You can calculate: <calculator> (12 + 6) / 3 </calculator> <result> 6 </result>.'
  )
  assert core.interface().instructions(('compare', 'swap', 'check')) == (
      'You can compare two items: compare A and B: A < B. You can swap two items: swap A and C => C, B, A. '
      'You can check a property of an item: check if A is even: True.'
  )
  assert interface().instructions(()) == ''


def test_an_environment_that_does_not_say_how_it_is_phrased_is_refused():
  class Silent(ItemEnvironment):
    spec = environments_base.find('compare').spec

  with pytest.raises(UserError, match='give Silent a `phrasing`'):
    tagged.through_tags(Silent)
