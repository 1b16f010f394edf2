"""The command line: `main` parses and dispatches, a file each runs a command, `terminal` shows.

Nothing imports from here. A command's file imports what is heavy only when it runs.
"""
