$banner
/* Tile registers (AMX): Linux gives them to processes that have asked for them, once for all threads
 * (Documentation/arch/x86/xstate.rst). It is asked when the library is loaded. */
int ${name}_tiles(void);

#ifdef __linux__

/* 1 if this process may use tile registers. */
int ${name}_tiles(void)
{
    const long permission = 0x1023; /* ARCH_REQ_XCOMP_PERM */
    const long tiles = 18; /* XFEATURE_XTILEDATA */
    long status = 158; /* arch_prctl */

    __asm__ volatile("syscall" : "+a"(status) : "D"(permission), "S"(tiles) : "rcx", "r11", "memory");
    return (status == 0) ? 1 : 0;
}

__attribute__((constructor)) static void ask(void)
{
    (void)${name}_tiles();
}

#else

/* Without Linux it is the program's own business. */
int ${name}_tiles(void)
{
    return 1;
}

#endif
