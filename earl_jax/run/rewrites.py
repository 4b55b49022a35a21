"""The counterfactual half of a batch (docs/method.md, section 3, CPO steps 1 to 4)."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from earl_jax.acting import counterfactual, policy
from earl_jax.acting.counterfactual import Interventions
from earl_jax.acting.masked import where_rows
from earl_jax.acting.rollout import Fork, Memory, resume
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices import processes, rows, sharding
from earl_jax.run.experiment import Experiment
from earl_jax.run.problems import Problems

__all__ = ['Choice', 'choose', 'Factual', 'rewrite', 'Rewrites']

_choose = jax.jit(where_rows)


class Choice(NamedTuple):
  """What is rewritten.

  Attributes:
    environment: 0-based, the one intervened on.
    rows: int[…], the rollouts that are continued anew.
  """

  environment: int
  rows: np.ndarray


class Rewrites(NamedTuple):
  """What became of it; trajectories on the devices, the rest on the host.

  Attributes:
    choice: what was rewritten.
    slots: int32[B], where a rewritten row leaves the factual one.
    continued: [B, T, …]: the counterfactual episode in all rows of `choice`, elsewhere the factual one.
    trajectory: [B, T, …]: the counterfactual episode where `replaced`, elsewhere the factual one.
    replaced: bool[B], rewritten rows that take the factual row's place.
    rewards: float32[B], of the counterfactual episodes; 0 elsewhere.
    tokens: decoded for them.
  """

  choice: Choice
  slots: np.ndarray
  continued: Trajectory
  trajectory: Trajectory
  replaced: np.ndarray
  rewards: np.ndarray
  tokens: int


class Factual(NamedTuple):
  """What has happened: trajectory [B, T, …], its keys and values, and rewards float32[B] on the host."""

  trajectory: Trajectory
  memory: Memory
  rewards: np.ndarray


def choose(
    experiment: Experiment, problems: Problems, rewards: np.ndarray, interventions: Interventions, step: int
) -> Choice:
  """Which environment to intervene on, and in which rollouts (CPO step 1).

  Args:
    rewards: float32[G, n], of the factual rollouts.
  """
  config = experiment.config
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 2, step])))
  offered = experiment.offered(problems.tasks)
  environment = int(rng.choice(len(interventions.gains), p=interventions.probabilities(offered.any(axis=0))))
  chosen = counterfactual.choose_rewrites(
      rewards, config.algorithm.rewrite_fraction, offered[:, environment], rng
  )
  return Choice(environment, np.flatnonzero(chosen))


def chunks(rows: np.ndarray, batch: int, size: int, shards: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Rows of a batch, `size` at a time, each beside where it lies: keys and values never change their device.

  Args:
    rows: int[…], ascending.
    shards: into which rows are shared out, those of the batch as those of a chunk.

  Yields:
    int32[size] and bool[size], what counts: where a shard has fewer rows it is filled up with its first one.
  """
  each, per_shard = size // shards, batch // shards
  own = [rows[rows // per_shard == shard] for shard in range(shards)]
  for first in range(0, max(map(len, own)), each):
    chunk = np.repeat(np.arange(shards, dtype=np.int32) * per_shard, each).reshape(shards, each)
    real = np.zeros((shards, each), bool)
    for shard, found in enumerate(part[first : first + each] for part in own):
      chunk[shard, : len(found)], real[shard, : len(found)] = found, True
    yield chunk.reshape(-1), real.reshape(-1)


def rewrite(
    experiment: Experiment, params: policy.Params, problems: Problems, factual: Factual, choice: Choice, key: jax.Array
) -> Rewrites:
  """Continues the chosen rollouts from a forced routing action (CPO steps 2 to 4), `rollout.chunk` rows at a time.

  Args:
    key: of the positions and the continuations.
  """
  config, continued = experiment.config, factual.trajectory
  batch, size, group = len(factual.rewards), config.rollout.chunk, config.rollout.group
  new_rewards, replaced, tokens = np.zeros(batch, np.float32), np.zeros(batch, bool), 0
  position_key, rollout_key = jax.random.split(key)
  slots = processes.whole(counterfactual.choose_positions(
      position_key, continued.route_scores[..., choice.environment], np.arange(batch),
      prompt_length=config.rollout.prompt_length,
      route_length=experiment.interface.space.description_lengths[choice.environment],
  ))
  routes = [experiment.interface.route(k) for k in range(experiment.interface.space.num_environments)]
  length = len(routes[choice.environment])
  route = np.zeros(max(map(len, routes)), np.int32)  # one shape, or the decode loop would be compiled again
  route[:length] = routes[choice.environment]
  decoding = experiment.decoding()
  for i, (chunk, real) in enumerate(chunks(choice.rows, batch, size, sharding.row_shards(experiment.mesh))):
    own = processes.place((chunk, slots[chunk], real), experiment.rows)
    fork = Fork(own[0], own[1], route, np.int32(length), own[2])
    with jax.set_mesh(experiment.mesh):
      new = resume(params, factual[:2], problems.prompts, fork, rollout_key, decoding=decoding)
    outcomes = experiment.outcomes(problems.tasks, problems.examples, new, np.where(real, chunk // group, -1))
    chosen = chunk[real]
    new_rewards[chosen] = [outcome.reward for outcome in outcomes]
    replaced[chosen] = (new_rewards[chosen] > factual.rewards[chosen]) | (not config.algorithm.only_gains)
    target = processes.place(np.where(real, chunk, batch), experiment.rows)  # rows beyond the end are dropped
    with jax.set_mesh(experiment.mesh):
      continued = rows.replace(rows.copy(continued) if i == 0 else continued, target, new)
    tokens += sum(int(outcome.metrics['response_length']) for outcome in outcomes)
    tokens -= int(np.sum(slots[chosen] - config.rollout.prompt_length))
  trajectory = continued
  if not replaced[choice.rows].all():
    trajectory = _choose(processes.place(replaced, experiment.rows), continued, factual.trajectory)
  return Rewrites(
      choice=choice, slots=slots, continued=continued, trajectory=trajectory, replaced=replaced, rewards=new_rewards,
      tokens=tokens,
  )
