# Protected mode without paging, then with 32-bit and PAE paging; tasks, virtual-8086 mode, real mode
# (Intel SDM vol 3A chapters 3-7, 20).
.include "common.inc"

.set GDT, 0x16000
.set IDT, 0x14000
.set LDT, 0x13000
.set TSS0, 0x15000
.set TSS1, 0x15100
.set TSS16, 0x15200
.set KSTACK, 0x1f000
.set USTACK, 0x1e000
.set EXC32, 0x568               # vector << 16 | error code of the last event; NONE32 if none
.set EXC_IP, 0x56c
.set NONE32, 0xffff0000

.set KCS, 0x08
.set KDS, 0x10
.set UCS, 0x1b
.set UDS, 0x23
.set TSSSEL, 0x28
.set TSSSEL1, 0x30
.set GATE, 0x38
.set LIMITED, 0x40              # data, limit 0xfff
.set DOWN, 0x48                 # expand-down, limit 0xfff
.set RONLY, 0x50
.set XONLY, 0x58
.set CONF, 0x60
.set ABSENT, 0x68
.set CS16, 0x70
.set DS16, 0x78
.set LDTSEL, 0x80
.set TGATE, 0x88
.set TSS16SEL, 0x90
.set SHORTTSS, 0x98
.set CODE_SMALL, 0xa0           # code, limit 0xfff
.set CS1, 0xb0                  # ring 1: code, data b8, absent data c0
.set SS_SMALL, 0xa8             # 32-bit stack, limit 0x1efff
.set PAGE, 0x200000

.code16
entry16:
    cli
    xor %eax, %eax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7000, %sp
    movl $REC_BASE, REC_PTR
    lgdtl %cs:(gdtr32 - 0xf0000)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $KCS, $entry32
.code32
entry32:
    mov $KDS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov $KSTACK, %esp
    cld
    mov $gdt, %esi
    mov $GDT, %edi
    mov $(gdt_end - gdt) / 4, %ecx
    rep movsl
    lgdt gdtr
    mov $idt_stubs, %ebx
    mov $IDT, %edi
    mov $256, %ecx
1:  mov %bx, (%edi)
    movw $KCS, 2(%edi)
    movw $0xee00, 4(%edi)
    mov %ebx, %eax
    shr $16, %eax
    mov %ax, 6(%edi)
    add $8, %edi
    add $16, %ebx
    loop 1b
    lidt idtr
    mov $TSS0, %edi
    mov $0x400 / 4, %ecx
    xor %eax, %eax
    rep stosl
    movl $KSTACK - 0x800, TSS0 + 4
    movl $KDS, TSS0 + 8
    movw $0x68, TSS0 + 0x66
    mov $TSSSEL, %eax
    ltr %ax
    jmp main32

report32:
    push %ebx
    report_body
    pop %ebx
    ret

.macro try insn
    movl $NONE32, %ss:EXC32
    movl $8f, %ss:RESUME
    mov %esp, %ss:RESUME_RSP
    \insn
8:
.endm
.macro utry insn
    movl $NONE32, EXC32
    movl $8f, RESUME
    mov %esp, RESUME_RSP
    pushl $UDS
    pushl $USTACK
    pushl $0x2
    pushl $UCS
    pushl $7f
    iret
7:  \insn
    int $0x80
8:
.endm
.set UOK, 0x80 << 16

.align 16
idt_stubs:
.set i, 0
.rept 256
    .if (i == 8) || (i >= 10 && i <= 14) || (i == 17)
    push $i
    .else
    .byte 0x6a, 0
    push $i
    .endif
    jmp common_exc
    .align 16
    .set i, i + 1
.endr
common_exc:
    push %eax
    mov $KDS, %eax
    mov %eax, %ds
    mov %eax, %es
    lea 4(%esp), %eax
    mov %eax, EXC_SP
    mov 4(%esp), %eax
    shl $16, %eax
    mov 8(%esp), %ax
    mov %eax, EXC32
    mov 12(%esp), %eax
    mov %eax, EXC_IP
    mov 16(%esp), %eax
    mov %eax, EXC_CS
    mov 20(%esp), %eax
    mov %eax, EXC_FLAGS
    mov 24(%esp), %eax
    mov %eax, EXC_RSP
    mov 28(%esp), %eax
    mov %eax, EXC_SS
    mov 32(%esp), %eax
    mov %eax, SCRATCH + 0x40
    mov 36(%esp), %eax
    mov %eax, SCRATCH + 0x44
    mov %cr2, %eax
    mov %eax, EXC_CR2
    incl EXC_COUNT
    pop %eax
    push %eax
    mov $KDS, %eax
    mov %eax, %ss
    pop %eax
    mov RESUME_RSP, %esp
    push $2
    popf
    jmp *RESUME

