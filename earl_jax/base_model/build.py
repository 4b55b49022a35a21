"""Builds the embedded base model: a tokenizer of the corpus's words and a small decoder trained to predict them.

  python -m earl_jax.base_model.build --out=DIR [--init=DIR] [--steps=…]

Training is next-token prediction, data-parallel over the local devices (two CPU cores:
XLA_FLAGS=--xla_force_host_platform_device_count=2). It starts with two or three items and plain words, and documents
grow only while the model can tell how matters stand; `--steps` (2,700) more follow on the final mix with a falling
learning rate. The checkpoint is written every 250 steps, with the share of right answers per kind of knowledge.

The package ships a result, so that no user has to wait for it: of four runs, as the corpus grew. The first, of order
alone, took 5,541 steps in all (1 h 44 min on one of two CPU cores); the others went on from there with --init, numbers
included (1,750 steps of 3,500; --steps=2200 --seed=2; --steps=1500 --seed=3: 48, 46 and 20 minutes).
"""

import collections
import functools
import itertools
import json
import math
import pathlib
import sys
from typing import NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import optax
from tokenizers import decoders, models, pre_tokenizers, Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from earl_jax.base_model import corpus, orders
from earl_jax.base_model.language import FRAME, TORN
from earl_jax.config import UserError
from earl_jax.model import hf, transformer
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import cli

SHAPE = dict(
    hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1,
    head_dim=32,
)
WIDTHS = (112, 144, 272)  # of the shortest, middle and longest third of a batch; what is longer is cut
LENGTH = WIDTHS[-1]
HELD_OUT = 10**6  # seed of the documents that measure: training takes another
SAVE_EVERY = 250
MULTIPLE = 64  # of embedding rows: padded, so that a tensor axis can share them out

WARM_UP = 200  # steps
# Loss weights by kind of answer; '' is free text, any other kind weighs 1. What is said where it is true, but never
# denied ('result'), must weigh little: the model would say it too often.
WEIGHTS = {
    '': 0.1, 'open': 2.0, 'last open': 8.0, 'conclusion': 4.0, 'state': 4.0, 'holder': 4.0, 'undecided': 2.0,
    'number': 0.5, 'value': 0.3, 'reached': 4.0, 'result': 0.5, 'judgement': 2.0,
}
GATE = 0.8  # documents grow while the accuracy at states of affairs exceeds this
GROWTH = 1 / 700  # of a step that passes the gate
DECAY = 0.97  # of the running accuracy
LAG = 2  # steps until a batch's accuracy is read: the host makes documents while the devices compute

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
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings, indent=2) + '\n', 'utf-8')


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
    system, opening = FRAME
    frame = tokenizer_lib.chat_prompt(tokenizer, system, '\x00', opening)
    hole = frame.index(self.encode('\x00')[0])
    self.before, self.after = frame[:hole], frame[hole + 1 :]

  def __call__(self, seed: int, index: int, mix: corpus.Mix) -> tuple[list[int], list[str]]:
    """Ids of one document, cut to LENGTH, and for each the kind of knowledge it shows, '' where it is free."""
    user, assistant = corpus.document(seed, index, mix)
    tokens, answers = [], []
    end = [] if assistant and assistant[-1] == TORN else [self.eos]
    for ids, answer in (
        (self.before, ''), *self._encoded(user), (self.after, ''), *self._encoded(assistant), (end, ''),
    ):
      tokens += ids
      answers += [answer] * len(ids)
    return tokens[:LENGTH], answers[:LENGTH]

  def _encoded(self, segments: list[corpus.Segment]) -> list[tuple[tuple[int, ...], str]]:
    return [(self.encode(segment.text), segment.answer) for segment in segments]

  def batch(
      self, seed: int, first: int, count: int, mix: corpus.Mix
  ) -> tuple[np.ndarray, np.ndarray]:
    """Documents `first` … `first + count - 1`.

    Returns:
      Ids, int32[count, LENGTH] padded with -1, and the kinds of knowledge, str objects [count, LENGTH] padded with ''.
    """
    tokens = np.full((count, LENGTH), -1, np.int32)
    kinds = np.full((count, LENGTH), '', object)
    for row in range(count):
      ids, answers = self(seed, first + row, mix)
      tokens[row, : len(ids)], kinds[row, : len(ids)] = ids, answers
    return tokens, kinds


class Part(NamedTuple):
  """Documents of similar length, all [B, W]."""

  tokens: np.ndarray  # int32, -1 at padding
  weights: np.ndarray  # float32, of the loss, 0 at padding
  states: np.ndarray  # bool, whether the token says, of a known order, if all are in their places


