# Long mode: exceptions, segment loads, far transfers, fast system calls, control registers (Intel SDM vol 3A 5, 6, 4).
.include "long.inc"

.set GATE, 0x80
# Writes a 16-byte call gate at GDT + GATE.
.macro call_gate sel, target, attr
    movabs $\target, %rax
    mov %ax, GDT + GATE
    movw $\sel, GDT + GATE + 2
    movw $\attr, GDT + GATE + 4
    shr $16, %rax
    mov %ax, GDT + GATE + 6
    shr $16, %rax
    mov %eax, GDT + GATE + 8
    movl $0, GDT + GATE + 12
.endm
.macro seg_check seg, sel, expected
    mov $\sel, %eax
    try "mov %eax, %\seg"
    check64 "mov \seg, \sel", EXC, \expected
    xor %eax, %eax
    mov %eax, %ds
    mov $KDS, %eax
    mov %eax, %ss
.endm

main64:
    # Plain exceptions and what the frame says.
    try "ud2"
    check64 "ud2", EXC, 6 << 32
1:  lea 2f(%rip), %rbx
    try "2: ud2"
    sub EXC_RIP, %rbx
    check64 "ud2 rip", %rbx, 0
    try "int3"
    check64 "int3", EXC, 3 << 32
    lea 2f(%rip), %rbx
    try "2: int3"
    sub EXC_RIP, %rbx
    check64 "int3 rip is the next instruction", %rbx, -1
    xor %ecx, %ecx
    try "div %ecx"
    check64 "divide by zero", EXC, 0
    try "int $0x42"
    check64 "int 42h", EXC, 0x42 << 32
    try ".byte 0xf1"
    check64 "int1", EXC, 1 << 32
    try "int $13"
    check64 "int 13 pushes no error code", EXC_SP, KSTACK - 48
    movabs $0x800000000000, %rbx
    try "mov (%rbx), %eax"
    check64 "non-canonical read", EXC, 13 << 32
    mov %rsp, %r14
    movabs $0x900000000000, %rsp
    movb $1, IDT + 8 * 16 + 4
    movq $8f, RESUME
    mov %r14, RESUME_RSP
    pop %rax
8:  mov %r14, %rsp
    check64 "non-canonical stack: double fault", EXC, 8 << 32
    movb $1, IDT + 12 * 16 + 4
    movabs $0x900000000000, %rsp
    movq $8f, RESUME
    mov %r14, RESUME_RSP
    pop %rax
