"""A run with the tokenizer of Qwen2.5 and its 151,936 rows, on a random model of two thin layers."""

import shutil

import jax
import numpy as np
import pytest

from earl_jax import train
from earl_jax.acting import scoring
from earl_jax.model import hf, transformer
from earl_jax.model.tokenizer import load_tokenizer
from tests.run import tiny

ROWS = 151_936  # of the embedding; the tokenizer has fewer entries, and the rest is never sampled


@pytest.fixture(scope='module')
def model(qwen_tokenizer_dir, tmp_path_factory):
  folder = tmp_path_factory.mktemp('qwen')
  for path in qwen_tokenizer_dir.iterdir():
    shutil.copy(path, folder)
  shape = transformer.ModelConfig(
      vocab_size=ROWS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
      num_key_value_heads=2, head_dim=8, rope_theta=1e6,
  )
  params = transformer.init_params(shape, jax.random.key(0))
  params['embedding'] = 10 * params['embedding']  # so that the logits spread
  hf.save_checkpoint(folder, shape, params, load_tokenizer(folder).eos_token_id)
  return folder


@pytest.fixture(scope='module')
def run(model, tmp_path_factory):
  """(what `train` leaves, its workdir, per step the trajectories with the log-probabilities the update finds)."""
  config = tiny.parsed(model, **{
      'steps': 2, 'rollout.prompts': 2, 'rollout.group': 4, 'rollout.chunk': 4, 'algorithm.mini_batches': 1,
      'algorithm.rewrite_fraction': 1.0, 'evaluation_prompts': 2, 'evaluate_every': 9, 'checkpoint_every': 9,
  })
  collect, seen = train.collect, []
  score = jax.jit(scoring.score, static_argnums=2)

  def collect_and_score(experiment, params, *others):
    experience = collect(experiment, params, *others)
    for trajectory in (experience.factual, experience.trajectory):
      scores = score(params, trajectory, experiment.scoring)
      seen.append(jax.device_get((trajectory, scores.log_probs)))
    return experience

  workdir = tmp_path_factory.mktemp('run')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'collect', collect_and_score)
    return train.train(config, workdir), workdir, seen


def test_it_runs_to_its_end(run):
  left, workdir, seen = run
  assert not left.stopped and int(left.state.step) == 2 and len(seen) == 4
  lines = tiny.read_metrics(workdir)
  assert len(lines) == 2 and all(np.isfinite(line['loss']) for line in lines)
  assert (workdir / 'evaluation.json').exists()


def test_sampler_and_update_agree_on_log_probs(run):
  for trajectory, found in run[2]:
    decisions = trajectory.decisions
    assert decisions.sum() > 8
    assert trajectory.log_probs[decisions].std() > 0.1
    np.testing.assert_allclose(found[decisions], trajectory.log_probs[decisions], atol=1e-4)


def test_padding_rows_are_never_sampled(run):
  left, _, seen = run
  entries = left.experiment.interface.space.vocab_size
  assert entries < ROWS
  for trajectory, _ in seen:
    assert trajectory.tokens.max() < entries
    assert trajectory.actions.max() < entries + left.experiment.interface.space.num_expanded
