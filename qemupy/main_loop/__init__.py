"""Event loop, clocks, timers, the BQL and worker threads."""
