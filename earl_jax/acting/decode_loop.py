"""The decode loop: one loop over passes, everything on the device.

Every pass writes one token in each active row. A row with text pending writes its next token; a row with none makes a
decision, and what the decision writes (its description, then the observation) becomes pending.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting import batched, policy
from earl_jax.acting.masked import NEGATIVE, where_rows
from earl_jax.acting.replay import Replay
from earl_jax.acting.trajectory import Trajectory
from earl_jax.action_space import LANGUAGE
from earl_jax.interfaces.expanded import ExpandedInterface, States
from earl_jax.model import decoder, transformer


@dataclasses.dataclass(frozen=True)
class Decoding:
  """What the decode loop has to know of a run. Hashable: a static argument.

  Attributes:
    model: shape of the decoder.
    interface: what actions do.
    end_tokens: token ids that end an episode when chosen in language.
    pad: token id written after the end.
    slots: T, prompt and response together.
    group: n, episodes of every prompt.
    temperature: of the policy, in recorded log-probabilities and scores too; 0 = greedy, recorded as at 1.
    min_rows: once at most a quarter of the rows is active, decoding continues in a batch of those alone, and so on,
      down to batches of this size; None = never. A few long episodes then cost little; results do not change.
    segments: in how many stages the cache grows to its full length. Every pass reads the whole cache, so more stages
      read less; each compiles the loop once more.
    lanes: how many episodes `resume` decodes at a time, at most; where some end others begin.
  """

  model: transformer.ModelConfig
  interface: ExpandedInterface
  end_tokens: tuple[int, ...]
  pad: int
  slots: int
  group: int = 1
  temperature: float = 1.0
  min_rows: int | None = None
  segments: int = 1
  lanes: int = 1


class Policy(NamedTuple):
  """The parameters as the loop reads them: the decoder's, and those of `policy.distribution`."""

  weights: decoder.Weights
  heads: policy.Params

  @classmethod
  def prepared(cls, params: policy.Params, decoding: Decoding) -> 'Policy':
    """From parameters that are `sharding.gathered`."""
    weights = decoder.prepare(decoding.model, params['model'], decoding.slots, params.get('adapters', {}))
    return cls(weights, policy.heads(params, decoding.model.dtype))


class Rows(NamedTuple):
  """What stays the same through the loop, row by row.

  Attributes:
    first: int32[B], the slot that is written in pass 0, or would have been: rows may begin later.
    start: int32[B], first slot of the prompt.
    uniform: float32[B, N] in [0, 1), what each row draws: in pass i entry i modulo N.
    offered: bool[B, R].
    replay: decisions to take first, or None.
    before: what was there before the first pass.
  """

  first: jax.Array
  start: jax.Array
  uniform: jax.Array
  offered: jax.Array
  replay: Replay | None
  before: decoder.Before


class Episodes(NamedTuple):
  """What becomes of the rows. W widest write.

  Attributes:
    cache: keys and values of what was written.
    hidden: dtype[B, D], final hidden state of the last token.
    environment: int32[B], where each row is; 0 = language.
    states: hidden states.
    pending: int32[B, W], text still to write, next token first.
    pending_length: int32[B].
    decided: int32[B], decisions so far.
    active: bool[B], the episode goes on.
    finished: bool[B], it ended with the end-of-sequence token.
    end: int32[B], one past the last slot written.
    record: [B, N, …], what passes leave in the fields of a Trajectory of these names: pass i in entry i modulo N.
  """

  cache: decoder.Cache
  hidden: jax.Array
  environment: jax.Array
  states: States
  pending: jax.Array
  pending_length: jax.Array
  decided: jax.Array
  active: jax.Array
  finished: jax.Array
  end: jax.Array
  record: dict[str, jax.Array]


