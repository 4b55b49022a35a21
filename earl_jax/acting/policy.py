"""The policy: parameters, and THE distribution over legal actions.

Sampling, training log-probabilities and CPO's position scores all come from `distribution`: there is no second mask.

Axes: D hidden, V vocabulary (`len(tokenizer)`), E expanded actions; `…` any leading axes.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from earl_jax.acting.masked import NEGATIVE
from earl_jax.action_space import ActionSpace
from earl_jax.model import transformer

Params = dict  # {'model': decoder parameters, 'expanded_head': float32[E, D], absent where it is tied}


def init_params(model: dict, space: ActionSpace, tied: bool = False) -> Params:
  """Adds the expanded head: each action starts as the `lm_head` row of one token of its description.

  Args:
    tied: there is no head of its own; an action's row stays that of the token.
  """
  return {'model': model} if tied else {'model': model, 'expanded_head': _token_rows(model, space)}


def _token_rows(model: dict, space: ActionSpace) -> jax.Array:
  return jnp.asarray(transformer.output_embedding(model))[space.init_tokens]


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
  vocabulary, expanded = (
      jnp.einsum('...d,ad->...a', hidden, rows.astype(hidden.dtype), preferred_element_type=jnp.float32) / temperature
      for rows in (embedding, head)
  )
  if len(embedding) > space.vocab_size:
    vocabulary = jnp.where(jnp.arange(len(embedding)) < space.vocab_size, vocabulary, NEGATIVE)
  log_vocabulary = jax.nn.logsumexp(vocabulary, axis=-1)
  parts = [jnp.where(language, log_vocabulary, NEGATIVE)[..., None], jnp.where(legal, expanded, NEGATIVE)]
  log_normaliser = jax.nn.logsumexp(jnp.concatenate(parts, axis=-1), axis=-1)
  return Distribution(
      vocabulary=vocabulary, expanded=expanded, language=language, legal=legal, log_vocabulary=log_vocabulary,
      log_normaliser=log_normaliser,
  )


def sample(keys: jax.Array, d: Distribution, vocab_size: int, greedy: bool = False) -> jax.Array:
  """int32[B]: an action per row.

  Args:
    keys: key[B], one a row, so that a row's draw depends on nothing else in the batch.
    d: leaves [B, …].
    vocab_size: V, from where expanded actions are counted.
    greedy: takes the likeliest; static.
  """
  chex.assert_rank([keys, d.language], 1)

  def best(stream, logits, mask):
    """The place and the value of the row's best logit, with noise."""
    if not greedy:
      noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, stream), logits.shape[-1:]))(keys)
      logits = logits + noise
    logits = jnp.where(mask, logits, NEGATIVE)
    return jnp.argmax(logits, axis=-1), jnp.max(logits, axis=-1)

  token, token_score = best(0, d.vocabulary, d.language[:, None])
  if not d.expanded.shape[-1]:  # no environment at all
    return token.astype(jnp.int32)
  expanded, expanded_score = best(1, d.expanded, d.legal)
  return jnp.where(token_score >= expanded_score, token, vocab_size + expanded).astype(jnp.int32)


def pick(d: Distribution, vocab_size: int, actions: jax.Array) -> jax.Array:
  """float32[…]: logits of int32[…] actions. Masked sums: their gradient needs no scatter."""
  return jnp.where(actions < vocab_size, _at(d.vocabulary, actions), _at(d.expanded, actions - vocab_size))


def _at(logits: jax.Array, index: jax.Array) -> jax.Array:
  """float32[…]: the logits […, A] at int32[…]; 0 where the index is outside."""
  return jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == index[..., None], logits, 0.0), axis=-1)


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
