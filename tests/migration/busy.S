# A guest that is busy everywhere at once and checks all it did. To port E9h: '.' and four hexadecimal digits for a good
# pass, the number of disk writes that are flushed by now; 'E' and a letter for a fault. What comes in at COM2
# is echoed; a 'w' writes somewhat to each 64 KiB of a further MiB, from 32 MiB on.
#
# One pass:
#   R  16 KiB of words, one of twenty regions in turn, all hold the round's number: read, compare, write the next
#   S  64 KiB of the random numbers in 2..14 MiB, never written again, have the sum they had at the start
#   D  four times: a random block of 2 KiB on disk 80h is read, must hold what was written last, is written anew
#   F  FLUSH CACHE (the first IDE disk) succeeds
#   T  timer interrupts at 1 kHz: our count and the BIOS's agree, and it goes on
    .code16
    .globl _start
    .set SUMS, 0x9000           # 192 double words
    .set STAMPS, 0xa000         # 1024 words: the number of the last write to each block
    .set SLICES, 192 * 4
_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    sti
    movw $0x0202, %ax           # the two sectors behind this one
    movw $0x7e00, %bx
    movw $2, %cx
    xorw %dx, %dx
    int $0x13
    jmp begin
    .org 510
    .word 0xaa55

begin:
    movw $STAMPS, %di
    movw $1024, %cx
    xorw %ax, %ax
    rep stosw
    movw $0x3000, %dx
1:  movw %dx, %es
    xorw %di, %di
    movw $0x8000, %cx
    rep stosw
    addb $0x10, %dh
    cmpb $0x80, %dh
    jne 1b

    movl $0x200000, %edi
    movl $20230815, %edx
    xorw %si, %si
2:  call flat
    movw $16384, %cx
    xorl %ebp, %ebp
3:  imull $1664525, %edx, %edx
    addl $1013904223, %edx
    movl %edx, %es:(%edi)
    addl %edx, %ebp
    addl $4, %edi
    loop 3b
    movl %ebp, SUMS(%si)
    sti
    addw $4, %si
    cmpw $SLICES, %si
    jne 2b

    cli
    movw $on_tick, 0x1c * 4
    movw $0, 0x1c * 4 + 2
    movb $0x34, %al             # PIT channel 0, mode 2
    outb %al, $0x43
    movw $1193, %ax
    outb %al, $0x40
    movb %ah, %al
    outb %al, $0x40
    movw 0x46c, %ax
    movw %ax, tick_base
    sti

pass:
    movw region, %es
    movw round, %bx
    xorw %di, %di
    movw $0x2000, %dx
1:  movw %es:(%di), %ax
    cmpw %bx, %ax
    movb $'R', %cl
    jne bad
    incw %ax
    stosw
    decw %dx
    jnz 1b
    addb $4, region + 1
    cmpb $0x80, region + 1
    jne 2f
    movb $0x30, region + 1
    incw round

2:  movzwl slice, %esi
    movl %esi, %edi
    shll $14, %edi
    addl $0x200000, %edi
    call flat
    movw $16384, %cx
    xorl %ebp, %ebp
3:  addl %es:(%edi), %ebp
    addl $4, %edi
    loop 3b
    cmpl %ebp, SUMS(%si)
    movb $'S', %cl
    jne bad
    sti
    addw $4, %si
    cmpw $SLICES, %si
    jne 4f
    xorw %si, %si
4:  movw %si, slice

    movb $4, left
5:  call disk
    decb left
    jnz 5b

    movb $0xe0, %al
    movw $0x1f6, %dx
    outb %al, %dx
    incw %dx
    movb $0xe7, %al             # FLUSH CACHE
    outb %al, %dx
6:  inb %dx, %al
    testb $0x80, %al
    jnz 6b
    testb $0x21, %al
    movb $'F', %cl
    jnz bad

    cli
    movw 0x46c, %ax
    subw tick_base, %ax
    cmpw ticks, %ax
    movb $'T', %cl
    jne bad
7:  sti
    hlt
    cmpw ticks, %ax
    je 7b

    movw $0x2fd, %dx            # COM2; all ones: there is none
    inb %dx, %al
    cmpb $0xff, %al
    je 8f
    testb $1, %al
    jz 8f
    movw $0x2f8, %dx
    inb %dx, %al
    outb %al, $0xe9
    cmpb $'w', %al
    jne 8f
    call fill
8:  movb $'.', %al
    outb %al, $0xe9
    movw written, %bx
    movw $4, %cx
9:  rolw $4, %bx
    movb %bl, %al
    andb $15, %al
    cmpb $10, %al
    jb 1f
    addb $'a' - '0' - 10, %al
1:  addb $'0', %al
    outb %al, $0xe9
    loop 9b
    jmp pass

bad:
    movb $'E', %al
    outb %al, $0xe9
    movb %cl, %al
    outb %al, $0xe9
    cli
1:  hlt
    jmp 1b

on_tick:
    incw %cs:ticks
    iret

# ES becomes all of memory; interrupts are off afterwards, for the BIOS would make it small again
flat:
    cli
    lgdt gdt_place
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $8, %bx
    movw %bx, %es
    andb $0xfe, %al
    movl %eax, %cr0
    xorw %bx, %bx
    movw %bx, %es
    ret

disk:
    movl seed, %eax
    imull $1103515245, %eax, %eax
    addl $12345, %eax
    movl %eax, seed
    shrl $16, %eax
    andl $1023, %eax
    movw %ax, %bx
    shll $5, %eax               # 16 KiB apart
    movl %eax, address
    addw %bx, %bx
    movw $0x2000, %ax
    movw %ax, %es
    cmpw $0, STAMPS(%bx)
    je 3f
    movb $0x42, %ah             # extended read
    call transfer
    movw STAMPS(%bx), %ax
    xorw %di, %di
    movw $1024, %cx
1:  cmpw %es:(%di), %ax
    movb $'D', %dl
    jne disk_bad
    addw $2, %di
    addw $3, %ax
    loop 1b
3:  incw written
    movw written, %ax
    movw %ax, STAMPS(%bx)
    xorw %di, %di
    movw $1024, %cx
4:  stosw
    addw $3, %ax
    loop 4b
    movb $0x43, %ah             # extended write
transfer:
    movb $0, %al
    movw $packet, %si
    movb $0x80, %dl
    pushw %bx
    pushw %es
    int $0x13
    popw %es
    popw %bx
    movb $'D', %dl
    jc disk_bad
    ret

fill:
    movw $0x2000, %ax
    movw %ax, %es
    xorw %di, %di
    movw $1024, %cx
    rep stosw
    movl next, %eax
    movl %eax, address
    movb $16, left
1:  movb $0x43, %ah
    call transfer
    addl $128, address
    decb left
    jnz 1b
    movl address, %eax
    movl %eax, next
    ret

disk_bad:
    movb %dl, %cl
    jmp bad

    .balign 4
seed:   .long 1
next:   .long 65536
packet: .byte 16, 0
count:  .word 4
    .word 0, 0x2000             # buffer 2000:0000
address: .quad 0
gdt_place: .word 15
    .long gdt
    .balign 8
gdt:    .quad 0, 0x00cf92000000ffff
region: .word 0x3000
round:  .word 0
slice:  .word 0
ticks:  .word 0
tick_base: .word 0
written: .word 0
left:   .byte 0
    .org 3 * 512
