"""Countdown with three numbers of one digit, starting from the embedded base model, with CPO.

  python -m earl_jax.train --config=configs/countdown3.py --workdir=runs/countdown3

The small version of the paper's countdown (four numbers of up to four digits), for a model of a size to match. It comes
to try expressions in the calculator, one after the other, until one has the target as its value.

The calculator plays by the rules here (`strict`): it takes the problem's numbers alone, each once at most, and
evaluates no expression twice in an episode. 200 steps of 256 rollouts (51,200): 20 minutes on one CPU core. Expected on
512 held-out problems (`--config.evaluation_prompts=512`): 77.5 % greedily and 82 % sampled with seed 0, 84.0 % and
84 % with seed 1, 80.9 % and 83 % with seed 2.
"""

from earl_jax import config as config_lib


def get_config():
  config = config_lib.embedded_config()
  config.steps = 200
  config.curriculum = (config_lib.stage(('countdown', {'numbers': 3, 'digits': 1, 'strict': True}, 1.0)),)
  config.rollout.prompt_length = 64
  config.rollout.response_length = 208  # a dozen calls, and no more slots than the base model has seen
  # Half of all rollouts: else it learns to guess in the head, which at first pays as well as a call.
  config.algorithm.rewrite_fraction = 0.5
  config.algorithm.kl = 0.01
  config.algorithm.entropy = 0.0
  # At the rate of sort4, few rewards among many rollouts wreck the policy in its first steps.
  config.optimizer.learning_rate = 3e-4
  config.optimizer.warmup = 20
  return config
