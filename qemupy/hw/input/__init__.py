"""Keyboard controller, PS/2 keyboard and mouse."""
