"""EARL in JAX: language models with an expanded action space, trained by counterfactual policy optimisation."""

import os

# Read by transformers when it is imported: no word about a PyTorch that nobody needs.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

__version__ = '0.1.0'
