/* A boot sector for the disk error tests: write 64 times 32 KiB to disk 80h through int 13h, each block stamped with its
 * number, read all back, compare the stamps, and leave through isa-debug-exit (port F4h). */
        .code16
        .globl _start
_start: cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        sti
        mov     $greeting, %si
        call    print

        movw    $0x4300, command        /* extended write */
        call    all
        movw    $0x4200, command        /* extended read */
        call    all
        mov     $success, %si
        call    print
        mov     $0x10, %al
        jmp     leave
failed: mov     $failure, %si
        call    print
        mov     $0x20, %al
leave:  mov     $6, %cx                 /* the firmware's serial console drains at timer ticks */
1:      hlt
        loop    1b
        out     %al, $0xf4
        hlt

all:    movw    $0, block
1:      mov     $0x2000, %ax
        mov     %ax, %es
        mov     block, %ax
        cmpb    $0x43, command + 1
        jne     2f
        mov     %ax, %es:0
        mov     %ax, %es:0x7ffe
2:      shl     $6, %ax                 /* 64 sectors each */
        mov     %ax, address
        movw    $64, count
        mov     command, %ax
        mov     $0x80, %dl
        mov     $packet, %si
        int     $0x13
        jc      failed
        mov     block, %ax
        cmp     %ax, %es:0
        jne     failed
        cmp     %ax, %es:0x7ffe
        jne     failed
        incw    block
        cmpw    $64, block
        jb      1b
        ret

print:  lodsb
        test    %al, %al
        jz      1f
        mov     $0x0e, %ah
        mov     $7, %bx
        int     $0x10
        jmp     print
1:      ret

greeting: .asciz "writing\r\n"
success: .asciz "all written and read\r\n"
failure: .asciz "disk error\r\n"
command: .word  0
block:  .word   0
        .balign 4
packet: .byte   16, 0
count:  .word   64
        .word   0, 0x2000               /* buffer 2000:0000 */
address: .quad  0

        .org    510
        .word   0xaa55