def blank(decoding: Decoding, *shape: int) -> dict[str, jax.Array]:
  """The fields of a Trajectory that are recorded in every pass, of the given leading axes, with nothing in them."""
  space = decoding.interface.space
  return dict(
      tokens=jnp.full(shape, decoding.pad, jnp.int32),
      actions=jnp.full(shape, -1, jnp.int32),
      language=jnp.zeros(shape, bool),
      legal=jnp.zeros((*shape, space.num_expanded), bool),
      log_probs=jnp.zeros(shape, jnp.float32),
      route_scores=jnp.full((*shape, space.num_environments), NEGATIVE, jnp.float32),
  )


def begin(decoding: Decoding, rows: Rows, states: States, passes: int, **known: jax.Array) -> Episodes:
  """Episodes in language, before the first of at most `passes` passes; `known`: fields that are otherwise."""
  model, batch = decoding.model, len(rows.first)
  fields = dict(
      cache=decoder.init_cache(model, batch),
      hidden=jnp.zeros((batch, model.hidden_size), model.dtype),
      environment=jnp.full(batch, LANGUAGE, jnp.int32),
      states=states,
      pending=jnp.full((batch, decoding.interface.width), decoding.pad, jnp.int32),
      pending_length=jnp.zeros(batch, jnp.int32),
      decided=jnp.zeros(batch, jnp.int32),
      active=jnp.ones(batch, bool),
      finished=jnp.zeros(batch, bool),
      end=rows.first,
      record=blank(decoding, batch, passes),
  )
  return Episodes(**fields | known)


