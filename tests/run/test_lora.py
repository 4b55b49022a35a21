"""A run with adapters: what it trains, keeps, goes on from and exports."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from earl_jax import export, train
from earl_jax.acting import policy
from earl_jax.acting.scoring import score
from earl_jax.config import MeshConfig, UserError
from earl_jax.model import transformer
from earl_jax.run import saved
from earl_jax.run.checkpoint import Checkpointer
from earl_jax.run.preparation import set_up
from earl_jax.run.problems import draw
from tests.run import tiny


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('base'))


@pytest.fixture(scope='module')
def ran(base, tmp_path_factory):
  """(config, workdir, what `train` gave) of six steps, the last one in a second call."""
  workdir = tmp_path_factory.mktemp('run')
  changes = {'lora.rank': 2, 'checkpoint_every': 5, 'algorithm.entropy': 0.0, 'steps': 6}
  config = tiny.parsed(base, **changes)
  with tiny.compiled_once(config):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(train.StopSignal, 'reached', lambda self, step: step == 5)
      assert train.train(config, workdir).stopped
    return config, workdir, train.train(config, workdir)


def test_only_adapters_and_head_are_trained(ran):
  config, _, trained = ran
  _, params = set_up(config)
  chex.assert_trees_all_equal(trained.params['model'], params['model'])
  assert set(trained.state.params) == {'adapters', 'expanded_head'}
  for adapter in trained.params['adapters'].values():
    assert np.any(adapter['b'])
  assert np.any(trained.params['expanded_head'] != params['expanded_head'])


def test_what_is_trained_is_all_a_checkpoint_holds(ran, base):
  config, workdir, trained = ran
  experiment, params, step = saved.load(workdir, config)
  assert step == 6
  chex.assert_trees_all_equal(params, trained.params)
  # Other programs may have other devices than the run: a mesh that does not fit gives way.
  elsewhere = dataclasses.replace(config, mesh=MeshConfig(1, 64, 2))
  other, again, _ = saved.load(workdir, elsewhere)
  assert other.mesh.shape == {'data': 1, 'fsdp': jax.device_count(), 'tensor': 1}
  chex.assert_trees_all_equal(again, params)
  model = sum(x.size for x in jax.tree.leaves(params['model']))
  with Checkpointer(workdir, read_only=True, frozen=policy.split(params)[1]) as checkpointer:
    _, state, _ = checkpointer.restore(jax.eval_shape(lambda: trained.state))
  assert sum(x.size for x in jax.tree.leaves(state)) < model


def test_the_first_step_is_that_of_the_base(ran, base):
  """Without a change the policy is the frozen model, its log-probabilities bit for bit; it is its own reference."""
  config, workdir, _ = ran
  lines = tiny.read_metrics(workdir)
  assert lines[0]['kl'] < 1e-3
  plain = tiny.parsed(base)
  experiment, params = set_up(plain)
  with_adapters, adapted = set_up(config)
  problems = draw(experiment, 0, 0)
  key, decoding = jax.random.key(0), experiment.decoding()
  trajectory = experiment.rollout(params, problems.prompts, np.arange(4), key, decoding=decoding)
  scores = [
      jax.jit(score, static_argnums=2)(p, trajectory, e.scoring)
      for p, e in ((params, experiment), (adapted, with_adapters))
  ]
  chex.assert_trees_all_equal(*scores)


def test_sampler_and_trainer_agree(ran):
  """The one decodes with merged weights, the other scores beside frozen ones."""
  _, _, trained = ran
  experiment, params = trained.experiment, jax.tree.map(np.asarray, trained.params)
  rng = np.random.default_rng(0)
  # They outweigh the kernels. At four times this, one rounding of the parameters moves a log-probability by the bound.
  params['adapters'] = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype('f') / 16, params['adapters'])
  problems = draw(experiment, 0, 0)
  key, decoding = jax.random.key(0), experiment.decoding()
  trajectory = experiment.rollout(params, problems.prompts, np.arange(4), key, decoding=decoding)
  alone = dataclasses.replace(experiment.scoring, rows_per_prompt=1)  # a row of each of four prompts
  scores = jax.jit(score, static_argnums=2)(params, trajectory, alone)
  chosen = np.asarray(trajectory.decisions)
  assert chosen.sum() > 20
  chex.assert_trees_all_close(scores.log_probs[chosen], trajectory.log_probs[chosen], atol=1e-5)


def test_export_merges_or_writes_adapters(ran, base, tmp_path):
  config, workdir, trained = ran
  export.export(trained.experiment, trained.params, tmp_path / 'whole')
  experiment, params = set_up(tiny.parsed(tmp_path / 'whole'))
  merged = policy.merged(trained.params, trained.experiment.model)
  chex.assert_trees_all_equal(params, merged)
  export.export(trained.experiment, trained.params, tmp_path / 'adapters', adapters=True)
  _, params = set_up(tiny.parsed(base, **{'lora.rank': 2, 'lora.adapters': str(tmp_path / 'adapters')}))
  chex.assert_trees_all_equal(params, trained.params)
  with pytest.raises(UserError, match='--adapters.*rank=0'):
    export.export(experiment, merged, tmp_path / 'none', adapters=True)


@pytest.mark.parametrize('adapters', [True, False])
def test_logits_of_peft_and_transformers(ran, base, tmp_path, adapters):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  peft = pytest.importorskip('peft')
  _, _, trained = ran
  experiment, params = trained.experiment, jax.tree.map(np.asarray, trained.params)
  rng = np.random.default_rng(0)
  params['adapters'] = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype('f') / 4, params['adapters'])
  export.export(experiment, params, tmp_path / 'out', adapters=adapters)
  model = transformers.AutoModelForCausalLM.from_pretrained(base if adapters else tmp_path / 'out')
  if adapters:
    model = peft.PeftModel.from_pretrained(model, tmp_path / 'out')
  tokens = rng.integers(500, size=(1, 20))
  with torch.no_grad():
    expected = model.eval()(torch.tensor(tokens)).logits.numpy()
  merged = policy.merged(params, experiment.model)['model']
  hidden, _ = transformer.apply(experiment.model, merged, tokens, np.zeros(1, np.int32))
  chex.assert_trees_all_close(hidden @ transformer.output_embedding(merged).T, expected, atol=1e-4, rtol=0)


def test_adapters_of_another_base_are_refused(ran, base, tmp_path):
  """The same shape is not enough: a checkpoint is read beside the very weights it was trained with."""
  config, workdir, _ = ran
  other = tiny.write_model(tmp_path)
  experiment, params = set_up(tiny.parsed(other))
  export.export(experiment, jax.tree.map(lambda x: x + 1, params), tmp_path / 'other')
  with pytest.raises(UserError, match='another base'):
    saved.load(workdir, dataclasses.replace(config, model=str(tmp_path / 'other')))
