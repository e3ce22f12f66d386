/* What startup.c does for a program beside starting it. */
#ifndef BOARD_H
#define BOARD_H

#ifndef STACK_BYTES
#define STACK_BYTES 4096 /* a multiple of 8 */
#endif

int main(void);

#endif
