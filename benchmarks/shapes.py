"""Shapes of the models that figures are given for."""

from earl_jax.model.transformer import ModelConfig

# https://huggingface.co/Qwen/Qwen2.5-{0.5B,1.5B,3B,7B}/blob/main/config.json
QWEN = {
    '0.5B': ModelConfig(151_936, 896, 4_864, 24, 14, 2, 64, rope_theta=1e6),
    '1.5B': ModelConfig(151_936, 1_536, 8_960, 28, 12, 2, 128, rope_theta=1e6),
    '3B': ModelConfig(151_936, 2_048, 11_008, 36, 16, 2, 128, rope_theta=1e6),
    '7B': ModelConfig(152_064, 3_584, 18_944, 28, 28, 4, 128, rope_theta=1e6, tie_word_embeddings=False),
}
# For a try on a machine without accelerators.
TINY = ModelConfig(1_024, 64, 128, 2, 4, 2, 16)
