"""The same logits as `transformers` on torch, from checkpoints that either side wrote."""

import chex
import numpy as np
import pytest

from earl_jax.model import hf
from tests.model import checkpoints, reference

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


def torch_logits(model, tokens, start):
  """float32[B, S, V]; left padding as torch sees it."""
  tokens = torch.tensor(tokens)
  slots = torch.arange(tokens.shape[1])
  mask = (slots[None] >= torch.tensor(start)[:, None]).long()
  positions = (slots[None] - torch.tensor(start)[:, None]).clamp(min=0)
  with torch.no_grad():
    return model(tokens, attention_mask=mask, position_ids=positions).logits.numpy()


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('key_heads', [1, 2, 4])
def test_same_logits(tmp_path, tied, key_heads):
  torch.manual_seed(0)
  shape = reference.SIZES | dict(num_key_value_heads=key_heads)
  config = transformers.Qwen2Config(
      **shape, tie_word_embeddings=tied, rms_norm_eps=checkpoints.EPS,
      rope_parameters={'rope_type': 'default', 'rope_theta': checkpoints.THETA},
  )
  theirs = transformers.Qwen2ForCausalLM(config).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():  # biases and scales too
      parameter.add_(0.3 * torch.randn_like(parameter))
  theirs.save_pretrained(tmp_path / 'theirs')

  ours = hf.read_config(tmp_path / 'theirs')
  params = hf.load_params(tmp_path / 'theirs', ours)
  tokens = np.random.default_rng(0).integers(ours.vocab_size, size=(3, 12))
  start = [0, 4, 1]
  expected = torch_logits(theirs, tokens, start)
  full, _ = checkpoints.logits(ours, params, tokens, start)
  cached = checkpoints.decoded(ours, params, tokens, 6, start)
  for row, first in enumerate(start):
    chex.assert_trees_all_close(full[row, first:], expected[row, first:], atol=1e-4)
    chex.assert_trees_all_close(cached[row, first:], expected[row, first:], atol=1e-4)

  hf.save_checkpoint(tmp_path / 'ours', ours, params, eos_token_id=0)
  again = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / 'ours', dtype=torch.float32).eval()
  chex.assert_trees_all_equal(torch_logits(again, tokens, start), expected)


def test_numpy_reference_agrees_with_torch(tmp_path):
  tensors = checkpoints.write(tmp_path, tied=False)
  theirs = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
  tokens = np.random.default_rng(0).integers(reference.SIZES['vocab_size'], size=(1, 9))
  expected = reference.logits(tensors, tokens[0], checkpoints.THETA, checkpoints.EPS)
  chex.assert_trees_all_close(torch_logits(theirs, tokens, [0])[0], np.float32(expected), atol=1e-4)