8:  mov %r14, %rsp
    check64 "non-canonical stack: #SS on an IST stack", EXC, 12 << 32
    movb $0, IDT + 12 * 16 + 4
    try ".byte 0x0f, 0x0b"
    pushfq
    pop %rax
    try "lock; .byte 0x90"
    check64 "lock nop", EXC, 6 << 32
    mov EXC_FLAGS, %eax
    shr $16, %eax
    and $1, %eax
    check64 "fault frames have RF set", %rax, 1
    try "int3"
    mov EXC_FLAGS, %eax
    shr $16, %eax
    and $1, %eax
    check64 "trap frames do not", %rax, 0

    # Segment loads.
    seg_check ds, 0x00, NONE
    seg_check ds, 0x03, NONE
    seg_check ds, 0x10, NONE
    seg_check ds, 0x23, NONE
    seg_check ds, 0x13, (13 << 32) + 0x10
    seg_check ds, 0x08, NONE
    seg_check ds, 0x30, (13 << 32) + 0x30
    seg_check ds, 0x50, (11 << 32) + 0x50
    seg_check ds, 0x68, (11 << 32) + 0x68
    seg_check ds, 0x78, (13 << 32) + 0x78
    seg_check ds, 0x48, NONE
    seg_check ds, 0x1000, (13 << 32) + 0x1000
    seg_check ds, 0x0c, (13 << 32) + 0x0c
    seg_check ss, 0x00, NONE
    seg_check ss, 0x03, 13 << 32
    seg_check ss, 0x10, NONE
    seg_check ss, 0x13, (13 << 32) + 0x10
    seg_check ss, 0x23, (13 << 32) + 0x20
    seg_check ss, 0x60, (13 << 32) + 0x60
    seg_check ss, 0x68, (12 << 32) + 0x68
    seg_check ss, 0x08, (13 << 32) + 0x08
    seg_check ss, 0x2000, (13 << 32) + 0x2000
    utry "mov %cs, %eax; mov %eax, %ds"
    check64 "user: mov ds, cs", EXC, UOK
    utry "mov $0x10, %eax; mov %eax, %ds"
    check64 "user: kernel data", EXC, (13 << 32) + 0x10
    utry "mov $0, %eax; mov %eax, %ss"
    check64 "user: null ss", EXC, 13 << 32
    utry "mov $0x23, %eax; mov %eax, %ss"
    check64 "user: own ss", EXC, UOK
    utry "mov $0x48, %eax; mov %eax, %ds"
    check64 "user: conforming code as data", EXC, UOK

    # Privileged instructions in ring 3.
    .irp insn, hlt, cli, sti, clts, invd, wbinvd, rdmsr, wrmsr, swapgs, xsetbv_, rdpmc
    .ifc \insn, xsetbv_
    .else
    utry "\insn"
    check64 "user: \insn", EXC, 13 << 32
    .endif
    .endr
    utry "mov %cr0, %rax"
    check64 "user: mov from cr0", EXC, 13 << 32
    utry "mov %rax, %cr3"
    check64 "user: mov to cr3", EXC, 13 << 32
    utry "mov %dr7, %rax"
    check64 "user: mov from dr7", EXC, 13 << 32
    utry "lgdt 0x140000"
    check64 "user: lgdt", EXC, 13 << 32
    utry "ltr %ax"
    check64 "user: ltr", EXC, 13 << 32
    utry "lldt %ax"
    check64 "user: lldt", EXC, 13 << 32
    utry "lmsw %ax"
    check64 "user: lmsw", EXC, 13 << 32
    utry "invlpg 0x140000"
    check64 "user: invlpg", EXC, 13 << 32
    utry "in $0x80, %al"
    check64 "user: in without bitmap", EXC, 13 << 32
    utry "mov $0x100, %edx; out %al, %dx"
    check64 "user: out without bitmap", EXC, 13 << 32
    utry "int $0x42"
    check64 "user: int 42h", EXC, 0x42 << 32
    utry "sgdt 0x141000"
    check64 "user: sgdt without UMIP", EXC, UOK
    utry "smsw %eax"
    check64 "user: smsw without UMIP", EXC, UOK
    mov %cr4, %rax
    or $1 << 11, %eax
    mov %rax, %cr4
    .irp insn, "sgdt 0x141000", "sidt 0x141000", "sldt %eax", "str %eax", "smsw %eax"
    utry "\insn"
    check64 "user: \insn with UMIP", EXC, 13 << 32
    .endr
    try "sgdt 0x141000"
    check64 "kernel: sgdt with UMIP", EXC, NONE
    mov %cr4, %rax
    and $~(1 << 11), %eax
    mov %rax, %cr4
    movzwl 0x141000, %eax
    check64 "sgdt limit", %rax, gdt_end - gdt - 1
    check64 "sgdt base", 0x141002, GDT

    # IDT gates that cannot be used.
    movb $0x8e, IDT + 0x42 * 16 + 5
    utry "int $0x42"
    check64 "user: int through a DPL 0 gate", EXC, (13 << 32) + 0x42 * 8 + 2
    movb $0x6e, IDT + 0x42 * 16 + 5
    try "int $0x42"
    check64 "int through an absent gate", EXC, (11 << 32) + 0x42 * 8 + 2
    movb $0x85, IDT + 0x42 * 16 + 5
    try "int $0x42"
    check64 "task gate in long mode", EXC, (13 << 32) + 0x42 * 8 + 2
    movb $0xee, IDT + 0x42 * 16 + 5
    movw $0, IDT + 0x42 * 16 + 2
    try "int $0x42"
    check64 "gate with null selector", EXC, 13 << 32
    movw $0x10, IDT + 0x42 * 16 + 2
    try "int $0x42"
    check64 "gate to data", EXC, (13 << 32) + 0x10
    movw $0x40, IDT + 0x42 * 16 + 2
    try "int $0x42"
    check64 "gate to 32-bit code", EXC, (13 << 32) + 0x40
    movw $0x50, IDT + 0x42 * 16 + 2
    try "int $0x42"
    check64 "gate to 32-bit code, not present", EXC, (13 << 32) + 0x50
    movw $KCS, IDT + 0x42 * 16 + 2
    lidt idtr_short
    try "int $0x42"
    check64 "int beyond the IDT limit", EXC, (13 << 32) + 0x42 * 8 + 2
    lidt idtr
    movw $0, IDT + 6 * 16 + 2
    try "ud2"
    check64 "exception whose gate is bad has EXT", EXC, (13 << 32) + 1
    movw $KCS, IDT + 6 * 16 + 2
    movb $0x0e, IDT + 13 * 16 + 5
    mov $0x13, %eax
    try "mov %eax, %ds"
    check64 "#GP whose gate is absent: #DF", EXC, 8 << 32
    movb $0xee, IDT + 13 * 16 + 5

    # Stacks: IST, alignment, privilege change.
    movb $1, IDT + 0x42 * 16 + 4
    try "int $0x42"
    check64 "IST1", EXC_SP, 0x1d000 - 56
    movb $0, IDT + 0x42 * 16 + 4
    sub $8, %rsp
    try "int $0x42"
    add $8, %rsp
    mov EXC_SP, %rax
    and $15, %eax
    check64 "frame is aligned", %rax, 8
    utry "nop"
    check64 "stack of the TSS", EXC_SP, KSTACK - 0x800 - 56
    check64 "user rsp in the frame", EXC_RSP, USTACK
    check64 "user ss in the frame", EXC_SS, UDS
    check64 "user cs in the frame", EXC_CS, UCS
    utry "mov $0x7000, %rsp; push %rax"
    check64 "user push to a kernel page", EXC, (14 << 32) + 7
    check64 "cr2", EXC_CR2, 0x6ff8

    # Far transfers.
    .macro far_ret_check name, cs, ss, expected
    movabs $NONE, %r15
    mov %r15, EXC
    movq $8f, RESUME
    mov %rsp, RESUME_RSP
    pushq $\ss
    pushq $USTACK
    pushq $\cs
    pushq $UCODE
    lretq
