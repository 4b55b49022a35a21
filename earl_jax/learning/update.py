"""The update: state, loss over decisions, and one jitted step over a whole rollout batch."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from earl_jax.acting import policy
from earl_jax.acting.masked import masked_sum
from earl_jax.acting.rollout import previous_hidden
from earl_jax.acting.trajectory import Trajectory
from earl_jax.action_space import ActionSpace
from earl_jax.config import AlgorithmConfig, OptimizerConfig
from earl_jax.devices.sharding import by_row, tree_shardings
from earl_jax.learning import losses
from earl_jax.model.transformer import ModelConfig


class TrainState(NamedTuple):
  """What an update changes. `step` int32[] counts optimizer steps."""

  step: jax.Array
  params: policy.Params
  opt_state: Any


class Batch(NamedTuple):
  """A rollout batch ready for the update.

  Attributes:
    trajectory: [B, T, …].
    advantages: float32[B].
    reference_log_probs: float32[B, T], of the reference policy over V alone; zeros where there is no KL term.
    imitate: bool[B], the row is a demonstration: it is made likelier whatever its advantage.
  """

  trajectory: Trajectory
  advantages: jax.Array
  reference_log_probs: jax.Array
  imitate: jax.Array

  def cut(self, slots: int) -> 'Batch':
    """The first `slots` slots."""
    reference = self.reference_log_probs[:, :slots]
    return self._replace(trajectory=self.trajectory.cut(slots), reference_log_probs=reference)


def make_optimizer(config: OptimizerConfig, total: int) -> optax.GradientTransformation:
  """AdamW after global-norm clipping; `total` optimizer steps in the whole run."""
  warm, decay = config.warmup, int(total * config.decay)
  rate = optax.join_schedules(
      [
          optax.linear_schedule(0.0 if warm else config.learning_rate, config.learning_rate, max(warm, 1)),
          optax.constant_schedule(config.learning_rate),
          optax.linear_schedule(config.learning_rate, 0.0, max(decay, 1)),
      ],
      [warm, max(total - decay, warm)],
  )
  return optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay),
  )


def init_state(params: policy.Params, optimizer: optax.GradientTransformation) -> TrainState:
  return TrainState(jnp.int32(0), params, optimizer.init(params))


def half_width(slots: int, prompt_length: int) -> int:
  """Slots of a prompt and half of its response."""
  return prompt_length + -(-(slots - prompt_length) // 2)


def at_width(f: Callable[[Any], Any], rows: Any, trajectory: Trajectory, prompt_length: int) -> Any:
  """`f` of rows cut after half of the response, if that holds all that was decoded, or of whole rows.

  Two widths, not more: each is another copy of the model to compile, forwards and backwards.

  Args:
    f: gives values of the same shapes at both widths.
    rows: a Trajectory or a Batch.
    trajectory: `rows`, or that of the batch.
  """
  half = half_width(trajectory.slots, prompt_length)
  return jax.lax.cond(jnp.max(trajectory.end) <= half, lambda rows: f(rows.cut(half)), f, rows)


def score(
    params: policy.Params, model: ModelConfig, space: ActionSpace, trajectory: Trajectory, *, prompt_length: int,
    shared: int = 1, temperature: float = 1.0,
) -> policy.Scores:
  """The policy's scores of recorded decisions, from one forward pass.

  Arguments as in `rollout.previous_hidden` and, the temperature, `policy.distribution`.
  """
  hidden = previous_hidden(model, params, trajectory, prompt_length=prompt_length, shared=shared)
  response = (x[:, prompt_length:] for x in (trajectory.actions, trajectory.language, trajectory.legal))
  scores = policy.score_decisions(params, space, hidden, *response, temperature)
  return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (prompt_length, 0)]), scores)  # nothing is decided in a prompt


def loss_and_metrics(
    params, batch: Batch, total, *, model: ModelConfig, space: ActionSpace, config: AlgorithmConfig, prompt_length: int,
    shared: int = 1, temperature: float = 1.0,
):
  """Sum over the rows' decisions, divided by `total`, the decisions of the whole mini-batch.

    clipped surrogate  +  kl * k3(language decisions)  -  entropy * H

  In rows to imitate, cross-entropy takes the place of all three. The gradients of micro-batches add up to that of the
  mini-batch, however it is split.
  """
  trajectory = batch.trajectory
  scores = score(
      params, model, space, trajectory, prompt_length=prompt_length, shared=shared, temperature=temperature
  )
  decisions = trajectory.decisions
  log_ratio = jnp.where(decisions, scores.log_probs - trajectory.log_probs, 0.0)
  surrogate = losses.clipped_surrogate(
      log_ratio, batch.advantages[:, None], config.clip_low, config.clip_high, config.dual_clip
  )
  surrogate = jnp.where(batch.imitate[:, None], -scores.log_probs, surrogate)
  free = decisions & ~batch.imitate[:, None]
  tokens = free & (trajectory.actions < space.vocab_size)
  kl = losses.kl_k3(scores.vocabulary_log_probs, batch.reference_log_probs)
  mean = lambda x, mask: masked_sum(x, mask) / total  # noqa: E731
  loss = mean(surrogate, decisions)
  metrics = {
      'entropy': mean(scores.entropy, decisions),
      'clip_fraction': mean(jnp.abs(jnp.expm1(log_ratio)) > config.clip_low, decisions),
      'approx_kl': mean(jnp.expm1(log_ratio) - log_ratio, decisions),
  }
  if config.kl:
    metrics['kl'] = mean(kl, tokens)
    loss += config.kl * metrics['kl']
  loss -= config.entropy * mean(scores.entropy, free)
  return loss, {'loss': loss} | metrics


@functools.partial(
    jax.jit,
    static_argnames=('optimizer', 'model', 'space', 'config', 'mesh', 'prompt_length', 'shared', 'temperature'),
    donate_argnames='state',
)
def update_step(
    state: TrainState,
    batch: Batch,
    order: jax.Array,
    counts: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    model: ModelConfig,
    space: ActionSpace,
    config: AlgorithmConfig,
    mesh: Mesh,
    prompt_length: int,
    shared: int = 1,
    temperature: float = 1.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One pass over a rollout batch in `mini_batches` optimizer steps, each gathered from micro-batches.

  State and batch lie on `mesh` as `sharding.tree_shardings` and `sharding.by_row` say, and the new state does again.

  Args:
    order: int32[mini_batches, micro-batches, rows]: which rows go where. Every `shared` of them, side by side, have
      the same prompt, and it is read once for them.
    counts: int32[mini_batches]: how many micro-batches of each are worked through. The others still count in the
      average: leaving out rows with advantage 0 leaves the surrogate's gradient as it is.

  Returns:
    the new state (its buffers are those of the old one) and metrics averaged over the optimizer steps.
  """
  settings = dict(
      model=model, space=space, config=config, prompt_length=prompt_length, shared=shared, temperature=temperature
  )
  loss = functools.partial(loss_and_metrics, **settings)
  grad = jax.grad(loss, has_aux=True)

  def mini_batch(state: TrainState, inputs):
    order, count = inputs
    total = jnp.maximum(jnp.sum(batch.trajectory.decisions[order.reshape(-1)]), 1)

    def micro_batch(i, sums):
      rows = jax.tree.map(lambda x: x[order[i]], batch)
      grads = at_width(lambda rows: grad(state.params, rows, total), rows, rows.trajectory, prompt_length)
      return jax.tree.map(jnp.add, sums, grads)

    _, metrics = jax.eval_shape(loss, state.params, jax.tree.map(lambda x: x[order[0]], batch), total)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (state.params, metrics))
    grads, metrics = jax.lax.fori_loop(0, count, micro_batch, zeros)
    metrics['gradient_norm'] = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

  shardings = tree_shardings(mesh, state)
  batch = jax.lax.with_sharding_constraint(batch, by_row(mesh))
  state, metrics = jax.lax.scan(mini_batch, jax.lax.with_sharding_constraint(state, shardings), (order, counts))
  state = jax.lax.with_sharding_constraint(state, shardings)
  return state, jax.tree.map(jnp.mean, metrics)
