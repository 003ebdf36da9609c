"""Monitors: typed commands (`commands.py`) and their faces."""
