"""The decode loop: one loop over passes, everything on the device.

Every pass writes one token in each active row. A row with text pending writes its next token; a row with none makes a
decision, and what the decision writes (its description, then the observation) becomes pending.
"""

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
    first: int32[B], the slot that is written in the first pass.
    start: int32[B], first slot of the prompt.
    uniform: float32[B, passes] in [0, 1), what each row draws in every pass.
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
    cache: keys and values of what was written, entry i in pass i; and of what was kept, at the end.
    hidden: dtype[B, D], final hidden state of the last token.
    environment: int32[B], where each row is; 0 = language.
    states: hidden states.
    pending: int32[B, W], text still to write, next token first.
    pending_length: int32[B].
    decided: int32[B], decisions so far.
    active: bool[B], the episode goes on.
    finished: bool[B], it ended with the end-of-sequence token.
    end: int32[B], one past the last slot written.
    record: [B, passes, …], what every pass leaves in the fields of a Trajectory of these names.
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
  """The episodes at their end."""
  passes = episodes.record['tokens'].shape[1]
  segments = decoding.segments if rows.before.kept is None else 1  # what was kept lies where the cache would grow
  sizes = [-(-passes * (i + 1) // segments) for i in range(segments)]
  return _decode(decoding, params, rows, (jnp.int32(0), episodes), sizes)[1]


def _decode(decoding: Decoding, params: Policy, rows: Rows, state: tuple[jax.Array, Episodes], sizes: list[int]):
  """Passes int32[] and episodes at their end, from any point. The cache grows to each of `sizes` in turn."""
  model, few = decoding.model, len(rows.first) // 4
  shrinks = decoding.min_rows is not None and few >= decoding.min_rows
  least = few if shrinks else 0
  passes, episodes = state
  for size in sizes:
    passes, episodes = jax.lax.while_loop(
        lambda state, size=size: (state[0] < size) & (jnp.sum(state[1].active) > least),
        lambda state: (state[0] + 1, _pass(decoding, params, rows, *state)),
        (passes, episodes._replace(cache=decoder.grow(episodes.cache, size))),
    )
  if not shrinks:
    return passes, episodes
  chosen = jnp.argsort(~episodes.active)[:few]  # all that are active, and some that are not
  whole = episodes._replace(cache=decoder.by_row(model, episodes.cache))
  part = take_rows(whole, chosen)
  part = passes, part._replace(cache=decoder.flat(part.cache))
  passes, part = _decode(decoding, params, take_rows(rows, chosen, len(rows.first)), part, sizes[-1:])
  part = part._replace(cache=decoder.by_row(model, part.cache))
  whole = jax.tree.map(lambda whole, part: whole.at[chosen].set(part), whole, part)
  return passes, whole._replace(cache=decoder.flat(whole.cache))


def take_rows(tree: Any, rows: jax.Array, count: int | None = None) -> Any:
  """Rows of a tree [B, …], B = count; of leaves [A, …], what B // A rows side by side share."""
  return jax.tree.map(lambda x: x[rows if count is None else rows // (count // len(x))], tree)


def _pass(decoding: Decoding, params: Policy, rows: Rows, passes: jax.Array, old: Episodes) -> Episodes:
  """One pass of the loop: a token in every active row."""
  interface, space, slot = decoding.interface, decoding.interface.space, rows.first + passes

  # 1. What may be chosen, and what is.
  language = old.environment == LANGUAGE
  legal = jax.vmap(interface.legal)(old.environment, old.states, rows.offered)
  choices = policy.distribution(
      params.heads, space, old.hidden, language, legal, temperature=decoding.temperature or 1.0
  )
  uniform = jax.lax.dynamic_index_in_dim(rows.uniform, passes, axis=1, keepdims=False)
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
      decoding.model, params.weights, token, slot - rows.start, before=rows.before, cache=old.cache, entry=passes
  )
  return Episodes(
      cache=cache,
      hidden=hidden,
      environment=jnp.where(committed, effect.environment, old.environment),
      states=where_rows(committed, effect.states, old.states),
      pending=jnp.roll(pending, -1, axis=1),
      pending_length=jnp.maximum(pending_length - 1, 0),
      decided=old.decided + committed,
      active=active & ~ends,
      finished=old.finished | ends,
      end=jnp.where(active, slot + 1, old.end),
      record={
          name: jax.lax.dynamic_update_slice_in_dim(old.record[name], left[name][:, None], passes, axis=1)
          for name in old.record
      },
  )


def placed(record: dict[str, jax.Array], first: jax.Array, old: Trajectory, since: jax.Array) -> Trajectory:
  """`old` with what was recorded in its slots from `since` on.

  Args:
    first: int32[B], the slot of the first pass.
    since: int32[B].
  """
  slots = jnp.arange(old.slots)
  index = slots - first[:, None]

  def place(name):
    new, kept = record[name], getattr(old, name)
    at = jnp.clip(index, 0, new.shape[1] - 1)
    trailing = [1] * (new.ndim - 2)
    new = jnp.take_along_axis(new, at.reshape(*at.shape, *trailing), axis=1)
    return jnp.where((slots >= since[:, None]).reshape(*at.shape, *trailing), new, kept)

  return old._replace(**{name: place(name) for name in record})
