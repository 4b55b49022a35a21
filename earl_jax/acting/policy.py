"""The policy: parameters, and THE distribution over legal actions.

Sampling, training log-probabilities and CPO's position scores all come from `distribution`: there is no second mask.

Axes: D hidden, V vocabulary (`len(tokenizer)`), E expanded actions; `…` any leading axes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from earl_jax.acting.masked import NEGATIVE
from earl_jax.action_space import ActionSpace
from earl_jax.devices.sharding import gathered, on_own_rows
from earl_jax.model import transformer

CHUNK = 16  # slots scored at a time
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
  return Distribution(vocabulary, expanded, language, legal, log_vocabulary, log_normaliser)


def sample(keys: jax.Array, d: Distribution, vocab_size: int, greedy: bool = False) -> jax.Array:
  """int32[B]: an action per row.

  Args:
    keys: key[B], one a row, so that a row's draw depends on nothing else in the batch.
    d: leaves [B, …].
    vocab_size: V, from where expanded actions are counted.
    greedy: takes the likeliest; static.
  """
  def best(stream, logits, mask):
    """The place and the value of the row's best logit, with noise."""
    if not greedy:
      noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, stream), logits.shape[-1:]))(keys)
      logits = logits + noise
    logits = jnp.where(mask, logits, NEGATIVE)
    return jnp.argmax(logits, axis=-1), jnp.max(logits, axis=-1)

  token, token_score = best(0, d.vocabulary, d.language[:, None])
  expanded, expanded_score = best(1, d.expanded, d.legal)
  return jnp.where(token_score >= expanded_score, token, vocab_size + expanded).astype(jnp.int32)


def pick(d: Distribution, vocab_size: int, actions: jax.Array) -> jax.Array:
  """float32[…]: logits of int32[…] actions. Masked sums: their gradient needs no scatter."""
  of = lambda logits, index: jnp.sum(  # noqa: E731
      jnp.where(jnp.arange(logits.shape[-1]) == index[..., None], logits, 0.0), axis=-1
  )
  return jnp.where(actions < vocab_size, of(d.vocabulary, actions), of(d.expanded, actions - vocab_size))


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
  """float32[…, R]: max(log p(first description token), log p(routing action)) per environment (method, CPO step 2).

  Args:
    possible: bool[…, R], where the environment can be entered; elsewhere the score is `NEGATIVE`.
  """
  count = space.num_environments
  words = d.vocabulary[..., space.descriptions[:count, 0]]
  scores = jnp.maximum(words, d.expanded[..., :count]) - d.log_normaliser[..., None]
  return jnp.where(possible, scores, NEGATIVE)


class Scores(NamedTuple):
  """The policy's view of given decisions. All float32[B, T].

  Attributes:
    log_probs: of the action, among the legal ones.
    vocabulary_log_probs: of the action among V alone, for the KL term; 0 where the action is no token.
    entropy: see `entropy`.
  """

  log_probs: jax.Array
  vocabulary_log_probs: jax.Array
  entropy: jax.Array


def score_decisions(
    params: Params, space: ActionSpace, hidden, actions, language, legal, temperature: float = 1.0, chunk: int = CHUNK
) -> Scores:
  """Scores recorded decisions from the hidden states that saw the tokens before them.

  Works through T in chunks and recomputes them in the backward pass, so that no [B, T, V] array exists.

  Args:
    hidden: dtype[B, T, D], hidden[:, t] is the state *before* slot t.
    actions: int32[B, T], -1 = no decision.
    language: bool[B, T].
    legal: bool[B, T, E].
    temperature: as in `distribution`.
    chunk: slots at a time; any number, a divisor of T saves padding.
  """
  # What `distribution` reads of the parameters, gathered once for all chunks, not once for each.
  heads = gathered(params | {'model': {'embedding': transformer.output_embedding(params['model'])}}, 'float32')

  @jax.checkpoint
  def score_chunk(heads, hidden, actions, language, legal):
    decision = actions >= 0
    # where nothing was chosen the vocabulary counts as legal: a finite number, dropped below
    d = distribution(heads, space, hidden, language | ~decision, legal, temperature)
    is_token = decision & (actions < space.vocab_size)
    return Scores(
        log_probs=jnp.where(decision, log_prob(d, space.vocab_size, actions), 0.0),
        vocabulary_log_probs=jnp.where(is_token, pick(d, space.vocab_size, actions) - d.log_vocabulary, 0.0),
        entropy=jnp.where(decision, entropy(d), 0.0),
    )

  def score_rows(heads, *arrays):
    length = actions.shape[1]
    pad = -length % chunk

    def chunks(x):
      x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
      return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    scores = jax.lax.map(lambda inputs: score_chunk(heads, *inputs), tuple(map(chunks, arrays)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length], scores)

  return on_own_rows(score_rows, heads, hidden, actions, language, legal)
