"""Episodes from their prompts, and episodes that go on from somewhere in others: each one jitted program."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting import batched, policy
from earl_jax.acting.decode_loop import begin, blank, decode, Decoding, Episodes, placed, Policy, Rows, take_rows
from earl_jax.acting.prompts import Prompts, read_prompts
from earl_jax.acting.replay import carry_out, recorded, Replay
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices.sharding import constrain, gathered, on_own_rows
from earl_jax.model import attention, decoder

__all__ = ['begun', 'Decoding', 'Fork', 'Memory', 'remembered_rollout', 'Replay', 'resume', 'rollout']


class Memory(NamedTuple):
  """Keys and values of a batch of episodes, layer by layer.

  Attributes:
    prompt: of the prompts [G, …].
    cache: of the responses, one slot after the other.
  """

  prompt: tuple[attention.Part, ...]
  cache: decoder.Cache


class Fork(NamedTuple):
  """Where episodes leave others.

  Attributes:
    rows: int32[B'], those of a batch that go on anew, each on the device where it lies.
    slots: int32[B'], the slot of the first decision that is another.
    route: int32[K], the decisions that are forced there; K is that of the longest route, whichever is taken.
    route_length: int32[], how many of them.
    real: bool[B'], the row counts; others only fill the shape up.
  """

  rows: jax.Array
  slots: jax.Array
  route: jax.Array
  route_length: jax.Array
  real: jax.Array


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
def resume(
    params: policy.Params,
    batch: tuple[Trajectory, Memory],
    prompts: Prompts,
    fork: Fork,
    key: jax.Array,
    *,
    decoding: Decoding,
) -> Trajectory:
  """Goes on anew from somewhere in episodes, after a forced route: [B', T, …].

  Nothing that stays is read again: its keys and values are there, and environments carry out its decisions without the
  model.

  Args:
    batch: what `remembered_rollout` gave.
    prompts: of its rows [G, …].
    key: with `fork.rows` it fixes all randomness.
  """
  params = gathered(params, decoding.model.dtype)
  whole, memory = batch
  length = prompts.tokens.shape[1]
  passes = decoding.slots - length + 1
  cache = decoder.by_row(decoding.model, memory.cache)
  old, written, prompts, prompt = on_own_rows(_taken, (), fork.rows, (whole, cache), (prompts, memory.prompt))
  first = fork.slots - 1  # the last token that stays is fed once more, for what the model makes of it
  kept = jnp.maximum(first - length, 0)
  forced = Replay(jnp.tile(fork.route, (len(first), 1)), jnp.full_like(first, fork.route_length))
  rows = Rows(
      first=first, start=old.start, uniform=_uniform(key, fork.rows, first, passes), offered=prompts.offered,
      replay=forced, before=decoder.Before(decoder.hide(prompt, first), kept),
  )
  interface, was = decoding.interface, old.states
  states = batched.reset(interface, prompts.instance, prompts.offered & fork.real[:, None], was)
  states = carry_out(interface, states, prompts.offered, recorded(old.actions, fork.slots), was)
  last = jnp.take_along_axis(old.tokens, first[:, None], axis=1)
  episodes = begin(
      decoding, rows, states, passes, active=fork.real, end=fork.slots,
      cache=decoder.flat(decoder.to_the_end(written, kept, passes)),
      pending=jnp.pad(last, [(0, 0), (0, decoding.interface.width - 1)]), pending_length=jnp.ones_like(first),
  )
  return _trajectory(decode(decoding, Policy.prepared(params, decoding), rows, episodes), first, old, fork.slots)


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


def _taken(_, rows: jax.Array, by_row: Any, by_prompt: Any) -> tuple:
  """What a device's rows int32[b'] have, of trees [b, …] and of [g, …], whose rows side by side share an entry."""
  count = len(jax.tree.leaves(by_row)[0])
  at = rows % count  # rows are shared out in order
  return *take_rows(by_row, at), *take_rows(by_prompt, at, count)


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
  episodes = decode(decoding, Policy.prepared(params, decoding), rows, episodes)
  return _trajectory(episodes, first, unplayed, first), Memory(prompt, episodes.cache)


def _uniform(key: jax.Array, row_ids: jax.Array, first: jax.Array, passes: int) -> jax.Array:
  """float32[B, passes] in [0, 1): what rows draw at their slots from `first` on; it depends on nothing else."""

  def draw(row, slot):
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row), slot))

  return jax.vmap(jax.vmap(draw, (None, 0)))(row_ids, first[:, None] + jnp.arange(passes))


def _trajectory(episodes: Episodes, first: jax.Array, old: Trajectory, since: jax.Array) -> Trajectory:
  """`old` up to slots `since`, and what has become of it then; see `placed`."""
  new = placed(episodes.record, first, old, since)
  new = new._replace(end=episodes.end, finished=episodes.finished, states=episodes.states)
  return jax.tree.map(lambda x: constrain(x, 'rows'), new)
