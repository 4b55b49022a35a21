"""Shapes of the models that figures are given for."""

from earl_jax.model.transformer import ModelConfig

# https://huggingface.co/Qwen/Qwen2.5-{0.5B,1.5B,3B,7B}/blob/main/config.json
QWEN = {
    '0.5B': ModelConfig(
        vocab_size=151_936, hidden_size=896, intermediate_size=4_864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, head_dim=64, rope_theta=1e6,
    ),
    '1.5B': ModelConfig(
        vocab_size=151_936, hidden_size=1_536, intermediate_size=8_960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, head_dim=128, rope_theta=1e6,
    ),
    '3B': ModelConfig(
        vocab_size=151_936, hidden_size=2_048, intermediate_size=11_008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=2, head_dim=128, rope_theta=1e6,
    ),
    '7B': ModelConfig(
        vocab_size=152_064, hidden_size=3_584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, head_dim=128, rope_theta=1e6, tie_word_embeddings=False,
    ),
}
# https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/blob/main/config.json
SMOLLM2 = {
    '135M': ModelConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1_536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, rope_theta=1e5, attention_bias='',
    ),
}
# For a try on a machine without accelerators.
TINY = ModelConfig(
    vocab_size=1_024, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16,
)
