"""More episodes than are decoded at a time: where some have ended others begin, so that a long one holds up none.

What waits lies on some device, and so do lanes: every device fills its own with what lies there. None waits for others.

Axes: N episodes in all, C lanes; on every device its share of both.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting.decode_loop import Decoding, Episodes, placed, Policy, put_rows, Rows, run, take_rows
from earl_jax.acting.policy import Params
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices.sharding import on_own_rows, row_shards

Load = Callable[[Params, jax.Array, Any], tuple[Rows, Episodes]]


class Lanes(NamedTuple):
  """What is being decoded.

  Attributes:
    rows: [C, …].
    episodes: [C, …].
    place: int32[C], which of the episodes it is; N where the lane has none.
  """

  rows: Rows
  episodes: Episodes
  place: jax.Array


class Queue(NamedTuple):
  """What waits.

  Attributes:
    order: int32[N], episodes in the order in which they begin.
    begun: int32[], how many have begun.
    count: int32[], how many are to begin in all.
  """

  order: jax.Array
  begun: jax.Array
  count: jax.Array


def decode_in_turn(
    decoding: Decoding, load: Load, params: Params, sources: Any, *, old: Trajectory, since: jax.Array,
    wanted: jax.Array,
) -> Trajectory:
  """`old` [N, …], some of whose episodes have been decoded, `decoding.lanes` at a time.

  Args:
    load: of parameters, passes so far int32[] and sources of some, their rows and what they begin with.
    params: that are `sharding.gathered`.
    sources: [N, …] or, of what episodes side by side share, [A, …].
    since: int32[N], the slots from which on they are new.
    wanted: bool[N], those that are decoded.
  """
  decoding = dataclasses.replace(decoding, lanes=decoding.lanes // row_shards(jax.sharding.get_abstract_mesh()))
  return on_own_rows(functools.partial(_in_turn, decoding, load), params, sources, old, (since, wanted))


def _in_turn(
    decoding: Decoding, load: Load, params: Params, sources: Any, old: Trajectory, new: tuple[jax.Array, jax.Array]
) -> Trajectory:
  """`decode_in_turn` on one device; new: (since, wanted)."""
  (since, wanted), room = new, decoding.lanes
  count, policy = len(since), Policy.prepared(params, decoding)
  few = max(room // 8, 1)  # episodes that begin at once: more lie idle before, fewer break off the loop more often

  def take_next(lanes, queue, trajectory):
    """Puts `few` episodes that have ended where they belong, and takes as many of those that wait."""
    free, waiting = jnp.argsort(lanes.episodes.active)[:few], queue.begun + jnp.arange(few)
    able = ~lanes.episodes.active[free] & (waiting < queue.count)
    trajectory = _put(trajectory, lanes, free, jnp.where(able, lanes.place[free], count), since)
    place, to = jnp.take(queue.order, waiting, mode='clip'), jnp.where(able, free, room)
    queue = queue._replace(begun=queue.begun + jnp.sum(able, dtype=jnp.int32))
    return trajectory, queue, place, to, take_rows(sources, place, count)

  def turn(state):
    passes, lanes, *_ = state
    trajectory, queue, place, to, taken = take_next(*state[1:])
    lanes = put_rows(lanes, to, Lanes(*load(params, passes, taken), place), room)
    waits = queue.begun < queue.count

    def goes_on(_, active):
      return jnp.any(active) & ~(waits & (jnp.sum(~active) >= few))

    passes, episodes = run(decoding, policy, lanes.rows, (passes, lanes.episodes), goes_on)
    return passes, lanes._replace(episodes=episodes), queue, trajectory

  def unfinished(state):
    _, lanes, queue, _ = state
    return jnp.any(lanes.episodes.active) | (queue.begun < queue.count)

  def fill(params, sources):
    at = jnp.zeros(room, jnp.int32)
    return Lanes(*load(params, jnp.int32(0), take_rows(sources, at, count)), at)

  empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fill, params, sources))
  empty = empty._replace(place=empty.place + count)
  queue = Queue(jnp.argsort(~wanted), jnp.int32(0), jnp.sum(wanted, dtype=jnp.int32))
  _, lanes, _, trajectory = jax.lax.while_loop(unfinished, turn, (jnp.int32(0), empty, queue, old))
  return _put(trajectory, lanes, jnp.arange(room), lanes.place, since)


def _put(
    trajectory: Trajectory, lanes: Lanes, which: jax.Array, place: jax.Array, since: jax.Array
) -> Trajectory:
  """The trajectory with what is in lanes int32[A], each at its place int32[A]; N = nowhere."""
  count = len(since)
  first, episodes = take_rows((lanes.rows.first, lanes.episodes._replace(cache=None)), which, len(lanes.place))
  old, since = take_rows((trajectory, since), jnp.minimum(place, count - 1), count)
  # The barrier: what is gathered to be put, libtpu 0.0.50 would fuse with the scatter, and fail.
  return put_rows(trajectory, place, jax.lax.optimization_barrier(placed(episodes, first, old, since)), count)
