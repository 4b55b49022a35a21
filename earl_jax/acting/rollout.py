"""Episodes from their prompts, and episodes that go on from somewhere in others: each one jitted program."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting import batched, policy
from earl_jax.acting.continuous_batching import decode_in_turn
from earl_jax.acting.decode_loop import begin, blank, decode, Decoding, placed, Policy, Rows
from earl_jax.acting.prompts import Prompts, read_prompts
from earl_jax.acting.replay import carry_out, recorded, Replay
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices.sharding import constrain, gathered, on_own_rows
from earl_jax.model import attention, decoder

__all__ = ['begun', 'Decoding', 'Fork', 'Memory', 'remembered_rollout', 'Replay', 'resume', 'rollout',
           'rollout_in_turn']


class Memory(NamedTuple):
  """Keys and values of a batch of episodes, layer by layer.

  Attributes:
    prompt: of the prompts [G, …].
    cache: of the responses, one slot after the other.
  """

  prompt: tuple[attention.Part, ...]
  cache: decoder.Cache


class Fork(NamedTuple):
  """Where episodes of a batch are left for others.

  Attributes:
    rows: bool[B], those that go on anew.
    slots: int32[B], the slot of the first decision that is another; anything in rows that stay.
    route: int32[K], the decisions that are forced there; K is that of the longest route, whichever is taken.
    route_length: int32[], how many of them.
  """

  rows: jax.Array
  slots: jax.Array
  route: jax.Array
  route_length: jax.Array


@functools.partial(jax.jit, static_argnames='decoding')
def rollout(
    params: policy.Params,
    prompts: Prompts,
    row_ids: jax.Array,
    key: jax.Array,
    replay: Replay | None = None,
    *,
    decoding: Decoding,
) -> Trajectory:
  """Rolls out `decoding.group` episodes of every prompt: B = G * n rows, those of one prompt side by side.

  Args:
    row_ids: int32[B], identity of each row: with `key` it fixes all randomness of the row.
    replay: decisions to take first, or None.
  """
  return _rollout(params, prompts, row_ids, key, replay=replay, decoding=decoding)[0]


@functools.partial(jax.jit, static_argnames='decoding')
def remembered_rollout(
    params: policy.Params, prompts: Prompts, row_ids: jax.Array, key: jax.Array, *, decoding: Decoding
) -> tuple[Trajectory, Memory]:
  """`rollout`, and what `resume` needs to go on from anywhere in it."""
  return _rollout(params, prompts, row_ids, key, replay=None, decoding=decoding)


@functools.partial(jax.jit, static_argnames='decoding')
def rollout_in_turn(
    params: policy.Params, prompts: Prompts, row_ids: jax.Array, wanted: jax.Array, key: jax.Array, *,
    decoding: Decoding,
) -> Trajectory:
  """One episode of every prompt that is wanted, bool[B], `decoding.lanes` at a time: where some end others begin."""
  params = gathered(params, decoding.model.dtype)
  prompts = prompts._replace(offered=prompts.offered & wanted[:, None])
  unplayed, length = begun(prompts, decoding), prompts.tokens.shape[1]
  first, passes = unplayed.end, decoding.slots - length

  def load(params, now, sources):
    prompts, first, uniform, states = sources
    hidden, keys_values = read_prompts(decoding.model, params, prompts.tokens, prompts.start)
    prompt = decoder.parts(keys_values, jnp.arange(length) >= prompts.start[:, None])
    rows = Rows(
        first=first - now, start=prompts.start, uniform=jnp.roll(uniform, now, axis=1), offered=prompts.offered,
        replay=None, before=decoder.Before(prompt, jnp.full_like(first, now)),
    )
    cache = decoder.grow(decoder.init_cache(decoding.model, len(first)), passes)
    return rows, begin(decoding, rows, states, passes, end=first, hidden=hidden, cache=cache)

  sources = prompts, first, _uniform(key, row_ids, first, passes), unplayed.states
  trajectory = decode_in_turn(decoding, load, params, sources, old=unplayed, since=first, wanted=wanted)
  return jax.tree.map(lambda x: constrain(x, 'rows'), trajectory)


@functools.partial(jax.jit, static_argnames='decoding')
def resume(
    params: policy.Params,
    batch: tuple[Trajectory, Memory],
    prompts: Prompts,
    fork: Fork,
    key: jax.Array,
    *,
    decoding: Decoding,
) -> Trajectory:
  """A batch, some of whose episodes have gone on anew from somewhere in them, after a forced route: [B, T, …].

  Nothing that stays is read again: its keys and values are there, and environments carry out its decisions without the
  model.

  Args:
    batch: what `remembered_rollout` gave.
    prompts: of its rows [G, …].
    key: with the number of a row it fixes all its randomness.
  """
  params = gathered(params, decoding.model.dtype)
  old, memory = batch
  count, length = len(old.end), prompts.tokens.shape[1]
  passes = decoding.slots - length + 1
  first = fork.slots - 1  # the last token that stays is fed once more, for what the model makes of it
  offered, instance = jax.tree.map(
      lambda x: jnp.repeat(x, count // len(x), axis=0), (prompts.offered, prompts.instance)
  )
  interface, was = decoding.interface, old.states
  states = batched.reset(interface, instance, offered & fork.rows[:, None], was)
  again = recorded(old.actions[:, length:], jnp.where(fork.rows, fork.slots - length, 0))
  states = carry_out(interface, states, offered, again, was)
  rows = Rows(
      first=first, start=old.start, uniform=_uniform(key, jnp.arange(count), first, passes), offered=offered,
      replay=Replay(jnp.tile(fork.route, (count, 1)), jnp.full(count, fork.route_length)),
      before=decoder.Before(memory.prompt),
  )
  last = jnp.take_along_axis(old.tokens, first[:, None], axis=1)

  def load(_, now, sources):
    rows, states, last, cache = sources
    since = now - jnp.maximum(rows.first - length, 0)  # what stays, as if it had been fed just before
    before = decoder.Before(decoder.hide(rows.before.prompt, rows.first), since)
    pending = jnp.pad(last, [(0, 0), (0, decoding.interface.width - 1)])
    episodes = begin(
        decoding, rows, states, passes, end=rows.first + 1, cache=decoder.turned(cache, since, passes),
        pending=pending, pending_length=jnp.ones_like(rows.first),
    )
    return rows._replace(first=rows.first - now, uniform=jnp.roll(rows.uniform, now, axis=1), before=before), episodes

  sources = rows, states, last, memory.cache
  trajectory = decode_in_turn(decoding, load, params, sources, old=old, since=fork.slots, wanted=fork.rows)
  return jax.tree.map(lambda x: constrain(x, 'rows'), trajectory)


def begun(prompts: Prompts, decoding: Decoding) -> Trajectory:
  """Episodes [B, T, …] of which nothing but the prompt is there: `decoding.group` of every prompt."""
  prompts = jax.tree.map(lambda x: jnp.repeat(x, decoding.group, axis=0), prompts)
  count, length = prompts.tokens.shape
  nothing = blank(decoding, count, decoding.slots)
  nothing['tokens'] = nothing['tokens'].at[:, :length].set(prompts.tokens)
  return Trajectory(
      start=prompts.start, end=jnp.full_like(prompts.start, length), finished=jnp.zeros(count, bool),
      states=batched.reset(decoding.interface, prompts.instance, prompts.offered), **nothing,
  )


def _rollout(params, prompts: Prompts, row_ids, key, *, replay, decoding: Decoding) -> tuple[Trajectory, Memory]:
  params = gathered(params, decoding.model.dtype)
  hidden, keys_values = read_prompts(decoding.model, params, prompts.tokens, prompts.start)
  length = prompts.tokens.shape[1]
  passes = decoding.slots - length
  prompt = decoder.parts(keys_values, jnp.arange(length) >= prompts.start[:, None])
  hidden, offered = (jnp.repeat(x, decoding.group, axis=0) for x in (hidden, prompts.offered))
  unplayed = begun(prompts, decoding)
  first = unplayed.end
  rows = Rows(
      first=first, start=unplayed.start, uniform=_uniform(key, row_ids, first, passes), offered=offered,
      replay=replay, before=decoder.Before(prompt),
  )
  episodes = begin(decoding, rows, unplayed.states, passes, hidden=hidden)
  episodes = on_own_rows(
      lambda params, *rest: decode(decoding, Policy.prepared(params, decoding), *rest), params, rows, episodes
  )
  trajectory = placed(episodes, first, unplayed, first)
  return jax.tree.map(lambda x: constrain(x, 'rows'), trajectory), Memory(prompt, episodes.cache)


def _uniform(key: jax.Array, row_ids: jax.Array, first: jax.Array, passes: int) -> jax.Array:
  """float32[B, passes] in [0, 1): what rows draw at their slots from `first` on; it depends on nothing else."""

  def draw(row, slot):
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), slot))

  return jax.vmap(jax.vmap(draw, (None, 0)))(row_ids, first[:, None] + jnp.arange(passes))

