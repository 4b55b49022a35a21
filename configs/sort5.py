"""Sort five hidden items: the stages of sort4.py and one more, at a rate that falls from the middle on.

  python -m earl_jax.train --config=configs/sort5.py --workdir=runs/sort5

560 steps of 256 rollouts (143,360): 70 minutes on one CPU core beside other programs. Expected, proven by their
comparisons: all 240 instances, with 7.283 comparisons on average (6.933 is the optimum) after 560 steps of seed 0; two
and three items with the fewest there can be, and four with 4.708 (4.667).
"""

from sort4 import STAGES  # beside this file

from earl_jax import config as config_lib


def get_config():
  config = config_lib.embedded_config()
  config.steps = 560
  config.algorithm.rewrite_fraction = 0.0  # as in sort4.py
  config.optimizer.decay = 0.5  # all instances are solved only while the rate falls, and comparisons fall with it
  *stages, last = STAGES
  config.curriculum = (
      *stages,
      {**last, 'until': 0.9},
      config_lib.stage(
          ('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 1.0), ('sort', {'n': 4}, 2.0), ('sort', {'n': 5}, 10.0)
      ),
  )
  config.rollout.response_length = 224
  return config
