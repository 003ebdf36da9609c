"""Devices that fit no other class: firmware configuration, test exits."""
