"""The guest side: devices, buses and boards."""
