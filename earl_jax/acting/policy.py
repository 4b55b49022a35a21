"""The policy: parameters, and THE distribution over legal actions.

Sampling, training log-probabilities and CPO's position scores all come from `distribution`: there is no second mask.

Axes: D hidden, V vocabulary (ids of the tokenizer), N blocks of `BLOCK` entries of it, the last of them filled up, E
expanded actions; `…` any leading axes.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.acting.masked import NEGATIVE
from earl_jax.action_space import ActionSpace
from earl_jax.devices.sharding import constrain, gathered, tensor_shards
from earl_jax.model import lora, transformer
from earl_jax.model.products import over_rows, product, with_rows

# Entries of the vocabulary whose probabilities are added up first. As an axis of its own, and that of a TPU's lanes, it
# is never put in another order in memory.
BLOCK = 128

# {'model': decoder parameters, 'adapters': those of `lora`, if any, 'expanded_head': float32[E, D], absent where it is
# tied or there are no actions}
Params = dict


def init_params(model: dict, space: ActionSpace, tied: bool = False) -> Params:
  """Adds the expanded head: each action starts as the `lm_head` row of one token of its description.

  Args:
    tied: there is no head of its own; an action's row stays that of the token.
  """
  if tied or not space.num_expanded:
    return {'model': model}
  return {'model': model, 'expanded_head': _token_rows(model, space)}


def _token_rows(model: dict, space: ActionSpace) -> jax.Array:
  return jnp.asarray(transformer.output_embedding(model))[space.init_tokens].astype(jnp.float32)


def split(params: Params) -> tuple[Params, Params]:
  """(what is trained, what is frozen): with adapters, the model is. Together they are the parameters again."""
  frozen = {'model': params['model']} if 'adapters' in params else {}
  return {key: x for key, x in params.items() if key not in frozen}, frozen


def merged(params: Params, model: transformer.ModelConfig) -> Params:
  """The same policy without adapters: what they do has become part of the model, those kernels in float32."""
  if 'adapters' not in params:
    return params
  rest = {key: x for key, x in params.items() if key != 'adapters'}
  merge = functools.partial(lora.merged, scale=model.adapter_scale, dtype='float32')
  return rest | {'model': rest['model'] | {'layers': jax.vmap(merge)(rest['model']['layers'], params['adapters'])}}


def heads(params: Params, dtype: str) -> Params:
  """What `distribution` reads of the parameters, for a loop: `sharding.gathered`, and the vocabulary in blocks."""
  rest = {key: x for key, x in params.items() if key != 'adapters'}
  rest = gathered(rest | {'model': {'embedding': transformer.output_embedding(params['model'])}}, dtype)
  return rest | {'model': {'embedding': _in_blocks(rest['model']['embedding'])}}


def _in_blocks(rows: jax.Array) -> jax.Array:
  """[N, BLOCK, D]: rows of the vocabulary [V, D], if they are not that already. Devices share out whole blocks."""
  if rows.ndim == 3:
    return rows
  rows = jnp.pad(rows, [(0, -len(rows) % (BLOCK * tensor_shards())), (0, 0)])
  return constrain(rows.reshape(-1, BLOCK, rows.shape[1]), 'vocab')


class Distribution(NamedTuple):
  """The distribution over legal actions at some decisions.

  Vocabulary and expanded actions stay apart, for the vocabulary may be shared out over devices: nothing puts the two
  side by side, or asks one device for all of it.

  Attributes:
    vocabulary: float32[…, N, BLOCK], logits; `NEGATIVE` in the padding rows beyond V.
    blocks: float32[…, N], the probability of each block among V.
    expanded: float32[…, E], logits, unmasked.
    language: bool[…], all of V is legal.
    legal: bool[…, E], expanded actions that are.
    log_vocabulary: float32[…], log of the sum of exp(logits) over V.
    log_normaliser: float32[…], the same over all legal actions.
  """

  vocabulary: jax.Array
  blocks: jax.Array
  expanded: jax.Array
  language: jax.Array
  legal: jax.Array
  log_vocabulary: jax.Array
  log_normaliser: jax.Array


def distribution(
    params: Params, space: ActionSpace, hidden, language, legal, temperature: float = 1.0
) -> Distribution:
  """The policy's distribution, softmax(logits / temperature), from hidden states [..., D]."""
  embedding = transformer.output_embedding(params['model'])
  if 'expanded_head' in params:
    head = params['expanded_head']
  else:
    head = embedding.reshape(-1, embedding.shape[-1])[space.init_tokens]
  embedding = _in_blocks(embedding)
  vocabulary, expanded = (_logits(hidden, rows.astype(hidden.dtype)) / temperature for rows in (embedding, head))
  places = jnp.arange(math.prod(vocabulary.shape[-2:])).reshape(vocabulary.shape[-2:])
  if places.size > space.vocab_size:
    vocabulary = jnp.where(places < space.vocab_size, vocabulary, NEGATIVE)
  largest = jax.lax.stop_gradient(jnp.max(vocabulary, axis=(-2, -1)))
  blocks = jnp.exp(vocabulary - largest[..., None, None]).sum(axis=-1)
  total = blocks.sum(axis=-1)
  log_vocabulary = largest + jnp.log(total)
  parts = [jnp.where(language, log_vocabulary, NEGATIVE)[..., None], jnp.where(legal, expanded, NEGATIVE)]
  log_normaliser = jax.nn.logsumexp(jnp.concatenate(parts, axis=-1), axis=-1)
  return Distribution(
      vocabulary=vocabulary, blocks=blocks / total[..., None], expanded=expanded, language=language, legal=legal,
      log_vocabulary=log_vocabulary, log_normaliser=log_normaliser,
  )


