"""Saved machine state: the stream format and what moves a whole machine through it."""
