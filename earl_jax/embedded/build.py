"""Builds the embedded base model: a tokenizer of the corpus's words and a small decoder trained to predict them.

  python -m earl_jax.embedded.build --out=DIR [--init=DIR] [--steps=…]

Training is plain next-token prediction, data-parallel over the local devices (two CPU cores:
XLA_FLAGS=--xla_force_host_platform_device_count=2). It takes about an hour on two cores; the result ships with the
package, so that no user has to wait for it. It is written every 250 steps, with the share of right answers per kind of
knowledge.
"""

import functools
import json
import pathlib
import shutil
import sys

from absl import flags
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
from tokenizers import decoders, models, pre_tokenizers, Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from earl_jax import cli
from earl_jax import tokenizer as tokenizer_lib
from earl_jax.config import UserError
from earl_jax.embedded import corpus
from earl_jax.model import hf, transformer

SHAPE = dict(
    hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1,
    head_dim=32,
)
WIDTHS = (112, 136, 160)  # of the shortest, middle and longest third of a batch; what is longer is cut
LENGTH = WIDTHS[-1]
HELD_OUT = 10**6  # seed of the documents that measure: training takes another
SAVE_EVERY = 250

SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
TOKENIZER_FILES = ('tokenizer.json', 'tokenizer_config.json')


def build_tokenizer(folder: pathlib.Path) -> None:
  """Whole words of the corpus, and single bytes for everything else, in the byte-level layout of Qwen and GPT-2."""
  symbols = _byte_symbols()
  words = [''.join(symbols[b] for b in word.encode()) for word in corpus.vocabulary()]
  entries = dict.fromkeys([*words, *symbols.values()])
  vocab = {entry: i for i, entry in enumerate([*SPECIAL, *entries])}
  tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(list(SPECIAL))
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  settings = dict(
      tokenizer_class='PreTrainedTokenizerFast', eos_token='<|im_end|>', pad_token='<|endoftext|>',
      clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE,
  )
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings, indent=2) + '\n')


def _byte_symbols() -> dict[int, str]:
  """The printable stand-in of every byte in GPT-2's byte-level alphabet."""
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  rest = [b for b in range(256) if b not in printable]
  return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


class Documents:
  """Documents of the corpus as token ids, each segment encoded once: they are the ids of the whole text."""

  def __init__(self, tokenizer: PreTrainedTokenizerFast):
    self.encode = functools.cache(lambda text: tuple(tokenizer_lib.encode(tokenizer, text)))
    self.eos = tokenizer.eos_token_id
    frame = tokenizer_lib.chat_prompt(tokenizer, corpus.SYSTEM, '\x00', corpus.OPENING)
    hole = frame.index(self.encode('\x00')[0])
    self.before, self.after = frame[:hole], frame[hole + 1 :]

  def __call__(self, seed: int, index: int, settings: corpus.Settings) -> tuple[list[int], list[str]]:
    """Ids of one document, cut to LENGTH, and for each the kind of knowledge it shows, '' where it is free."""
    user, assistant = corpus.document(seed, index, settings)
    tokens, answers = [], []
    for ids, answer in (
        (self.before, ''), *self._encoded(user), (self.after, ''), *self._encoded(assistant), ([self.eos], ''),
    ):
      tokens += ids
      answers += [answer] * len(ids)
    return tokens[:LENGTH], answers[:LENGTH]

  def _encoded(self, segments: list[corpus.Segment]) -> list[tuple[tuple[int, ...], str]]:
    return [(self.encode(segment.text), segment.answer) for segment in segments]

  def batch(
      self, seed: int, first: int, count: int, settings: corpus.Settings
  ) -> tuple[np.ndarray, list[list[str]]]:
    """Documents `first` … `first + count - 1`: int32[count, LENGTH] padded with -1, and the kinds of their tokens."""
    tokens = np.full((count, LENGTH), -1, np.int32)
    kinds = []
    for row in range(count):
      ids, answers = self(seed, first + row, settings)
      tokens[row, : len(ids)] = ids
      kinds.append(answers)
    return tokens, kinds


def settings_at(progress: float) -> corpus.Settings:
  """Small n and ascending order first: a model that starts with everything at once stands still for long."""
  grown = min(1.0, progress / 0.25)
  sizes = tuple((1 - grown) * a + grown * b for a, b in zip((0.35, 0.45, 0.2, 0.0), corpus.DEFAULT.sizes))
  return corpus.Settings(sizes, descending=0.1 + 0.4 * min(1.0, max(0.0, progress - 0.1) / 0.25))


