"""One batch of experience: rollouts, rewards, counterfactual rewrites, advantages; or demonstrations."""

from typing import NamedTuple

import jax
import numpy as np

from earl_jax.acting import policy
from earl_jax.acting.counterfactual import Interventions
from earl_jax.acting.rollout import Replay
from earl_jax.acting.trajectory import Trajectory
from earl_jax.config import UserError
from earl_jax.devices import processes
from earl_jax.devices import rows as rows_lib
from earl_jax.learning.advantages import counterfactual_advantages, group_advantages
from earl_jax.run.experiment import Experiment
from earl_jax.run.problems import Problems
from earl_jax.run.progress import Progress
from earl_jax.run.rewards import mean_metrics
from earl_jax.run.rewrites import choose, Factual, rewrite, Rewrites
from earl_jax.tasks.base import Outcome, Task

__all__ = ['collect', 'Experience']


class Experience(NamedTuple):
  """What a step learns from.

  Attributes:
    trajectory: [B, T, …], rewritten where CPO did so.
    advantages: float32[B].
    interventions: the CPO averages afterwards.
    exact_match: mean per task label, of the factual rollouts.
    metrics: scalars to log.
    factual: the trajectories before any rewrite, for samples.
    outcomes: of `factual`.
    rewrites: what became of those that were rewritten; None where none could be.
  """

  trajectory: Trajectory
  advantages: np.ndarray
  interventions: Interventions
  exact_match: dict[str, float]
  metrics: dict[str, float]
  factual: Trajectory
  outcomes: list[Outcome]
  rewrites: Rewrites | None = None


