"""What a run is put together from: the keys of its instances, and what does not go together."""

import time
import types
from typing import Annotated, Literal

import jax
import numpy as np
import pytest

from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.config import Range, stage, UserError
from earl_jax.environments.compare import Compare
from earl_jax.environments.hidden_items import ITEMS
from earl_jax.run import checks
from earl_jax.run import experiment as experiment_lib
from earl_jax.run.checks import check_problems
from earl_jax.run.preparation import prepare
from earl_jax.run.problems import draw, Examples
from earl_jax.tasks.base import Column, Example, make_task, Outcome
from earl_jax.tasks.sorting import Order, Sort
from tests import core_fixtures as core
from tests.run import tiny


class WithKeys(Order):
  """Gives other keys than the package's tasks."""

  name = 'other'

  def __init__(self, values=(3, 1, 2, 0, 0, 0, 0, 0), dtype='int32', count=True):
    super().__init__(2)
    self.label = 'other'
    self._instance_given = {'values': np.array(values, dtype), 'mine': np.float32([1, 2])}
    if count:
      self._instance_given['count'] = np.int32(3)

  def example(self, seed, split, index):
    return Example('', 'What?', self._instance_given)

  def outcome(self, instance, states, text, finished):
    return Outcome(0.0, False, {'swaps': 0.0})


class Scored(WithKeys):
  """Something is wrong with what it makes of an episode."""

  columns = (Column('turns', '{:.1f}'),)

  def __init__(self, kind):
    super().__init__()
    self._kind = kind

  def outcome(self, instance, states, text, finished):
    if self._kind == 'raises':
      return states['Hidden']
    return {'none': None, 'reward': Outcome('1', True, {}), 'column': Outcome(0.0, False, {'swaps': 1.0})}[self._kind]


class Wide(WithKeys):

  def __init__(self, kind):
    super().__init__()
    given = {'wide': np.array([2**40 + 5, 7]), 'text': 'a text', 'unsigned': np.uint64(2**63)}
    self._instance_given['mine'] = given[kind]


class Later(Order):
  """Something is wrong with a problem that is not the first."""

  name = 'later'

  def __init__(self, user='', key='', error=False):
    super().__init__(2)
    self._user, self._keys, self._error = user, {key: 1.0} if key else {}, error

  def example(self, seed, split, index):
    example = super().example(seed, split, index)
    if index != 5:
      return example
    if self._error:
      raise ZeroDivisionError('here')
    return example._replace(user=example.user + self._user, instance=example.instance | self._keys)


class Twice(Sort):
  name = 'twice'
  environments = ('compare', 'swap', Compare)


class Weigh(Compare):
  """Another environment of the same name."""

  spec = EnvironmentSpec('compare', ActionSpec(' weigh'), ITEMS)


class Weighing(Sort):
  name = 'weighing'
  environments = (Weigh,)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


def prepared(model, *stages):
  """An experiment whose stages have these tasks: (name, options)."""
  curriculum = tuple(stage(*((name, options, 1.0) for name, options in tasks)) for tasks in stages)
  config = tiny.parsed(model, curriculum=curriculum, **{'rollout.prompt_length': 88})
  return prepare(config, model, core.one_device())


def mine(name):
  return f'{__name__}:{name}'


def shapes(prompts):
  return jax.tree.map(lambda x: (x.shape, x.dtype), prompts)


