"""Actions that the base model would never take inside an environment, at a rate at which they can be found.

A row of the expanded head begins as that of a token. Where a tokenizer hardly ever writes that token, its action is
never explored: many merge a blank and `(` into one token, and the calculator writes ` / ` before the operand, so that
SmolLM2 opens a parenthesis once in ten million times. Yet it does so a hundred times as often where one belongs as
elsewhere, so that an offset of the logit is enough.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.acting import policy
from earl_jax.acting.options import options
from earl_jax.acting.rollout import Replay
from earl_jax.acting.scoring import previous_hidden, Scoring
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices import processes, rows
from earl_jax.run.experiment import Experiment

__all__ = ['lifted', 'report']

RIDGE = 0.01  # of the mean square of a hidden state's feature


class Inside(NamedTuple):
  """Sums over decisions between several actions inside environments.

  Attributes:
    count: float32[].
    hidden: float32[D], of the final hidden states h.
    squares: float32[D, D], of h hᵀ.
    legal: float32[E], decisions where an expanded action was legal.
    taken: float32[E], its probability there.
  """

  count: jax.Array
  hidden: jax.Array
  squares: jax.Array
  legal: jax.Array
  taken: jax.Array


def lifted(experiment: Experiment, params: policy.Params) -> tuple[policy.Params, dict[str, float]]:
  """The policy with `config.action_floor` as the rate of every action of an environment that was rarer.

  The policy plays: an environment is entered right after the prompt, and all else is its own choice. Of an action,
  the rate is its mean probability p over those decisions inside environments where it and others are legal. Where p is
  below the floor, log(floor / p) v is added to its row. v is the least-squares solution of h · v = 1 over these
  decisions, so that the action's logits all rise by about the same.

  Returns:
    the parameters, and what the action's descriptions are -> the rate it had, of those that were rarer.
  """
  config, space = experiment.config, experiment.interface.space
  if not space.num_environments:
    return params, {}
  inside = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *(
      _play(experiment, params, environment) for environment in range(space.num_environments)
  ))
  rates = inside.taken / np.maximum(inside.legal, 1)
  rare = (inside.legal > 0) & (rates < config.action_floor)
  squares, mean = inside.squares / max(inside.count, 1), inside.hidden / max(inside.count, 1)
  features = len(mean)
  direction = np.linalg.solve(squares + RIDGE * max(np.trace(squares), 1e-9) / features * np.eye(features), mean)
  known = np.maximum(rates, np.finfo(np.float32).tiny)  # what is rarer has underflowed
  offsets = np.log(config.action_floor / np.where(rare, known, config.action_floor)) * config.rollout.temperature
  head = params['expanded_head']
  offset = jax.device_put(np.outer(offsets, direction).astype(np.float32), head.sharding)
  named = {space.actions[i].description: float(rates[i]) for i in np.flatnonzero(rare)}
  return params | {'expanded_head': head + offset}, named


def report(rare: dict[str, float]) -> str:
  """What `lifted` has done, in a line."""
  names = ', '.join(f'{description!r} ({rate:.1e})' for description, rate in rare.items())
  return f'rarer before, and lifted to that: {names}' if rare else 'no action is rarer'


def _play(experiment: Experiment, params: policy.Params, environment: int) -> Inside:
  """What is seen in `rollout.chunk` episodes that begin in an environment, of the first task that offers it."""
  config = experiment.config
  size, group = config.rollout.chunk, config.rollout.group
  task = next(
      task for stage in experiment.stages for task, _ in stage if experiment.offered([task])[0, environment]
  )
  examples = [task.example(config.seed, 'train', index) for index in range(config.rollout.prompts)]
  ids, route = np.arange(size), np.array(experiment.interface.route(environment), np.int32)
  replay = processes.place(Replay(np.tile(route, (size, 1)), np.full(size, len(route), np.int32)), experiment.rows)
  prompts = experiment.encode_prompts([task] * len(examples), examples)
  prompts = rows.take(prompts, ids // group, experiment.rows)
  key = jax.random.fold_in(jax.random.key(config.seed), environment)
  decoding = experiment.decoding()
  trajectory = experiment.rollout(params, prompts, ids, key, replay, decoding=decoding)
  with jax.set_mesh(experiment.mesh):
    return jax.tree.map(processes.whole, _look(params, trajectory, scoring=experiment.scoring))


@functools.partial(jax.jit, static_argnames='scoring')
def _look(params: policy.Params, trajectory: Trajectory, *, scoring: Scoring) -> Inside:
  alone = dataclasses.replace(scoring, rows_per_prompt=1)
  hidden = previous_hidden(params, trajectory, alone).astype(jnp.float32)
  probabilities = jnp.exp(options(params, None, trajectory, scoring=alone).expanded_log_probs)
  response = slice(scoring.prompt_length, None)
  legal = trajectory.legal[:, response]
  # what is forced says nothing of a rate
  inside = (trajectory.actions[:, response] >= 0) & ~trajectory.language[:, response] & (jnp.sum(legal, axis=-1) > 1)
  legal &= inside[..., None]
  hidden = jnp.where(inside[..., None], hidden, 0)
  return Inside(
      count=jnp.sum(inside, dtype=jnp.float32),
      hidden=jnp.sum(hidden, axis=(0, 1)),
      squares=jnp.einsum('bsd,bse->de', hidden, hidden),
      legal=jnp.sum(legal, axis=(0, 1), dtype=jnp.float32),
      taken=jnp.sum(jnp.where(legal, probabilities, 0), axis=(0, 1)),
  )