@functools.partial(jax.jit, static_argnames='config')
def token_losses(config: transformer.ModelConfig, params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
  """-log p of tokens[:, 1:]: float32[B, S - 1], 0 at padding; and bool[B, S - 1], whether each was the likeliest."""
  hidden, _ = transformer.apply(config, params, jnp.maximum(tokens[:, :-1], 0), jnp.zeros(tokens.shape[0], jnp.int32))
  logits = (hidden @ transformer.output_embedding(params).T).astype(jnp.float32)
  targets = tokens[:, 1:]
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
  return jnp.where(targets >= 0, loss, 0.0), logits.argmax(-1) == targets


def evaluate(config: transformer.ModelConfig, params: dict, documents: Documents) -> dict[str, float]:
  """Share of right answer tokens per kind, on documents that training never sees."""
  tokens, kinds = documents.batch(HELD_OUT, 0, 256, corpus.DEFAULT)
  right = np.asarray(token_losses(config, params, tokens)[1])
  scores = {}
  for row, answers in enumerate(kinds):
    for i, kind in enumerate(answers[1:]):
      if kind:
        scores.setdefault(kind, []).append(right[row, i])
  return {kind: float(np.mean(values)) for kind, values in sorted(scores.items())}


def train(
    folder: pathlib.Path, steps: int, batch: int, seed: int, learning_rate: float, init: pathlib.Path | None = None
) -> None:
  """Trains on `steps * batch` documents and writes the checkpoint to `folder`.

  Args:
    folder: where config.json, model.safetensors and the tokenizer go.
    steps: optimizer steps; the learning rate falls to 2 % of its peak along a cosine.
    batch: documents a step.
    seed: of the corpus and of the random weights.
    learning_rate: its peak.
    init: folder of a checkpoint to go on from. It keeps its tokenizer, and its documents are of the final mix from
      the first step on. None starts from random weights, with easier documents first (`settings_at`).

  Raises:
    UserError: a number that can't be, or `init` holds no such checkpoint.
  """
  thirds = len(WIDTHS) * jax.local_device_count()
  if batch < 1 or batch % thirds:
    raise UserError(f'--batch={batch}: choose a multiple of {len(WIDTHS)} x {jax.local_device_count()} local devices')
  if seed == HELD_OUT:
    raise UserError(f'--seed={seed}: its documents measure the model; choose another seed')
  if init is None:
    build_tokenizer(folder)
    tokenizer = tokenizer_lib.load_tokenizer(folder)
    config = transformer.ModelConfig(vocab_size=len(tokenizer), **SHAPE)
    params = transformer.init_params(config, jax.random.key(seed))
  else:
    tokenizer, config = tokenizer_lib.load_tokenizer(init), hf.read_config(init)
    params = hf.load_params(init, config)
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.samefile(init):
      for name in TOKENIZER_FILES:
        shutil.copyfile(init / name, folder / name)
  documents = Documents(tokenizer)

  mesh = jax.make_mesh((jax.local_device_count(),), ('data',), axis_types=(AxisType.Auto,), devices=jax.local_devices())
  by_row = NamedSharding(mesh, PartitionSpec('data'))
  params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  rate = optax.warmup_cosine_decay_schedule(0, learning_rate, min(200, steps // 10), steps, learning_rate * 0.02)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.05))
  opt_state = optimizer.init(params)

  @functools.partial(jax.jit, donate_argnames=('params', 'opt_state'))
  def update(params, opt_state, parts):
    def loss_fn(params):
      tokens = sum((part[:, 1:] >= 0).sum() for part in parts)
      return sum(token_losses(config, params, part)[0].sum() for part in parts) / tokens

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  losses = []
  progress = tqdm(range(1, steps + 1), unit='step')
  for step in progress:
    settings = settings_at((step - 1) / steps) if init is None else corpus.DEFAULT
    tokens, _ = documents.batch(seed, (step - 1) * batch, batch, settings)
    tokens = tokens[np.argsort((tokens >= 0).sum(axis=1))]  # short documents together: less padding
    parts = [jax.device_put(part[:, :width], by_row) for part, width in zip(np.split(tokens, len(WIDTHS)), WIDTHS)]
    params, opt_state, loss = update(params, opt_state, parts)
    losses.append(loss)
    if step % SAVE_EVERY == 0 or step == steps:
      known = ' '.join(f'{kind}={share:.2f}' for kind, share in evaluate(config, params, documents).items())
      progress.write(f'step {step} loss {np.mean(losses):.4f} {known}')
      losses.clear()
      hf.save_checkpoint(folder, config, params, tokenizer.eos_token_id)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  here = pathlib.Path(__file__).parent / 'checkpoint'
  flags.DEFINE_string('out', str(here), 'Folder to write; the one that ships unless set.', flag_values=values)
  flags.DEFINE_string('init', None, 'Checkpoint folder to go on from; random weights without it.', flag_values=values)
  flags.DEFINE_integer('steps', 9000, 'Optimizer steps.', lower_bound=1, flag_values=values)
  flags.DEFINE_integer('batch', 48, 'Documents a step.', flag_values=values)
  flags.DEFINE_integer('seed', 0, 'Seed of corpus and weights; with --init choose another one.', flag_values=values)
  flags.DEFINE_float('learning_rate', 2e-3, 'Peak learning rate.', lower_bound=0.0, flag_values=values)


def main(values: flags.FlagValues) -> None:
  init = values.init and pathlib.Path(values.init)
  train(pathlib.Path(values.out), values.steps, values.batch, values.seed, values.learning_rate, init)


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