def test_every_batch_has_the_instance_keys_of_all_tasks(model):
  sort, countdown = ('sort', {'n': 3}), ('countdown', {'numbers': 3, 'digits': 1})
  experiment = prepared(model, [sort], [countdown], [countdown, sort, (mine('WithKeys'), {})])
  examples = {task.label: task.example(0, 'train', 0) for task in experiment.tasks}
  keys = {key for example in examples.values() for key in example.instance}
  assert {'values', 'numbers', 'mine'} <= keys
  batches = [draw(experiment, stage, step=0) for stage in range(3)]
  for problems in batches:
    assert set(problems.prompts.instance) == keys
    assert shapes(problems.prompts) == shapes(batches[0].prompts)  # or the decode loop would be compiled again
    for row, example in enumerate(problems.examples):
      for key, values in problems.prompts.instance.items():
        np.testing.assert_array_equal(values[row], example.instance.get(key, np.zeros_like(values[row])))
  task, other = Sort(4), batches[0].prompts  # one that is not the run's
  single = experiment.encode_prompts([task] * 4, [task.example(0, 'test', index) for index in range(4)])
  assert shapes(single) == shapes(other)


def test_of_several_processes_each_makes_its_own_problems(model, monkeypatch):
  experiment = prepared(model, [('sort', {'n': 2}), ('sort', {'n': 3})])
  made, tasks = [], [Sort(2), Sort(3), Sort(2), Sort(2)]

  def make(row):
    made.append(row)
    return tasks[row].example(0, 'train', row)

  monkeypatch.setattr(experiment_lib.processes, 'held_rows', lambda shards, count: np.array([3]))
  experiment.encode_prompts(tasks, Examples(make, 4))
  assert sorted(made) == [0, 1, 3]  # the first of every task, and its own


def test_a_key_in_two_shapes(model):
  for options, given in [({'values': (1, 2)}, r'int32\[2\]'), ({'dtype': 'int64'}, r'int64\[8\]')]:
    refused(model, [('sort', {'n': 2})], [(mine('WithKeys'), options)], says=(
        rf"instance key 'values': task sort2 gives int32\[8\], task other {given}; rename one of the two"))


@pytest.mark.parametrize('kind, told', [
    ('wide', r'\[1099511627781, 7\]'), ('text', "'a text'"), ('unsigned', '9223372036854775808'),
])
def test_an_instance_that_devices_do_not_hold(model, kind, told):
  refused(model, [(mine('Wide'), {'kind': kind})], says=(
      f"task other: instance key 'mine' is {told}, which devices do not hold; give 32-bit integers"))


@pytest.mark.parametrize('kind, told', [
    ('raises', "task other, its outcome.*test_experiment.py, line .*KeyError: 'Hidden'"),
    ('none', 'task other: outcome.. gives None'), ('reward', "task other: outcome.. gives reward='1'"),
    ('column', "task other: columns, cost or proof name 'turns', but outcome.. gives no such metric; it has swaps"),
])
def test_what_an_outcome_gets_wrong_is_said_before_the_run(model, kind, told):
  refused(model, [(mine('Scored'), {'kind': kind})], says=told)


def test_problems_that_are_not_to_be_found(model, monkeypatch, caplog):
  monkeypatch.setattr(checks, 'SLOW', 0.05)
  task = types.SimpleNamespace(label='slow', example=lambda seed, split, index: time.sleep(0.2))
  checks._drawn(task, 0, 'test', 1)
  assert "task slow: after 0 s example() has not given 1 problems of split 'test'; are there any?" in caplog.text


def test_an_instance_without_a_key_that_an_environment_needs(model):
  """Also where other tasks of the run give it: the zeros that then fill it up are nothing to go by."""
  for others in ([], [('sort', {'n': 2})]):
    refused(model, [*others, (mine('WithKeys'), {'count': False})], says=(
        "task other: its instance has no 'count', which the environment 'swap' needs; it has values, mine"))


class NoExample(Sort):
  name = 'without'

  def __init__(self, given: str):
    super().__init__(2)
    self.label, self._given = 'without', given

  def example(self, seed, split, index):
    if self._given == 'error':
      raise ZeroDivisionError('here')
    return {'none': None, 'numbers': Example(1, 'Sort.', {}), 'list': Example('Think.', 'Sort.', [1])}[self._given]


