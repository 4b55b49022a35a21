"""Rollouts of this package against `transformers.generate`, and whole GRPO steps against TRL's.

  python benchmarks/against.py [--prompts=16 --group=16 --response=160 --repeats=3 --out=FILE.json]

All on the same device, with the same weights and shapes. The weights are those of the embedded base model, in float32,
exported as a Hugging Face folder. Each decodes `response` tokens in every row, whatever they are: nothing ends a row
early. `generate` samples from the vocabulary with its own cache: once without environments and masks, which the decode
loop here always has, and once with compare and swap in Python (python_environments.py). It needs torch.

A GRPO step is a batch of problems, their rollouts and rewards, and one update with all rows in micro-batches of
MICRO_BATCH: here with environments, in TRL's GRPOTrainer, if trl is installed, without any, through `generate`. Neither
has a KL term or an entropy bonus, and neither recomputes activations.

Times are medians, with the range of all repeats, after one that is not counted.
"""

import dataclasses
import functools
import itertools
import math
import sys
import tempfile
import time
import warnings

from absl import flags
import grid  # beside this file, as is the next one
import jax
import numpy as np
from python_environments import PythonEnvironments
from throughput import spread, tell, time_rollout

from earl_jax.acting import policy
from earl_jax.config import embedded_config, parse, stage, UserError
from earl_jax.model import tokenizer
from earl_jax.run import cli
from earl_jax.run.collect import collect
from earl_jax.run.experiment import Experiment
from earl_jax.run.learner import Learner
from earl_jax.run.preparation import model_folder, set_up
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress

MICRO_BATCH = 32  # rows, or a divisor of it where their number asks for one


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


def of_steps(experiment: Experiment, params: policy.Params, repeats: int) -> list[float]:
  """Seconds of each GRPO step of this package, with environments; nothing ends a row but the end of its space."""
  experiment = dataclasses.replace(experiment, end_tokens=())
  learner = Learner(experiment, params)
  state, progress = learner.begin(params), Progress.first(experiment.interface.space.num_environments)
  seconds = []
  for step in range(1 + repeats):
    began = time.perf_counter()
    problems = draw(experiment, stage=0, step=step)
    experience = collect(experiment, learner.policy_of(state), problems, progress._replace(step=step))
    state, _ = jax.block_until_ready(learner.update(state, experience, experiment.config.curriculum[0], step))
    seconds.append(time.perf_counter() - began)
  return seconds[1:]


def of_trl(experiment: Experiment, repeats: int) -> list[float] | None:
  """Seconds of each step of TRL's GRPOTrainer; None where trl is not installed."""
  try:
    import datasets
    import transformers
    import trl
  except ImportError:
    return None
  rollout, micro = experiment.config.rollout, experiment.config.algorithm.micro_batch
  prompts = draw(experiment, stage=0, step=0).prompts
  tokens, start = np.asarray(prompts.tokens), np.asarray(prompts.start)
  texts = [experiment.tokenizer.decode(row[first:]) for row, first in zip(tokens, start)]
  length, ends = rollout.response_length, []

  class Clock(transformers.TrainerCallback):
    def on_train_begin(self, *_, **__):
      ends.append(time.perf_counter())

    on_step_end = on_train_begin

  rewards = np.random.default_rng(0)  # what they are changes no time
  with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action='ignore', category=FutureWarning):
    settings = trl.GRPOConfig(
        folder, use_cpu=jax.default_backend() == 'cpu', bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=micro, gradient_accumulation_steps=rollout.prompts * rollout.group // micro,
        num_generations=rollout.group, max_completion_length=length, generation_kwargs=dict(min_new_tokens=length),
        max_steps=1 + repeats, disable_tqdm=True, logging_strategy='no', save_strategy='no', report_to='none',
    )
    trainer = trl.GRPOTrainer(
        str(model_folder(experiment.config)), lambda completions, **_: rewards.random(len(completions)).tolist(),
        settings, datasets.Dataset.from_dict({'prompt': texts}), processing_class=experiment.tokenizer,
        callbacks=[Clock()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
  return [end - began for began, end in itertools.pairwise(ends)][1:]


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
  settings.rollout.chunk = values.group
  settings.algorithm.update(
      counterfactual=False, kl=0.0, entropy=0.0, skip_zero=False, mini_batches=1,
      micro_batch=math.gcd(values.prompts * values.group, MICRO_BATCH),
  )
  config = parse(settings)
  cli.prepare_jax(config)
  experiment, params = set_up(config)
  plain, played = (of_transformers(experiment, values.repeats, environments) for environments in (False, True))
  tokens, ours = time_rollout(experiment, params, values.repeats)  # a write that does not fit ends a row
  steps, trl_steps = of_steps(experiment, params, values.repeats), of_trl(experiment, values.repeats)
  every = values.prompts * values.group * values.response
  facts = dict(command=f'python {" ".join(sys.argv)}', tokens=tokens, ours=ours, plain=plain, played=played,
               steps=steps, trl_steps=trl_steps, device=jax.devices()[0].device_kind)

  def row(what, seconds, tokens, ours=ours):
    return what, spread(seconds), f'{tokens / np.median(seconds):,.0f}', f'{np.median(seconds) / np.median(ours):.1f}'

  print(grid.markdown([
      ('', 's', 'tokens/s', 'times as long'),
      row('earl_jax, with environments', ours, tokens),
      row('transformers.generate, without', plain, every),
      row('transformers.generate, with environments in Python', played, every),
      row('a GRPO step of earl_jax, with environments', steps, tokens, steps),
      *([row('a GRPO step of TRL, without', trl_steps, every, steps)] if trl_steps else []),
  ]))
  if not trl_steps:
    print('No step of TRL: trl is not installed; pip install trl')
  tell(facts, values.out)


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
