"""GGUF files, as llama.cpp and Ollama have them: configuration, tokenizer and weights in one.

What such a file holds is given as a Hugging Face checkpoint would: fields of config.json, a tokenizer, and tensors by
their names there. The gguf library reads the file and de-quantises.
"""

import functools
import pathlib
import re
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, Regex, Tokenizer
from transformers import PreTrainedTokenizerFast

from earl_jax.config import UserError
from earl_jax.config.errors import first_line

__all__ = ['config_fields', 'is_gguf', 'open_file', 'token_ids', 'tokenizer_of']

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
SIZES = {  # name in config.json -> key there, behind the architecture
    'hidden_size': 'embedding_length', 'intermediate_size': 'feed_forward_length', 'num_hidden_layers': 'block_count',
    'num_attention_heads': 'attention.head_count', 'num_key_value_heads': 'attention.head_count_kv',
    'head_dim': 'attention.key_length', 'max_position_embeddings': 'context_length',
    'rms_norm_eps': 'attention.layer_norm_rms_epsilon', 'rope_theta': 'rope.freq_base',
}
TOP = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
LAYER = {
    'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
    'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj', 'attn_q_norm': 'self_attn.q_norm', 'attn_k_norm': 'self_attn.k_norm',
    'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj',
}
ROPE_FACTORS = 'rope_freqs.weight'  # by what Llama 3 divides each rotation's speed
LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)  # of all its releases

