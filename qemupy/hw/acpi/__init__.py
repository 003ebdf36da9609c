"""ACPI: the power management function of the PIIX4, and the tables firmware and operating systems read."""
