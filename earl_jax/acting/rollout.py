"""The decode loop: one jitted loop over slots, everything on the device.

Every pass writes one token in each active row. A row with text pending writes its next token; a row with none makes a
decision, and what the decision writes (its description, then the observation) becomes pending. Prompts are left-padded,
so that all rows write at the same slot.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting import policy
from earl_jax.acting.masked import NEGATIVE
from earl_jax.acting.prompts import Prompts, read_prompts, Room
from earl_jax.acting.trajectory import Trajectory
from earl_jax.action_space import LANGUAGE
from earl_jax.devices.sharding import constrain, gathered
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.model import transformer


@dataclasses.dataclass(frozen=True)
class Decoding:
  """What the decode loop has to know of a run. Hashable: a static argument.

  Attributes:
    model: shape of the decoder.
    interface: what actions do.
    eos: token id that ends an episode when chosen in language.
    pad: token id written after the end.
    slots: T, prompt and response together.
    group: n, episodes of every prompt.
    temperature: of the policy, in recorded log-probabilities and scores too; 0 = greedy, recorded as at 1.
    min_rows: once no more than a quarter of the rows is active, go on with those alone, and so on, but with no fewer
      rows than this; None = always with all of them. Few long episodes then cost little, and each row stays what it is.
  """

  model: transformer.ModelConfig
  interface: ExpandedInterface
  eos: int
  pad: int
  slots: int
  group: int = 1
  temperature: float = 1.0
  min_rows: int | None = None


class Replay(NamedTuple):
  """Decisions to take before the policy is free.

  Attributes:
    actions: int32[B, K], one decision after the other.
    length: int32[B], how many of them.
  """

  actions: jax.Array
  length: jax.Array


class DecodeState(NamedTuple):
  """Carried through the loop. B rows, T slots, W widest write.

  Attributes:
    slot: int32[], the slot written in this pass.
    keys: key[B]; offered: bool[B, R]; replay: as given. They stay as they are.
    hidden: dtype[B, D], final hidden state of the token at slot - 1.
    cache: KVCache.
    environment: int32[B], where each row is; 0 = language.
    pending: int32[B, W], text still to write, next token first.
    pending_length: int32[B].
    decided: int32[B], decisions so far.
    active: bool[B], the episode goes on.
    trajectory: what is recorded so far; its `states` are the current hidden states.
  """

  slot: jax.Array
  keys: jax.Array
  offered: jax.Array
  replay: Replay | None
  hidden: jax.Array
  cache: transformer.KVCache
  environment: jax.Array
  pending: jax.Array
  pending_length: jax.Array
  decided: jax.Array
  active: jax.Array
  trajectory: Trajectory

  def keep(self, rows: jax.Array) -> 'DecodeState':
    """The state of some rows alone."""
    by_row = jax.tree.map(lambda x: x[rows], self._replace(slot=(), cache=()))
    return by_row._replace(slot=self.slot, cache=jax.tree.map(lambda x: x[:, rows], self.cache))


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
  params = gathered(params, decoding.model.dtype)
  state = _begin(params, prompts, jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids), replay, decoding)
  trajectory = _decode(state, functools.partial(_write_slot, decoding, params), decoding)
  return jax.tree.map(lambda x: constrain(x, 'rows'), trajectory)


def _begin(params, prompts: Prompts, keys: jax.Array, replay: Replay | None, decoding: Decoding) -> DecodeState:
  """The state once the prompts are read; `keys` key[B]."""
  interface, space, prompt_length = decoding.interface, decoding.interface.space, prompts.tokens.shape[1]
  room = Room(decoding.group, decoding.slots)
  hidden, cache = read_prompts(decoding.model, params, prompts.tokens, prompts.start, room)
  prompts = jax.tree.map(lambda x: jnp.repeat(x, decoding.group, axis=0), prompts)
  batch = prompts.tokens.shape[0]
  shape = (batch, decoding.slots)
  return DecodeState(
      slot=jnp.int32(prompt_length),
      keys=keys,
      offered=prompts.offered,
      replay=replay,
      hidden=hidden,
      cache=cache,
      environment=jnp.full(batch, LANGUAGE, jnp.int32),
      pending=jnp.full((batch, interface.width), decoding.pad, jnp.int32),
      pending_length=jnp.zeros(batch, jnp.int32),
      decided=jnp.zeros(batch, jnp.int32),
      active=jnp.ones(batch, bool),
      trajectory=Trajectory(
          tokens=jnp.full(shape, decoding.pad, jnp.int32).at[:, :prompt_length].set(prompts.tokens),
          start=prompts.start,
          end=jnp.full(batch, prompt_length, jnp.int32),
          actions=jnp.full(shape, -1, jnp.int32),
          language=jnp.zeros(shape, bool),
          legal=jnp.zeros((*shape, space.num_expanded), bool),
          log_probs=jnp.zeros(shape, jnp.float32),
          route_scores=jnp.full((*shape, space.num_environments), NEGATIVE, jnp.float32),
          finished=jnp.zeros(batch, bool),
          states=jax.vmap(interface.reset)(prompts.instance),
      ),
  )


def _decode(state: DecodeState, write_slot: Callable[[DecodeState], DecodeState], decoding: Decoding) -> Trajectory:
  """All slots; the last rows that are active go on alone (`Decoding.min_rows`)."""
  few = len(state.active) // 4
  shrinks = decoding.min_rows is not None and few >= decoding.min_rows
  least = few if shrinks else 0

  def goes_on(state):
    return (state.slot < decoding.slots) & (jnp.sum(state.active) > least)

  state = jax.lax.while_loop(goes_on, write_slot, state)
  if not shrinks:
    return state.trajectory
  rows = jnp.argsort(~state.active)[:few]  # all that are active, and some that are not
  rest = _decode(state.keep(rows), write_slot, decoding)
  return jax.tree.map(lambda whole, part: whole.at[rows].set(part), state.trajectory, rest)


def _write_slot(decoding: Decoding, params: policy.Params, state: DecodeState) -> DecodeState:
  """One pass of the loop: a token in every active row."""
  interface, space = decoding.interface, decoding.interface.space
  slot, record, replay = state.slot, state.trajectory, state.replay

  # 1. What may be chosen, and what is.
  language = state.environment == LANGUAGE
  legal = jax.vmap(interface.legal)(state.environment, record.states, state.offered)
  choices = policy.distribution(
      params, space, state.hidden, language, legal, temperature=decoding.temperature or 1.0
  )
  keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, slot)
  action = policy.sample(keys, choices, space.vocab_size, greedy=decoding.temperature == 0)
  if replay is not None:
    at = jnp.minimum(state.decided, replay.actions.shape[1] - 1)
    given = jnp.take_along_axis(replay.actions, at[:, None], axis=1)[:, 0]
    action = jnp.where(state.decided < replay.length, given, action)

  # 2. What it does. A write that does not fit ends the episode, and its step never happened.
  effect = jax.vmap(interface.act)(state.environment, record.states, state.offered, action)
  deciding = state.active & (state.pending_length == 0)
  committed = deciding & (slot + effect.length <= decoding.slots)
  ends = committed & language & (action == decoding.eos)
  active = state.active & (committed | ~deciding)
  pending = _where_rows(committed, effect.tokens, state.pending)
  pending_length = jnp.where(committed, effect.length, state.pending_length)

  # 3. Record it, and write one token.
  token = jnp.where(active, pending[:, 0], decoding.pad)
  log_probs = policy.log_prob(choices, space.vocab_size, action)
  scores = policy.route_scores(space, choices, (committed & language)[:, None] & state.offered)
  record = record._replace(
      tokens=_write(record.tokens, token, slot),
      end=jnp.where(active, slot + 1, record.end),
      actions=_write(record.actions, jnp.where(committed, action, -1), slot),
      language=_write(record.language, committed & language, slot),
      legal=_write(record.legal, committed[:, None] & legal, slot),
      log_probs=_write(record.log_probs, jnp.where(committed, log_probs, 0.0), slot),
      route_scores=_write(record.route_scores, scores, slot),
      finished=record.finished | ends,
      states=_where_rows(committed, effect.states, record.states),
  )
  hidden, cache = transformer.apply(
      decoding.model, params['model'], token[:, None], record.start, state.cache, slot=slot
  )
  return state._replace(
      slot=slot + 1,
      hidden=hidden[:, 0],
      cache=cache,
      environment=jnp.where(committed, effect.environment, state.environment),
      pending=jnp.roll(pending, -1, axis=1),
      pending_length=jnp.maximum(pending_length - 1, 0),
      decided=state.decided + committed,
      active=active & ~ends,
      trajectory=record,
  )


def _where_rows(condition: jax.Array, new: Any, old: Any) -> Any:
  """Per-row choice between two trees whose leaves are [B, …]."""
  return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _write(array: jax.Array, column: jax.Array, slot: jax.Array) -> jax.Array:
  """array[:, slot] = column."""
  return jax.lax.dynamic_update_slice_in_dim(array, column[:, None].astype(array.dtype), slot, axis=1)
