# A boot sector that checks its own memory: 512 KiB of words that all count the passes. Each pass reads every word,
# compares it with the last pass's number and writes the next. To port E9h: '.' for a good pass, 'E' for a bad word.
    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7c00, %sp
    xorw %bx, %bx
    sti
    movw $0x1000, %dx
1:  movw %dx, %es
    xorw %di, %di
    xorw %ax, %ax
    movw $0x8000, %cx
    cld
    rep stosw
    addw $0x1000, %dx
    cmpw $0x9000, %dx
    jne 1b
pass:
    movw $0x1000, %dx
2:  movw %dx, %es
    xorw %di, %di
3:  movw %es:(%di), %ax
    cmpw %bx, %ax
    jne bad
    incw %ax
    movw %ax, %es:(%di)
    addw $2, %di
    jnz 3b
    addw $0x1000, %dx
    cmpw $0x9000, %dx
    jne 2b
    incw %bx
    movb $'.', %al
    outb %al, $0xe9
    jmp pass
bad:
    movb $'E', %al
    outb %al, $0xe9
    hlt
    jmp bad
    .org 510
    .word 0xaa55
