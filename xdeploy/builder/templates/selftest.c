$banner
#include "$name.h"

typedef int ${name}_selftest_is_optional; /* a file must not be empty in C99 */

#ifdef ${upper}_SELFTEST

static const ${upper}_ALIGNED int8_t inputs[$count][$input_slot] = {
$inputs
};
static const int8_t outputs[$count][${upper}_OUTPUT_BYTES] = {
$outputs
};

int ${name}_selftest(void *arena)
{
    static ${upper}_ALIGNED ${name}_output result;
    int status = ${name}_verify();
    int sample;

    if (status != ${upper}_OK) {
        return status;
    }
    for (sample = 0; sample < $count; ++sample) {
        int i;

        status = ${name}_run(inputs[sample], result, arena);
        if (status != ${upper}_OK) {
            return status;
        }
        for (i = 0; i < ${upper}_OUTPUT_BYTES; ++i) {
            const int apart = result[i] - outputs[sample][i];

            if ((apart > $tolerance) || (apart < (-$tolerance))) {
                return ${upper}_ERROR_OUTPUT;
            }
        }
    }
    return ${upper}_OK;
}

#endif
