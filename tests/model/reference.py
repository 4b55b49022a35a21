"""Qwen2 once more, slowly: NumPy in float64, one row and one position at a time, on tensors as torch names them.

Shares nothing with the package: neither its parameter tree nor its batching, cache or mask.
"""

import numpy as np

SIZES = dict(
    vocab_size=23, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=6,  # wider than hidden_size / heads, so that no axis passes for another
)


def random_tensors(seed: int, tied: bool, **sizes) -> dict[str, np.ndarray]:
  """Weights of a checkpoint, every one of them random: float32, [out, in]."""
  s = SIZES | sizes
  rng = np.random.default_rng(seed)
  wide, narrow = s['num_attention_heads'] * s['head_dim'], s['num_key_value_heads'] * s['head_dim']
  d, f, v = s['hidden_size'], s['intermediate_size'], s['vocab_size']
  shapes = {'model.embed_tokens.weight': (v, d), 'model.norm.weight': (d,)}
  if not tied:
    shapes['lm_head.weight'] = (v, d)
  for i in range(s['num_hidden_layers']):
    layer = {
        'input_layernorm.weight': (d,), 'post_attention_layernorm.weight': (d,), 'self_attn.q_proj.weight': (wide, d),
        'self_attn.q_proj.bias': (wide,), 'self_attn.k_proj.weight': (narrow, d), 'self_attn.k_proj.bias': (narrow,),
        'self_attn.v_proj.weight': (narrow, d), 'self_attn.v_proj.bias': (narrow,),
        'self_attn.o_proj.weight': (d, wide), 'mlp.gate_proj.weight': (f, d), 'mlp.up_proj.weight': (f, d),
        'mlp.down_proj.weight': (d, f),
    }
    shapes |= {f'model.layers.{i}.{name}': shape for name, shape in layer.items()}
  return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def logits(tensors: dict[str, np.ndarray], tokens: list[int], theta: float, eps: float, **sizes) -> np.ndarray:
  """float64[len(tokens), V] of one row without padding."""
  s = SIZES | sizes
  w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
  x = [w['model.embed_tokens.weight'][token] for token in tokens]
  for i in range(s['num_hidden_layers']):
    layer = {name.removeprefix(f'model.layers.{i}.'): tensor for name, tensor in w.items()}
    x = _attention(layer, x, s, theta, eps)
    x = [y + _mlp(layer, _rms_norm(y, layer['post_attention_layernorm.weight'], eps)) for y in x]
  head = w.get('lm_head.weight', w['model.embed_tokens.weight'])
  return np.stack([head @ _rms_norm(y, w['model.norm.weight'], eps) for y in x])


def _attention(layer, x, s, theta, eps):
  width = s['head_dim']
  shared = s['num_attention_heads'] // s['num_key_value_heads']
  q, k, v = ([], [], [])
  for position, y in enumerate(x):
    y = _rms_norm(y, layer['input_layernorm.weight'], eps)
    for name, rows in (('q', q), ('k', k), ('v', v)):
      heads = (layer[f'self_attn.{name}_proj.weight'] @ y + layer[f'self_attn.{name}_proj.bias']).reshape(-1, width)
      rows.append(heads if name == 'v' else [_rotate(head, position, theta) for head in heads])
  out = []
  for now, y in enumerate(x):
    mixed = []
    for head in range(s['num_attention_heads']):
      scores = np.array([q[now][head] @ k[then][head // shared] for then in range(now + 1)]) / np.sqrt(width)
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      mixed.append(sum(weights[then] * v[then][head // shared] for then in range(now + 1)))
    out.append(y + layer['self_attn.o_proj.weight'] @ np.concatenate(mixed))
  return out


def _rotate(head, position, theta):
  """Pairs (i, i + H/2) as complex numbers, turned by position * theta ** (-2 i / H)."""
  half = len(head) // 2
  angle = position * theta ** (-2 * np.arange(half) / len(head))
  turned = (head[:half] + 1j * head[half:]) * np.exp(1j * angle)
  return np.concatenate([turned.real, turned.imag])


def _rms_norm(x, scale, eps):
  return x / np.sqrt(np.mean(x * x) + eps) * scale


def _mlp(layer, x):
  gate = layer['mlp.gate_proj.weight'] @ x
  return layer['mlp.down_proj.weight'] @ (gate / (1 + np.exp(-gate)) * (layer['mlp.up_proj.weight'] @ x))
