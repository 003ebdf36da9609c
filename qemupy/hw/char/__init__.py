"""Character devices: 16550A serial ports, parallel port."""
