"""Find a number by asking whether it is larger than others: does the policy discover bisection?

  python -m earl_jax.train --config=path/to/examples/bisection.py --workdir=runs/bisection

200 steps of 256 rollouts, four to five minutes on one CPU core. Greedily it then finds 98.0 % (95.5 - 99.2) and 100 %
(98.5 - 100) of 256 held-out numbers in seeds 0 and 1, with 2.95 and 2.45 questions; bisection takes 1.91 and 1.98:
it narrows the range by the answers, though not always by halves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax import config as config_lib
from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec
from earl_jax.environments.base import Environment, Observation, observation_table
from earl_jax.tasks import base
from earl_jax.tasks.calculation import in_words

WORDS, WIDEST = [f' {in_words(number)}' for number in range(1, 17)], 8  # a number is given by its index here
ANSWERS = [': False,', ': True,', ': False\n', ': True\n']


class Search(NamedTuple):
  """All int32[]: the hidden number, what the answers leave of its range, and how many questions were asked."""

  number: jax.Array
  low: jax.Array
  high: jax.Array
  questions: jax.Array


class Question(Environment):
  """` ask if larger than five: True, nine: False, …` until one number is left; about any number, known or not."""

  spec = EnvironmentSpec('question', ActionSpec(' ask if larger than'), tuple(map(ActionSpec, WORDS)))
  state_type = Search

  def __init__(self, encode: Encode):
    self._tokens, self._lengths = map(jnp.asarray, observation_table(encode, ANSWERS))
    self.max_observation = self._tokens.shape[1]

  def reset(self, instance: dict[str, jax.Array]) -> Search:
    return Search(*(jnp.asarray(instance[key]) for key in ('number', 'low', 'high')), jnp.int32(0))

  def valid_actions(self, state: Search) -> jax.Array:
    return jnp.ones(len(WORDS), bool)

  def step(self, state: Search, action: jax.Array) -> tuple[Observation, Search, jax.Array]:
    larger = state.number > action
    low = jnp.where(larger, jnp.maximum(state.low, action + 1), state.low)
    high = jnp.where(larger, state.high, jnp.minimum(state.high, action))
    row, after = larger + 2 * (low == high), Search(state.number, low, high, state.questions + 1)
    return Observation(self._tokens[row], self._lengths[row]), after, low == high


class FindNumber(base.Task):
  """Ask until only one number of the range that the prompt tells is left."""

  name = label = 'bisection'
  environments = (Question,)
  columns = (base.Column('questions', '{:.2f}'),)
  cost = 'questions'

  def example(self, seed: int, split: str, index: int) -> base.Example:
    rng = base.random_generator(seed, split, index)
    while True:
      low, high = np.sort(rng.choice(len(WORDS), 2, replace=False)).astype(np.int32)
      instance = {'number': rng.integers(low, high + 1, dtype=np.int32), 'low': low, 'high': high}
      if high - low < WIDEST and base.split_of(' '.join(map(str, instance.values()))) == split:
        return base.Example(base.SYSTEM, f'The number is from{WORDS[low]} to{WORDS[high]}. Find it.', instance)

  def outcome(self, instance: base.Instance, states: dict, text: str, finished: bool) -> base.Outcome:
    search, fewest = states['Search'], optimum(instance)
    exact, questions = bool(finished and search.low == search.high), float(search.questions)
    return base.Outcome(exact * (1 + fewest / max(fewest, questions)) / 2, exact, {'questions': questions})

  def references(self, examples: list[base.Example]) -> dict[str, dict[str, float]]:
    return {'optimal': {'questions': float(np.mean([optimum(example.instance) for example in examples]))}}


def optimum(instance: base.Instance) -> float:
  """The mean number of questions that bisection takes on this range; no strategy takes fewer."""
  width = int(instance['high'] - instance['low']) + 1
  return width.bit_length() + 1 - 2 ** width.bit_length() / width  # the mean depth of a balanced tree's leaves


def get_config():
  """The words of the base model are of no use here: nothing keeps them (kl = 0), and the rate can be higher."""
  config = config_lib.embedded_config()
  config.curriculum = (config_lib.stage(('bisection:FindNumber', {}, 1.0)),)
  config.steps, config.optimizer.learning_rate = 200, 1e-3
  config.algorithm.update(kl=0.0, entropy=0.03)
  config.rollout.update(prompt_length=48, response_length=64)
  return config
