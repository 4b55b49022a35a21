"""The update: its loss against a slow one, splits of a mini-batch, what gradients flow through, what memory holds."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from earl_jax.acting import scoring
from earl_jax.acting.scoring import Scoring
from earl_jax.config import AlgorithmConfig, Config, OptimizerConfig
from earl_jax.learning import update
from earl_jax.learning.batches import Batch, Split
from tests import core_fixtures as core

ROWS = 8 * core.GROUP
CONFIG = AlgorithmConfig(entropy=0.02, kl=0.05, clip_high=0.4)


@functools.cache
def settings(**changes):
  return Scoring(core.MODEL, core.interface().space, core.PROMPT, **changes)


@functools.cache
def score():
  return jax.jit(scoring.score, static_argnames='scoring')


@functools.cache
def mixed():
  """Half of the rows as rolled out, half rewritten so that they call swap or compare; advantages of both signs."""
  rewritten = jax.tree.map(
      lambda a, b: np.where(core.offered_rows(1).reshape(-1, *[1] * (a.ndim - 1)), a, b),
      core.rewritten(1)[1], core.rewritten(2)[1],
  )
  take = np.arange(ROWS) % 2 == 0
  trajectory = jax.tree.map(
      lambda a, b: np.where(take.reshape(-1, *[1] * (a.ndim - 1)), a, b), core.rolled_out(), rewritten
  )
  reference = score()(core.params(5), trajectory, settings()).vocabulary_log_probs
  return Batch(trajectory, np.linspace(-1, 1.4, ROWS).astype(np.float32), reference, np.zeros(ROWS, bool))


def drifted():
  """Parameters a little away from those that sampled, so that ratios differ from 1."""
  return jax.tree.map(lambda x, y: x + 0.02 * y, core.params(1), core.params(2))


@functools.cache
def loss_and_gradients():
  """(params, batch, total) -> (loss, metrics), gradients with respect to params and batch."""
  f = functools.partial(update.loss_and_metrics, scoring=settings(), config=CONFIG)
  return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True, allow_int=True))


@pytest.mark.parametrize('make, temperature', [
    (core.rolled_out, 1.0), (lambda: core.rolled_out(1, 0.5), 0.5), (lambda: core.rolled_out(1, 0.0), 1.0),
    (lambda: core.rewritten(1)[1], 1.0), (lambda: core.rewritten(2)[1], 1.0),
], ids=['sampled', 'sampled at 0.5', 'greedy', 'compare forced', 'swap forced'])
def test_log_probs_while_decoding_are_those_of_the_update(make, temperature):
  trajectory = make()
  possible = np.asarray(trajectory.log_probs) > -1e29  # a test may force what is not offered; collect never does
  got = np.asarray(score()(core.params(1), trajectory, settings(temperature=temperature)).log_probs)
  np.testing.assert_allclose(got[possible], np.asarray(trajectory.log_probs)[possible], atol=1e-5)
  assert np.abs(got[possible]).max() > 3


def slow_loss(params, batch, total):
  """The loss of method.md, decision by decision, from logits of forward passes without cache or padding; float64."""
  t, vocab = batch.trajectory, len(core.tokenizer())
  sums = dict(surrogate=0.0, kl=0.0, entropy=0.0, clip_fraction=0.0)
  for row, slot in np.argwhere(t.actions >= 0):
    logits = core.forward()(params, t.tokens[row, t.start[row]:slot].tolist())
    action, advantage = t.actions[row, slot], batch.advantages[row]
    masked = np.where(np.append(np.full(vocab, t.language[row, slot]), t.legal[row, slot]), logits, -np.inf)
    p = np.exp(masked - np.logaddexp.reduce(masked))
    ratio = p[action] / np.exp(t.log_probs[row, slot])
    clipped = np.clip(ratio, 1 - CONFIG.clip_low, 1 + CONFIG.clip_high)
    loss = -min(advantage * ratio, advantage * clipped)
    sums['surrogate'] += min(loss, -3 * advantage) if advantage < 0 else loss
    sums['clip_fraction'] += ratio != clipped
    parts = np.append(p[vocab:], p[:vocab].sum())
    sums['entropy'] -= sum(x * np.log(x) for x in parts if x > 0)
    if action < vocab:
      log_q = batch.reference_log_probs[row, slot]
      d = log_q - (logits[action] - np.logaddexp.reduce(logits[:vocab]))
      sums['kl'] += np.exp(d) - d - 1
  means = {name: value / total for name, value in sums.items()}
  return means['surrogate'] + CONFIG.kl * means['kl'] - CONFIG.entropy * means['entropy'], means


def test_loss_and_metrics_against_a_slow_loss():
  batch, params = jax.tree.map(np.asarray, mixed()), drifted()
  total = int((batch.trajectory.actions >= 0).sum())
  (loss, metrics), _ = loss_and_gradients()(params, batch, total)
  expected, means = slow_loss(params, batch, total)
  assert 0.02 < means['clip_fraction'] < 0.8
  for name in ('kl', 'entropy', 'clip_fraction'):
    np.testing.assert_allclose(metrics[name], means[name], rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_at_unchanged_weights_the_ratio_is_1():
  batch = mixed()
  total = int((batch.trajectory.actions >= 0).sum())
  (_, metrics), (_, gradient) = loss_and_gradients()(core.params(1), batch, total)
  assert metrics['clip_fraction'] == 0
  assert abs(metrics['approx_kl']) < 1e-6
  # d(-A ρ)/d(behaviour log-prob) = A ρ / total
  decisions = batch.trajectory.actions >= 0
  expected = np.where(decisions, batch.advantages[:, None] / total, 0)
  np.testing.assert_allclose(gradient.trajectory.log_probs, expected, atol=2e-5 / total)


def test_the_loss_takes_in_decisions_and_nothing_else():
  """Behaviour log-probabilities count at every decision, the reference's at every token chosen; nowhere else."""
  batch = mixed()
  trajectory = batch.trajectory
  _, (_, gradient) = loss_and_gradients()(core.params(1), batch, 100)
  decisions = trajectory.actions >= 0
  tokens = decisions & (trajectory.actions < len(core.tokenizer()))
  np.testing.assert_array_equal(np.asarray(gradient.trajectory.log_probs) != 0, decisions)
  got = np.asarray(gradient.reference_log_probs) != 0
  assert not got[~tokens].any() and got[tokens].mean() > 0.95
  assert (tokens.sum(), (decisions & ~tokens).sum(), (~decisions).sum()) > (50, 50, 50)


