"""One batch of experience: problems of the stage, rollouts, rewards, counterfactual rewrites, advantages."""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from earl_jax.acting import counterfactual
from earl_jax.acting.counterfactual import Interventions
from earl_jax.acting.rollout import Replay
from earl_jax.acting.trajectory import Trajectory
from earl_jax.config import UserError
from earl_jax.devices import processes, sharding
from earl_jax.learning.advantages import counterfactual_advantages, group_advantages
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.experiment import Experiment
from earl_jax.tasks.base import Example, Task


class Experience(NamedTuple):
  """What a step learns from.

  Attributes:
    trajectory: [B, T, …], rewritten where CPO did so.
    advantages: float32[B].
    interventions: the CPO averages afterwards.
    exact: mean exact match per task label, of the factual rollouts.
    metrics: scalars to log.
    factual: the trajectories before any rewrite, for samples.
  """

  trajectory: Trajectory
  advantages: np.ndarray
  interventions: Interventions
  exact: dict[str, float]
  metrics: dict[str, float]
  factual: Trajectory


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@functools.partial(jax.jit, donate_argnums=0)
def _replace_rows(trajectory: Trajectory, rows: jax.Array, new: Trajectory) -> Trajectory:
  """Rows `rows` of a trajectory become those of `new`; rows beyond the end are dropped."""
  return jax.tree.map(lambda old, x: old.at[rows].set(x, mode='drop'), trajectory, new)


@functools.partial(jax.jit, static_argnums=2)
def take_rows(tree: Any, rows: jax.Array, shard: NamedSharding) -> Any:
  """Rows `rows` of every leaf, placed as `shard` says."""
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x[rows], shard), tree)


@functools.partial(jax.jit, static_argnums=1)
def _join(parts: list[Any], shard: NamedSharding) -> Any:
  """Trees of rows, one after the other."""
  return jax.tree.map(lambda *x: jax.lax.with_sharding_constraint(jnp.concatenate(x), shard), *parts)


class Examples(Sequence):
  """Examples made when they are first asked for: of several processes each makes those it needs."""

  def __init__(self, make: Callable[[int], Example], count: int):
    self._make, self._count = functools.cache(make), count

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    return self._make(int(index))


def draw(experiment: Experiment, stage: int, step: int) -> tuple[list[Task], Examples]:
  """The problems of a step: pure in (config, stage, step)."""
  config = experiment.config
  tasks, shares = zip(*experiment.stages[stage])
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 1, step])))
  picks = rng.choice(len(tasks), config.rollout.prompts, p=np.array(shares) / sum(shares))
  first = step * config.rollout.prompts
  chosen = [tasks[i] for i in picks]
  return chosen, Examples(lambda i: chosen[i].example(config.seed, 'train', first + i), len(chosen))


class Rewrites(NamedTuple):
  """The counterfactual half of a batch. Arrays on the host.

  Attributes:
    environment: 0-based, the one intervened on.
    trajectory: [B, T, …]: the counterfactual episode where `replaced`, elsewhere the factual one.
    rewritten: bool[B], rows that were continued anew.
    replaced: bool[B], those of them that take the factual row's place.
    rewards: float32[B], of the counterfactual episodes; 0 elsewhere.
    tokens: decoded for them.
  """

  environment: int
  trajectory: Trajectory
  rewritten: np.ndarray
  replaced: np.ndarray
  rewards: np.ndarray
  tokens: int