@jax.custom_vjp
def _logits(hidden: jax.Array, rows: jax.Array) -> jax.Array:
  """float32[…, A] of hidden dtype[…, D] and rows dtype[A, D]; A may be several axes.

  Gradients are products in dtype too, not in float32.
  """
  return with_rows(hidden, rows)


def _logits_backward(kept, gradient):
  hidden, rows = kept
  gradient, size = gradient.astype(hidden.dtype), math.prod(hidden.shape[:-1])
  of_rows = over_rows(gradient.reshape(size, *rows.shape[:-1]), hidden.reshape(size, hidden.shape[-1]))
  return product(gradient, rows, rows.ndim - 1), of_rows


_logits.defvjp(lambda hidden, rows: (_logits(hidden, rows), (hidden, rows)), _logits_backward)


def sample(uniform: jax.Array, d: Distribution, vocab_size: int, greedy: bool = False) -> jax.Array:
  """int32[B]: an action per row, where its uniform number falls among the cumulative probabilities.

  It falls into a block of the vocabulary, or among the expanded actions, and then on an entry: so that there is no
  cumulative sum over the vocabulary, and no noise as large as it.

  Args:
    uniform: float32[B] in [0, 1), one per row, so that a row's draw depends on nothing else in the batch.
    d: leaves [B, …].
    vocab_size: V, from where expanded actions are counted.
    greedy: takes the likeliest; static.
  """
  chex.assert_rank([uniform, d.language], 1)
  # One more, that is never chosen: there may be no environment at all.
  expanded = jnp.pad(jnp.where(d.legal, d.expanded, NEGATIVE), [(0, 0), (0, 1)], constant_values=NEGATIVE)
  if greedy:
    largest = jnp.max(d.vocabulary, axis=-1)
    token = d.language & (jnp.max(largest, axis=-1) >= jnp.max(expanded, axis=-1))
    block, other = jnp.argmax(largest, axis=-1), jnp.argmax(expanded, axis=-1)
    within = jnp.argmax(_block(d.vocabulary, block), axis=-1)
  else:
    expanded = jnp.exp(expanded - d.log_normaliser[:, None])
    words = jnp.where(d.language, jnp.exp(d.log_vocabulary - d.log_normaliser), 0.0)
    sums = jnp.append(constrain(d.blocks * words[:, None], 'rows'), expanded.sum(axis=-1)[:, None], axis=1)
    chosen, rest = _fall(sums, uniform * sums.sum(axis=-1))
    token, block = chosen < d.blocks.shape[1], jnp.minimum(chosen, d.blocks.shape[1] - 1)
    within, _ = _fall(jnp.exp(_block(d.vocabulary, block) - d.log_normaliser[:, None]), rest)
    other, _ = _fall(expanded, rest)
  return jnp.where(token, block * BLOCK + within, vocab_size + other).astype(jnp.int32)


