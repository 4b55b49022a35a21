"""A real language model learns to act: SmolLM2-135M-Instruct, by EARL and by the three baselines.

  python -m earl_jax.train --config=configs/smollm2.py:arithmetic_small,earl --workdir=runs/smollm2

TASK,METHOD after the colon: a task arithmetic_small, arithmetic (as published), countdown (two and three numbers of one
digit), sort2 or sort3, a method earl, prompt_cpo, prompt_grpo or sft_grpo. `config.model` is the model's id on the hub;
with --config.model=… it may be its folder, or the file that docs/language_model.md gets from the package index.

Adapters of rank 16 are trained on 64 short rollouts per step. arithmetic_small, 60 steps (3,840 rollouts): about
50 minutes on one CPU core beside another program. With --config.dtype=bfloat16 sort2, 40 steps, takes about 35 minutes
on one CPU core; sort3 and countdown, 24 steps, about 20 minutes on one each, side by side. docs/language_model.md has
what they reach, and what was not run.
"""

from earl_jax import config as config_lib
from earl_jax.config import UserError

SFT_STEPS = 10


def _sort(n, share=1.0):
  return ('sort', {'n': n, 'direction': 'ascending'}, share)  # one direction: two are more than it learned so far


def _countdown(numbers):
  return ('countdown', {'numbers': numbers, 'digits': 1}, 1.0)


# Solved problems: one in the system message, or three as earlier turns, after which the model keeps to their form from
# the first step on. What is left to learn is which action: at a higher rate, or from fewer problems in an update, the
# policy soon takes one operator for all of them, or swaps without end.
_TOLD = {'worked_examples': 1, 'worked_examples_in': 'system'}
_SHOWN = {
    'worked_examples': 3, 'rollout.chunk': 64, 'algorithm.mini_batches': 1, 'optimizer.learning_rate': 2e-4,
}
TAGS = 112  # slots more for a prompt that shows calls in tags

# Task -> stages, slots of the prompt and of the response, steps, and what else differs.
TASKS = {
    'arithmetic_small': (
        # No easier stage before it: where nothing stands in parentheses, the policy unlearns to type them. And as
        # many words as symbols: most test problems are in words.
        (config_lib.stage(('arithmetic', {'digits': 3, 'operators': 2, 'test_operators': 2, 'worded': 0.5}, 1.0)),),
        160, 64, 60, _TOLD,
    ),
    'arithmetic': ((config_lib.stage(('arithmetic', {}, 1.0)),), 384, 128, 60, _TOLD),
    'countdown': (
        (config_lib.stage(_countdown(2), _countdown(3)),), 320, 48, 24,
        _SHOWN | {'route_lead': 10.0, 'algorithm.entropy': 0.02},
    ),
    # A high rate, which falls in the second half of a run: kept high, the policy was perfect after 22 steps, and had
    # lost it after 37.
    'sort2': (
        (config_lib.stage(_sort(2)),), 192, 64, 40,
        _TOLD | {'optimizer.learning_rate': 1e-3, 'optimizer.decay': 0.5},
    ),
    # Led more, the untrained policy ends one episode in four.
    'sort3': ((config_lib.stage(_sort(2), _sort(3, 3.0)),), 368, 72, 24, _SHOWN | {'route_lead': 3.0}),
}


def get_config(arguments: str = 'arithmetic_small,earl'):
  task, _, method = arguments.partition(',')
  if task not in TASKS:
    raise UserError(f'task {task!r}: choose one of {", ".join(TASKS)}')
  stages, prompt_length, response_length, steps, differs = TASKS[task]
  config = config_lib.default_config()
  config.model = 'HuggingFaceTB/SmolLM2-135M-Instruct'
  config.instructions = True
  config.curriculum, config.steps = stages, steps
  config.rollout.update(
      prompts=8, group=8, prompt_length=prompt_length, response_length=response_length, chunk=32,
  )
  config.algorithm.update(
      rewrite_fraction=0.25, only_gains=True, entropy=0.01, skip_zero=True, kl=0.0, mini_batches=2, micro_batch=16,
  )
  config.lora.update(rank=16, alpha=32.0)
  config.optimizer.update(learning_rate=3e-4, warmup=4, decay=0.3, weight_decay=0.0)
  config.evaluate_every, config.checkpoint_every, config.sample_every = 20, 10, 5
  config.evaluation_prompts = 128
  config.update_from_flattened_dict(differs)
  config = config_lib.apply_method(config, method or 'earl', SFT_STEPS)
  if config.interface == 'expanded':
    config.action_floor = 1e-3  # after the blank that the calculator writes, this tokenizer never has `(`
  else:
    config.route_lead = 1.0  # tags are text
    if config.worked_examples > 1:
      config.rollout.prompt_length += TAGS
  return config
