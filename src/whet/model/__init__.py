"""Language models: the decoder, its weights on disk, LoRA, value heads, log-probabilities.

Not in here: sampling (engines), losses (algorithms), optimizer steps (training).
"""
