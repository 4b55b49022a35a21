"""Walk on a small grid: start and target stand in the prompt, and what a move does has to be found out.

  python -m earl_jax.train --config=path/to/examples/grid.py --workdir=runs/grid

200 steps of 256 rollouts, four minutes on one CPU core, seed 0: greedily it reaches 100 % (98.5 - 100) of 256 held-out
targets in 3.38 steps, the fewest possible.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax import config as config_lib
from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec
from earl_jax.environments.base import Environment, Observation, observation_table
from earl_jax.tasks import base

SIZE = 5
NAMES = [f' {row}{column}' for row in 'ABCDE' for column in '12345']
# ` up` and ` down` are several tokens, of which the first is the same.
MOVES = {
    ActionSpec(' left'): (0, -1), ActionSpec(' right'): (0, 1), ActionSpec(' up', init_token=1): (-1, 0),
    ActionSpec(' down', init_token=1): (1, 0),
}


class Walk(NamedTuple):
  """Where one is and where to go, row and column, int32[2] each; int32[], how many steps were taken."""

  place: jax.Array
  goal: jax.Array
  steps: jax.Array


class Grid(Environment):
  """` move left B3 up A3 …` until one is there: steps, and where each led; the edge leaves one where one is."""

  spec = EnvironmentSpec('grid', ActionSpec(' move'), tuple(MOVES))
  state_type = Walk

  def __init__(self, encode: Encode):
    table = observation_table(encode, [*NAMES, *(f'{name}\n' for name in NAMES)])
    self._tokens, self._lengths = map(jnp.asarray, table)
    self.max_observation = self._tokens.shape[1]

  def reset(self, instance: dict[str, jax.Array]) -> Walk:
    return Walk(jnp.asarray(instance['start']), jnp.asarray(instance['goal']), jnp.int32(0))

  def valid_actions(self, state: Walk) -> jax.Array:
    return jnp.ones(len(MOVES), bool)

  def step(self, state: Walk, action: jax.Array) -> tuple[Observation, Walk, jax.Array]:
    place = jnp.clip(state.place + jnp.array([*MOVES.values()], jnp.int32)[action], 0, SIZE - 1)
    there = (place == state.goal).all()
    row = place[0] * SIZE + place[1] + there * len(NAMES)
    return Observation(self._tokens[row], self._lengths[row]), Walk(place, state.goal, state.steps + 1), there


class Reach(base.Task):
  """From one place to another."""

  name = label = 'grid'
  environments = (Grid,)
  columns = (base.Column('steps', '{:.2f}'),)
  cost = 'steps'

  def example(self, seed: int, split: str, index: int) -> base.Example:
    rng = base.random_generator(seed, split, index)
    while True:
      start, goal = rng.integers(SIZE, size=(2, 2), dtype=np.int32)
      user = f'It stands at{NAMES[start @ (SIZE, 1)]}. The target is{NAMES[goal @ (SIZE, 1)]}.'
      if base.split_of(user) == split and np.any(start != goal):
        return base.Example(base.SYSTEM, user, {'start': start, 'goal': goal})

  def outcome(self, instance: base.Instance, states: dict, text: str, finished: bool) -> base.Outcome:
    walk, fewest = states['Walk'], int(np.abs(instance['goal'] - instance['start']).sum())
    exact, steps = bool(finished and np.all(walk.place == walk.goal)), float(walk.steps)
    return base.Outcome(exact * (1 + fewest / max(fewest, steps)) / 2, exact, {'steps': steps})

  def references(self, examples: list[base.Example]) -> dict[str, dict[str, float]]:
    ways = [np.abs(example.instance['goal'] - example.instance['start']).sum() for example in examples]
    return {'optimal': {'steps': float(np.mean(ways))}}


def get_config():
  """The words of the base model are of no use here: nothing keeps them (kl = 0), and the rate can be higher."""
  config = config_lib.embedded_config()
  config.curriculum = (config_lib.stage(('grid:Reach', {}, 1.0)),)
  config.steps, config.algorithm.kl, config.optimizer.learning_rate = 200, 0.0, 1e-3
  config.rollout.update(prompt_length=40, response_length=64)
  return config
