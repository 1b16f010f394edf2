"""The maths of RL: a table of algorithms, and their advantages, losses, KL, GAE and batches.

Pure: tensors in, tensors out. No model, no recipe, no file. `table` and `algorithm` need no torch.
"""
