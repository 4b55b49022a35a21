"""Decision trees of policies that are known algorithms."""

import types

import pytest

from earl_jax.config import UserError
from earl_jax.run.episodes import Decision
from earl_jax.tasks import sorting_algorithms
from earl_jax.tasks.base import Outcome
from earl_jax.tasks.sorting import Sort
from earl_jax.view import algorithm

SPECS = (types.SimpleNamespace(name='compare'), types.SimpleNamespace(name='swap'))
EXPERIMENT = types.SimpleNamespace(interface=types.SimpleNamespace(space=types.SimpleNamespace(specs=SPECS)))


def episode_of(example, n):
  """The optimal algorithm's calls, with a word before and after them, and how often it compared and swapped."""
  values = example.instance['values'][:n].tolist()
  ranks = [-value for value in values] if example.instance['descending'] else values
  steps = sorting_algorithms.trace(sorting_algorithms.optimal, ranks)
  made = [Decision(0, 0, text=' so', written='', language=True, environment=0)]
  for kind, i, j in steps:
    a, b = 'ABCDE'[i], 'ABCDE'[j]
    seen = f': {a} {"<" if values[i] < values[j] else ">"} {b}\n' if kind == 'compare' else ' => done\n'
    where = 1 + (kind == 'swap')
    made += [
        Decision(0, 0, text=f' {kind}', written='', language=True, environment=where),
        Decision(0, 0, text=f' {a}', written=' and', language=False, environment=where),
        Decision(0, 0, text=f' {b}', written=seen, language=False, environment=where),
    ]
  kinds = [kind for kind, *_ in steps]
  return made, {'comparisons': float(kinds.count('compare')), 'swaps': float(kinds.count('swap')), 'certified': 1.0}


def found(monkeypatch, task, change=None):
  played = [episode_of(example, task.n) for example in task.problems()]
  if change:
    change(played)
  outcomes = [Outcome(1.0, True, spent) for _, spent in played]
  rows = types.SimpleNamespace(row=played.__getitem__)
  monkeypatch.setattr(algorithm, 'decisions', lambda experiment, episode: episode[0])
  monkeypatch.setattr(algorithm.measure, 'played', lambda *_: [(rows, outcomes)])
  return algorithm.decision_trees(EXPERIMENT, None, task)


@pytest.mark.parametrize('n, leaves, worst', [(2, 4, 1), (3, 12, 3), (4, 48, 5)])
def test_the_optimal_algorithm_is_proved(monkeypatch, n, leaves, worst):
  tree = found(monkeypatch, Sort(n))
  assert tree['proved'] and tree['leaves'] == tree['problems'] == leaves and len(tree['trees']) == 2
  policy, optimal = tree['rows'][0], next(row for row in tree['rows'] if row['name'] == 'optimal')
  assert policy['worst'] == optimal['worst'] == worst
  assert policy['means'] | optimal['means'] == pytest.approx(policy['means'])

  def depth(node):
    after = [(call['environment'] == 'compare', seen['next']) for call in node['calls'] for seen in call['seen']]
    return max([0] + [compared + depth(node) for compared, node in after])

  assert [depth(tree['trees'][i]['root']) for i in (0, 1)] == [worst, worst]
  first = tree['trees'][0]['root']['calls'][0]
  assert first['asked'][1:6] == ' and ' and {seen['text'][2] for seen in first['seen']} == {'<', '>'}


def test_one_leaf_that_is_not_certified(monkeypatch):
  tree = found(monkeypatch, Sort(3), lambda played: played[4][1].update(certified=0.0))
  assert not tree['proved'] and tree['good'] == 11 and tree['leaves'] == 12


def test_a_policy_that_never_asks(monkeypatch):
  """Whatever its outcomes: problems that end at one leaf are not told apart."""
  tree = found(monkeypatch, Sort(2), lambda played: [made.clear() for made, _ in played])
  assert not tree['proved'] and tree['leaves'] == 2 and len(tree['trees'][0]['root']['leaves']) == 2


def test_too_many_problems():
  with pytest.raises(UserError, match='--algorithm=sort6: its problems.. lists none, and all of them have to'):
    algorithm.decision_trees(EXPERIMENT, None, Sort(6))


def test_calls_by_text_in_tags():
  """Words open a call; what is chosen inside it is one, whatever follows."""
  made = [
      Decision(0, 0, text=text, written=written, language=language, environment=0)
      for text, written, language in [
          (' <', '', True), ('compare>', '', True), (' A', ',', False),
          (' B', ' </compare> <result> A < B </result>\n', False),
          (' so', '', True), (' C', ' seen', False),
      ]
  ]
  assert algorithm.calls(made) == [(0, 'A, B', '</compare> <result> A < B </result>'), (0, 'C', 'seen')]
