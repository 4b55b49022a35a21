"""The reference policy of the KL term: the policy as it was when it was first left to itself."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from earl_jax.acting import policy
from earl_jax.acting.trajectory import Trajectory
from earl_jax.action_space import ActionSpace
from earl_jax.config import UserError
from earl_jax.learning import update
from earl_jax.model.transformer import ModelConfig
from earl_jax.run import checkpoint


def keep(params: policy.Params, shardings: Any, on_host: bool) -> policy.Params:
  """A copy of the parameters, on the devices or, to leave them that room, in the memory of their hosts.

  Args:
    shardings: of the parameters.
  """
  if on_host:
    return jax.device_put(params, jax.tree.map(lambda sharding: sharding.with_memory_kind('pinned_host'), shardings))
  return jax.jit(lambda params: jax.tree.map(jnp.copy, params), out_shardings=shardings)(params)


def save(workdir: str | pathlib.Path, step: int, params: policy.Params) -> None:
  """Keeps what an imitation of `step` steps led to: from there on it is the reference."""
  with checkpoint.Checkpointer(workdir, 'imitated', keep=1) as checkpointer:
    checkpointer.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params))
    checkpointer.save(step, params, {})  # does nothing if a run that was killed then had come as far


def restore(workdir: str | pathlib.Path, abstract: policy.Params) -> policy.Params:
  """What `save` kept; `abstract` as in `Checkpointer.restore`.

  Raises:
    UserError: it is not there or cannot be read.
  """
  with checkpoint.Checkpointer(workdir, 'imitated', keep=1) as checkpointer:
    found = checkpointer.restore(abstract)
  if found is None:
    raise UserError(f'{workdir}/imitated: the reference policy of this run is missing; restore it or begin anew')
  return found[1]


@functools.partial(jax.jit, static_argnames=('model', 'space', 'micro_batch', 'prompt_length', 'shared', 'temperature'))
def log_probs(
    reference: policy.Params, trajectory: Trajectory, *, model: ModelConfig, space: ActionSpace, micro_batch: int,
    prompt_length: int, shared: int = 1, temperature: float = 1.0,
) -> jax.Array:
  """float32[B, T]: log-probabilities of the reference policy over V alone, `micro_batch` rows at a time."""
  slots = trajectory.slots

  def score(rows):
    scores = update.score(
        reference, model, space, rows, prompt_length=prompt_length, shared=shared, temperature=temperature
    )
    return jnp.pad(scores.vocabulary_log_probs, [(0, 0), (0, slots - rows.slots)])

  # With blocks of `shared` rows, micro-batch i holds blocks i, i + N/m, …: every device scores rows that it has.
  split = lambda x: x.reshape(micro_batch // shared, -1, shared, *x.shape[1:]).swapaxes(0, 1)  # noqa: E731
  merge = lambda x: x.reshape(x.shape[0], micro_batch, *x.shape[3:])  # noqa: E731
  scores = jax.lax.map(
      lambda rows: update.at_width(score, rows, rows, prompt_length),
      jax.tree.map(lambda x: merge(split(x)), trajectory),
  )
  scores = scores.reshape(-1, micro_batch // shared, shared, slots).swapaxes(0, 1)
  return scores.reshape(trajectory.tokens.shape)
