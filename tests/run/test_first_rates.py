"""How often actions are taken at first: how rare some are, that they begin at the floor, and that routes lead."""

import dataclasses

import numpy as np
import pytest

from earl_jax.acting.scoring import previous_hidden
from earl_jax.config import stage, UserError
from earl_jax.run import first_rates
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
  played = [first_rates._play(experiment, params, environment) for environment in range(2)]
  mean = sum(x.inside.hidden for x in played) / sum(x.inside.count for x in played)
  row = params['expanded_head'][item] - 12 * mean / (mean @ mean)
  return params | {'expanded_head': params['expanded_head'].at[item].set(row)}, item


@pytest.fixture
def seen(monkeypatch):
  """The trajectories that are looked at from now on."""
  trajectories, look = [], first_rates._look

  def watched(params, trajectory, **kwargs):
    trajectories.append(trajectory)
    return look(params, trajectory, **kwargs)

  monkeypatch.setattr(first_rates, '_look', watched)
  return trajectories


def test_a_rare_action_begins_at_the_floor(experiment, shunned):
  experiment, _ = experiment
  params, item = shunned
  lifted, rare = first_rates.lifted(experiment, params)
  assert list(rare) == [' B'] and 0 < rare[' B'] < FLOOR / 100
  played = [first_rates._play(experiment, lifted, environment) for environment in range(2)]
  rate = sum(x.taken for x in played)[item] / sum(x.legal for x in played)[item]
  assert FLOOR / 3 < rate < FLOOR * 3
  others = np.arange(len(params['expanded_head'])) != item
  np.testing.assert_array_equal(lifted['expanded_head'][others], params['expanded_head'][others])
  assert lifted['model'] is params['model']


def test_nothing_is_lifted_where_nothing_is_rare(experiment):
  experiment, params = experiment
  lifted, rare = first_rates.lifted(experiment, params)
  assert not rare and first_rates.report(rare) == 'no action is rarer'
  np.testing.assert_array_equal(lifted['expanded_head'], params['expanded_head'])


def test_an_environment_of_a_rare_task_is_looked_at_too(model):
  """None of whose problems is in the first batch."""
  tasks = stage(('sort', {'n': 2}, 1.0), ('arithmetic', {'digits': 1, 'operators': 2}, 1e-6))
  experiment, params = set_up(tiny.parsed(model, action_floor=FLOOR, curriculum=(tasks,), **{
      'rollout.chunk': 16, 'rollout.prompt_length': 128, 'rollout.response_length': 48}))
  names = [e.spec.name for e in experiment.interface.environments]
  assert first_rates._play(experiment, params, names.index('calculator')).inside.count > 0


def test_a_run_without_environments_has_nothing_to_lift(model):
  experiment, params = set_up(tiny.parsed(model, **{
      'action_floor': FLOOR, 'curriculum': (stage(('count', {'digits': 2}, 1.0)),), 'rollout.prompt_length': 96,
  }))
  lifted, rare = first_rates.lifted(experiment, params)
  assert lifted is params and not rare


def test_what_is_seen_one_decision_at_a_time(experiment, shunned, seen):
  """Against softmax over the legal rows of the head, at every decision inside the first environment's episodes."""
  experiment, _ = experiment
  params, _ = shunned
  found = first_rates._play(experiment, params, 0)
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
  for got, expected in zip((*found.inside, found.legal, found.taken), (count, total, squares, legal, taken)):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
  spoken = np.asarray((trajectory.actions >= 0) & trajectory.language)[:, length:]
  assert found.language.count == spoken.sum() > 0
  np.testing.assert_allclose(found.language.hidden, hidden[spoken].sum(axis=0), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found.language.squares, hidden[spoken].T @ hidden[spoken], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('temperature', [1.0, 0.5])
def test_routes_lead_their_text(model, temperature, seen):
  """By an offset that raises them in all of the language alike, as ridge regression has it; other rows are kept."""
  experiment, params = set_up(tiny.parsed(model, route_lead=10.0, **{
      'rollout.chunk': 16, 'rollout.temperature': temperature}))
  lifted, rare = first_rates.lifted(experiment, params)
  assert not rare
  raised = np.asarray(lifted['expanded_head'] - params['expanded_head'], np.float64)
  routes, length = experiment.interface.space.num_environments, experiment.config.rollout.prompt_length
  assert len(seen) == routes and np.all(raised[routes:] == 0)
  alone = dataclasses.replace(experiment.scoring, rows_per_prompt=1)
  hidden = np.concatenate([
      np.asarray(previous_hidden(params, trajectory, alone))[
          np.asarray((trajectory.actions >= 0) & trajectory.language)[:, length:]
      ] for trajectory in seen
  ]).astype(np.float64)
  ridge = np.sqrt(first_rates.RIDGE * np.sum(hidden**2) / hidden.shape[1]) * np.eye(hidden.shape[1])
  direction, *_ = np.linalg.lstsq(np.concatenate([hidden, ridge]), np.r_[np.ones(len(hidden)), np.zeros(len(ridge))])
  np.testing.assert_allclose(raised[:routes], temperature * np.log(10) * np.stack([direction] * routes), atol=1e-4)
  assert np.exp(hidden @ raised[0] / temperature).mean() > 2  # as near to 10 as states without much in common allow


def test_a_run_begins_with_it(model, experiment, tmp_path, capsys):
  experiment, params = experiment
  lifted, _ = first_rates.lifted(experiment, params)
  begun = train(tiny.parsed(model, action_floor=FLOOR, steps=0, **{'rollout.chunk': 16}), tmp_path)
  np.testing.assert_array_equal(begun.params['expanded_head'], lifted['expanded_head'])
  assert 'config.action_floor=0.01: no action is rarer' in capsys.readouterr().out


@pytest.mark.parametrize('changes, error', [
    ({'interface': 'tagged', 'action_floor': 0.01}, "config.action_floor=0.01: only config.interface='expanded' gives"),
    ({'action_floor': 0.5}, 'config.action_floor=0.5'),
    ({'action_floor': -0.1}, 'config.action_floor=-0.1'),
    ({'interface': 'tagged', 'route_lead': 2.0}, "config.route_lead=2.0: only config.interface='expanded' gives"),
    ({'route_lead': 0.5}, 'config.route_lead=0.5'),
])
def test_bad_input(model, changes, error):
  with pytest.raises(UserError, match=error):
    tiny.parsed(model, **changes)
