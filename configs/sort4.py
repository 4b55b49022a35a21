"""Sort four hidden items, starting from the embedded base model, with CPO.

  python -m earl_jax.train --config=configs/sort4.py --workdir=runs/sort4

200 steps of 256 rollouts (51,200): 24 minutes on two CPU cores. A stage of the curriculum ends when its tasks are
mastered. It sorts all 48 instances, proven by its comparisons: 4.75 of them and 1.92 swaps on average. Three seeds are
in "Results" in README.md.
"""

from earl_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.steps = 200
  # From ordering what is known to sorting what is not. Every n stays in the mix: what is no longer practised is soon
  # forgotten.
  config.curriculum = (
      config_lib.stage(('order', {'n': 2}, 1.0), ('sort', {'n': 2}, 1.0), until=0.9),
      config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 3.0), until=0.9),
      config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 2.0), ('sort', {'n': 4}, 9.0)),
  )
  config.rollout.prompts = 16
  config.rollout.group = 16
  config.rollout.prompt_length = 56
  config.rollout.response_length = 160
  config.rollout.chunk = 64
  # Counterfactuals for a fifth of all rollouts, not only for dead groups: with few items a guess is right often enough
  # that hardly any group is dead.
  config.algorithm.fraction = 0.2
  config.algorithm.only_gains = True
  config.algorithm.entropy = 0.01
  # Keeps the policy's words true: it comes to act on what it says, and compares no pair that it knows.
  config.algorithm.kl = 0.02
  config.algorithm.skip_zero = True
  config.optimizer.learning_rate = 5e-4
  # At a constant rate exact match swings once it is high.
  config.optimizer.decay = 0.3
  config.optimizer.weight_decay = 0.0
  return config
