/* Runs a package in a program of its own, for counting: count_main INPUTS OUTPUTS, int8 codes, one input behind the
 * other. XD_HEADER, XD(x) and XD_UPPER(x) name the package, as for board.c. */
#include XD_HEADER

#include <stdio.h>

static XD_UPPER(ALIGNED) XD(input) input;
static XD_UPPER(ALIGNED) XD(output) output;
static XD_UPPER(ALIGNED) XD(arena) arena;

int main(int argc, char **argv)
{
    FILE *from = argc == 3 ? fopen(argv[1], "rb") : NULL;
    FILE *to = argc == 3 ? fopen(argv[2], "wb") : NULL;
    if (from == NULL || to == NULL) {
        return 2;
    }
    while (fread(input, sizeof input, 1, from) == 1) {
        int status = XD(run)(input, output, arena);
        if (status != 0) {
            (void)fprintf(stderr, "xd_run returned %d\n", status);
            return 1;
        }
        if (fwrite(output, sizeof output, 1, to) != 1) {
            return 2;
        }
    }
    return fclose(to) == 0 ? 0 : 2;
}
