"""Sort four hidden items, starting from the embedded base model, with CPO.

  python -m earl_jax.train --config=configs/sort4.py --workdir=runs/sort4

Two CPU cores. At most 800 steps of 256 rollouts (204,800), 4 to 9 s a step; a stage of the curriculum ends when its
tasks are solved, the run when every permutation of the last stage is. Measured so far: see "Results" in README.md.
"""

from earl_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.steps = 800
  config.stop_at_solved = True
  # Every n stays in the mix: what is no longer practised is soon forgotten.
  config.curriculum = (
      config_lib.stage(('sort', {'n': 2}, 1.0)),
      config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 3.0)),
      config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 2.0), ('sort', {'n': 4}, 5.0)),
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
  # Keeps the policy's words true: it comes to act on what it says.
  config.algorithm.kl = 0.003
  config.algorithm.skip_zero = True
  config.optimizer.learning_rate = 5e-4
  config.optimizer.weight_decay = 0.0
  return config