def test_the_forced_route_is_in_the_loss():
  slots, trajectory = jax.tree.map(np.asarray, core.rewritten(2))
  rows = np.flatnonzero(core.offered_rows(2) & (trajectory.actions[np.arange(ROWS), slots] >= 0))
  batch = mixed()._replace(trajectory=trajectory, advantages=np.ones(ROWS, np.float32))
  _, (_, gradient) = loss_and_gradients()(core.params(1), batch, 100)
  np.testing.assert_allclose(gradient.trajectory.log_probs[rows, slots[rows]], 1 / 100, rtol=1e-3)
  assert len(rows) > 3


def test_what_follows_the_last_decision_changes_nothing():
  """Written text after it, padding, masks and log-probabilities where nothing was chosen."""
  batch = jax.tree.map(np.array, mixed())
  trajectory = batch.trajectory
  expected = loss_and_gradients()(core.params(1), mixed(), 100)
  rng = np.random.default_rng(0)
  last = core.SLOTS - 1 - np.argmax(trajectory.actions[:, ::-1] >= 0, axis=1)
  after = np.arange(core.SLOTS) >= last[:, None]
  trajectory.tokens[after] = rng.integers(len(core.tokenizer()), size=after.sum())
  trajectory.tokens[np.arange(core.SLOTS) < trajectory.start[:, None]] = 5
  free = trajectory.actions < 0
  trajectory.log_probs[free] = rng.normal(size=free.sum())
  batch.reference_log_probs[free] = rng.normal(size=free.sum())
  trajectory.legal[free] = True
  got = loss_and_gradients()(core.params(1), batch, 100)
  chex.assert_trees_all_close((got[0], got[1][0]), (expected[0], expected[1][0]), atol=1e-6)


@functools.cache
def sgd():
  return optax.sgd(0.1)


def step(order, counts=None, batch=None, shared=1, **changes):
  """(state, metrics) after one update_step from `drifted()`, plain SGD, so that parameters show the gradient."""
  config = dataclasses.replace(CONFIG, **changes)
  state = update.init_state(drifted(), sgd())
  batch = mixed() if batch is None else batch
  order = jnp.asarray(order, jnp.int32)
  counts = jnp.full(order.shape[0], order.shape[1], jnp.int32) if counts is None else jnp.asarray(counts, jnp.int32)
  with jax.set_mesh(core.one_device()):
    return update.update_step(
        state, batch, Split(order, counts), optimizer=sgd(), scoring=settings(rows_per_prompt=shared), config=config
    )


def test_splitting_a_mini_batch_changes_nothing():
  order = np.random.default_rng(0).permutation(ROWS)
  whole, metrics = step(order.reshape(2, 1, 8))
  state, split_metrics = step(order.reshape(2, 8, 1))
  chex.assert_trees_all_close(state.params, whole.params, atol=1e-6)
  chex.assert_trees_all_close(metrics, split_metrics, rtol=1e-3, atol=1e-6)
  assert state.step == 2
  moved = max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (whole.params, drifted()))))
  assert moved > 1e-3


def test_the_order_within_a_mini_batch_changes_nothing():
  order = np.arange(ROWS).reshape(2, 1, 8)
  chex.assert_trees_all_close(step(order)[0].params, step(order[..., ::-1])[0].params, atol=1e-6)


def test_reading_a_prompt_once_for_its_rows_changes_nothing():
  groups = np.random.default_rng(1).permutation(ROWS // core.GROUP)[:, None] * core.GROUP + np.arange(core.GROUP)
  order = groups.reshape(2, 2, -1)
  alone, metrics = step(order)
  together, shared_metrics = step(order, shared=core.GROUP)
  chex.assert_trees_all_close(together.params, alone.params, atol=1e-6)
  chex.assert_trees_all_close(shared_metrics, metrics, rtol=1e-3, atol=1e-6)
  wrong, _ = step(order[..., ::-1][..., ::2].repeat(2, -1), shared=core.GROUP)  # other rows: it can tell
  assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (wrong.params, alone.params)))) > 1e-5


