"""One training step of Qwen2.5-0.5B's shapes with random weights: rollouts, rewrites, reference, update.

  python -m tests.large_step TOKENIZER_FOLDER FACTS.json
"""

import json
import math
import pathlib
import resource
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.acting import scoring
from earl_jax.config import AlgorithmConfig, Config, RolloutConfig, Stage
from earl_jax.devices import sharding
from earl_jax.learning import reference
from earl_jax.learning.batches import Batch, split_rows
from earl_jax.run.collect import collect
from earl_jax.run.experiment import Experiment
from earl_jax.run.preparation import prepare
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from tests import benchmark
from tests import core_fixtures as core

hlo, programs = benchmark.load('hlo'), benchmark.load('programs')

CONFIG = dict(  # of the checkpoint
    model_type='qwen2', vocab_size=151_936, hidden_size=896, intermediate_size=4_864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
)


def build(tokenizer: str) -> Experiment:
  """Sorting four items: one prompt, two rollouts, on one device."""
  with tempfile.TemporaryDirectory() as folder:
    for path in pathlib.Path(tokenizer).iterdir():
      pathlib.Path(folder, path.name).symlink_to(path)
    pathlib.Path(folder, 'config.json').write_text(json.dumps(CONFIG))
    return prepare(Config(
        curriculum=(Stage(tasks=(('sort', {'n': 4}, 1.0),)),),
        rollout=RolloutConfig(prompts=1, group=2, prompt_length=80, response_length=32, chunk=2),
        algorithm=AlgorithmConfig(mini_batches=1, micro_batch=1),
    ), pathlib.Path(folder), core.one_device())


def vocabulary_buffers(text: str, rows: int) -> list[int]:
  """Of all arrays in a program with an axis of `rows`: the elements there are per row of the vocabulary."""
  shapes = {array.shape for array in hlo.arrays(text)}
  return sorted({math.prod(shape) // rows for shape in shapes if any(size and size % rows == 0 for size in shape)})


def beginnings(params) -> dict[str, np.ndarray]:
  """Some numbers of each array: enough to see whether it has changed, without a second copy of all."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(path): np.asarray(leaf.reshape(-1)[:1000]) for path, leaf in leaves}


def main(tokenizer: str, out: str) -> None:
  scoring.MOST_AT_ONCE = 16  # decisions at a time, of 32: what a batch of many rows shows
  experiment = build(tokenizer)
  config, mesh, model = experiment.config, experiment.mesh, experiment.model
  began = time.monotonic()
  state = programs.random_state(experiment)
  before = beginnings(state.params)
  kept = reference.keep(state.params, jax.tree.map(lambda x: x.sharding, state.params), on_host=False)
  seconds = {'initialise': time.monotonic() - began}

  began = time.monotonic()
  progress = Progress.first(experiment.interface.space.num_environments)
  experience = collect(experiment, state.params, draw(experiment, stage=0, step=0), progress)
  seconds['collect'] = time.monotonic() - began

  trajectory = experience.trajectory
  count = len(trajectory.end)
  # Random weights earn nothing: advantages are made up, so that gradients are not all 0.
  advantages, imitate = np.array([1.0, -1.0], np.float32), np.zeros(count, bool)
  advantages, imitate = jax.device_put((advantages, imitate), sharding.by_row(mesh))
  advance, texts = programs.advance(experiment), {}
  with jax.set_mesh(mesh):
    began = time.monotonic()
    together = experiment.scoring.rows_per_prompt
    split = split_rows(config, 0, np.asarray(advantages), np.asarray(trajectory.end), together)
    score = reference.log_probs.lower(kept, trajectory, split, scoring=experiment.scoring).compile()
    texts['reference'] = score.as_text()
    batch = Batch(trajectory, advantages, score(kept, trajectory, split), imitate)
    seconds['reference'] = time.monotonic() - began
    began = time.monotonic()
    step = advance.func.lower(state, batch, split, **advance.keywords).compile()
    texts['update'] = step.as_text()
    state, metrics = jax.block_until_ready(step(state, batch, split))
    seconds['update'] = time.monotonic() - began
  after = beginnings(state.params)

  pathlib.Path(out).write_text(json.dumps({
      'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
      'hidden_size': model.hidden_size,
      'peak_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
      'seconds': seconds,
      'decisions': int(trajectory.decisions.sum()),
      'rewritten': experience.metrics['counterfactual/rewritten'],
      'metrics': {name: float(value) for name, value in metrics.items()},
      'finite': all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((state, metrics))),
      'unchanged': [name for name in before if (before[name] == after[name]).all()],
      'vocabulary_buffers': {name: vocabulary_buffers(text, model.vocab_size) for name, text in texts.items()},
  }))


if __name__ == '__main__':
  main(*sys.argv[1:])
