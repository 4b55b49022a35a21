"""The update: state, loss over decisions, and one jitted step over a whole rollout batch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from earl_jax.acting import policy
from earl_jax.acting.prompts import ReadPrompts
from earl_jax.acting.scoring import read, score, Scoring
from earl_jax.config import AlgorithmConfig, Config
from earl_jax.devices.sharding import added_up, by_row, constrain, in_layers, placed, tree_shardings
from earl_jax.learning import losses
from earl_jax.learning.batches import at_width, Batch, Split


class TrainState(NamedTuple):
  """What an update changes.

  Attributes:
    step: int32[], counts optimizer steps.
    params: those that are trained; see `policy.split`.
    opt_state: the optimizer's.
  """

  step: jax.Array
  params: policy.Params
  opt_state: Any


def make_optimizer(config: Config) -> optax.GradientTransformation:
  """AdamW after global-norm clipping, with the schedule that `OptimizerConfig` describes over the whole run."""
  optimizer, total = config.optimizer, config.steps * config.algorithm.mini_batches
  warm = optimizer.warmup
  decay = min(int(total * optimizer.decay), max(total - warm, 0))  # it ends at 0, however long the warm-up
  rate = optax.join_schedules(
      [
          optax.linear_schedule(0.0, optimizer.learning_rate, warm),
          optax.constant_schedule(optimizer.learning_rate),
          optax.linear_schedule(optimizer.learning_rate, 0.0, decay),
      ],
      [warm, max(total - decay, warm)],
  )
  return optax.chain(
      optax.clip_by_global_norm(optimizer.clip_norm),
      optax.adamw(rate, b1=optimizer.b1, b2=optimizer.b2, weight_decay=optimizer.weight_decay),
  )


def init_state(params: policy.Params, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first update."""
  return TrainState(jnp.int32(0), params, optimizer.init(params))


def abstract_state(params: policy.Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """Shapes and shardings of the state of a policy; its `params` may be shapes too."""
  trained, _ = policy.split(params)
  return placed(mesh, jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained))


def loss_and_metrics(
    params: policy.Params, batch: Batch, total: jax.Array, prompts: ReadPrompts | None = None, *, scoring: Scoring,
    config: AlgorithmConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sum over the rows' decisions, divided by `total`, the decisions of the whole mini-batch.

    clipped surrogate  +  kl * k3(language decisions)  -  entropy * H

  In rows to imitate, cross-entropy takes the place of all three. The gradients of micro-batches add up to that of the
  mini-batch, however it is split.

  Args:
    prompts: those of the batch, if they have been read: see `scoring.read`.
  """
  trajectory = batch.trajectory
  scores = score(params, trajectory, scoring, prompts)
  decisions = trajectory.decisions
  log_ratio = losses.bounded(jnp.where(decisions, scores.log_probs - trajectory.log_probs, 0.0))
  surrogate = losses.clipped_surrogate(
      log_ratio, batch.advantages[:, None], config.clip_low, config.clip_high, config.dual_clip
  )
  surrogate = jnp.where(batch.imitate[:, None], -scores.log_probs, surrogate)
  free = decisions & ~batch.imitate[:, None]
  tokens = free & (trajectory.actions < scoring.space.vocab_size)
  kl = losses.kl_k3(scores.vocabulary_log_probs, batch.reference_log_probs)

  ratio = jnp.exp(log_ratio)

  def mean(x, mask):
    return jnp.sum(x, where=mask) / total  # what is outside may be anything, NaN included

  loss = mean(surrogate, decisions)
  metrics = {
      'entropy': mean(scores.entropy, decisions),
      'clip_fraction': mean((ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high), decisions),
      'approx_kl': mean(jnp.expm1(log_ratio) - log_ratio, decisions),
  }
  if config.kl:
    metrics['kl'] = mean(kl, tokens)
    loss += config.kl * metrics['kl']
  loss -= config.entropy * mean(scores.entropy, free)
  return loss, {'loss': loss} | metrics


@functools.partial(jax.jit, static_argnames=('optimizer', 'scoring', 'config'), donate_argnames='state')
def update_step(
    state: TrainState,
    batch: Batch,
    split: Split,
    frozen: policy.Params | None = None,
    *,
    optimizer: optax.GradientTransformation,
    scoring: Scoring,
    config: AlgorithmConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One pass over a rollout batch in `mini_batches` optimizer steps, each gathered from micro-batches.

  State and batch lie on the mesh of `jax.set_mesh` as `sharding.tree_shardings` and `sharding.by_row` say, and the new
  state does again.

  Args:
    frozen: parameters that are not trained, if any; see `policy.split`.

  Returns:
    the new state (its buffers are those of the old one) and metrics averaged over the optimizer steps. A step whose
    loss or gradient is not finite is not applied: the state stays what it was. 'broken_updates' counts these, and one
    more if the new parameters are not finite.
  """
  frozen = frozen or {}

  # Said here once more, since to find them out is to trace the model once more; a sum of others fails.
  names = ('loss', 'entropy', 'clip_fraction', 'approx_kl', *(('kl',) if config.kl else ()))

  def gradients(params, rows: Batch):
    """Of rows [rows of a micro-batch, micro-batches, …], and metrics: sums over as many micro-batches as are told."""
    params, frozen, total, count = params

    def loss(params: policy.Params, prompts: ReadPrompts, batch: Batch):
      return loss_and_metrics(frozen | params, batch, total, prompts, scoring=scoring, config=config)

    grad = jax.grad(loss, (0, 1), has_aux=True)

    def micro_batch(i, sums):
      batch = jax.tree.map(lambda x: x[:, i], rows)
      # Prompts are as long at every width: read outside, forwards and backwards, they are compiled once.
      prompts, back = jax.vjp(lambda params: read(frozen | params, batch.trajectory, scoring), params)
      (grads, of_prompts), metrics = at_width(
          lambda batch: grad(params, prompts, batch), batch, batch.trajectory, scoring.prompt_length
      )
      sums = jax.tree.map(jnp.add, sums, (grads, metrics))  # into float32
      return jax.tree.map(jnp.add, sums[0], *back(of_prompts)), sums[1]

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params), dict.fromkeys(names, jnp.float32(0))
    return jax.lax.fori_loop(0, count, micro_batch, zeros)

  def mini_batch(state: TrainState, split: Split):
    rows = jax.tree.map(lambda x: constrain(x[split.rows.T], 'rows'), batch)
    total = jnp.maximum(jnp.sum(rows.trajectory.decisions), 1)
    params = in_layers(state.params, scoring.model.dtype)
    grads, metrics = added_up(gradients, (params, frozen, total, split.counts), rows)
    metrics['gradient_norm'] = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
    sound = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
    return jax.tree.map(functools.partial(jnp.where, sound), new, state), (metrics, ~sound)

  mesh = jax.sharding.get_abstract_mesh()
  shardings = tree_shardings(mesh, state)
  batch = jax.lax.with_sharding_constraint(batch, by_row(mesh))
  state, (metrics, broken) = jax.lax.scan(mini_batch, jax.lax.with_sharding_constraint(state, shardings), split)
  state = jax.lax.with_sharding_constraint(state, shardings)
  finite = jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state.params)])
  return state, jax.tree.map(jnp.mean, metrics) | {'broken_updates': jnp.sum(broken) + ~jnp.all(finite)}
