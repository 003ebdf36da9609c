"""Timers and clocks: 8254 PIT, MC146818 RTC with its CMOS memory, HPET."""
