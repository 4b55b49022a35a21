"""Actions that the base model would never take: how rare they are, and that they begin at the floor."""

import dataclasses

import numpy as np
import pytest

from earl_jax.acting.scoring import previous_hidden
from earl_jax.config import stage, UserError
from earl_jax.run import action_floor
from earl_jax.run.preparation import set_up
from earl_jax.train import train
from tests.run import tiny

FLOOR = 0.01


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def experiment(model):
  return set_up(tiny.parsed(model, action_floor=FLOOR, **{'rollout.chunk': 16}))


@pytest.fixture(scope='module')
def shunned(experiment):
  """The policy where item B is as good as never taken, and B's action."""
  experiment, params = experiment
  item = next(i for i, action in enumerate(experiment.interface.space.actions) if action.description == ' B')
  played = [action_floor._play(experiment, params, environment) for environment in range(2)]
  mean = sum(x.hidden for x in played) / sum(x.count for x in played)
  row = params['expanded_head'][item] - 12 * mean / (mean @ mean)
  return params | {'expanded_head': params['expanded_head'].at[item].set(row)}, item


def test_a_rare_action_begins_at_the_floor(experiment, shunned):
  experiment, _ = experiment
  params, item = shunned
  lifted, rare = action_floor.lifted(experiment, params)
  assert list(rare) == [' B'] and 0 < rare[' B'] < FLOOR / 100
  played = [action_floor._play(experiment, lifted, environment) for environment in range(2)]
  rate = sum(x.taken for x in played)[item] / sum(x.legal for x in played)[item]
  assert FLOOR / 3 < rate < FLOOR * 3
  others = np.arange(len(params['expanded_head'])) != item
  np.testing.assert_array_equal(lifted['expanded_head'][others], params['expanded_head'][others])
  assert lifted['model'] is params['model']


def test_nothing_is_lifted_where_nothing_is_rare(experiment):
  experiment, params = experiment
  lifted, rare = action_floor.lifted(experiment, params)
  assert not rare and action_floor.report(rare) == 'no action is rarer'
  np.testing.assert_array_equal(lifted['expanded_head'], params['expanded_head'])


def test_an_environment_of_a_rare_task_is_looked_at_too(model):
  """None of whose problems is in the first batch."""
  tasks = stage(('sort', {'n': 2}, 1.0), ('arithmetic', {'digits': 1, 'operators': 2}, 1e-6))
  experiment, params = set_up(tiny.parsed(model, action_floor=FLOOR, curriculum=(tasks,), **{
      'rollout.chunk': 16, 'rollout.prompt_length': 128, 'rollout.response_length': 48}))
  names = [e.spec.name for e in experiment.interface.environments]
  assert action_floor._play(experiment, params, names.index('calculator')).count > 0


def test_a_run_without_environments_has_nothing_to_lift(model):
  experiment, params = set_up(tiny.parsed(model, **{
      'action_floor': FLOOR, 'curriculum': (stage(('count', {'digits': 2}, 1.0)),), 'rollout.prompt_length': 96,
  }))
  lifted, rare = action_floor.lifted(experiment, params)
  assert lifted is params and not rare


def test_what_is_seen_one_decision_at_a_time(experiment, shunned, monkeypatch):
  """Against softmax over the legal rows of the head, at every decision inside the first environment's episodes."""
  experiment, _ = experiment
  params, _ = shunned
  seen = []
  look = action_floor._look
  monkeypatch.setattr(action_floor, '_look', lambda *args, **kwargs: seen.append(args[1]) or look(*args, **kwargs))
  found = action_floor._play(experiment, params, 0)
  [trajectory] = seen
  length, vocab = experiment.config.rollout.prompt_length, experiment.interface.space.vocab_size
  alone = dataclasses.replace(experiment.scoring, rows_per_prompt=1)
  hidden = np.asarray(previous_hidden(params, trajectory, alone), np.float64)
  head = np.asarray(params['expanded_head'], np.float64)
  count, forced, taken, legal = 0, 0, np.zeros(len(head)), np.zeros(len(head))
  total, squares = np.zeros(head.shape[1]), np.zeros((head.shape[1],) * 2)
  for row in range(len(hidden)):
    assert trajectory.actions[row, length] == vocab  # the route
    for slot in range(hidden.shape[1]):
      if trajectory.actions[row, length + slot] >= 0 and not trajectory.language[row, length + slot]:
        h, possible = hidden[row, slot], np.flatnonzero(trajectory.legal[row, length + slot])
        if len(possible) == 1:
          forced += 1
          continue
        weights = np.exp(head[possible] @ h)
        taken[possible] += weights / weights.sum()
        legal[possible] += 1
        total, squares, count = total + h, squares + np.outer(h, h), count + 1
  assert count >= len(hidden) and forced
  for got, expected in zip(found, (count, total, squares, legal, taken)):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_run_begins_with_it(model, experiment, tmp_path, capsys):
  experiment, params = experiment
  lifted, _ = action_floor.lifted(experiment, params)
  begun = train(tiny.parsed(model, action_floor=FLOOR, steps=0, **{'rollout.chunk': 16}), tmp_path)
  np.testing.assert_array_equal(begun.params['expanded_head'], lifted['expanded_head'])
  assert 'config.action_floor=0.01: no action is rarer' in capsys.readouterr().out


@pytest.mark.parametrize('changes, error', [
    ({'interface': 'tagged', 'action_floor': 0.01}, "config.action_floor=0.01: only config.interface='expanded' gives"),
    ({'action_floor': 0.5}, 'config.action_floor=0.5'),
    ({'action_floor': -0.1}, 'config.action_floor=-0.1'),
])
def test_bad_input(model, changes, error):
  with pytest.raises(UserError, match=error):
    tiny.parsed(model, **changes)