def decode(decoding: Decoding, params: Policy, rows: Rows, episodes: Episodes) -> Episodes:
  """The episodes at their end, from before the first pass on."""
  entries, passes, least = episodes.record['tokens'].shape[1], jnp.int32(0), _left_over(decoding, len(rows.first))
  for i in range(decoding.segments):
    size = -(-entries * (i + 1) // decoding.segments)
    passes, episodes = run(
        decoding, params, rows, (passes, episodes._replace(cache=decoder.grow(episodes.cache, size))),
        lambda passes, active, size=size: (passes < size) & (jnp.sum(active) > least),
    )
  return _finish(decoding, params, rows, (passes, episodes))


def run(
    decoding: Decoding, params: Policy, rows: Rows, state: tuple[jax.Array, Episodes],
    goes_on: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, Episodes]:
  """Passes int32[] and episodes, from there on while `goes_on(passes, active bool[B])`."""
  return jax.lax.while_loop(
      lambda state: goes_on(state[0], state[1].active),
      lambda state: (state[0] + 1, _pass(decoding, params, rows, *state)),
      state,
  )


def _left_over(decoding: Decoding, rows: int) -> int:
  """How many of so many rows may still be active where `_finish` takes over."""
  few = rows // 4
  return few if decoding.min_rows is not None and few >= decoding.min_rows else 0


def _finish(decoding: Decoding, params: Policy, rows: Rows, state: tuple[jax.Array, Episodes]) -> Episodes:
  """The episodes at their end, from where no more than `_left_over` are active: they go on in a batch of their own."""
  count, (passes, whole) = len(rows.first), state
  few = _left_over(decoding, count)
  if not few:
    return whole
  chosen = jnp.argsort(~whole.active)[:few]  # all that are active, and some that are not
  rows, part = take_rows((rows, whole), chosen, count)
  least = _left_over(decoding, few)
  part = run(decoding, params, rows, (passes, part), lambda _, active: jnp.sum(active) > least)
  return put_rows(whole, chosen, _finish(decoding, params, rows, part), count)


def take_rows(tree: Any, rows: jax.Array, count: int) -> Any:
  """Rows int32[…] of a tree [B, …], B = count.

  Of leaves [A, …], what B // A rows side by side share, or the A // B entries that each row has side by side.
  """
  return jax.tree.map(lambda x: x[_entries(x, rows, count) if len(x) >= count else rows // (count // len(x))], tree)


def put_rows(tree: Any, rows: jax.Array, new: Any, count: int) -> Any:
  """The tree with others in the place of rows int32[…]; those from B = count on are dropped. None are shared."""
  return jax.tree.map(lambda x, new: x.at[_entries(x, rows, count)].set(new, mode='drop'), tree, new)


def _entries(x: jax.Array, rows: jax.Array, count: int) -> jax.Array:
  each = len(x) // count
  return rows if each == 1 else (rows[:, None] * each + jnp.arange(each)).reshape(-1)


def _pass(decoding: Decoding, params: Policy, rows: Rows, passes: jax.Array, old: Episodes) -> Episodes:
  """One pass of the loop: a token in every active row."""
  interface, space, slot = decoding.interface, decoding.interface.space, rows.first + passes
  entry = passes % rows.uniform.shape[1]

  # 1. What may be chosen, and what is.
  language = old.environment == LANGUAGE
  legal = jax.vmap(interface.legal)(old.environment, old.states, rows.offered)
  choices = policy.distribution(
      params.heads, space, old.hidden, language, legal, temperature=decoding.temperature or 1.0
  )
  uniform = jax.lax.dynamic_index_in_dim(rows.uniform, entry, axis=1, keepdims=False)
  action = policy.sample(uniform, choices, space.vocab_size, greedy=decoding.temperature == 0)
  if rows.replay is not None:
    at = jnp.minimum(old.decided, rows.replay.actions.shape[1] - 1)
    given = jnp.take_along_axis(rows.replay.actions, at[:, None], axis=1)[:, 0]
    action = jnp.where(old.decided < rows.replay.length, given, action)

  # 2. What it does. A write that does not fit ends the episode, and its step never happened. Where nothing may be
  # chosen it ends, too.
  deciding = old.active & (old.pending_length == 0)
  able = deciding & (language | legal.any(axis=1))
  effect = batched.act(interface, able, old.environment, old.states, offered=rows.offered, action=action)
  committed = able & (slot + effect.length <= decoding.slots)
  ends = committed & language & jnp.isin(action, jnp.array(decoding.end_tokens, jnp.int32))
  active = old.active & (committed | ~deciding)
  pending = where_rows(committed, effect.tokens, old.pending)
  pending_length = jnp.where(committed, effect.length, old.pending_length)

  # 3. Record it, and write one token.
  token = jnp.where(active, pending[:, 0], decoding.pad)
  log_probs = policy.log_prob(choices, space.vocab_size, action)
  left = dict(
      tokens=token,
      actions=jnp.where(committed, action, -1),
      language=committed & language,
      legal=committed[:, None] & legal,
      log_probs=jnp.where(committed, log_probs, 0.0),
      route_scores=policy.route_scores(space, choices, (committed & language)[:, None] & rows.offered),
  )
  hidden, cache = decoder.feed(
      decoding.model, params.weights, token, slot - rows.start, before=rows.before, cache=old.cache, passes=passes
  )
  return Episodes(
      cache=cache,
      hidden=hidden,
      environment=jnp.where(committed, effect.environment, old.environment),
      states=where_rows(committed, effect.states, old.states),
      pending=jnp.roll(pending, -1, axis=1),
      pending_length=jnp.maximum(pending_length - 1, 0),
      decided=old.decided + committed,
      active=active & ~ends & (slot + 1 < decoding.slots),
      finished=old.finished | ends,
      end=jnp.where(active, slot + 1, old.end),
      # What an episode has left stays, also where passes come round to it.
      record={
          name: jax.lax.dynamic_update_index_in_dim(x, where_rows(old.active, left[name], x[:, entry]), entry, axis=1)
          for name, x in old.record.items()
      },
  )


def placed(episodes: Episodes, first: jax.Array, old: Trajectory, since: jax.Array) -> Trajectory:
  """`old` up to slots `since` int32[B], and what has become of it then; `first` as in `Rows`."""
  slots, record = jnp.arange(old.slots), episodes.record
  index = (slots - first[:, None]) % record['tokens'].shape[1]

  def place(name):
    new, kept = record[name], getattr(old, name)
    shape = *index.shape, *[1] * (new.ndim - 2)
    new = jnp.take_along_axis(new, index.reshape(shape), axis=1)
    return jnp.where((slots >= since[:, None]).reshape(shape), new, kept)

  return old._replace(
      end=episodes.end, finished=episodes.finished, states=episodes.states, **{name: place(name) for name in record}
  )
