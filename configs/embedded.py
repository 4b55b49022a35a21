"""The paper's comparison in the small: EARL and three baselines that call the same environments by text.

  python -m earl_jax.train --config=configs/embedded.py:countdown3,earl --workdir=runs/countdown3-earl

TASK,METHOD after the colon: a task sort4, sort4_shown (of two items the first steps are demonstrated, so that tags are
known), countdown3, countdown3_strict (the calculator plays by the rules) or calc_bench, a method earl, prompt_cpo,
prompt_grpo or sft_grpo. All start from the embedded base model, see the same problems and have the same number of
rollouts and slots; sft_grpo makes its first `SFT_STEPS` steps on demonstrations, in place of the stages before the
last. 80 steps of 256 rollouts: about 15 minutes on one CPU core. docs/results.md has
what each reaches; benchmarks/reproduce.py runs them all.
"""

import countdown3  # beside this file, as is the next
import sort4

from earl_jax import config as config_lib
from earl_jax.config import UserError

SFT_STEPS = 20


def _sort4():
  config = sort4.get_config()
  config.stop_at_solved = False  # the same number of steps for all methods
  config.rollout.response_length = 224  # a call through tags is twice as long
  config.algorithm.rewrite_fraction = 0.2  # where a guess is often right, few groups earn nothing
  return config


def _sort4_shown():
  config = _sort4()
  first = config.curriculum[0]
  config.curriculum = (config_lib.stage(*first['tasks'], steps=SFT_STEPS, imitate=True), *config.curriculum)
  return config


def _calc_bench():
  """The mixture of the published Calc-Bench but for GSM8K, whose stories the base model cannot read."""
  config = countdown3.get_config()
  config.curriculum = (
      config_lib.stage(
          ('arithmetic', {'digits': 1, 'operators': 2, 'test_operators': 3}, 1.0),
          ('countdown', {'numbers': 3, 'digits': 1}, 20.0),
          ('count', {'digits': 4}, 1.0),
      ),
  )
  config.rollout.prompt_length = 128
  return config


def _countdown3(strict):
  config = countdown3.get_config()
  options = {'numbers': 3, 'digits': 1} | ({'strict': True} if strict else {})
  config.curriculum = (config_lib.stage(('countdown', options, 1.0)),)
  return config


TASKS = {
    'sort4': _sort4, 'sort4_shown': _sort4_shown, 'countdown3': lambda: _countdown3(False),
    'countdown3_strict': lambda: _countdown3(True), 'calc_bench': _calc_bench,
}


def get_config(argument='countdown3,earl'):
  task, _, method = argument.partition(',')
  if task not in TASKS:
    raise UserError(f'--config=configs/embedded.py:{argument}: choose a task of {", ".join(TASKS)}')
  config = TASKS[task]()
  config.steps = 80
  config.evaluate_every = 10
  return config_lib.apply_method(config, method or 'earl', SFT_STEPS)
