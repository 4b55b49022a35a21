"""The policy: parameters, and THE distribution over legal actions.

Sampling, training log-probabilities and CPO's position scores all come from `distribution`: there is no second mask.

Axes: D hidden, V vocabulary (ids of the tokenizer), E expanded actions; `…` any leading axes.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from earl_jax.acting.masked import NEGATIVE
from earl_jax.action_space import ActionSpace
from earl_jax.devices.sharding import constrain, tensor_shards
from earl_jax.model import lora, transformer
from earl_jax.model.products import over_rows, product

BLOCK = 128  # entries of the vocabulary whose probabilities are added up first

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


def heads(params: Params) -> Params:
  """What `distribution` reads of the parameters."""
  rest = {key: x for key, x in params.items() if key != 'adapters'}
  return rest | {'model': {'embedding': transformer.output_embedding(params['model'])}}


class Distribution(NamedTuple):
  """The distribution over legal actions at some decisions.

  Vocabulary and expanded actions stay apart, for the vocabulary may be shared out over devices: nothing puts the two
  side by side, or asks one device for all of it.

  Attributes:
    vocabulary: float32[…, rows of the embedding], logits; `NEGATIVE` in the padding rows beyond V.
    expanded: float32[…, E], logits, unmasked.
    language: bool[…], all of V is legal.
    legal: bool[…, E], expanded actions that are.
    log_vocabulary: float32[…], log of the sum of exp(logits) over V.
    log_normaliser: float32[…], the same over all legal actions.
  """

  vocabulary: jax.Array
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
  head = params['expanded_head'] if 'expanded_head' in params else _token_rows(params['model'], space)
  vocabulary, expanded = (_logits(hidden, rows.astype(hidden.dtype)) / temperature for rows in (embedding, head))
  if len(embedding) > space.vocab_size:
    vocabulary = jnp.where(jnp.arange(len(embedding)) < space.vocab_size, vocabulary, NEGATIVE)
  log_vocabulary = jax.nn.logsumexp(vocabulary, axis=-1)
  parts = [jnp.where(language, log_vocabulary, NEGATIVE)[..., None], jnp.where(legal, expanded, NEGATIVE)]
  log_normaliser = jax.nn.logsumexp(jnp.concatenate(parts, axis=-1), axis=-1)
  return Distribution(
      vocabulary=vocabulary, expanded=expanded, language=language, legal=legal, log_vocabulary=log_vocabulary,
      log_normaliser=log_normaliser,
  )


@jax.custom_vjp
def _logits(hidden: jax.Array, rows: jax.Array) -> jax.Array:
  """float32[…, A] of hidden dtype[…, D] and rows dtype[A, D]. Gradients are products in dtype too, not in float32."""
  return jnp.einsum('...d,ad->...a', hidden, rows, preferred_element_type=jnp.float32)


def _logits_backward(kept, gradient):
  hidden, rows = kept
  gradient = gradient.astype(hidden.dtype)
  of_rows = over_rows(*(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) for x in (gradient, hidden)))
  return product(gradient, rows), of_rows


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
  vocabulary = jnp.where(d.language[:, None], d.vocabulary, NEGATIVE)
  # One more, that is never chosen: there may be no environment at all.
  expanded = jnp.pad(jnp.where(d.legal, d.expanded, NEGATIVE), [(0, 0), (0, 1)], constant_values=NEGATIVE)
  if greedy:
    token = jnp.max(vocabulary, axis=-1) >= jnp.max(expanded, axis=-1)
    place, other = jnp.argmax(vocabulary, axis=-1), jnp.argmax(expanded, axis=-1)
  else:
    # A device's part of the vocabulary stays its own.
    vocabulary = vocabulary.reshape(len(uniform), tensor_shards(), -1)
    vocabulary = jnp.pad(vocabulary, [(0, 0), (0, 0), (0, -vocabulary.shape[2] % BLOCK)], constant_values=NEGATIVE)
    blocks = jnp.exp(vocabulary.reshape(len(uniform), -1, BLOCK) - d.log_normaliser[:, None, None])
    expanded = jnp.exp(expanded - d.log_normaliser[:, None])
    sums = jnp.append(constrain(blocks.sum(axis=-1), 'rows'), expanded.sum(axis=-1)[:, None], axis=1)
    chosen, rest = _fall(sums, uniform * sums.sum(axis=-1))
    token, chosen = chosen < blocks.shape[1], jnp.minimum(chosen, blocks.shape[1] - 1)
    within, _ = _fall(jnp.take_along_axis(blocks, chosen[:, None, None], axis=1)[:, 0], rest)
    part, block = jnp.divmod(chosen, blocks.shape[1] // tensor_shards())
    place = part * (d.vocabulary.shape[1] // tensor_shards()) + block * BLOCK + within
    other, _ = _fall(expanded, rest)
  return jnp.where(token, place, vocab_size + other).astype(jnp.int32)


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
  return jnp.where(actions < vocab_size, _at(d.vocabulary, actions), _at(d.expanded, actions - vocab_size))


@jax.custom_vjp
def _at(logits: jax.Array, index: jax.Array) -> jax.Array:
  """float32[…]: the logits […, A] at int32[…]; 0 where the index is outside. Its gradient is a mask, not a scatter."""
  size = logits.shape[-1]
  if not size:
    return jnp.zeros(index.shape)
  found = jnp.take_along_axis(logits, jnp.clip(index, 0, size - 1)[..., None], axis=-1)[..., 0]
  return jnp.where((index >= 0) & (index < size), found, 0.0)


def _at_backward(kept, gradient):
  places, index = kept
  return jnp.where(places == index[..., None], gradient[..., None], 0.0), None


_at.defvjp(lambda logits, index: (_at(logits, index), (jnp.arange(logits.shape[-1]), index)), _at_backward)


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
  words = d.vocabulary[..., space.descriptions[:count, 0]]
  scores = jnp.maximum(words, d.expanded[..., :count]) - d.log_normaliser[..., None]
  return jnp.where(possible, scores, NEGATIVE)
