"""Event loop, clocks, timers, the BQL and worker threads. See docs/threads.md for who holds what."""