8:  check64 "\name", EXC, \expected
    .endm
    movw $0x80cd, UCODE         # int $0x80
    far_ret_check "lretq to ring 3", UCS, UDS, UOK
    far_ret_check "lretq to 32-bit ring 3", UCS32, UDS, UOK
    far_ret_check "lretq to a null cs", 0, UDS, 13 << 32
    far_ret_check "lretq to data", KDS, UDS, (13 << 32) + 0x10
    far_ret_check "lretq to ring 3 with RPL 2", 0x2a, UDS, (13 << 32) + 0x28
    far_ret_check "lretq to absent code", 0x50, UDS, (11 << 32) + 0x50
    far_ret_check "lretq to code with L and D", 0x58, UDS, (13 << 32) + 0x58
    far_ret_check "lretq with ring 0 ss", UCS, KDS, (13 << 32) + 0x10
    far_ret_check "lretq with null ss", UCS, 3, 13 << 32
    far_ret_check "lretq beyond the GDT", 0x1000, UDS, (13 << 32) + 0x1000
    .macro iret_check name, cs, ss, rip, flags, expected
    movabs $NONE, %r15
    mov %r15, EXC
    movq $8f, RESUME
    mov %rsp, RESUME_RSP
    pushq $\ss
    pushq $USTACK
    pushq $\flags
    pushq $\cs
    movabs $\rip, %rax
    push %rax
    iretq