.align 16
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff
    .quad 0x0000890150000067, 0x0000890151000067, 0
    .quad 0x0040930000000fff, 0x0040970000000fff, 0x00cf91000000ffff, 0x00cf99000000ffff, 0x00cf9f000000ffff
    .quad 0x00cf13000000ffff, 0x00009b0f0000ffff, 0x000093000000ffff, 0x000082013000007f, 0
    .quad 0x000081015200002b, 0x0000890153000010, 0x00409b0f00000fff, 0x004193000000efff
    .quad 0x00cfbb000000ffff, 0x00cfb3000000ffff, 0x00cf33000000ffff
gdt_end:
gdtr:   .word gdt_end - gdt - 1
        .long GDT
gdtr32: .word gdt_end - gdt - 1
        .long gdt
idtr:   .word 0x7ff
        .long IDT
idtr_real: .word 0x3ff
        .long 0

.macro load seg, sel, expected
    mov $\sel, %eax
    try "mov %eax, %\seg"
    mov $KDS, %ecx
    mov %ecx, %ss
    mov %ecx, %ds
    mov %ecx, %es
    check32 "mov \seg, \sel", EXC32, \expected
.endm
.macro gate sel, off, attr, params=0
    movw $(\off - 0xf0000), GDT + GATE
    movw $\sel, GDT + GATE + 2
    movw $\attr + \params, GDT + GATE + 4
    movw $0xf, GDT + GATE + 6
.endm
.macro tss_reset
    movb $0x8b, GDT + TSSSEL + 5
    movb $0x89, GDT + TSSSEL1 + 5
    movl $task_main, TSS1 + 0x20
    movl $2, TSS1 + 0x24
    movl $0x1c000, TSS1 + 0x38
    movl $KDS, TSS1 + 0x48      # ES CS SS DS FS GS
    movl $KCS, TSS1 + 0x4c
    movl $KDS, TSS1 + 0x50
    movl $KDS, TSS1 + 0x54
    movl $0, TSS1 + 0x58
    movl $0, TSS1 + 0x5c
    movl $0, TSS1 + 0x60
    movl $0x680000, TSS1 + 0x64
.endm

