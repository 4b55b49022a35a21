"""Countdown with three numbers of one digit, starting from the embedded base model, with CPO.

  python -m earl_jax.train --config=configs/countdown3.py --workdir=runs/countdown3

The small version of the paper's countdown (four numbers of up to four digits), for a model of a size to match.
"""

from earl_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.steps = 200
  config.curriculum = (config_lib.stage(('countdown', {'numbers': 3, 'digits': 1}, 1.0)),)
  config.rollout.prompts = 16
  config.rollout.group = 16
  config.rollout.prompt_length = 80
  config.rollout.response_length = 160
  config.rollout.chunk = 64
  config.algorithm.fraction = 0.2
  config.algorithm.only_gains = True
  config.algorithm.entropy = 0.01
  config.algorithm.kl = 0.01
  config.algorithm.skip_zero = True
  config.optimizer.learning_rate = 5e-4
  config.optimizer.decay = 0.3
  config.optimizer.weight_decay = 0.0
  return config
