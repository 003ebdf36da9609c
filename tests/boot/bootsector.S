/* A boot sector for the floppy test: greet through int 10h, read all 80 x 2 x 18 sectors track by track through
 * int 13h, print the sum of their 16-bit words, and leave through isa-debug-exit (port F4h). */
        .code16
        .globl _start
_start: cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp
        sti
        mov     %dl, drive
        mov     $greeting, %si
        call    print
        mov     $0x1000, %ax
        mov     %ax, %es

next:   mov     $0x0212, %ax            /* read 18 sectors */
        xor     %bx, %bx
        mov     track, %ch
        mov     $1, %cl
        mov     head, %dh
        mov     drive, %dl
        int     $0x13
        jc      failed
        xor     %bx, %bx
        mov     $18 * 256, %cx
sum:    mov     %es:(%bx), %ax
        add     %ax, total
        add     $2, %bx
        loop    sum
        xorb    $1, head
        jnz     next
        incb    track
        cmpb    $80, track
        jb      next

        mov     $result, %si
        call    print
        mov     $4, %cx
digit:  rolw    $4, total
        mov     total, %al
        and     $15, %al
        add     $'0', %al
        cmp     $'9', %al
        jbe     1f
        add     $'a' - '0' - 10, %al
1:      call    putc
        loop    digit
        mov     $newline, %si
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

print:  lodsb
        test    %al, %al
        jz      1f
        call    putc
        jmp     print
1:      ret
putc:   push    %bx
        mov     $0x0e, %ah
        mov     $7, %bx
        int     $0x10
        pop     %bx
        ret

greeting: .asciz "qemupy boot sector\r\n"
result: .asciz "sum "
newline: .asciz "\r\n"
failure: .asciz "read error\r\n"
drive:  .byte   0
head:   .byte   0
track:  .byte   0
        .balign 2
total:  .word   0
        .org    510
        .word   0xaa55