def _block(vocabulary: jax.Array, index: jax.Array) -> jax.Array:
  """float32[…, BLOCK]: of […, N, BLOCK] the blocks int32[…]."""
  return jnp.take_along_axis(vocabulary, index[..., None, None], axis=-2)[..., 0, :]


def _fall(masses: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
  """On which of masses float32[B, A], laid end to end, float32[B] falls, and how far from where that begins.

  Never on one of mass 0, whatever sums are rounded to.
  """
  ends = jnp.cumsum(masses, axis=-1)
  last = jnp.max(jnp.where(masses > 0, jnp.arange(masses.shape[-1]), 0), axis=-1)
  index = jnp.minimum(jnp.sum(ends <= at[:, None], axis=-1), last)
  begins = jnp.take_along_axis(ends - masses, index[:, None], axis=-1)[:, 0]
  return index, jnp.maximum(at - begins, 0.0)


def pick(d: Distribution, vocab_size: int, actions: jax.Array) -> jax.Array:
  """float32[…]: logits of int32[…] actions."""
  expanded = _at(d.expanded[..., None, :], actions - vocab_size)
  return jnp.where(actions < vocab_size, _at(d.vocabulary, actions), expanded)


@jax.custom_vjp
def _at(logits: jax.Array, index: jax.Array) -> jax.Array:
  """float32[…]: of logits in blocks, […, A, B], those at int32[…]; 0 where the index is outside.

  Its gradient is a mask, not a scatter.
  """
  blocks, size = logits.shape[-2:]
  if not size:
    return jnp.zeros(index.shape)

  def entry(logits, at):
    return logits.at[jnp.divmod(at, size)].get(mode='promise_in_bounds')

  for _ in index.shape:
    entry = jax.vmap(entry)
  found = entry(logits, jnp.clip(index, 0, blocks * size - 1))
  return jnp.where((index >= 0) & (index < blocks * size), found, 0.0)


def _at_backward(kept, gradient):
  places, index = kept
  return jnp.where(places == index[..., None, None], gradient[..., None, None], 0.0), None


_at.defvjp(
    lambda logits, index: (
        _at(logits, index), (jnp.arange(math.prod(logits.shape[-2:])).reshape(logits.shape[-2:]), index)
    ),
    _at_backward,
)


def log_prob(d: Distribution, vocab_size: int, actions: jax.Array) -> jax.Array:
  """float32[…]: log-probability of legal actions int32[…]."""
  return pick(d, vocab_size, actions) - d.log_normaliser


def entropy(d: Distribution) -> jax.Array:
  """float32[…]: entropy over the expanded actions and {any token}.

  Which token is not counted, so that an entropy bonus makes the policy try routes and items, not words.
  """
  expanded = jnp.where(d.legal, d.expanded - d.log_normaliser[..., None], NEGATIVE)
  token = jnp.where(d.language, d.log_vocabulary - d.log_normaliser, NEGATIVE)
  parts = jnp.concatenate([expanded, token[..., None]], axis=-1)
  parts = jnp.maximum(parts, -100.0)  # exp(-100) is nothing, and the gradient stays finite
  return -jnp.sum(jnp.exp(parts) * parts, axis=-1)


def route_scores(space: ActionSpace, d: Distribution, possible: jax.Array) -> jax.Array:
  """float32[…, R]: max(log p(first description token), log p(routing action)) per environment (docs/method.md, CPO 2).

  Args:
    possible: bool[…, R], where the environment can be entered; elsewhere the score is `NEGATIVE`.
  """
  count = space.num_environments
  words = d.vocabulary[(..., *np.divmod(space.descriptions[:count, 0], BLOCK))]
  scores = jnp.maximum(words, d.expanded[..., :count]) - d.log_normaliser[..., None]
  return jnp.where(possible, scores, NEGATIVE)
