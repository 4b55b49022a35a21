"""The paper's comparison at its published settings: EARL and three baselines that call the same environments by text.

  python -m earl_jax.train --config=configs/published.py:countdown,earl --config.model=Qwen/Qwen2.5-7B-Instruct \
    --config.dtype=bfloat16 --config.remat=full --config.mesh.fsdp=4 --workdir=runs/countdown-earl

TASK,METHOD[,GSM8K] after the colon: a task sort, countdown, calc_bench or arithmetic, a method earl, prompt_cpo,
prompt_grpo or sft_grpo, and for calc_bench the folder or URL of GSM8K's official files. `config.model` is a
checkpoint's id on the hub or its folder: Qwen2.5 of 3B or 7B, Instruct, or of 0.5B for arithmetic. Every task and
method needs a workdir of its own. `python -m earl_jax.plan` with the same flags says what fits.

The paper took 4 GPUs, 2 for 0.5B. It sorted 4 numbers perfectly after 20 to 40 steps on `order` and about 70 more on
`sort`. Settings: appendix and scripts of arXiv 2510.07581, but for `SFT_STEPS`, which it does not tell. Not run here.
"""

from earl_jax import config as config_lib
from earl_jax.config import UserError

GSM8K = 'https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data'
SFT_STEPS = 100


def _sizes(name, shares):
  """A task with 2, 3, 4 and 5 items, and the share of each."""
  return [(name, {'n': n}, share) for n, share in zip((2, 3, 4, 5), shares)]


def _sort(config, gsm8k):
  del gsm8k
  config.steps = 110
  config.curriculum = (
      config_lib.stage(*_sizes('order', (0.285, 0.285, 0.19, 0.19)), ('compare', {}, 0.05), steps=40),
      config_lib.stage(*_sizes('sort', (0.1, 0.2, 0.3, 0.4))),
  )
  config.rollout.prompt_length, config.rollout.response_length = 384, 512  # order 256 / 512, sort 384 / 384


def _countdown(config, gsm8k):
  del gsm8k
  config.steps = 312  # 4 epochs of 20,000
  config.curriculum = (config_lib.stage(('countdown', {}, 1.0)),)
  config.rollout.prompt_length, config.rollout.response_length = 256, 1024


def _calc_bench(config, gsm8k):
  config.steps = 427  # 4 epochs of the problems below, in thousands
  config.curriculum = (
      config_lib.stage(
          ('arithmetic', {}, 1.0), ('countdown', {}, 20.0), ('gsm8k', {'path': gsm8k}, 5.317), ('count', {}, 1.0)
      ),
  )
  config.rollout.prompt_length, config.rollout.response_length = 384, 1024


def _arithmetic(config, gsm8k):
  del gsm8k
  config.steps = 100
  config.curriculum = (config_lib.stage(('arithmetic', {}, 1.0)),)
  config.rollout.prompt_length, config.rollout.response_length = 256, 384
  config.rollout.group, config.algorithm.mini_batches = 4, 4


TASKS = {'sort': _sort, 'countdown': _countdown, 'calc_bench': _calc_bench, 'arithmetic': _arithmetic}


def get_config(argument='sort,earl'):
  task, _, rest = argument.partition(',')
  method, _, gsm8k = rest.partition(',')
  if task not in TASKS:
    raise UserError(f'--config=configs/published.py:{argument}: choose a task of {", ".join(TASKS)}')
  config = config_lib.default_config()
  config.model = 'Qwen/Qwen2.5-7B-Instruct'
  config.instructions = True
  config.rollout.prompts, config.rollout.group, config.rollout.chunk = 256, 8, 256
  config.algorithm.mini_batches, config.algorithm.micro_batch = 8, 0  # as many rows as the devices have room for
  TASKS[task](config, gsm8k or GSM8K)
  return config_lib.apply_method(config, method or 'earl', SFT_STEPS)
