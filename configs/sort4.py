"""Sort four hidden items, starting from the embedded checkpoint, with CPO.

  python -m earl_jax.train --config=configs/sort4.py --workdir=runs/sort4

Hardware, time and expected score: to be filled in with the recipe.
"""

from earl_jax import config as config_lib


def get_config():
  config = config_lib.default_config()
  config.steps = 300
  config.stop_at_solved = True
  config.curriculum = (
      config_lib.stage(('sort', {'n': 2}, 1.0)),
      config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 3.0)),
      config_lib.stage(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 2.0), ('sort', {'n': 4}, 5.0)),
  )
  config.rollout.prompt_length = 56
  config.algorithm.fraction = 0.5
  config.algorithm.entropy = 0.02
  config.algorithm.kl = 0.0
  config.optimizer.learning_rate = 4e-4
  config.optimizer.weight_decay = 0.0
  return config
