"""Runs a recipe from its first stage to its summary: validate, setup, pipeline, save, resume.

The work of a stage belongs in `stages`, what a person sees in `cli` and `report`.
"""
