"""Look things up in a table that the policy cannot see, through an environment that is a dictionary.

  python -m earl_jax.train --config=path/to/examples/lookup.py --workdir=runs/lookup

A run ends when all is solved: 40 steps of 256 rollouts, two minutes on one CPU core. Greedily it then answers 100 %
(98.5 - 100) of 256 held-out tables with the fewest lookups possible: 2.64, 2.42 and 2.55 in seeds 0, 1 and 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax import config as config_lib
from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec
from earl_jax.environments.base import Environment, Observation, observation_table
from earl_jax.tasks import base, expressions

NAMES = 'ABCDEFGH'
CONTENTS = NAMES + '123456789'  # what an entry may say: the name of another one, or a number


class Table(NamedTuple):
  """What the entries say, int32[8] into CONTENTS; bool[8], which were seen; int32[], how often the policy looked."""

  entries: jax.Array
  seen: jax.Array
  lookups: jax.Array


class Dictionary(Environment):
  """` look at A: D`: what one entry says."""

  spec = EnvironmentSpec('dictionary', ActionSpec(' look at'), tuple(ActionSpec(f' {name}') for name in NAMES))
  state_type = Table

  def __init__(self, encode: Encode):
    self._tokens, self._lengths = map(jnp.asarray, observation_table(encode, [f': {x}\n' for x in CONTENTS]))
    self.max_observation = self._tokens.shape[1]

  def reset(self, instance: dict[str, jax.Array]) -> Table:
    return Table(instance['entries'], jnp.zeros(len(NAMES), bool), jnp.int32(0))

  def valid_actions(self, state: Table) -> jax.Array:
    return jnp.ones(len(NAMES), bool)

  def step(self, state: Table, action: jax.Array) -> tuple[Observation, Table, jax.Array]:
    content, seen = state.entries[action], state.seen.at[action].set(True)
    after = Table(state.entries, seen, state.lookups + 1)
    return Observation(self._tokens[content], self._lengths[content]), after, jnp.bool_(True)


class FindEntry(base.Task):
  """Follow a trail of one to four entries, each of which names the next, and give the number where it ends."""

  name = label = 'lookup'
  environments = (Dictionary,)
  reads_text = True
  columns = (base.Column('lookups', '{:.2f}'), base.Column('spare', '{:.2f}'))
  cost = 'lookups'

  def example(self, seed: int, split: str, index: int) -> base.Example:
    rng = base.random_generator(seed, split, index)
    while True:
      entries = rng.integers(len(CONTENTS), size=len(NAMES), dtype=np.int32)
      trail = rng.permutation(len(NAMES))[:rng.integers(1, 5)]
      entries[trail] = [*trail[1:], rng.integers(len(NAMES), len(CONTENTS))]
      if base.split_of(f'{trail[0]} {entries.tolist()}') == split:
        instance = {'entries': entries, 'trail': np.isin(np.arange(len(NAMES)), trail), 'last': np.int32(trail[-1])}
        return base.Example(base.SYSTEM, f'Give the number of {NAMES[trail[0]]} after ####.', instance)

  def outcome(self, instance: base.Instance, states: dict, text: str, finished: bool) -> base.Outcome:
    exact = bool(finished) and expressions.last_answer(text) == CONTENTS[instance['entries'][instance['last']]]
    lookups, fewest = float(states['Table'].lookups), float(instance['trail'].sum())
    seen = float(states['Table'].seen[instance['trail']].mean())
    # A guess, before the whole trail was seen, is worth no more than the share that was: at most a quarter.
    reward = (1 + fewest / lookups) / 2 if exact and seen == 1 else finished * seen / 4
    return base.Outcome(reward, exact, {'lookups': lookups, 'spare': lookups - fewest})

  def references(self, examples: list[base.Example]) -> dict[str, dict[str, float]]:
    return {'optimal': {'lookups': float(np.mean([example.instance['trail'].sum() for example in examples]))}}


def get_config():
  """The words of the base model are of no use here: nothing keeps them (kl = 0), and the rate can be higher.

  With less entropy and fewer rewrites, one seed of two went on answering after a single lookup.
  """
  config = config_lib.embedded_config()
  config.curriculum = (config_lib.stage(('lookup:FindEntry', {}, 1.0)),)
  config.steps, config.stop_at_solved, config.evaluate_every = 150, True, 10
  config.algorithm.update(kl=0.0, entropy=0.03, rewrite_fraction=0.5)
  config.optimizer.learning_rate = 1e-3
  config.rollout.update(prompt_length=40, response_length=64)
  return config
