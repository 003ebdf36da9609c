"""Accelerators, vCPU threads, CPU state."""
