"""Interrupt controllers: 8259A pair, IOAPIC, and the fan-out of ISA interrupts to both."""