# How texts are cut before byte pairs are merged, by the name that llama.cpp gives it.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS: dict[str, list] = {
    'gpt-2': [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    'smollm': [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
} | {
    name: [
        pre_tokenizers.Split(Regex(_WORDS % digits), 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    for name, digits in (('qwen2', ''), ('llama-bpe', '{1,3}'))
}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # kinds of tokens


def is_gguf(path: str | pathlib.Path) -> bool:
  """Whether `path` names such a file."""
  return pathlib.Path(path).suffix == '.gguf'


class File:
  """A file that is looked through once: of many tokens that takes a second.

  Its tensors go by their names in a Hugging Face checkpoint, and are read as `safetensors.safe_open` has them read.

  Attributes:
    fields: key -> value.
    stored: the tensors as they are in the file, by their names there.
  """

  def __init__(self, path: pathlib.Path):
    """Raises UserError where the file cannot be read to its end."""
    self._where = f'model {str(path)!r}'
    try:
      reader = gguf.GGUFReader(path)
      self.stored = {tensor.name: tensor for tensor in reader.tensors}
      for tensor in reader.tensors:
        tensor.data[-1:].tobytes()  # whether its end is there
      self.fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # a dozen kinds: ValueError, IndexError, UnicodeDecodeError, …
      raise UserError(f'{self._where} is truncated or not a GGUF file ({first_line(error)}); copy it again') from None

  @functools.cached_property
  def architecture(self) -> str:
    """Raises UserError where it is not supported."""
    architecture = self.fields.get('general.architecture')
    if architecture not in ARCHITECTURES:
      raise UserError(
          f'{self._where}: general.architecture={architecture!r}, expected one of {", ".join(ARCHITECTURES)}; use such '
          'a file'
      )
    return architecture

  @functools.cached_property
  def tokens(self) -> list[str]:
    """The vocabulary, without the rows that fill the embedding up."""
    tokens, kinds = self.fields['tokenizer.ggml.tokens'], self.fields.get('tokenizer.ggml.token_type', [])
    count = len(tokens)
    while kinds[count - 1 : count] == [UNUSED]:
      count -= 1
    return tokens[:count]

  @functools.cached_property
  def _tensors(self) -> dict[str, gguf.ReaderTensor]:
    return {self._name(name): tensor for name, tensor in self.stored.items() if name != ROPE_FACTORS}

  def keys(self) -> list[str]:
    """Raises UserError where a tensor has no known name."""
    return list(self._tensors)

  def get_slice(self, name: str) -> 'Tensor':
    """The tensor of that name, of which nothing is read yet."""
    tensor, heads = self._tensors[name], None
    if self.architecture == 'llama' and ('.q_proj.' in name or '.k_proj.' in name):
      heads = self.fields[f'llama.{SIZES["num_attention_heads"]}']
      if '.k_proj.' in name:  # it is not said where it is as many
        heads = self.fields.get(f'llama.{SIZES["num_key_value_heads"]}', heads)
    return Tensor(self._where, tensor, heads)

  def _name(self, name: str) -> str:
    found = re.fullmatch(r'(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)', name)
    layer, kind, rest = found.groups() if found else (None, None, None)
    if kind not in (TOP if layer is None else LAYER):
      raise UserError(f'{self._where}: tensor {name!r} is not part of any supported model; use another file')
    return f'{TOP[kind]}.{rest}' if layer is None else f'model.layers.{layer}.{LAYER[kind]}.{rest}'


class Tensor:
  """One tensor, of which parts are read.

  llama.cpp rotates features 0 and 1, 2 and 3, … of a head of Llama; everyone else the first half against the second.
  """

  def __init__(self, where: str, tensor: gguf.ReaderTensor, heads: int | None):
    """`heads`: into which the rows of a projection are divided whose features have to be put in order."""
    self._where, self._tensor, self._heads = where, tensor, heads

  def get_shape(self) -> list[int]:
    return self._tensor.shape[::-1].tolist()

  def get_dtype(self) -> str:
    """F32, whatever it was before; raises UserError where the gguf library does not read that."""
    try:
      self._read(slice(0, 1))
    except (NotImplementedError, KeyError):
      raise UserError(
          f'{self._where}: tensor {self._tensor.name!r} is quantised as {self._tensor.tensor_type.name}, which the '
          'gguf library does not read; use a file of another quantisation, such as Q8_0'
      ) from None
    return 'F32'

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    """float32: rows, and of these columns where there are any."""
    rows, *columns = index
    if not self._heads:
      return self._read(rows)[:, *columns] if columns else self._read(rows)
    size = self.get_shape()[0] // self._heads
    row = np.arange(rows.start, rows.stop)
    half, pair = np.divmod(row % size, size // 2)
    row = row - row % size + 2 * pair + half
    first = row.min(initial=rows.start)
    return self._read(slice(first, row.max(initial=first) + 1))[(row - first, *columns)]

  def _read(self, rows: slice) -> np.ndarray:
    return gguf.dequantize(self._tensor.data[rows], self._tensor.tensor_type)


def open_file(path: str | pathlib.Path) -> File:
  """The file, which is looked through once for as long as it does not change.

  Raises:
    UserError: no such file, or only part of one.
  """
  path = pathlib.Path(path)
  try:
    return _opened(path, path.stat().st_mtime_ns)
  except OSError as error:
    raise UserError(f'model {str(path)!r} cannot be read ({error.strerror}); give a GGUF file') from None


@functools.lru_cache(maxsize=2)
def _opened(path: pathlib.Path, changed: int) -> File:
  del changed
  return File(path)


def config_fields(path: str | pathlib.Path) -> dict[str, Any]:
  """What config.json of the same model would say.

  Raises:
    UserError: no such file or not a GGUF file, an architecture that is not supported, or positions scaled in a way
      that is not.
  """
  file = open_file(path)
  fields, architecture = file.fields, file.architecture
  if 'token_embd.weight' not in file.stored:
    raise UserError(f'model {str(path)!r}: tensor token_embd.weight is missing; copy the file again')
  found = {name: fields.get(f'{architecture}.{key}') for name, key in SIZES.items()}
  return {name: value for name, value in found.items() if value is not None} | {
      'model_type': architecture, 'vocab_size': int(file.stored['token_embd.weight'].shape[1]),
      'tie_word_embeddings': 'output.weight' not in file.stored, 'eos_token_id': _ends(fields),
  } | _rope(path, file)


def tokenizer_of(path: str | pathlib.Path) -> PreTrainedTokenizerFast:
  """The tokenizer in the file.

  Raises:
    UserError: it is not a byte-pair encoding with merges, or cuts texts in a way that is not known here.
  """
  file, where = open_file(path), f'tokenizer {str(path)!r}'
  fields = file.fields

  def field(name, kind):
    value = fields.get(f'tokenizer.{name}')
    if not isinstance(value, kind):
      said = 'missing' if value is None else repr(value)[:50]
      raise UserError(f'{where}: tokenizer.{name} is {said}; use the Hugging Face folder of this model')
    return value

  if field('ggml.model', str) != 'gpt2':
    raise UserError(f'{where}: tokenizer.ggml.model={fields["tokenizer.ggml.model"]!r}, expected gpt2 (byte pairs '
                    'with merges); use the Hugging Face folder of this model')
  cut = fields.get('tokenizer.ggml.pre', 'gpt-2')
  if cut not in CUTS:
    raise UserError(f'{where}: tokenizer.ggml.pre={cut!r}, expected one of {", ".join(CUTS)}; use the Hugging Face '
                    'folder of this model')
  merges = [tuple(pair.split(' ')) for pair in field('ggml.merges', list)]
  kinds, _ = field('ggml.token_type', list), field('ggml.tokens', list)  # that they are there
  tokens = file.tokens
  try:
    byte_pairs = models.BPE(
        {token: i for i, token in enumerate(tokens)}, merges, ignore_merges=cut == 'llama-bpe', fuse_unk=False
    )
  except Exception as error:  # the Rust library raises bare Exceptions
    raise UserError(f'{where}: its merges do not fit its tokens ({error}); use another file') from None
  tokenizer = Tokenizer(byte_pairs)
  tokenizer.normalizer = normalizers.NFC() if cut == 'qwen2' else None
  tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(CUTS[cut]), decoders.ByteLevel()
  tokenizer.add_tokens([
      AddedToken(token, normalized=False, special=kind == CONTROL)
      for token, kind in zip(tokens, kinds) if kind in (CONTROL, USER_DEFINED)
  ])
  special = {
      f'{name}_token': tokens[fields[key]]
      for name, key in (
          ('bos', 'tokenizer.ggml.bos_token_id'), ('eos', 'tokenizer.ggml.eos_token_id'),
          ('unk', 'tokenizer.ggml.unknown_token_id'), ('pad', 'tokenizer.ggml.padding_token_id'),
      )
      if isinstance(fields.get(key), int) and fields[key] < len(tokens)
  }
  return PreTrainedTokenizerFast(
      tokenizer_object=tokenizer, chat_template=fields.get('tokenizer.chat_template'),
      clean_up_tokenization_spaces=False, **special,
  )


def token_ids(path: str | pathlib.Path) -> dict[str, int]:
  """Token -> id, as the file has them."""
  return {token: i for i, token in enumerate(open_file(path).tokens)}


def _ends(fields: dict[str, Any]) -> list[int]:
  """The tokens that end a turn."""
  keys = ('tokenizer.ggml.eos_token_id', 'tokenizer.ggml.eot_token_id')
  return list(dict.fromkeys(fields[key] for key in keys if key in fields))


def _rope(path: str | pathlib.Path, file: File) -> dict[str, Any]:
  """rope_scaling, where positions are scaled."""
  kind = file.fields.get(f'{file.architecture}.rope.scaling.type', 'none')
  if kind != 'none':
    raise UserError(f'model {str(path)!r}: rope.scaling.type={kind!r}, only none is supported; use another file')
  if ROPE_FACTORS not in file.stored:
    return {}
  factors = file.stored[ROPE_FACTORS].data
  # They are those of config.json's four numbers, worked out. Three of these have always been the same.
  factor, half = float(np.max(factors)), len(factors)
  speed = file.fields.get(f'{file.architecture}.{SIZES["rope_theta"]}', 10_000.0) ** (-np.arange(half) / half)
  low, high, length = LLAMA3.values()
  kept = np.clip((length * speed / (2 * np.pi) - low) / (high - low), 0, 1)
  if not np.allclose(factors, 1 / (kept + (1 - kept) / factor), rtol=1e-3):
    raise UserError(
        f'model {str(path)!r}: {ROPE_FACTORS} is not that of a Llama 3 with {LLAMA3}; use its Hugging Face folder'
    )
  return {'rope_scaling': {'rope_type': 'llama3', 'factor': factor} | LLAMA3}
