"""The counterfactual half of a batch (docs/method.md, section 3, CPO steps 1 to 4)."""

from typing import NamedTuple

import jax
import numpy as np

from earl_jax.acting import counterfactual, policy
from earl_jax.acting.counterfactual import Interventions
from earl_jax.acting.masked import where_rows
from earl_jax.acting.rollout import Fork, Memory, resume
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices import processes
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


def rewrite(
    experiment: Experiment, params: policy.Params, problems: Problems, factual: Factual, choice: Choice, key: jax.Array
) -> Rewrites:
  """Continues the chosen rollouts from a forced routing action (CPO steps 2 to 4).

  Args:
    key: of the positions and the continuations.
  """
  config, environment = experiment.config, choice.environment
  batch, group = len(factual.rewards), config.rollout.group
  position_key, rollout_key = jax.random.split(key)
  slots = processes.whole(counterfactual.choose_positions(
      position_key, factual.trajectory.route_scores[..., environment], np.arange(batch),
      prompt_length=config.rollout.prompt_length,
      route_length=experiment.interface.space.description_lengths[environment],
  ))
  rewritten = np.isin(np.arange(batch), choice.rows)
  continued, outcomes = factual.trajectory, []
  if len(choice.rows):
    routes = [experiment.interface.route(k) for k in range(experiment.interface.space.num_environments)]
    route = np.zeros(max(map(len, routes)), np.int32)  # one shape, or the decode loop would be compiled again
    route[: len(routes[environment])] = routes[environment]
    fork = Fork(*processes.place((rewritten, slots), experiment.rows), route, np.int32(len(routes[environment])))
    with jax.set_mesh(experiment.mesh):
      continued = resume(
          params, factual[:2], problems.prompts, fork, rollout_key, decoding=experiment.decoding()
      )
    outcomes = experiment.outcomes(
        problems.tasks, problems.examples, continued, np.where(rewritten, np.arange(batch) // group, -1)
    )
  rewards = np.zeros(batch, np.float32)
  rewards[choice.rows] = [outcome.reward for outcome in outcomes]
  replaced = rewritten & ((rewards > factual.rewards) | (not config.algorithm.only_gains))
  tokens = sum(int(outcome.metrics['response_length']) for outcome in outcomes)
  tokens -= int(np.sum(slots[choice.rows] - config.rollout.prompt_length))
  trajectory = continued
  if not replaced[choice.rows].all():
    trajectory = _choose(processes.place(replaced, experiment.rows), continued, factual.trajectory)
  return Rewrites(
      choice=choice, slots=slots, continued=continued, trajectory=trajectory, replaced=replaced, rewards=rewards,
      tokens=tokens,
  )
