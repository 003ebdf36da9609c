"""The boards. A board module has `build(vm: Vm) -> None`, called once with the BQL held inside a memory transaction.

It maps RAM, ROMs and devices into `vm.memory_root` and `vm.ports`, adds devices with `vm.add(name, device)` in the
order of their reset, vCPUs with `vm.add_vcpu(vm.config.cpu)`, and connects `vm.accel.upcalls.intack` and `.apic_eoi`,
`vm.on_powerdown`, `vm.screen` and `vm.keyboard`. Backends wait in `vm.serials` and `vm.drive_at(interface, index)`.
"""
