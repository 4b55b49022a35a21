"""How often the expanded actions are taken at first: often enough to be found.

A row of the expanded head begins as that of a token.

- Inside an environment, where a tokenizer hardly ever writes that token, its action is never explored: many merge a
  blank and `(` into one token, and the calculator writes ` / ` before the operand, so that SmolLM2 opens a parenthesis
  once in ten million times. Yet it does so a hundred times as often where one belongs as elsewhere, so that an offset
  of the logit is enough (`config.action_floor`).
- In language, a routing action begins as likely as that token, which is text and stays text: a model that is about to
  call an environment says so in words every second time, and may get used to that (`config.route_lead`).
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


class Moments(NamedTuple):
  """Sums over decisions.

  Attributes:
    count: float32[].
    hidden: float32[D], of the final hidden states h.
    squares: float32[D, D], of h hᵀ.
  """

  count: jax.Array
  hidden: jax.Array
  squares: jax.Array


class Seen(NamedTuple):
  """Sums over the decisions of episodes.

  Attributes:
    language, inside: those in language, and those between several actions inside environments.
    legal: float32[E], of the latter, those where an expanded action was legal.
    taken: float32[E], its probability there.
  """

  language: Moments
  inside: Moments
  legal: jax.Array
  taken: jax.Array


def lifted(experiment: Experiment, params: policy.Params) -> tuple[policy.Params, dict[str, float]]:
  """The policy with `config.action_floor` as the rate of every action of an environment that was rarer, and with
  routing actions that are `config.route_lead` times as likely as they were.

  The policy plays: an environment is entered right after the prompt, and all else is its own choice. Of an action,
  the rate is its mean probability p over those decisions inside environments where it and others are legal. Where p is
  below the floor, log(floor / p) v is added to its row. v is the least-squares solution of h · v = 1 over these
  decisions, so that the action's logits all rise by about the same. To the row of a routing action log(lead) u is
  added, where u is the same over the decisions in language.

  Returns:
    the parameters, and what the action's descriptions are -> the rate it had, of those that were rarer.
  """
  config, space = experiment.config, experiment.interface.space
  if not space.num_environments:
    return params, {}
  seen = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *(
      _play(experiment, params, environment) for environment in range(space.num_environments)
  ))
  rates = seen.taken / np.maximum(seen.legal, 1)
  rare = (seen.legal > 0) & (rates < config.action_floor)
  known = np.maximum(rates, np.finfo(np.float32).tiny)  # what is rarer has underflowed
  floors = np.log(config.action_floor / known, where=rare, out=np.zeros_like(rates))
  leads = np.where(np.arange(len(rates)) < space.num_environments, np.log(config.route_lead), 0)
  offsets = np.outer(floors, _raising(seen.inside)) + np.outer(leads, _raising(seen.language))
  head = params['expanded_head']
  offset = jax.device_put((config.rollout.temperature * offsets).astype(np.float32), head.sharding)
  named = {space.actions[i].description: float(rates[i]) for i in np.flatnonzero(rare)}
  return params | {'expanded_head': head + offset}, named


def _raising(moments: Moments) -> np.ndarray:
  """What, added to a row of the head, raises the action's logit by about 1 at all of these decisions: float64[D]."""
  squares, mean = moments.squares / max(moments.count, 1), moments.hidden / max(moments.count, 1)
  features = len(mean)
  return np.linalg.solve(squares + RIDGE * max(np.trace(squares), 1e-9) / features * np.eye(features), mean)


def report(rare: dict[str, float]) -> str:
  """What `lifted` has done, in a line."""
  names = ', '.join(f'{description!r} ({rate:.1e})' for description, rate in rare.items())
  return f'rarer before, and lifted to that: {names}' if rare else 'no action is rarer'


def _play(experiment: Experiment, params: policy.Params, environment: int) -> Seen:
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
def _look(params: policy.Params, trajectory: Trajectory, *, scoring: Scoring) -> Seen:
  alone = dataclasses.replace(scoring, rows_per_prompt=1)
  hidden = previous_hidden(params, trajectory, alone).astype(jnp.float32)
  probabilities = jnp.exp(options(params, None, trajectory, scoring=alone).expanded_log_probs)
  response = slice(scoring.prompt_length, None)
  legal = trajectory.legal[:, response]
  chosen = trajectory.actions[:, response] >= 0
  language = trajectory.language[:, response]
  # what is forced says nothing of a rate
  inside = chosen & ~language & (jnp.sum(legal, axis=-1) > 1)
  legal &= inside[..., None]
  return Seen(
      language=_moments(hidden, chosen & language),
      inside=_moments(hidden, inside),
      legal=jnp.sum(legal, axis=(0, 1), dtype=jnp.float32),
      taken=jnp.sum(jnp.where(legal, probabilities, 0), axis=(0, 1)),
  )


def _moments(hidden: jax.Array, where: jax.Array) -> Moments:
  """Of float32[B, S, D] at bool[B, S]."""
  hidden = jnp.where(where[..., None], hidden, 0)
  return Moments(
      jnp.sum(where, dtype=jnp.float32), jnp.sum(hidden, axis=(0, 1)), jnp.einsum('bsd,bse->de', hidden, hidden)
  )
