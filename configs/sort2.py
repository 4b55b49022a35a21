"""Sort two hidden items: the smallest problem with all of EARL in it, learned in minutes.

  python -m earl_jax.train --config=configs/sort2.py --workdir=runs/sort2

60 steps of 128 rollouts (7,680): three minutes on one CPU core. Expected: all 4 instances, certified, with one
comparison and 0.5 swaps, the optimum.
"""

from earl_jax import config as config_lib


def get_config():
  config = config_lib.embedded_config()
  config.steps = 60
  config.curriculum = (config_lib.stage(('sort', {'n': 2}, 1.0)),)
  config.rollout.prompts = 8
  config.rollout.response_length = 96
  config.evaluate_every = 5
  return config
