"""The odd ports of the ISA side: DMA controllers, system ports, reset and power-management control."""
