"""Runs untrusted code: programs of a model in an isolated guest, verifiers in processes to be killed.

Holds the isolation, the guest inside it and the pool of workers; nothing here knows of rewards.
"""