main32:
    # Segment loads.
    load ds, 0, NONE32
    load ds, 3, NONE32
    load ds, KDS, NONE32
    load ds, UDS, NONE32
    load ds, 0x13, (13 << 16) + 0x10
    load ds, XONLY, (13 << 16) + XONLY
    load ds, CONF, NONE32
    load ds, ABSENT, (11 << 16) + ABSENT
    load ds, TSSSEL, (13 << 16) + TSSSEL
    load ds, 0x1000, (13 << 16) + 0x1000
    load ss, 0, 13 << 16
    load ss, UDS, (13 << 16) + 0x20
    load ss, RONLY, (13 << 16) + RONLY
    load ss, ABSENT, (12 << 16) + ABSENT
    load ss, KCS, (13 << 16) + KCS
    load ss, DS16, NONE32
    # Limits and rights.
    mov $LIMITED, %eax
    mov %eax, %fs
    try "movb $0, %fs:0xfff"
    check32 "last byte of a segment", EXC32, NONE32
    try "movb $0, %fs:0x1000"
    check32 "byte beyond the limit", EXC32, 13 << 16
    try "movw $0, %fs:0xfff"
    check32 "word across the limit", EXC32, 13 << 16
    try "mov %fs:0xffd, %eax"
    check32 "dword across the limit", EXC32, 13 << 16
    mov $DOWN, %eax
    mov %eax, %fs
    try "movb $0, %fs:0xfff"
    check32 "expand-down: below", EXC32, 13 << 16
    try "movb %fs:0x1000, %al"
    check32 "expand-down: first byte", EXC32, NONE32
    try "mov %fs:0xfff, %eax"
    check32 "expand-down: across", EXC32, 13 << 16
    mov $RONLY, %eax
    mov %eax, %fs
    try "mov %fs:0, %eax"
    check32 "read of read-only data", EXC32, NONE32
    try "movb $0, %fs:SCRATCH"
    check32 "write of read-only data", EXC32, 13 << 16
    xor %eax, %eax
    mov %eax, %fs
    try "mov %fs:0, %eax"
    check32 "read through a null selector", EXC32, 13 << 16
    try "movb $0, %cs:SCRATCH"
    check32 "write through CS", EXC32, 13 << 16
    mov $KDS, %eax
    mov %eax, %es
    mov $SS_SMALL, %eax
    mov %eax, %ss
    try "mov %ss:0x1effd, %eax"
    check32 "read across the stack limit", EXC32, 12 << 16
    mov $SS_SMALL, %eax
    mov %eax, %ss
    try "mov %ss:0x1effc, %eax"
    check32 "last dword of the stack", EXC32, NONE32
    mov $KDS, %eax
    mov %eax, %ss
    # The accessed bit.
    andb $0xfe, GDT + LIMITED + 5
    mov $LIMITED, %eax
    mov %eax, %es
    movzbl GDT + LIMITED + 5, %eax
    check32 "a load sets the accessed bit", %eax, 0x93
    mov $KDS, %eax
    mov %eax, %es

    # LDT.
    movl $0x0000ffff, LDT + 8
    movl $0x00cf9300, LDT + 12
    mov $LDTSEL, %eax
    try "lldt %ax"
    check32 "lldt", EXC32, NONE32
    sldt %eax
    check32 "sldt", %eax, LDTSEL
    load es, 0x0c, NONE32
    load es, 0x84, (13 << 16) + 0x84
    mov $KDS, %eax
    try "lldt %ax"
    check32 "lldt of data", EXC32, (13 << 16) + KDS

    # Far transfers.
    try "lcall $CS16, $(far16 - 0xf0000)"
    check32 "lcall to 16-bit code and back", EXC32, NONE32
    try "ljmp $KDS, $0"
    check32 "ljmp to data", EXC32, (13 << 16) + KDS
    try "ljmp $0, $0"
    check32 "ljmp to null", EXC32, 13 << 16
    try "ljmp $ABSENT, $0"
    check32 "ljmp to absent data", EXC32, (13 << 16) + ABSENT
    try "ljmp $UCS, $0"
    check32 "ljmp outwards", EXC32, (13 << 16) + 0x18
    try "ljmp $CODE_SMALL, $0x1000"
    check32 "ljmp beyond the limit", EXC32, 13 << 16
    try "lcall $CONF, $far32"
    check32 "lcall to conforming code", EXC32, NONE32
    utry "lcall $CONF, $far32"
    check32 "user: lcall to conforming code", EXC32, UOK
    utry "ljmp $KCS, $0"
    check32 "user: ljmp inwards", EXC32, (13 << 16) + KCS
    gate KCS, gate_entry, 0xec00, 2
    utry "pushl $0x1111; pushl $0x2222; lcall $GATE, $0"
    check32 "user: call gate", EXC32, UOK
    check32 "call gate: parameter 1", SCRATCH, 0x2222
    check32 "call gate: parameter 2", SCRATCH + 4, 0x1111
    check32 "call gate: esp", SCRATCH + 8, USTACK - 8
    check32 "call gate: ss", SCRATCH + 12, UDS
    check32 "call gate: cs", SCRATCH + 16, UCS
    check32 "call gate: lret drops both", EXC_RSP, USTACK
    gate KCS, gate_entry, 0x8c00, 0
    utry "lcall $GATE, $0"
    check32 "user: call gate with DPL 0", EXC32, (13 << 16) + GATE
    gate KCS, gate_entry, 0x6c00, 0
    utry "lcall $GATE, $0"
    check32 "user: absent call gate", EXC32, (11 << 16) + GATE
    gate KDS, gate_entry, 0xec00, 0
    utry "lcall $GATE, $0"
    check32 "user: call gate to data", EXC32, (13 << 16) + KDS
    gate 0, gate_entry, 0xec00, 0
    utry "lcall $GATE, $0"
    check32 "user: call gate to null", EXC32, 13 << 16
    gate KCS, gate_entry, 0xec00, 0
    # Inner stacks of ring 1, whose faults ring 0 can take.
    gate CS1, far32, 0xec00, 0
    .macro inner_ss sel, expected
    movl $\sel, TSS0 + 16
    movl $0x1d000, TSS0 + 12
    utry "lcall $GATE, $0"
    check32 "ring 1 stack \sel", EXC32, \expected
    .endm
    inner_ss 0, 10 << 16
    inner_ss KDS, (10 << 16) + KDS
    inner_ss 0xb8, (10 << 16) + 0xb8
    inner_ss 0xc1, (12 << 16) + 0xc0
    inner_ss 0x1001, (10 << 16) + 0x1000
    inner_ss CS1 + 1, (10 << 16) + CS1
    inner_ss 0xb9, UOK
    movw $0x0f, GDT + 0xb8      # limit 0xffff of 4 KiB pages becomes 16 pages
    movb $0x40, GDT + 0xb8 + 6  # and now 15 bytes
    movl $16, TSS0 + 12
    movl $0xb9, TSS0 + 16
    utry "lcall $GATE, $0"
    check32 "ring 1 stack of 16 bytes is just enough", EXC32, UOK
    movl $12, TSS0 + 12
    utry "lcall $GATE, $0"
    check32 "ring 1 stack of 12 bytes is not", EXC32, (12 << 16) + 0xb8
    movw $0x10, GDT + TSSSEL    # limit
    movb $0x89, GDT + TSSSEL + 5
    # Privileged things in ring 3.
    movw $0x67, GDT + TSSSEL
    mov $TSSSEL, %eax
    ltr %ax
    .irp insn, "hlt", "cli", "sti", "mov %cr0, %eax", "mov %dr0, %eax", "clts", "in $0x80, %al", "invd", "lidt USTACK", "rdmsr"
    utry "\insn"
    check32 "user: \insn", EXC32, 13 << 16
    .endr
    utry "pushl $0x3002; popf; pushf; pop %eax; mov %eax, %ss:USTACK"
    check32 "user: popf", EXC32, UOK
    mov USTACK, %eax
    check32 "user: popf cannot raise IOPL", %eax, 2
    utry "int $0x42"
    check32 "user: int 42h", EXC32, 0x42 << 16
    movb $0x8e, IDT + 0x42 * 8 + 5
    utry "int $0x42"
    check32 "user: int through a DPL 0 gate", EXC32, (13 << 16) + 0x42 * 8 + 2
    movb $0xe6, IDT + 0x42 * 8 + 5
    try "jmp 9f; 9: stc"
    check32 "nothing happens", EXC32, NONE32
    movb $0xee, IDT + 0x42 * 8 + 5
    mov $0x7f, %al
    add $1, %al
    try "into"
    check32 "into with OF", EXC32, 4 << 16
    xor %eax, %eax
    try "into"
    check32 "into without OF", EXC32, NONE32
    mov $SCRATCH, %ebx
    movl $5, SCRATCH
    movl $9, SCRATCH + 4
    mov $10, %eax
    try "bound %eax, (%ebx)"
    check32 "bound", EXC32, 5 << 16
    movw $0, IDT + 6 * 8 + 2
    try "ud2"
    check32 "#UD through a null selector", EXC32, (13 << 16) + 1
    movw $KCS, IDT + 6 * 8 + 2
    try "arpl %ax, %bx"
    check32 "arpl", EXC32, NONE32
    mov $0x11, %eax
    mov $0x13, %ebx
    arpl %bx, %ax
    setz %bl
    movzbl %bl, %ebx
    check32 "arpl raises", %eax, 0x13
    check32 "arpl zf", %ebx, 1
    try "syscall"
    check32 "syscall outside of long mode", EXC32, 6 << 16
    # SYSENTER and SYSEXIT.
    mov $0x174, %ecx
    xor %edx, %edx
    mov $KCS, %eax
    wrmsr
    inc %ecx
    mov $KSTACK - 0x400, %eax
    wrmsr
    inc %ecx
    mov $sysenter_entry, %eax
    wrmsr
    utry "mov $7f, %edx; mov %esp, %ecx; sysenter; 7: nop"
    check32 "sysenter and sysexit", EXC32, UOK
    check32 "sysenter: cs", SCRATCH, KCS
    check32 "sysenter: ss", SCRATCH + 4, KDS
    check32 "sysenter: esp", SCRATCH + 8, KSTACK - 0x400
    check32 "sysexit: cs", EXC_CS, UCS
    check32 "sysexit: esp", EXC_RSP, USTACK
    .include "prot32b.inc"

sysenter_entry:
    mov %cs, %eax
    mov %eax, %ss:SCRATCH
    mov %ss, %eax
    mov %eax, %ss:SCRATCH + 4
    mov %esp, %ss:SCRATCH + 8
    sysexit

gate_entry:
    mov %ss:8(%esp), %eax
    mov %eax, %ss:SCRATCH
    mov %ss:12(%esp), %eax
    mov %eax, %ss:SCRATCH + 4
    mov %ss:16(%esp), %eax
    mov %eax, %ss:SCRATCH + 8
    mov %ss:20(%esp), %eax
    mov %eax, %ss:SCRATCH + 12
    mov %ss:4(%esp), %eax
    mov %eax, %ss:SCRATCH + 16
    lret $8
far32:
    lret
.code16
far16:
    lretl
.code32

.section .reset, "ax"
.code16
    ljmp $0xf000, $(entry16 - 0xf0000)