def split(tokens: np.ndarray, kinds: np.ndarray) -> list[Part]:
  """The shortest, middle and longest third of a batch, each cut to its width: less padding to compute."""
  weights = np.select([tokens < 0, *(kinds == kind for kind in WEIGHTS)], [0.0, *WEIGHTS.values()], 1.0)
  whole = Part(tokens, weights.astype(np.float32), kinds == 'state')
  thirds = np.split(np.argsort((tokens >= 0).sum(axis=1)), len(WIDTHS))
  return [Part(*(array[rows, :width] for array in whole)) for rows, width in zip(thirds, WIDTHS)]


class Curriculum(NamedTuple):
  """Easy documents first, growing while the model keeps up: given everything at once, it stands still for long.

  What it must keep up with is the hardest: to say in one word, from relations, sequence and direction together, whether
  something is displaced or nothing is. (That a pair is undecided is soon learned, and would hide it.)
  """

  progress: float = 0.0  # in [0, 1]: from the easiest documents to the final mix
  accuracy: float = 0.0  # running share of right ones among the states of affairs

  @property
  def mix(self) -> corpus.Mix:
    if self.progress == 1.0:
      return corpus.DEFAULT
    p, final = self.progress, orders.DEFAULT
    sizes = tuple((1 - p) * a + p * b for a, b in zip((0.5, 0.5, 0.0, 0.0), final.sizes))
    order = orders.Settings(sizes, final.descending * min(1.0, 1.5 * p), final.variety * min(1.0, 2 * p), brief=False)
    return corpus.Mix(numbers=0.0, order=order)

  def after(self, right: int, count: int) -> 'Curriculum':
    """After a batch with `count` states of affairs, of which the model had `right`."""
    if not count:
      return self
    accuracy = DECAY * self.accuracy + (1 - DECAY) * right / count
    return Curriculum(min(1.0, self.progress + GROWTH * (accuracy > GATE)), accuracy)


def rate_at(step: int, finished: float) -> float:
  """Learning rate as a share of its peak: a warm-up, then 1 until the final mix, of which `finished` is the share done.
  """
  return min(1.0, step / WARM_UP) * (1 + math.cos(math.pi * finished)) / 2


def make_optimizer() -> optax.GradientTransformation:
  """Muon for the matrices, which left plateaus where AdamW stood still, and AdamW for the rest.

  Its rate is 1: the real one multiplies the updates, as no schedule knows when the curriculum will end.
  """
  def dimensions(params):
    """Which axes of each stacked kernel, [L, …], are inputs and outputs; None where AdamW is meant."""
    numbers = optax.contrib.MuonDimensionNumbers
    axes = dict(q=numbers((1,), (2, 3)), k=numbers((1,), (2, 3)), v=numbers((1,), (2, 3)), o=numbers((1, 2), (3,)))
    def of(path, _):
      *_, module, leaf = (None, *(key.key for key in path))
      return axes.get(module, numbers((1,), (2,))) if leaf == 'kernel' else None
    return jax.tree_util.tree_map_with_path(of, params)

  muon = optax.contrib.muon(
      1.0, adam_b2=0.98, weight_decay=0.05, consistent_rms=0.2, muon_weight_dimension_numbers=dimensions
  )
  return optax.chain(optax.clip_by_global_norm(1.0), muon)


