"""Sort five hidden items: the recipe of sort4.py, one stage longer.

  python -m earl_jax.train --config=configs/sort5.py --workdir=runs/sort5

280 steps of 256 rollouts (71,680): 84 minutes on one of two CPU cores, another program on the other. Seed 0 sorted
95.8 % of the 240 instances, 92.1 % certified, with 8.6 comparisons and 2.8 swaps, and was still improving.
"""

import pathlib
import runpy

from earl_jax import config as config_lib

# By path, so that it is found from any folder.
SORT4 = pathlib.Path(__file__).with_name('sort4.py')


def get_config():
  config = runpy.run_path(str(SORT4))['get_config']()
  config.steps = 280
  *stages, sort4_stage = config.curriculum
  config.curriculum = (
      *stages,
      {**sort4_stage, 'until': 0.9},
      config_lib.stage(
          ('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 1.0), ('sort', {'n': 4}, 3.0), ('sort', {'n': 5}, 9.0)
      ),
  )
  config.rollout.response_length = 224
  return config
