"""Every task in the package keeps to the contract, and the check finds what does not."""

import numpy as np
import pytest

from earl_jax.tasks import base
from earl_jax.tasks.base import Column, Example, make_task, Outcome, Task
from earl_jax.testing import check_task

TASKS = [
    ('sort', {'n': 2}), ('sort', {'n': 5}), ('sort', {'n': 7}), ('order', {'n': 2}), ('order', {'n': 3}),
    ('compare', {'n': 3}),
    ('arithmetic', {'digits': 2, 'operators': 2, 'test_operators': 2}), ('countdown', {'numbers': 3, 'digits': 1}),
    ('count', {'digits': 5}),
]


@pytest.mark.parametrize('name, options', TASKS)
def test_it_keeps_to_the_contract(name, options):
  check_task(make_task(name, **options))


def test_gsm8k_keeps_to_it(gsm8k_dir):
  check_task(make_task('gsm8k', path=str(gsm8k_dir)), examples=20)


# Their prompts do not tell what has to be found out; their splits are by what is hidden (see the classes).
HIDDEN = ('sort', 'compare')


def check_prompts(task, examples=500):
  """No text of a prompt is in two splits, unless every problem is in both and evaluation takes them all."""
  train, test = ({task.example(seed, split, index).user for seed in (0, 1) for index in range(examples)}
                 for split in ('train', 'test'))
  assert task.problems() is not None or not train & test


@pytest.mark.parametrize('name, options', [
    *((name, options) for name, options in TASKS if name not in HIDDEN),
    ('order', {'n': 5}), ('countdown', {'numbers': 2, 'digits': 1}), ('count', {'digits': 2}),
    ('arithmetic', {'digits': 1, 'operators': 1, 'test_operators': 1}),
])
def test_no_prompt_is_in_two_splits(name, options):
  check_prompts(make_task(name, **options))


def test_no_prompt_of_gsm8k_is_in_two_splits(gsm8k_dir):
  check_prompts(make_task('gsm8k', path=str(gsm8k_dir)), examples=50)


class Echo(Task):
  """The number in the question, after ####. Keeps to the contract."""

  name = label = 'echo'
  environments = ()
  reads_text = True

  def example(self, seed, split, index):
    rng = base.random_generator(seed, split, index)
    while True:
      number = int(rng.integers(10_000))
      if base.split_of(str(number)) == split:
        return Example('', f'Repeat {number} after ####.', {'number': np.int32(number)})

  def demonstration(self, seed, split, index, variant):
    return [f'#### {int(self.example(seed, split, index).instance["number"])}']

  def outcome(self, instance, states, text, finished):
    exact = finished and text.rpartition('####')[2].strip() == str(instance['number'])
    return Outcome(float(exact), exact, {})


def test_another_persons_task_passes():
  check_task(Echo())


class Leaky(Echo):

  def example(self, seed, split, index):
    return Example('', f'Repeat {index} after ####.', {'number': np.int32(index)})


class Moody(Echo):
  draws = 0

  def example(self, seed, split, index):
    Moody.draws += 1
    return super().example(seed + Moody.draws, split, index)


class Ragged(Echo):

  def example(self, seed, split, index):
    example = super().example(seed, split, index)
    return example._replace(instance={'number': np.zeros(1 + index % 2, np.int32)})


class Unsolved(Echo):

  def demonstration(self, seed, split, index, variant):
    return ['#### 7 or so']


class Fragile(Echo):

  def outcome(self, instance, states, text, finished):
    int(text.rpartition('####')[2] or 0)
    return super().outcome(instance, states, text, finished)


class Evaluating(Echo):

  def outcome(self, instance, states, text, finished):
    return Outcome(float('nan'), False, {})


class Generous(Echo):

  def outcome(self, instance, states, text, finished):
    return Outcome(1.0, True, {})


class Missing(Echo):
  columns = (Column('effort', '{}'),)


class Repeating(Echo):

  def problems(self):
    return [self.example(0, 'test', 0)] * 2


@pytest.mark.parametrize('task, error, what', [
    (Leaky, AssertionError, 'in both splits'), (Moody, AssertionError, 'not pure'),
    (Ragged, AssertionError, 'differ in'), (Unsolved, AssertionError, 'not solved'),
    (Fragile, ValueError, 'invalid literal'), (Evaluating, AssertionError, 'not a finite'),
    (Generous, AssertionError, 'unfinished'), (Missing, AssertionError, 'no metric'),
    (Repeating, AssertionError, 'repeats itself'),
])
def test_what_does_not_keep_to_it_is_found(task, error, what):
  with pytest.raises(error, match=what):
    check_task(task())