@pytest.mark.parametrize('given, says', [
    ('error', 'task without: .*test_experiment.py, line .*: ZeroDivisionError: here'),
    ('none', r'task without: example.. gives None; give a tasks.base.Example'),
    ('numbers', r'task without: example.. gives system=1; give a text'),
    ('list', r'task without: example.. gives Example.*; give a tasks.base.Example'),
])
def test_a_task_without_examples(model, given, says):
  refused(model, [(mine('NoExample'), {'given': given})], says=says)


def test_one_label_twice(model):
  refused(model, [('sort', {'n': 2}), ('sort', {'n': 2})], says='task sort2: listed twice in one stage; list it once')


def test_an_environment_named_twice(model):
  refused(model, [(mine('Twice'), {'n': 2})], says="it names the environment 'compare' twice; name it once")


def test_two_environments_of_one_name(model):
  refused(model, [('sort', {'n': 2})], [(mine('Weighing'), {'n': 2})], says=(
      r"environment 'compare': earl_jax.environments.compare.Compare and .*test_experiment.Weigh both have this name; "
      'rename one of the two'))


def refused(model, *stages, says):
  with pytest.raises(UserError, match=says) as error:
    prepared(model, *stages)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('options, says', [
    ({'user': ' A' * 99}, 'config.rollout.prompt_length=88: a prompt of later2 has 1.. tokens; choose at least that'),
    ({'key': 'mine'}, "task later2: instance key 'mine' is nothing in its first example and float64.. in another"),
    ({'error': True}, 'task later2: .*test_experiment.py, line .*: ZeroDivisionError: here'),
])
def test_a_later_stage_is_looked_at_before_the_first(model, options, says):
  experiment = prepared(model, [('sort', {'n': 2})], [(mine('Later'), options)])
  with pytest.raises(UserError, match=says) as error:
    check_problems(experiment)
  assert '\n' not in str(error.value)


def test_demonstrations_of_a_later_stage(model):
  """Counted without the model: what is said, ` swap A and B => B, A` with its line's end, the end of the sequence."""
  said, call = ' the order asked for is B, A\n', (' swap', ' A', ' and', ' B', ' => B, A\n')
  needed = sum(len(core.encode(text)) for text in (said, *call)) + 1
  curriculum = (stage(('sort', {'n': 2}, 1.0)), stage(('order', {'n': 2}, 1.0), steps=3, imitate=True))
  for length, fits in ((needed - 1, False), (needed, True)):
    config = tiny.parsed(model, curriculum=curriculum, **{'rollout.response_length': length})
    experiment = prepare(config, model, core.one_device())
    if fits:
      check_problems(experiment)
    else:
      with pytest.raises(UserError, match=f'={length}: a demonstration of order2 does not fit, it has {needed} tokens'):
        check_problems(experiment)


def test_more_slots_than_the_model_has_positions(model, monkeypatch):
  config = tiny.parsed(model, **{'rollout.response_length': 32_713})
  with pytest.raises(UserError, match=r'prompt_length \+ response_length = 32769, but the model was made for 32768'):
    prepare(config, model, core.one_device())


def test_options_are_held_to_their_annotations():
  class Fussy(Order):
    def __init__(self, n: Annotated[int, Range(2, 4)], way: Literal['up', 'down'] = 'up', path: str = ''):
      super().__init__(n)
      self.share = 1 / len(path)

  for options, says in (
      ({'n': 5}, 'n=5: choose a whole number from 2 to 4'), ({'n': True}, 'n=True: expected a whole number'),
      ({'n': 2, 'way': []}, r'way=\[\]: choose one of up, down'), ({'n': 2, 'path': 3}, 'path=3: expected a text'),
      ({'n': 2}, 'cannot be made: .*test_experiment.py, line .*ZeroDivisionError'),
  ):
    with pytest.raises(UserError, match=says) as error:
      make_task(Fussy, **options)
    assert '\n' not in str(error.value)
  assert make_task(Fussy, n=3, path='ab').share == 0.5
