"""Random checkpoints of every family, as `transformers` makes and saves them."""

import json

import numpy as np
import pytest

from tests.model import reference

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

ROPE = {'rope_type': 'default', 'rope_theta': 500.0}
# Of the three pairs in a head of 6, one turns often enough to be kept, one is mixed, one is slowed down by the factor.
LLAMA3 = ROPE | dict(
    rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=100
)
FAMILIES = ('qwen2', 'qwen3', 'llama')


def make(folder, model_type, tied=True, rope=None, dtype=None, max_shard_size='5GB', **changes):
  """Saves a random model of a family to `folder` and gives it, in float32."""
  config = transformers.AutoConfig.for_model(
      model_type, **reference.SIZES | changes, tie_word_embeddings=tied, rms_norm_eps=1e-5,
      rope_parameters=dict(rope or ROPE), bos_token_id=None, eos_token_id=None,
  )
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
  with torch.no_grad():
    for parameter in model.parameters():  # biases and scales too
      parameter.add_(0.2 * torch.randn_like(parameter))
  model = model.to(dtype or torch.float32)
  model.save_pretrained(folder, max_shard_size=max_shard_size)
  return model.float()


def logits(model, tokens, start):
  """float32[B, S, V]; left padding as torch sees it."""
  tokens = torch.tensor(np.asarray(tokens))
  slots = torch.arange(tokens.shape[1])
  mask = (slots[None] >= torch.tensor(start)[:, None]).long()
  positions = (slots[None] - torch.tensor(start)[:, None]).clamp(min=0)
  with torch.no_grad():
    return model(tokens, attention_mask=mask, position_ids=positions).logits.numpy()


def old_spelling(folder):
  """Rewrites config.json as transformers 4 did: rope_theta by itself, rope_scaling beside it."""
  fields = json.loads((folder / 'config.json').read_text())
  rope = fields.pop('rope_parameters')
  fields['rope_theta'] = rope.pop('rope_theta')
  fields['rope_scaling'] = rope if rope['rope_type'] != 'default' else None
  (folder / 'config.json').write_text(json.dumps(fields))