@functools.partial(jax.jit, static_argnames='config')
def token_losses(config: transformer.ModelConfig, params: dict, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
  """-log p of tokens[:, 1:]: float32[B, S - 1], 0 at padding; and bool[B, S - 1], whether each was the likeliest."""
  hidden, _ = transformer.apply(config, params, jnp.maximum(tokens[:, :-1], 0), jnp.zeros(tokens.shape[0], jnp.int32))
  logits = (hidden @ transformer.output_embedding(params).T).astype(jnp.float32)
  targets = tokens[:, 1:]
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
  return jnp.where(targets >= 0, loss, 0.0), logits.argmax(-1) == targets


def evaluate(config: transformer.ModelConfig, params: dict, documents: Documents, count: int = 256) -> dict[str, float]:
  """Share of right answer tokens per kind, on `count` documents that training never sees."""
  tokens, kinds = documents.batch(HELD_OUT, 0, count, corpus.DEFAULT)
  right = np.asarray(token_losses(config, params, tokens)[1])
  return {kind: float(right[kinds[:, 1:] == kind].mean()) for kind in sorted(set(kinds[:, 1:].flat) - {''})}


def adopt(params: dict, vocabulary: dict[str, int], former_vocabulary: dict[str, int], former: dict) -> dict:
  """The `former` parameters, for another vocabulary: words that are new to it keep the rows they have in `params`."""
  if vocabulary == former_vocabulary:
    return former
  shared = [(i, former_vocabulary[word]) for word, i in vocabulary.items() if word in former_vocabulary]
  to, by = np.array(shared).T
  return former | {name: params[name].at[to].set(former[name][by]) for name in ('embedding', 'lm_head')}


def train(
    folder: pathlib.Path, steps: int, batch: int, seed: int, learning_rate: float, init: pathlib.Path | None = None
) -> None:
  """Trains on generated documents and writes the checkpoint to `folder`.

  Args:
    folder: where config.json, model.safetensors and the tokenizer go.
    steps: optimizer steps on the final mix; in them the learning rate falls to 0 along a cosine.
    batch: documents per step.
    seed: of the corpus and of the random weights.
    learning_rate: its peak, kept from the end of the warm-up to the end of the curriculum.
    init: folder of a checkpoint to go on from, with documents of the final mix from the first step on. None starts
      from random weights, with easier documents first (`Curriculum`).

  Raises:
    UserError: a number that can't be, or `init` holds no such checkpoint.
  """
  thirds = len(WIDTHS) * jax.local_device_count()
  if batch < 1 or batch % thirds:
    raise UserError(f'--batch={batch}: choose a multiple of {len(WIDTHS)} x {jax.local_device_count()} local devices')
  if seed == HELD_OUT:
    raise UserError(f'--seed={seed}: its documents measure the model; choose another seed')
  former = init and (tokenizer_lib.load_tokenizer(init).get_vocab(), hf.load_params(init, hf.read_config(init)))
  build_tokenizer(folder)
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  rows = math.ceil(tokenizer_lib.vocabulary_size(tokenizer) / MULTIPLE) * MULTIPLE
  config = transformer.ModelConfig(vocab_size=rows, tie_word_embeddings=False, **SHAPE)
  params = transformer.init_params(config, jax.random.key(seed))
  if former:
    params = adopt(params, tokenizer.get_vocab(), *former)
  curriculum = Curriculum(progress=1.0 if init else 0.0)
  documents = Documents(tokenizer)

  mesh = jax.make_mesh((jax.local_device_count(),), ('data',), axis_types=(AxisType.Auto,), devices=jax.local_devices())
  by_row = NamedSharding(mesh, PartitionSpec('data'))
  params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
  optimizer = make_optimizer()
  opt_state = optimizer.init(params)

  @functools.partial(jax.jit, donate_argnames=('params', 'opt_state'))
  def update(params, opt_state, parts, rate):
    def loss_fn(params):
      loss, right = 0.0, 0
      for part in parts:
        losses, likeliest = token_losses(config, params, part.tokens)
        loss += (part.weights[:, 1:] * losses).sum()
        right += (part.states[:, 1:] & likeliest).sum()
      return loss / sum(part.weights[:, 1:].sum() for part in parts), right

    (loss, right), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates)), opt_state, loss, right

  losses, unread = [], collections.deque()
  final = 0  # steps made on the final mix
  bar = tqdm(itertools.count(1), unit='step')
  for step in bar:
    parts = split(*documents.batch(seed, (step - 1) * batch, batch, curriculum.mix))
    rate = learning_rate * rate_at(step, final / steps)
    params, opt_state, loss, right = update(params, opt_state, jax.device_put(parts, by_row), rate)
    final += curriculum.progress == 1.0
    losses.append(loss)
    unread.append((right, sum(part.states[:, 1:].sum() for part in parts)))
    if len(unread) > LAG:
      curriculum = curriculum.after(*map(int, unread.popleft()))
      bar.set_postfix(progress=f'{curriculum.progress:.2f}', states=f'{curriculum.accuracy:.2f}', refresh=False)
    if step % SAVE_EVERY == 0 or final == steps:
      known = ' '.join(f'{kind}={share:.2f}' for kind, share in evaluate(config, params, documents).items())
      bar.write(f'step {step} progress {curriculum.progress:.2f} loss {np.mean(losses):.4f} {known}')
      losses.clear()
      hf.save_checkpoint(folder, config, params, tokenizer.eos_token_id)
    if final == steps:
      break


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  here = pathlib.Path(__file__).parent / 'checkpoint'
  flags.DEFINE_string('out', str(here), 'Folder to write to; by default the shipped one.', flag_values=values)
  flags.DEFINE_string('init', None, 'Checkpoint folder to go on from; else random weights.', flag_values=values)
  flags.DEFINE_integer('steps', 2700, 'Optimizer steps on the final mix.', lower_bound=1, flag_values=values)
  flags.DEFINE_integer('batch', 48, 'Documents per step.', flag_values=values)
  flags.DEFINE_integer('seed', 0, 'Seed of corpus and weights; choose another one with --init.', flag_values=values)
  flags.DEFINE_float('learning_rate', 4e-3, 'Peak learning rate.', lower_bound=0.0, flag_values=values)


def main(values: flags.FlagValues) -> None:
  init = values.init and pathlib.Path(values.init)
  train(
      pathlib.Path(values.out), values.steps, values.batch, values.seed, learning_rate=values.learning_rate, init=init
  )


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