def collect(experiment: Experiment, params: policy.Params, problems: Problems, progress: Progress) -> Experience:
  """Rolls out, scores and, under CPO, rewrites one batch; or demonstrates one, if the stage says so.

  All randomness comes from (config.seed, step).
  """
  config, step = experiment.config, progress.step
  imitates = progress.stage_of(config).imitate
  batch = np.arange(config.rollout.prompts * config.rollout.group)
  rollout_key, rewrite_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))

  rewrites = config.algorithm.counterfactual and not imitates and bool(experiment.interface.environments)

  # Episodes.
  decoding, memory = experiment.decoding(config.rollout.group), None
  if imitates:
    factual = demonstrate(experiment, params, problems)
  elif rewrites:
    factual, memory = experiment.remembered_rollout(params, problems.prompts, batch, rollout_key, decoding=decoding)
  else:
    factual = experiment.rollout(params, problems.prompts, batch, rollout_key, decoding=decoding)

  # What they are worth.
  outcomes = experiment.outcomes(problems.tasks, problems.examples, factual, batch // config.rollout.group)
  rewards = np.array([outcome.reward for outcome in outcomes], np.float32)
  by_group = rewards.reshape(-1, config.rollout.group)
  advantages = group_advantages(by_group, config.algorithm.advantage).reshape(-1)
  if imitates:  # demonstrations are learned from whatever they are worth: none is left out for an advantage of 0
    advantages = np.ones_like(advantages)
  exact_match = _exact_match_by_label(problems.tasks, outcomes)
  metrics = _factual_metrics(factual, outcomes, by_group)
  metrics |= {f'exact_match/{label}': value for label, value in exact_match.items()}
  experience = Experience(
      trajectory=factual, advantages=advantages, interventions=progress.interventions, exact_match=exact_match,
      metrics=metrics, factual=factual, outcomes=outcomes,
  )
  if not rewrites:
    return experience

  # What might have been.
  choice = choose(experiment, problems, by_group, progress.interventions, step)
  rewritten = rewrite(experiment, params, problems, Factual(factual, memory, rewards), choice, key=rewrite_key)
  return _with_rewrites(experiment, experience, rewritten, rewards)


def _with_rewrites(
    experiment: Experiment, experience: Experience, rewrites: Rewrites, rewards: np.ndarray
) -> Experience:
  """The experience with counterfactual episodes in the place of factual ones; rewards float32[B] of the latter."""
  rows, environment = rewrites.choice.rows, rewrites.choice.environment
  gains = (rewrites.rewards - rewards)[rows]
  interventions = experience.interventions.updated(environment, gains)
  advantages = counterfactual_advantages(experience.advantages, rewards, rewrites.rewards, rewrites.replaced)
  names = [e.spec.name for e in experiment.interface.environments]
  metrics = experience.metrics | {
      'tokens': experience.metrics['tokens'] + rewrites.tokens,
      'counterfactual/rewritten': len(rows) / len(rewards),
      'counterfactual/replaced': float(rewrites.replaced.mean()),
      'counterfactual/gain': float(gains.mean()) if len(rows) else 0.0,
      'counterfactual/reward': float(rewrites.rewards[rows].mean()) if len(rows) else 0.0,
  } | {f'counterfactual/average_gain/{name}': float(gain) for name, gain in zip(names, interventions.gains)}
  return experience._replace(
      trajectory=rewrites.trajectory, advantages=advantages, interventions=interventions, metrics=metrics,
      rewrites=rewrites,
  )


def demonstrate(experiment: Experiment, params: policy.Params, problems: Problems) -> Trajectory:
  """[B, T, …]: what the tasks' solvers would do, a different demonstration in every row of a group.

  Raises:
    UserError: a task has no solver, or a demonstration does not fit into config.rollout.response_length.
  """
  config, length = experiment.config, experiment.config.rollout.response_length
  group, size, tasks = config.rollout.group, config.rollout.chunk, problems.tasks
  decoding = experiment.decoding()
  parts, lengths_of_all = [], []
  for first in range(0, len(tasks) * group, size):
    rows = np.arange(first, first + size)
    scripts, lengths = _scripts(experiment, problems, rows)
    replay = processes.place(Replay(scripts, lengths), experiment.rows)
    prompts = rows_lib.take(problems.prompts, rows // group, experiment.rows)
    lengths_of_all.append(processes.whole(replay.length))
    parts.append(experiment.rollout(params, prompts, rows, jax.random.key(0), replay, decoding=decoding))
  trajectory = rows_lib.join(parts, experiment.rows)
  too_long = np.concatenate(lengths_of_all) > length
  cut = np.flatnonzero(too_long | ~processes.whole(trajectory.finished))
  if len(cut):
    raise UserError(
        f'config.rollout.response_length={length}: a demonstration of {tasks[cut[0] // group].label} does not fit; '
        'choose more'
    )
  return trajectory


def _scripts(experiment: Experiment, problems: Problems, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(actions int32[rows, response_length], how many int32[rows]) of the demonstrations in some rows of the batch.

  Of several processes each makes those on its devices. One that is too long is left out, but its length says so.
  """
  config = experiment.config
  scripts = np.zeros((len(rows), config.rollout.response_length), np.int32)
  lengths = np.zeros(len(rows), np.int32)
  for place in processes.held_rows(experiment.rows, len(rows)):
    i, variant = divmod(int(rows[place]), config.rollout.group)
    demonstration = problems.tasks[i].demonstration(config.seed, 'train', problems.first + i, variant)
    ids = [*experiment.interface.script(demonstration), experiment.tokenizer.eos_token_id]
    if len(ids) <= scripts.shape[1]:
      scripts[place, : len(ids)] = ids
    lengths[place] = len(ids)
  return scripts, lengths


def _factual_metrics(trajectory: Trajectory, outcomes: list[Outcome], rewards: np.ndarray) -> dict[str, float]:
  """Means over a batch of rollouts; rewards float32[G, n]."""
  return {
      'reward': float(rewards.mean()),
      'zero_reward_groups': float(np.mean(np.all(rewards == 0, axis=1))),
      'unfinished': 1 - float(processes.whole(trajectory.finished).mean()),
      'tokens': float(sum(outcome.metrics['response_length'] for outcome in outcomes)),
      'exact_match': float(np.mean([outcome.exact_match for outcome in outcomes])),
  } | mean_metrics(outcomes)


def _exact_match_by_label(tasks: list[Task], outcomes: list[Outcome]) -> dict[str, float]:
  """Mean exact match of every task; the outcomes of a problem lie side by side."""
  group = len(outcomes) // len(tasks)
  solved: dict[str, list[bool]] = {}
  for row, outcome in enumerate(outcomes):
    solved.setdefault(tasks[row // group].label, []).append(outcome.exact_match)
  return {label: float(np.mean(values)) for label, values in sorted(solved.items())}
