"""Files of a run: atomic writes, checkpoints, the log, and hashes of what a run is made of.

Nothing here computes with a model. Rows of data and model weights are read in data/ and model/.
"""
