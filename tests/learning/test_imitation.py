"""Supervised fine-tuning: what solvers would do, as trajectories, and a stage that learns from them."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from earl_jax import train
from earl_jax.config import stage, UserError
from earl_jax.learning.batches import split_rows
from earl_jax.run.collect import collect
from earl_jax.run.preparation import set_up
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from earl_jax.tasks import sorting_algorithms
from earl_jax.tasks.base import Call
from earl_jax.tasks.sorting import Order, Sort
from tests.run import tiny

TASKS = (
    ('sort', {'n': 3}, 1.0), ('sort', {'n': 4}, 1.0), ('order', {'n': 3}, 1.0), ('compare', {'n': 3}, 1.0),
    ('arithmetic', {'digits': 1, 'operators': 2}, 1.0), ('countdown', {'numbers': 3, 'digits': 1}, 1.0),
)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


def imitating(model, interface, *tasks, **changes):
  changes = {'interface': interface, 'rollout.prompt_length': 88, 'rollout.response_length': 288} | changes
  stages = stage(*tasks, steps=3, imitate=True), stage(*tasks)
  return tiny.parsed(model, **{'curriculum': stages} | changes)


@pytest.fixture(scope='module', params=[('expanded', 120), ('tagged', 288)], ids=lambda param: param[0])
def demonstrated(request, model):
  """(experiment, tasks, examples, experience) of a batch of demonstrations."""
  interface, length = request.param
  changes = {'rollout.prompts': 16, 'rollout.prompt_length': 160, 'rollout.response_length': length}
  experiment, params = set_up(imitating(model, interface, *TASKS, **changes))
  problems = draw(experiment, stage=0, step=0)
  experience = collect(experiment, params, problems, Progress.first(3))
  assert {task.label for task, _ in experiment.stages[0]} == {task.label for task in problems.tasks}
  return experiment, problems.tasks, problems.examples, jax.tree.map(np.asarray, experience)


def test_every_demonstration_solves_its_problem(demonstrated):
  experiment, tasks, examples, experience = demonstrated
  group = experiment.config.rollout.group
  outcomes = experiment.outcomes(
      [task for task in tasks for _ in range(group)], [e for e in examples for _ in range(group)], experience.trajectory
  )
  assert all(outcome.exact_match for outcome in outcomes)
  for i, (task, example) in enumerate(zip(tasks, examples)):
    for outcome in outcomes[i * group: (i + 1) * group]:
      if task.name == 'sort':
        ranks = example.instance['values'][:task.n] * (-1 if example.instance['descending'] else 1)
        assert outcome.metrics['certified'] == 1
        assert outcome.metrics['swaps'] == sorting_algorithms.spent(sorting_algorithms.optimal, ranks.tolist())[1]
        assert task.n - 1 <= outcome.metrics['comparisons'] <= {3: 3, 4: 5}[task.n]
      else:
        assert outcome.reward == 1
  assert experience.metrics['reward'] > 0.5 and experience.metrics['unfinished'] == 0


def test_demonstrations_of_one_problem_differ(demonstrated):
  experiment, tasks, _, experience = demonstrated
  actions = np.asarray(experience.trajectory.actions).reshape(len(tasks), experiment.config.rollout.group, -1)
  for task, rows in zip(tasks, actions):
    assert len(np.unique(rows, axis=0)) > 1 or task.name in ('order', 'arithmetic', 'countdown')


def test_no_demonstration_is_left_out(demonstrated):
  """All of a group are right, so that none is better than the others."""
  experiment, *_, experience = demonstrated
  algorithm = dataclasses.replace(experiment.config.algorithm, skip_zero=True)
  config = dataclasses.replace(experiment.config, algorithm=algorithm)
  split = split_rows(config, 0, experience.advantages, experience.trajectory.end, together=1)
  assert (split.counts == split.rows.shape[1]).all()


def test_what_is_demonstrated_is_legal(demonstrated):
  experiment, *_, experience = demonstrated
  trajectory, vocabulary = experience.trajectory, experiment.interface.space.vocab_size
  decided = trajectory.actions >= 0
  token = decided & (trajectory.actions < vocabulary)
  assert trajectory.language[token].all() and token.any()
  called = decided & ~token
  assert trajectory.legal[called, trajectory.actions[called] - vocabulary].all() and called.any()


class Misled(Order):
  """Its solver calls what the task does not offer."""

  def demonstration(self, seed, split, index, variant):
    return [Call('compare', (0, 1)), *super().demonstration(seed, split, index, variant)]


def test_a_demonstration_that_is_not_legal(model):
  misled = f'{__name__}:Misled', {'n': 2}, 1.0
  with pytest.raises(UserError, match='task order2: decision 1 of a demonstration is not legal in language; fix'):
    set_up(imitating(model, 'expanded', misled, ('sort', {'n': 2}, 1.0)))


@pytest.mark.parametrize('n', [2, 3, 4, 5])
def test_demonstrations_are_the_optimal_tree(n):
  counts = []
  for index in range(300):
    steps = Sort(n).demonstration(0, 'train', index, variant=index)
    calls = [step.environment for step in steps if not isinstance(step, str)]
    counts.append((calls.count('compare'), calls.count('swap')))
  np.testing.assert_allclose(np.mean(counts, axis=0), [{2: 1, 3: 8 / 3, 4: 14 / 3, 5: 104 / 15}[n],
                                                       n - sum(1 / k for k in range(1, n + 1))], atol=0.15)


@pytest.fixture(scope='module')
def ran(model, tmp_path_factory):
  """(config, metrics) of a run: one step of imitation, two of another stage of it, and three of its own."""
  changes = {'steps': 6, 'algorithm.kl': 0.1, 'algorithm.mini_batches': 1, 'optimizer.learning_rate': 3e-2}
  changes['rollout.response_length'] = 40
  order = ('order', {'n': 2}, 1.0)
  stages = stage(order, steps=1, imitate=True), stage(order, steps=2, imitate=True), stage(order)
  config = imitating(model, 'expanded', order, **changes, curriculum=stages)
  workdir = tmp_path_factory.mktemp('whole')
  with tiny.compiled_once(config):
    train.train(config, workdir)
    yield config, tiny.read_metrics(workdir)


def test_stages_of_imitation_learn_and_end_after_their_steps(ran):
  config, metrics = ran
  assert [line['stage'] for line in metrics] == [0, 1, 1, 2, 2, 2]
  losses = [line['loss'] + config.algorithm.entropy * line['entropy'] for line in metrics[:3]]
  assert losses[0] > 1 and losses[2] < 0.8 * losses[0], losses
  for line in metrics[:3]:
    assert 'counterfactual/rewritten' not in line and line['exact_match'] == 1.0


def test_what_was_imitated_becomes_the_reference(ran, tmp_path, monkeypatch):
  """Its divergence begins at 0 after the imitation, and a run stopped anywhere goes on as if it had not been."""
  config, metrics = ran
  for stop in (2, 3, 5):
    with monkeypatch.context() as patch:
      patch.setattr(train.StopSignal, 'reached', lambda self, step, stop=stop: step == stop)
      train.train(config, tmp_path / 'parts')
  train.train(config, tmp_path / 'parts')
  assert [line['kl'] for line in metrics[:3]] == [0, 0, 0]  # of what others did it is not asked
  assert abs(metrics[3]['kl']) < 1e-5 < metrics[4]['kl']
  assert tiny.read_metrics(tmp_path / 'parts') == metrics
  shutil.rmtree(tmp_path / 'parts' / 'imitated')
  with pytest.raises(UserError, match='imitated: the reference policy of this run is missing'):
    train.train(dataclasses.replace(config, steps=7), tmp_path / 'parts')


def test_bad_input(model):
  config = imitating(model, 'expanded', ('sort', {'n': 4}, 1.0), **{'rollout.response_length': 24})
  with pytest.raises(UserError, match='response_length=24: a demonstration of sort4 does not fit, it has 98 tokens'):
    set_up(config)
  experiment, params = set_up(imitating(model, 'expanded', ('sort', {'n': 4}, 1.0), **{'rollout.response_length': 128}))
  experiment = dataclasses.replace(experiment, config=config)
  with pytest.raises(UserError, match='response_length=24: a demonstration of sort4 does not fit; choose more'):
    collect(experiment, params, draw(experiment, stage=0, step=0), Progress.first(2))
  # Nor is one that is left out taken for an end, where the end token has the number 0.
  ends = dataclasses.replace(experiment, end_tokens=(*experiment.end_tokens, 0))
  with pytest.raises(UserError, match='response_length=24: a demonstration of sort4 does not fit; choose more'):
    collect(ends, params, draw(experiment, stage=0, step=0), Progress.first(2))
  with pytest.raises(UserError, match=r'curriculum\[0\].steps=0: a stage with imitate=True does not end by itself'):
    tiny.parsed(model, curriculum=(stage(('sort', {'n': 2}, 1.0), imitate=True),))
  with pytest.raises(UserError, match="interface='text': choose one of expanded, tagged"):
    tiny.parsed(model, interface='text')

  class Unsolved(Order):
    def demonstration(self, *args):
      return super(Order, self).demonstration(*args)

  with pytest.raises(UserError, match='task order2: no demonstrations'):
    Unsolved(2).demonstration(0, 'train', 0, 0)
