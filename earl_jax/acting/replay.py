"""Decisions that are given, not chosen: to be taken before the policy is free, or carried out without it."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from earl_jax.acting import batched
from earl_jax.acting.masked import where_rows
from earl_jax.action_space import LANGUAGE
from earl_jax.interfaces.expanded import ExpandedInterface, States


class Replay(NamedTuple):
  """Decisions to take before the policy is free.

  Attributes:
    actions: int32[B, K], one decision after the other.
    length: int32[B], how many of them.
  """

  actions: jax.Array
  length: jax.Array


def recorded(actions: jax.Array, slots: jax.Array) -> Replay:
  """The replay of the decisions recorded before slots int32[B]; actions int32[B, T] as in a Trajectory."""
  chex.assert_rank([actions, slots], [2, 1])
  wanted = (actions >= 0) & (jnp.arange(actions.shape[1]) < slots[:, None])
  order = jnp.argsort(~wanted, axis=1, stable=True)
  return Replay(jnp.take_along_axis(actions, order, axis=1), wanted.sum(axis=1, dtype=jnp.int32))


def force(replay: Replay, route: list[int]) -> Replay:
  """The replay with the decisions of `route` at its end."""
  place = jnp.arange(replay.actions.shape[1]) - replay.length[:, None]
  inside = (place >= 0) & (place < len(route))
  forced = jnp.asarray(route, jnp.int32)[jnp.clip(place, 0, len(route) - 1)]
  return Replay(jnp.where(inside, forced, replay.actions), replay.length + len(route))


def carry_out(
    interface: ExpandedInterface, states: States, offered: jax.Array, replay: Replay, was: States
) -> States:
  """The hidden states [B, …] after the decisions of `replay`, which begin in language. No model is asked.

  Args:
    was: final states of the episodes that are repeated, see `batched.reset`.
  """

  def decide(i, carry):
    environment, states = carry
    action, deciding = replay.actions[:, i], i < replay.length
    effect = batched.act(interface, deciding, environment, states, offered=offered, action=action, was=was)
    return where_rows(deciding, (effect.environment, effect.states), carry)

  environment = jnp.full(len(replay.length), LANGUAGE, jnp.int32)
  return jax.lax.fori_loop(0, jnp.max(replay.length), decide, (environment, states))[1]
