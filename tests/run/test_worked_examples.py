"""Solved problems before a problem: what prompts show, and that it is what a solver does."""

import pytest

from earl_jax.config import stage, UserError
from earl_jax.run import worked_examples as worked_examples_lib
from earl_jax.run.preparation import prepare
from earl_jax.tasks.base import Call, Task
from earl_jax.tasks.calculation import Countdown
from tests import core_fixtures as core
from tests.run import tiny

TURN = '<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n'
COUNTDOWN = ('countdown', {'numbers': 2, 'digits': 1})


class Unsolved(Countdown):
  """Has no solver."""

  name = 'unsolved'

  def __init__(self):
    super().__init__(2, 1)
    self.label = 'unsolved'

  demonstration = Task.demonstration


class Silent(Countdown):
  """Calls in every third solution alone, if at all."""

  name = 'silent'

  def __init__(self, calls=True):
    super().__init__(2, 1)
    self.label, self._calls = 'silent', calls

  def demonstration(self, seed, split, index, variant):
    steps = super().demonstration(seed, split, index, variant)
    return steps if self._calls and index % 3 == 2 else steps[-1:]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


def prepared(model, *tasks, shown=2, **changes):
  config = tiny.parsed(model, curriculum=(stage(*((*task, 1.0) for task in tasks)),), **{
      'rollout.prompt_length': 512, 'worked_examples': shown, **changes,
  })
  return prepare(config, model, core.one_device())


def asked(experiment, task, index=3):
  """Its prompt, and the message that it ends with."""
  example = task.example(0, 'test', index)
  return experiment.tokenizer.decode(experiment.prompt(task, example)), example.user


@pytest.mark.parametrize('interface, answer', [
    ('expanded', ' calculate {call} = {value}\n#### {call}'),
    ('tagged', ' <calculator> {call} </calculator> <result> {value} </result>#### {call}'),
])
def test_prompts_begin_with_solved_problems(model, interface, answer):
  experiment = prepared(model, COUNTDOWN, interface=interface)
  [task] = experiment.tasks
  turns = []
  for index in range(2):
    problem = task.example(0, 'train', index)
    solution = task.demonstration(0, 'train', index, 0)[-1].removeprefix('#### ')
    value = problem.instance['answer'].tobytes().decode().rstrip('\0')
    turns.append(TURN.format(
        problem.user, task.assistant_start + answer.format(call=solution, value=value)
    ))
  whole, user = asked(experiment, task)
  ends = f'<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{task.assistant_start}'
  assert whole.endswith(''.join(turns) + ends) and whole.count('<|im_start|>') == 2 * 2 + 3
  another, its_user = asked(experiment, task, 4)
  assert another == whole.replace(user, its_user)


def test_told_in_the_system_message(model):
  experiment = prepared(model, COUNTDOWN, worked_examples_in='system')
  [task] = experiment.tasks
  whole, user = asked(experiment, task)
  answers = []
  for index, call in enumerate(('2 - 1', '1 / 1')):
    asks, begins = task.example(0, 'train', index).user, task.assistant_start
    answers.append(f'For example, to "{asks}" you answer: {begins} calculate {call} = 1\n#### {call}')
  assert f'{task.example(0, "train", 0).system} {" ".join(answers)}<|im_end|>' in whole
  assert whole.count('<|im_start|>') == 3 and f'<|im_start|>user\n{user}<|im_end|>' in whole


def test_none_are_shown_by_default(model):
  experiment = prepared(model, COUNTDOWN, shown=0)
  assert asked(experiment, experiment.tasks[0])[0].count('<|im_start|>') == 3


def test_every_task_has_its_own(model):
  experiment = prepared(model, COUNTDOWN, ('sort', {'n': 2}), shown=1)
  for task, other in (experiment.tasks, experiment.tasks[::-1]):
    whole, _ = asked(experiment, task)
    assert task.example(0, 'train', 0).user in whole and other.example(0, 'train', 0).user not in whole


@pytest.mark.parametrize('calls, indices', [(True, [2, 5, 8]), (False, [99, 199, 299])])
def test_those_that_call_are_chosen(model, calls, indices):
  experiment = prepared(model, (f'{__name__}:Silent', {'calls': calls}), shown=3)
  [task] = experiment.tasks
  turns = worked_examples_lib.worked_examples(
      task, experiment.config, experiment.first_examples, experiment.interface, experiment.tokenizer
  )
  assert [said for said, _ in turns] == [task.example(0, 'train', index).user for index in indices]
  assert [' calculate ' in answered for _, answered in turns] == [calls] * 3


def test_none_is_shown_twice_where_there_are_others(model):
  experiment = prepared(model, ('sort', {'n': 2, 'direction': 'ascending'}), ('sort', {'n': 3}), shown=4)
  for task, different in zip(experiment.tasks, (2, 4)):
    whole, _ = asked(experiment, task)
    answers = whole.split('<|im_start|>assistant\n')[1:-1]
    assert len(answers) == 4 and len(set(answers[:different])) == different


def test_a_task_without_an_environment(model):
  experiment = prepared(model, ('count', {'digits': 2}), COUNTDOWN, shown=1)
  task = experiment.tasks[0]
  steps = task.demonstration(0, 'train', 0, 0)
  assert not any(isinstance(step, Call) for step in steps)
  whole, _ = asked(experiment, task)
  assert TURN.format(task.example(0, 'train', 0).user, task.assistant_start + ''.join(steps)) in whole


def test_what_cannot_be_shown(model):
  with pytest.raises(UserError, match='task unsolved: no demonstrations; .* choose config.worked_examples=0') as error:
    experiment = prepared(model, (f'{__name__}:Unsolved', {}))
    asked(experiment, experiment.tasks[0])
  assert '\n' not in str(error.value)
  experiment = prepared(model, COUNTDOWN, **{'rollout.prompt_length': 64})
  with pytest.raises(UserError, match='config.rollout.prompt_length=64: a prompt of countdown2-1digits has [0-9]+'):
    experiment.encode_prompts([experiment.tasks[0]] * 4, [experiment.tasks[0].example(0, 'test', 0)] * 4)
