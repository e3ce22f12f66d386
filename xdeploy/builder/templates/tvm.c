/* ${run} behind TVM's calling convention (tvm/ffi/c_api.h of apache-tvm 0.27, ABI of tvm-ffi 0.1): what an RPC server
 * loads. run(inputs, outputs, count): tensors of bytes, one input or output behind the other; gives ${run}'s status. */
#include <stdint.h>
#include <string.h>

#define INPUT_BYTES $input_bytes
#define OUTPUT_BYTES $output_bytes
#define ARENA_BYTES $arena
#define ALIGN $align
#define ALIGNED __attribute__((aligned(ALIGN)))

enum { INT = 1, TENSOR_POINTER = 7, TENSOR = 70, OBJECT_HEADER = 24 };

typedef struct {
    int32_t type;
    uint32_t unused;
    union {
        int64_t number;
        char *pointer;
    } is;
} value;

typedef struct { /* DLTensor */
    char *data;
    int32_t device_type, device;
    int32_t dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t *shape, *strides;
    uint64_t offset;
} tensor;

int ${run}(const int8_t *input, int8_t *output, void *arena);
__attribute__((visibility("default"))) int __tvm_ffi_run(void *self, const value *args, int32_t count, value *result);

static ALIGNED uint8_t arena[ARENA_BYTES + 1];
static ALIGNED int8_t in[INPUT_BYTES], out[OUTPUT_BYTES];

/* The bytes of a tensor in this machine's memory, or 0 where it is none or has fewer than `bytes`. */
static int8_t *content(const value *argument, int64_t bytes)
{
    const tensor *t;
    int64_t size = 1;
    int32_t i;
    if (argument->type == TENSOR) {
        t = (const tensor *)(const void *)(argument->is.pointer + OBJECT_HEADER);
    } else if (argument->type == TENSOR_POINTER) {
        t = (const tensor *)(const void *)argument->is.pointer;
    } else {
        return 0;
    }
    for (i = 0; i < t->dimensions; ++i) {
        size *= t->shape[i];
    }
    return (t->bits == 8 && t->lanes == 1 && size >= bytes) ? (int8_t *)(void *)(t->data + t->offset) : 0;
}

static int aligned(const void *pointer)
{
    return ((uintptr_t)pointer & (ALIGN - 1U)) == 0U;
}

int __tvm_ffi_run(void *self, const value *args, int32_t count, value *result)
{
    int64_t n, i;
    int8_t *inputs, *outputs;
    int status = -1;

    (void)self;
    result->type = INT;
    result->unused = 0;
    result->is.number = status;
    if (count != 3 || args[2].type != INT || args[2].is.number < 0 || args[2].is.number > INT32_MAX) {
        return 0;
    }
    n = args[2].is.number;
    inputs = content(&args[0], n * INPUT_BYTES);
    outputs = content(&args[1], n * OUTPUT_BYTES);
    if (inputs == 0 || outputs == 0) {
        return 0;
    }
    status = 0;
    for (i = 0; i < n && status == 0; ++i) {
        const int8_t *from = inputs + i * INPUT_BYTES;
        int8_t *to = outputs + i * OUTPUT_BYTES;
        if (!aligned(from)) {
            (void)memcpy(in, from, INPUT_BYTES);
            from = in;
        }
        status = ${run}(from, aligned(to) ? to : out, arena);
        if (status == 0 && !aligned(to)) {
            (void)memcpy(to, out, OUTPUT_BYTES);
        }
    }
    result->is.number = status;
    return 0;
}