8:  check64 "\name", EXC, \expected
    .endm
    iret_check "iretq to ring 3", UCS, UDS, UCODE, 2, UOK
    iret_check "iretq to a null cs", 0, UDS, UCODE, 2, 13 << 32
    iret_check "iretq to a non-canonical rip", UCS, UDS, 0x800000000000, 2, 13 << 32
    iret_check "iretq with ring 0 ss", UCS, KDS, UCODE, 2, (13 << 32) + 0x10
    iret_check "iretq with absent ss", UCS, 0x6b, UCODE, 2, (13 << 32) + 0x68
    iret_check "iretq to ring 0, null ss", KCS, 0, int80, 2, UOK
    iret_check "iretq to ring 0, null ss with RPL 3", KCS, 3, int80, 2, 13 << 32
    pushfq
    orl $0x4000, (%rsp)
    popfq
    try "iretq"
    check64 "iretq with NT", EXC, 13 << 32
    pushq $2
    popfq
    mov $far48, %ebx
    try "ljmpl *(%rbx)"
    check64 "ljmp through m16:32", EXC, UOK
    mov $far_bad, %ebx
    try "ljmpl *(%rbx)"
    check64 "ljmp to data", EXC, (13 << 32) + 0x10
    movq $int80, GDT + 0xa0
    movw $KCS, GDT + 0xa8
    mov $GDT + 0xa0, %ebx
    try "rex.w ljmp *(%rbx)"
    check64 "ljmp through m16:64", EXC, UOK
    movq $0, GDT + 0xa0
    movq $0, GDT + 0xa8

    # Call gates.
    call_gate KCS, gate_entry, 0xec00
    mov $far_gate, %ebx
    mov %rsp, %r14
    try "lcall *(%rbx)"
    check64 "call gate, same level", EXC, NONE
    sub %rsp, %r14
    check64 "call gate returns", %r14, 0
    utry "mov $far_gate_user, %ebx; lcall *(%rbx)"
    check64 "user: pointer in a kernel page", EXC, (14 << 32) + 5
    movl $0, 0x142000
    movw $GATE, 0x142004
    utry "mov $0x142000, %ebx; lcall *(%rbx)"
    check64 "user: call gate to ring 0", EXC, UOK
    check64 "call gate: rsp in ring 0", SCRATCH, KSTACK - 0x800 - 32
    check64 "call gate: ss in ring 0", SCRATCH + 8, 0
    check64 "call gate: pushed ss", SCRATCH + 16, UDS
    check64 "call gate: pushed rsp", SCRATCH + 24, USTACK
    check64 "call gate: pushed cs", SCRATCH + 32, UCS
    movb $0x8c, GDT + GATE + 5
    utry "mov $0x142000, %ebx; lcall *(%rbx)"
    check64 "user: call gate with DPL 0", EXC, (13 << 32) + GATE
    movb $0x6c, GDT + GATE + 5
    utry "mov $0x142000, %ebx; lcall *(%rbx)"
    check64 "user: absent call gate", EXC, (11 << 32) + GATE
    movb $0xe4, GDT + GATE + 5
    utry "mov $0x142000, %ebx; lcall *(%rbx)"
    check64 "user: 16-bit call gate", EXC, (13 << 32) + GATE
    movb $0xec, GDT + GATE + 5
    movw $CCS32, GDT + GATE + 2
    utry "mov $0x142000, %ebx; lcall *(%rbx)"
    check64 "user: call gate to 32-bit code", EXC, (13 << 32) + CCS32
    movw $KCS, GDT + GATE + 2
    movl $0x1f00, GDT + GATE + 12
    utry "mov $0x142000, %ebx; lcall *(%rbx)"
    check64 "user: call gate with a bad upper half", EXC, (13 << 32) + GATE
    movl $0, GDT + GATE + 12
    utry "mov $0x142000, %ebx; ljmpl *(%rbx)"
    check64 "user: jmp through a gate inwards", EXC, (13 << 32) + KCS

    # SYSCALL and SYSRET.
    mov $0xc0000081, %ecx
    xor %eax, %eax
    mov $0x00180008, %edx
    wrmsr
    mov $0xc0000082, %ecx
    mov $syscall_entry, %eax
    xor %edx, %edx
    wrmsr
    mov $0xc0000084, %ecx
    mov $0x4400, %eax
    wrmsr
    utry "pushq $0x4403; popfq; syscall"
    check64 "syscall runs", EXC, UOK
    check64 "syscall: r11", SCRATCH, 0x4403
    check64 "syscall: flags masked", SCRATCH + 8, 0x03
    check64 "syscall: rcx", SCRATCH + 16, UCODE + 8
    check64 "syscall: cs", SCRATCH + 24, KCS
    check64 "syscall: ss", SCRATCH + 32, KDS
    check64 "sysret: cs of the user", EXC_CS, UCS
    check64 "sysret: ss of the user", EXC_SS, UDS
    mov EXC_FLAGS, %eax
    check64 "sysret: flags", %rax, 0x4403
    movabs $0x800000000000, %rcx
    try "sysretq"
    check64 "sysretq to a non-canonical rip", EXC, 13 << 32
    utry "sysretq"
    check64 "user: sysret", EXC, 13 << 32
    mov $0xc0000080, %ecx
    mov $0xd00, %eax
    xor %edx, %edx
    wrmsr
    utry "syscall"
    check64 "syscall with EFER.SCE clear", EXC, 6 << 32
    mov $0xc0000080, %ecx
    mov $0xd01, %eax
    wrmsr
    # SYSENTER and SYSEXIT.
    try "sysenter"
    check64 "sysenter with null cs", EXC, 13 << 32
    try "sysexitl"
    check64 "sysexit with null cs", EXC, 13 << 32
    utry "sysexitl"
    check64 "user: sysexit", EXC, 13 << 32
    # SWAPGS and FSGSBASE.
    mov $0xc0000101, %ecx
    mov $0x1111, %eax
    xor %edx, %edx
    wrmsr
    mov $0xc0000102, %ecx
    mov $0x2222, %eax
    wrmsr
    swapgs
    rdmsr
    check64 "swapgs", %rax, 0x1111
    try "rdfsbase %rax"
    check64 "rdfsbase without CR4.FSGSBASE", EXC, 6 << 32
    mov %cr4, %rax
    or $1 << 16, %eax
    mov %rax, %cr4
    rdgsbase %rax
    check64 "rdgsbase", %rax, 0x2222
    movabs $0x123456789a, %rax
    utry "wrfsbase %rax"
    check64 "user: wrfsbase", EXC, UOK
    rdfsbase %rbx
    check64 "wrfsbase", %rbx, 0x123456789a
    rdfsbase %ebx
    check64 "rdfsbase r32", %rbx, 0x3456789a
    movabs $0x800000000000, %rax
    try "wrgsbase %rax"
    check64 "wrgsbase non-canonical", EXC, 13 << 32
    xor %eax, %eax
    mov %eax, %fs
    rdfsbase %rax
    check64 "null selector clears the base", %rax, 0

    jmp main64_part2

gate_entry:
    mov %rsp, SCRATCH
    mov %ss, %eax
    mov %rax, SCRATCH + 8
    mov 24(%rsp), %rax
    mov %rax, SCRATCH + 16
    mov 16(%rsp), %rax
    mov %rax, SCRATCH + 24
    mov 8(%rsp), %rax
    mov %rax, SCRATCH + 32
    lretq
syscall_entry:
    mov %rsp, %rbp
    mov $KSTACK - 0x400, %rsp
    mov %r11, SCRATCH
    pushfq
    pop %rax
    mov %rax, SCRATCH + 8
    mov %rcx, SCRATCH + 16
    mov %cs, %eax
    mov %rax, SCRATCH + 24
    mov %ss, %eax
    mov %rax, SCRATCH + 32
    mov %rbp, %rsp
    sysretq
int80:
    int $0x80
far48:      .long int80
            .word KCS
far_bad:    .long int80
            .word KDS
far_gate:   .long 0
            .word GATE
far_gate_user: .long 0
            .word GATE
idtr_short: .word 0x3ff
            .quad IDT
.include "long64b.inc"

.section .reset, "ax"
.code16
    ljmp $0xf000, $(entry16 - 0xf0000)