def rewrite(
    experiment: Experiment, run, prompts, tasks: list[Task], examples: Examples, factual: Trajectory,
    rewards: np.ndarray, interventions: Interventions, step: int, key: jax.Array,
) -> Rewrites:
  """Continues chosen rollouts from a forced routing action (method.md, section 3, CPO steps 1 to 4).

  Args:
    run: rollout of (prompts, row ids, key, replay).
    tasks, examples: one of each per prompt.
    rewards: float32[G, n] of the factual rollouts.
    key: of the positions and the continuations.
  """
  config, (count, group) = experiment.config, rewards.shape
  batch = count * group
  position_key, rollout_key = jax.random.split(key)
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([config.seed, 2, step])))
  offered = experiment.offered(tasks)
  environment = int(rng.choice(len(interventions.gains), p=interventions.probabilities(offered.any(axis=0))))
  rewritten = counterfactual.choose_rewrites(rewards, config.algorithm.fraction, offered[:, environment], rng)
  rows = np.flatnonzero(rewritten)
  new_rewards, replaced = np.zeros(batch, np.float32), np.zeros(batch, bool)
  route = experiment.interface.route(environment)
  shard = sharding.by_row(experiment.mesh)
  prompt_length = config.rollout.prompt_length
  trajectory, tokens = factual, 0
  for first in range(0, len(rows), config.rollout.chunk):
    # The last chunk is filled up with a row that is there already, and the filling dropped.
    chunk = np.full(config.rollout.chunk, rows[first], np.int32)
    real = rows[first : first + config.rollout.chunk]
    chunk[: len(real)] = real
    old = take_rows(factual, chunk, shard)
    slots = counterfactual.choose_positions(
        position_key, old.route_scores[..., environment], chunk, prompt_length=prompt_length
    )
    replay = counterfactual.force(counterfactual.recorded(old.actions, slots), route)
    new = run(take_rows(prompts, chunk // group, shard), chunk, rollout_key, replay)
    results = experiment.outcomes(tasks, examples, new, real // group)
    new_rewards[real] = [o.reward for o in results]
    gained = new_rewards[real] > rewards.reshape(-1)[real]
    replaced[real] = gained if config.algorithm.only_gains else True
    target = np.full(len(chunk), batch, np.int32)  # rows beyond the end are dropped
    target[: len(real)] = np.where(replaced[real], real, batch)
    trajectory = _replace_rows(_copy(trajectory) if first == 0 else trajectory, target, new)
    kept = int(processes.whole(slots)[: len(real)].sum()) - prompt_length * len(real)
    tokens += sum(int(o.metrics['response_length']) for o in results) - kept
  return Rewrites(environment, trajectory, rewritten.reshape(-1), replaced, new_rewards, tokens)


def demonstrate(experiment: Experiment, run, prompts, tasks: list[Task], step: int) -> Trajectory:
  """[B, T, …]: what the tasks' solvers would do, a different demonstration in every row of a group.

  Args:
    run: as in `rewrite`.
    tasks: one per prompt.

  Raises:
    UserError: a task has no solver, or a demonstration does not fit into config.rollout.response_length.
  """
  config, length = experiment.config, experiment.config.rollout.response_length
  group, first = config.rollout.group, step * config.rollout.prompts
  encode = functools.partial(tokenizer_lib.encode, experiment.tokenizer)
  scripts = np.zeros((len(tasks) * group, length), np.int32)
  lengths = np.zeros(len(scripts), np.int32)
  shard, chunk, parts = sharding.by_row(experiment.mesh), config.rollout.chunk, []
  for at in range(0, len(scripts), chunk):
    for row in at + processes.held_rows(shard, chunk):
      i, variant = divmod(row, group)
      demonstration = tasks[i].demonstration(config.seed, 'train', first + i, variant)
      ids = [*experiment.interface.script(demonstration, encode), experiment.tokenizer.eos_token_id]
      if len(ids) <= length:
        scripts[row, : len(ids)] = ids
      lengths[row] = len(ids)
    rows = np.arange(at, at + chunk)
    replay = processes.place(Replay(scripts[rows], lengths[rows]), shard)
    parts.append(run(take_rows(prompts, rows // group, shard), rows, jax.random.key(0), replay))
  trajectory = _join(parts, shard)
  cut = np.flatnonzero(~processes.whole(trajectory.finished))
  if len(cut):
    raise UserError(
        f'config.rollout.response_length={length}: a demonstration of {tasks[cut[0] // group].label} does not fit; '
        'choose more'
    )
  return trajectory


def collect(experiment: Experiment, params, stage: int, step: int, interventions: Interventions) -> Experience:
  """Rolls out, scores and, under CPO, rewrites one batch; or demonstrates one, if the stage says so.

  All randomness comes from (config.seed, step).
  """
  config = experiment.config
  imitate = config.curriculum[stage].imitate
  group = config.rollout.group
  rollout_key, rewrite_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))

  tasks, examples = draw(experiment, stage, step)
  prompts = experiment.encode_prompts(tasks, examples)
  batch = len(tasks) * group
  run = functools.partial(experiment.rollout, params, temperature=config.rollout.temperature)
  if imitate:
    factual = trajectory = demonstrate(experiment, run, prompts, tasks, step)
  else:
    factual = trajectory = run(prompts, np.arange(batch), rollout_key, group=group)
  outcomes = experiment.outcomes(tasks, examples, factual, np.arange(batch) // group)
  rewards = np.array([o.reward for o in outcomes], np.float32).reshape(-1, group)
  advantages = np.asarray(group_advantages(rewards, config.algorithm.advantage)).reshape(-1)

  metrics = {
      'reward': float(rewards.mean()),
      'zero_reward_groups': float(np.mean(np.all(rewards == 0, axis=1))),
      'unfinished': 1 - float(processes.whole(factual.finished).mean()),
      'tokens': float(sum(o.metrics['response_length'] for o in outcomes)),
  }
  exact = _mean_by([task.label for task in tasks for _ in range(group)], [o.exact for o in outcomes])
  metrics['exact'] = float(np.mean([o.exact for o in outcomes]))
  metrics |= {f'exact/{label}': value for label, value in exact.items()}
  names = sorted({name for o in outcomes for name in o.metrics})
  metrics |= {name: float(np.mean([o.metrics[name] for o in outcomes if name in o.metrics])) for name in names}

  if config.algorithm.counterfactual and not imitate:
    new = rewrite(experiment, run, prompts, tasks, examples, factual, rewards, interventions, step, rewrite_key)
    trajectory, flat = new.trajectory, rewards.reshape(-1)
    advantages = np.asarray(counterfactual_advantages(advantages, flat, new.rewards, new.replaced))
    gains = (new.rewards - flat)[new.rewritten]
    interventions = interventions.updated(new.environment, gains)
    metrics['tokens'] += new.tokens
    metrics |= {
        'counterfactual/rewritten': float(new.rewritten.mean()),
        'counterfactual/replaced': float(new.replaced.mean()),
        'counterfactual/gain': float(gains.mean()) if len(gains) else 0.0,
        'counterfactual/reward': float(new.rewards[new.rewritten].mean()) if len(gains) else 0.0,
    }
    for name, gain in zip((e.spec.name for e in experiment.interface.environments), interventions.gains):
      metrics[f'counterfactual/average_gain/{name}'] = float(gain)
  return Experience(trajectory, advantages, interventions, exact, metrics, factual)


def _mean_by(labels: list[str], values: list[bool]) -> dict[str, float]:
  sums: dict[str, list[bool]] = {}
  for label, value in zip(labels, values):
    sums.setdefault(label, []).append(value)
  return {label: float(np.mean(x)) for label, x in sorted(sums.items())}