def test_rows_without_advantage_can_be_left_out():
  """They still count in the average: without entropy and KL terms, parameters are those of the whole mini-batch."""
  idle = np.arange(ROWS) % 3 == 0
  batch = mixed()._replace(advantages=jnp.where(idle, 0.0, mixed().advantages))
  order, busy = np.argsort(idle, kind='stable'), int((~idle).sum())
  plain = dict(batch=batch, entropy=0.0, kl=0.0)
  whole, _ = step(order.reshape(1, -1, 1), **plain)
  short, _ = step(order.reshape(1, -1, 1), [busy], **plain)
  chex.assert_trees_all_close(short.params, whole.params, atol=1e-6)
  shorter, _ = step(order.reshape(1, -1, 1), [busy - 1], **plain)
  assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (whole.params, shorter.params)))) > 1e-6


def test_one_step_is_the_gradient_of_the_loss():
  order = np.arange(ROWS).reshape(1, 2, 8)
  state, metrics = step(order)
  total = int((mixed().trajectory.actions >= 0).sum())
  (loss, _), (gradient, _) = loss_and_gradients()(drifted(), mixed(), total)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, drifted(), gradient)
  chex.assert_trees_all_close(state.params, expected, atol=1e-6)
  np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)
  np.testing.assert_allclose(metrics['gradient_norm'], optax.tree.norm(gradient), rtol=1e-4)


def test_no_array_of_all_logits(monkeypatch):
  """Neither the forward nor the backward pass of a micro-batch holds float [rows, T, V (+ E)]."""
  monkeypatch.setattr(scoring, 'MOST_AT_ONCE', 64)
  rows, vocab = 8, core.MODEL.vocab_size
  state = update.init_state(core.params(1), sgd())
  split = Split(jnp.arange(ROWS, dtype=jnp.int32).reshape(1, 2, rows), jnp.full(1, 2, jnp.int32))
  # The temperature is that of no other test: what has been traced before knows nothing of the 64.
  with jax.set_mesh(core.one_device()):
    lowered = update.update_step.lower(
        state, mixed(), split, optimizer=sgd(), scoring=settings(temperature=0.9), config=CONFIG
    )
  found = re.findall(r'\bf(?:16|32|64)\[([\d,]+)\]', lowered.compile().as_text())
  shapes = {tuple(map(int, dims.split(','))) for dims in found}
  assert any(vocab in shape for shape in shapes), 'the logits of a chunk should be seen'
  widest = max(np.prod(shape) for shape in shapes if vocab in shape)
  assert widest < rows * core.SLOTS * vocab / 4


def make_optimizer(**optimizer):
  """Of a run with eight optimizer steps."""
  algorithm = AlgorithmConfig(mini_batches=2)
  return update.make_optimizer(Config(steps=4, algorithm=algorithm, optimizer=OptimizerConfig(**optimizer)))


def rates(steps, **config):
  """Learning rates as they act: with Adam and a constant gradient every step moves by the rate."""
  optimizer = make_optimizer(**config)
  optimizer = optimizer._replace(update=jax.jit(optimizer.update))
  params = jnp.zeros(())
  state, moves = optimizer.init(params), []
  for _ in range(steps):
    change, state = optimizer.update(jnp.float32(0.5), state, params)
    moves.append(-float(change))
  return moves


@pytest.mark.parametrize('warmup, decay, expected', [
    (0, 0.0, [1, 1, 1, 1, 1, 1, 1, 1]),
    (4, 0.0, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
    (0, 0.5, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
    (2, 0.25, [0, 0.5, 1, 1, 1, 1, 1, 0.5]),
    (4, 1.0, [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),  # what the warm-up leaves is too short to fall for longer
])
def test_learning_rates(warmup, decay, expected):
  got = rates(8, learning_rate=1e-2, warmup=warmup, decay=decay, weight_decay=0.0)
  np.testing.assert_allclose(np.array(got) / 1e-2, expected, atol=1e-4)


def test_gradient_clip_and_weight_decay():
  optimizer = make_optimizer(learning_rate=0.1, weight_decay=0.01, b1=0.0, b2=0.0)
  params = jnp.array([3.0, -2.0])
  # With both b = 0 Adam moves by the sign; a decay of 0.01 · 0.1 · parameter comes on top.
  change, _ = optimizer.update(jnp.array([30.0, 40.0]), optimizer.init(params), params)
  np.testing.assert_allclose(change, [-0.1 - 0.003, -0.1 + 0.002], rtol=1e-5)
  # Clipped to norm 1, the second moment is that of (0.6, 0.8).
  state = make_optimizer()
  _, after = state.update(jnp.array([30.0, 40.0]), state.init(params), params)
  np.testing.assert_allclose(optax.tree.get(after, 'nu'), 0.001 * np.array([0.36, 0.64]), rtol=1e-4)
