/* The last 64 KiB of a read-only memory: from reset to 64 bits with tile registers enabled, then what lies before it is
 * copied to where it was linked for, and called. Memory is mapped as it is, 4 GiB in pages of 2 MiB. */
.code16
start16:
    cli
    movw $0xf000, %ax
    movw %ax, %ds
    lgdtl gdtr
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $(0xffff0000 + start32 - start16)
.code32
start32:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x10000, %edi /* tables of pages: 0x10000 -> 0x11000 -> four from 0x12000 on */
    xorl %eax, %eax
    movl $0x1800, %ecx
    rep stosl
    movl $0x11003, 0x10000
    movl $0x12003, 0x11000
    movl $0x13003, 0x11008
    movl $0x14003, 0x11010
    movl $0x15003, 0x11018
    movl $0x12000, %edi
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl $0x10000, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x40620, %eax /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
    movl %eax, %cr4
    movl $0xc0000080, %ecx /* EFER: long mode */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $0xfffffff3, %eax
    orl $0x80000002, %eax
    movl %eax, %cr0
    ljmpl $24, $(0xffff0000 + start64 - start16)
.code64
start64:
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $0x600e7, %eax /* XCR0: AVX-512 and tiles */
    xsetbv
    movq $0x1f00000, %rsp
    cld
    movl $0xffe00000, %esi /* the program, then what it reads: see __main__.py */
    movl $0x2000000, %edi
    movl $0x20000, %ecx
    rep movsb
    movl $0xffe20000, %esi
    movl $0x4000000, %edi
    movl $0x1d0000, %ecx
    rep movsb
    movq $0x2000000, %rax
    call *%rax
1:  hlt
    jmp 1b
.align 16
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
    .quad 0x00af9a000000ffff
gdtr:
    .word 31
    .long 0xffff0000 + gdt - start16
.org 0xfff0
.code16
    .byte 0xea /* reset: a far jump to the beginning */
    .word 0, 0xf000
.org 0x10000
