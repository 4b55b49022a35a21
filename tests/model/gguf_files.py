"""Small GGUF files, as llama.cpp's converter writes them, from tensors as torch names them."""

import pathlib

import gguf
import numpy as np

from tests.model import reference

TYPES = gguf.GGMLQuantizationType
NAMES = {
    'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm', 'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output',
    'self_attn.q_norm': 'attn_q_norm', 'self_attn.k_norm': 'attn_k_norm', 'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up', 'mlp.down_proj': 'ffn_down',
}
TOKENS = ['<|end|>', '<|start|>', 'Ġ', *'abcdefghijklmnopqrstuvwxyz', *'0123', 'ab', 'abc', 'Ġa', '12', '<tool>']
SIZES = dict(
    vocab_size=len(TOKENS), hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64,
)
WIDE_HEADS = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=128)  # what transformers has for any Qwen3
MERGES = ['a b', 'ab c', 'Ġ a', '1 2']
TEMPLATE = "{% for m in messages %}{{ '<|start|>' + m.content + '<|end|>' }}{% endfor %}"


def random_tensors(architecture, tied=True, **sizes):
  """What a checkpoint of this family holds, biases or norms of heads where it has them."""
  sizes = SIZES | sizes
  tensors = {name: x / 4 for name, x in reference.random_tensors(0, tied, **sizes).items()}
  if architecture != 'qwen2':
    tensors = {name: x for name, x in tensors.items() if not name.endswith('.bias')}
  if architecture == 'qwen3':
    scale = np.linspace(0.5, 1.5, sizes['head_dim'], dtype=np.float32)
    for layer in range(sizes['num_hidden_layers']):
      tensors |= {f'model.layers.{layer}.self_attn.{name}.weight': scale for name in ('q_norm', 'k_norm')}
  return tensors


def interleaved(x, heads):
  """Rows in llama.cpp's order: of every head features 0, H/2, 1, H/2 + 1, …"""
  return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(path: pathlib.Path, tensors, architecture='llama', kind=TYPES.F32, leave_out=(), sizes=(), **changes):
  """Writes a file of random weights, matrices quantised as `kind`, and gives its tensors as they are de-quantised.

  Args:
    sizes: other than `SIZES`.
    leave_out, changes: fields that are absent or other than they would be; `{'tokenizer.ggml.model': 'llama'}`.
  """
  writer, s = gguf.GGUFWriter(path, architecture), SIZES | dict(sizes)
  fields = {
      f'{architecture}.block_count': s['num_hidden_layers'], f'{architecture}.context_length': 128,
      f'{architecture}.embedding_length': s['hidden_size'],
      f'{architecture}.feed_forward_length': s['intermediate_size'],
      f'{architecture}.attention.head_count': s['num_attention_heads'],
      f'{architecture}.attention.head_count_kv': s['num_key_value_heads'],
      f'{architecture}.attention.key_length': s['head_dim'],
      f'{architecture}.attention.layer_norm_rms_epsilon': 1e-5, f'{architecture}.rope.freq_base': 500.0,
      'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': 'smollm', 'tokenizer.ggml.tokens': TOKENS,
      'tokenizer.ggml.token_type': [3, 3, *[1] * (len(TOKENS) - 3), 4], 'tokenizer.ggml.merges': MERGES,
      'tokenizer.ggml.eos_token_id': 0, 'tokenizer.chat_template': TEMPLATE,
  } | changes
  for name, value in fields.items():
    if name not in leave_out:
      add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
      add[type(value)](name, value)
  read = {}
  for name, x in tensors.items():
    stored, read[name] = _stored(x, kind if x.ndim == 2 else TYPES.F32)
    heads = {'q_proj': s['num_attention_heads'], 'k_proj': s['num_key_value_heads']}
    for part, count in heads.items():
      if architecture == 'llama' and part in name:
        stored = interleaved(stored, count)
    writer.add_tensor(_name(name), stored, raw_dtype=kind if x.ndim == 2 else TYPES.F32)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return read


def _stored(x, kind):
  """(as the file has it, as it is read)."""
  try:
    stored = gguf.quantize(x, kind)
  except NotImplementedError:  # the library reads K-quants, it does not make them: any bytes will do, scales apart
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(x.size).integers(256, size=(len(x), x.shape[1] // block, size), dtype=np.uint8)
    scales = [slice(0, 2), slice(2, 4)] if kind == TYPES.Q4_K else [slice(-2, None)]
    for part in scales:
      stored[..., part] = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
    stored = stored.reshape(len(x), -1)
  return stored, gguf.dequantize(stored, kind)


def _name(name):
  top = {
      'model.embed_tokens.weight': 'token_embd.weight', 'model.norm.weight': 'output_norm.weight',
      'lm_head.weight': 'output.weight', 'rope_freqs.weight': 'rope_freqs.weight',
  }
  if name in top:
    return top[name]
  _, _, layer, *module, kind = name.split('.')
  return f'blk.{layer}.{NAMES[".".join(module)]}.{kind}'
