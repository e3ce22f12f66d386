/* Runs a package in a program of its own, for counting: count_main INPUTS OUTPUTS, int8 codes, one input behind the
 * other. XD_HEADER, XD(x) and XD_UPPER(x) name the package, as for board.c. */
#include XD_HEADER

#include "linux.h"

static XD_UPPER(ALIGNED) XD(input) input;
static XD_UPPER(ALIGNED) XD(output) output;
static XD_UPPER(ALIGNED) XD(arena) arena;

static int program(int count, char **words)
{
    long from = count == 3 ? open_to_read(words[1]) : -1L;
    long to = count == 3 ? open_to_write(words[2]) : -1L;
    if (from < 0L || to < 0L) {
        return 2;
    }
    while (transfer(SYS_READ, from, input, sizeof input) == sizeof input) {
        int status = XD(run)(input, output, arena);
        if (status != 0) {
            (void)write_text(STANDARD_ERROR, "xd_run returned ");
            (void)write_number(STANDARD_ERROR, status);
            (void)write_text(STANDARD_ERROR, "\n");
            return 1;
        }
        if (transfer(SYS_WRITE, to, output, sizeof output) != sizeof output) {
            return 2;
        }
    }
    return 0;
}
