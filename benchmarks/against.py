"""Rollouts of this package against `transformers.generate`, on the same device, with the same weights and shapes.

  python benchmarks/against.py [--prompts=16 --group=16 --response=160 --repeats=3 --out=FILE.json]

The weights are those of the embedded base model, in float32, exported as a Hugging Face folder. Both decode `response`
tokens in every row, whatever they are: nothing ends a row early. `generate` samples from the vocabulary with its own
cache: once without environments and masks, which the decode loop here always has, and once with compare and swap in
Python (python_environments.py). It needs torch. Times are medians, with the range of all repeats, after one that is not
counted.
"""

import functools
import sys
import time

from absl import flags
import grid  # beside this file, as is the next one
import jax
import numpy as np
from python_environments import PythonEnvironments
from throughput import spread, tell, time_rollout

from earl_jax.config import embedded_config, parse, stage, UserError
from earl_jax.model import tokenizer
from earl_jax.run import cli
from earl_jax.run.experiment import Experiment
from earl_jax.run.preparation import model_folder, set_up
from earl_jax.run.problems import draw


def of_transformers(experiment: Experiment, repeats: int, environments: bool) -> list[float]:
  """Seconds of each repeat, without environments or with those in Python.

  Raises:
    UserError: torch is not installed.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise UserError(f'{error}: `generate` needs torch; pip install torch') from None
  device = 'cuda' if jax.default_backend() == 'gpu' and torch.cuda.is_available() else 'cpu'
  model = transformers.AutoModelForCausalLM.from_pretrained(model_folder(experiment.config)).to(device)
  rollout = experiment.config.rollout
  problems = draw(experiment, stage=0, step=0)
  prompts, encode = problems.prompts, functools.partial(tokenizer.encode, experiment.tokenizer)
  values = [
      example.instance['values'][: example.instance['count']].tolist()
      for example in problems.examples for _ in range(rollout.group)
  ]
  tokens = torch.tensor(np.repeat(np.asarray(prompts.tokens), rollout.group, axis=0), dtype=torch.long)
  start = torch.tensor(np.repeat(np.asarray(prompts.start), rollout.group))
  mask = (torch.arange(rollout.prompt_length) >= start[:, None]).long()
  length = rollout.response_length
  settings = dict(max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0)

  seconds = []
  for _ in range(1 + repeats):
    processors = transformers.LogitsProcessorList([PythonEnvironments(values, encode)] if environments else [])
    began = time.perf_counter()
    with torch.no_grad():
      model.generate(
          tokens.to(device), attention_mask=mask.to(device), pad_token_id=0, logits_processor=processors, **settings
      )
    seconds.append(time.perf_counter() - began)
  return seconds[1:]


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  for name, default, what in (
      ('prompts', 16, 'Problems.'), ('group', 16, 'Rollouts of each.'), ('response', 160, 'Tokens of each.'),
      ('repeats', 3, 'Timed, after one that is not.'),
  ):
    flags.DEFINE_integer(name, default, what, 1, flag_values=values)
  flags.DEFINE_string('out', None, 'File for the JSON, as well.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  settings = embedded_config()
  settings.curriculum = (stage(('sort', {'n': 4}, 1.0)),)
  settings.rollout.update(prompts=values.prompts, group=values.group, response_length=values.response)
  settings.rollout.chunk = settings.algorithm.micro_batch = values.group
  settings.algorithm.mini_batches = 1
  config = parse(settings)
  cli.prepare_jax(config)
  experiment, params = set_up(config)
  plain, played = (of_transformers(experiment, values.repeats, environments) for environments in (False, True))
  tokens, ours = time_rollout(experiment, params, values.repeats)  # a write that does not fit ends a row
  every = values.prompts * values.group * values.response
  facts = dict(command=f'python {" ".join(sys.argv)}', tokens=tokens, ours=ours, plain=plain, played=played,
               device=jax.devices()[0].device_kind)

  def row(what, seconds, tokens):
    return what, spread(seconds), f'{tokens / np.median(seconds):,.0f}', f'{np.median(seconds) / np.median(ours):.1f}'

  print(grid.markdown([
      ('', 's', 'tokens/s', 'times as long'),
      row('earl_jax, with environments', ours, tokens),
      row('transformers.generate, without', plain, every),
      row('transformers.generate, with environments in Python', played, every),
  ]))
  tell(facts, values.out)


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
