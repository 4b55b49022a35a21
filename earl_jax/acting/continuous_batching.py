"""More episodes than are decoded at a time: where some have ended others begin, so that a long one holds up none.

What waits lies on some device, and so do lanes: every device fills its own with what lies there.

Axes: N episodes in all, C lanes; on every device its share of both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting.decode_loop import Decoding, Episodes, placed, Policy, put_rows, Rows, run, take_rows
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices.sharding import constrain, on_own_rows, row_shards

Load = Callable[[jax.Array, Any], tuple[Rows, Episodes]]


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
  """What waits, on each of S shares of the rows.

  Attributes:
    order: int32[N], episodes in the order in which they begin.
    begun: int32[S], how many have begun.
    count: int32[S], how many are to begin in all.
  """

  order: jax.Array
  begun: jax.Array
  count: jax.Array


def decode_in_turn(
    decoding: Decoding, params: Policy, load: Load, sources: Any, *, old: Trajectory, since: jax.Array,
    wanted: jax.Array,
) -> Trajectory:
  """`old` [N, …], some of whose episodes have been decoded, `decoding.lanes` at a time.

  Args:
    load: of passes so far int32[] and sources of some, their rows and what they begin with.
    sources: [N, …] or, of what episodes side by side share, [A, …].
    since: int32[N], the slots from which on they are new.
    wanted: bool[N], those that are decoded.
  """
  shares, count = row_shards(jax.sharding.get_abstract_mesh()), len(since)
  room = decoding.lanes // shares
  few = max(room // 8, 1)  # episodes that begin at once: more lie idle before, fewer break off the loop more often

  def line_up(_, wanted):
    return Queue(jnp.argsort(~wanted), jnp.zeros(1, jnp.int32), jnp.sum(wanted, dtype=jnp.int32)[None])

  def take_next(_, state, sources, since):
    """Puts `few` episodes that have ended where they belong, and takes as many of those that wait."""
    lanes, queue, trajectory = state
    free, waiting = jnp.argsort(lanes.episodes.active)[:few], queue.begun + jnp.arange(few)
    able = ~lanes.episodes.active[free] & (waiting < queue.count)
    trajectory = _put(trajectory, lanes, free, jnp.where(able, lanes.place[free], len(since)), since)
    place, to = jnp.take(queue.order, waiting, mode='clip'), jnp.where(able, free, room)
    queue = queue._replace(begun=queue.begun + jnp.sum(able, dtype=jnp.int32))
    return trajectory, queue, place, to, take_rows(sources, place, len(since))

  def turn(state):
    passes, lanes = state[:2]
    trajectory, queue, place, to, taken = on_own_rows(take_next, (), state[1:], sources, since)
    new = Lanes(*load(passes, taken), place)
    lanes = on_own_rows(lambda _, *rest: put_rows(*rest, room), (), lanes, to, new)
    waits = queue.begun < queue.count

    def goes_on(_, active):
      free = jnp.sum(~active.reshape(shares, room), axis=1)
      return jnp.any(active) & ~jnp.any(waits & (free >= few))

    passes, episodes = run(decoding, params, lanes.rows, (passes, lanes.episodes), goes_on)
    return passes, lanes._replace(episodes=episodes), queue, trajectory

  def unfinished(state):
    _, lanes, queue, _ = state
    return jnp.any(lanes.episodes.active) | jnp.any(queue.begun < queue.count)

  def fill(sources):
    at = jnp.zeros(decoding.lanes, jnp.int32)
    return Lanes(*load(jnp.int32(0), take_rows(sources, at, count)), at)

  empty = jax.tree.map(lambda x: constrain(jnp.zeros(x.shape, x.dtype), 'rows'), jax.eval_shape(fill, sources))
  empty = empty._replace(place=empty.place + count // shares)
  begun = jnp.int32(0), empty, on_own_rows(line_up, (), wanted), old
  _, lanes, _, trajectory = jax.lax.while_loop(unfinished, turn, begun)

  def put(_, trajectory, lanes, since):
    return _put(trajectory, lanes, jnp.arange(room), lanes.place, since)

  return on_own_rows(put, (), trajectory, lanes, since)


def _put(
    trajectory: Trajectory, lanes: Lanes, which: jax.Array, place: jax.Array, since: jax.Array
) -> Trajectory:
  """The trajectory with what is in lanes int32[A], each at its place int32[A]; N = nowhere."""
  count = len(since)
  first, episodes = take_rows((lanes.rows.first, lanes.episodes._replace(cache=None)), which, len(lanes.place))
  old, since = take_rows((trajectory, since), jnp.minimum(place, count - 1), count)
  return put_rows(trajectory, place, placed(episodes, first, old, since), count)
