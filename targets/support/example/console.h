/* Text over uart.h, without stdio. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <stdint.h>

void put_text(const char *text);
void put_number(int32_t value);
void put_hex(uint32_t value);

/* Rounded to three digits behind the point; below 2 million. */
void put_decimal(float value);

#endif
