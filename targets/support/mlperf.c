/* See mlperf.h. The command set and the answers are those of MLPerf Tiny (mlcommons/tiny, benchmark/api). */
#include "mlperf.h"

#include "uart.h"

#define REPEATS_MOST 1000000U /* so that a mistyped number does not keep the device for days */
#define ROW 8U                /* bytes in a line of db print */
#define CODES 32U             /* bytes in a line of xd codes */
#define NUMBER_BAD 0xFFFFFFFFU

/* ------------------------------------------------------------------------------------------------------ printing */
static void put(const char *text)
{
    for (; *text != '\0'; ++text) {
        xd_uart_put(*text);
    }
}

static void line(const char *text)
{
    put(text);
    put("\r\n");
}

static void put_number(uint32_t value)
{
    char digits[10];
    uint32_t n = 0U;

    do {
        digits[n] = (char)('0' + (char)(value % 10U));
        value /= 10U;
        ++n;
    } while (value != 0U);
    while (n > 0U) {
        --n;
        xd_uart_put(digits[n]);
    }
}

static void put_hex(uint32_t value, uint32_t digits)
{
    while (digits > 0U) {
        --digits;
        xd_uart_put("0123456789abcdef"[(value >> (4U * digits)) & 15U]);
    }
}

static uint32_t bits_of(float value)
{
    union {
        float number;
        uint32_t bits;
    } both;
    both.number = value;
    return both.bits;
}

/* As printf's "%0.3f" (exact, halves to even), but that numbers from 2^53 on are cut off there. */
static void put_real(float value)
{
    const uint32_t bits = bits_of(value), field = (bits >> 23) & 0xFFU;
    uint64_t scaled = ((uint64_t)(bits & 0x7FFFFFU) | (field != 0U ? 0x800000U : 0U)) * 1000U;
    const int32_t exponent = (int32_t)(field != 0U ? field : 1U) - 150;
    uint32_t part;

    if (exponent >= 0) {
        scaled <<= exponent < 29 ? exponent : 29;
    } else if (exponent < -40) {
        scaled = 0U; /* 34 bits at most: less than half of a thousandth */
    } else {
        const uint64_t one = (uint64_t)1U << -exponent, rest = scaled & (one - 1U);
        scaled >>= -exponent;
        if (rest > one / 2U || (rest == one / 2U && (scaled & 1U) != 0U)) {
            ++scaled;
        }
    }
    if ((bits >> 31) != 0U) {
        xd_uart_put('-');
    }
    part = (uint32_t)(scaled % 1000U);
    scaled /= 1000U;
    if (scaled > 999999999U) {
        put_number((uint32_t)(scaled / 1000000000U));
        scaled %= 1000000000U;
        {
            uint32_t width = 100000000U;
            for (; width > 1U && scaled < width; width /= 10U) {
                xd_uart_put('0');
            }
        }
    }
    put_number((uint32_t)scaled);
    xd_uart_put('.');
    xd_uart_put((char)('0' + (char)(part / 100U)));
    xd_uart_put((char)('0' + (char)(part / 10U % 10U)));
    xd_uart_put((char)('0' + (char)(part % 10U)));
}

static void number_line(const char *before, uint32_t value, const char *after)
{
    put(before);
    put_number(value);
    line(after);
}

static void quoted_line(const char *before, const char *text)
{
    put(before);
    put(text);
    line("]");
}

/* ------------------------------------------------------------------------------------------------------- reading */
static int same(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b) {
        ++a;
        ++b;
    }
    return *a == *b;
}

/* The first word at *at, or null; *at moves behind it. */
static char *word(char **at)
{
    char *start = *at, *end;

    while (*start == ' ') {
        ++start;
    }
    for (end = start; *end != '\0' && *end != ' '; ++end) {
    }
    *at = end;
    if (*end != '\0') {
        *end = '\0';
        *at = end + 1;
    }
    return *start != '\0' ? start : 0;
}

/* A decimal number, NUMBER_BAD if it is none or too large. */
static uint32_t number(const char *text)
{
    uint32_t value = 0U;

    if (*text == '\0') {
        return NUMBER_BAD;
    }
    for (; *text != '\0'; ++text) {
        if (*text < '0' || *text > '9' || value > 100000000U) {
            return NUMBER_BAD;
        }
        value = value * 10U + (uint32_t)(*text - '0');
    }
    return value;
}

static uint32_t number_or(char **at, uint32_t other)
{
    const char *text = word(at);
    return text != 0 ? number(text) : other;
}

static int digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return (c >= 'A' && c <= 'F') ? c - 'A' + 10 : -1;
}

static uint32_t crc32_of(const uint8_t *bytes, uint32_t size)
{
    uint32_t crc = 0xFFFFFFFFU, i;

    for (i = 0U; i < size; ++i) {
        int bit;
        crc ^= bytes[i];
        for (bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ (0xEDB88320U & (0U - (crc & 1U)));
        }
    }
    return crc ^ 0xFFFFFFFFU;
}

/* --------------------------------------------------------------------------------------------- input and results */
static uint32_t input_bytes(const xd_mlperf_model *m)
{
    return m->form == XD_MLPERF_FLOAT32 ? 4U * m->inputs : m->inputs;
}

static float loaded_real(const xd_mlperf_model *m, uint32_t i)
{
    union {
        uint32_t bits;
        float number;
    } both;
    const uint8_t *b = m->buffer + 4U * i;
    both.bits = (uint32_t)b[0] | ((uint32_t)b[1] << 8) | ((uint32_t)b[2] << 16) | ((uint32_t)b[3] << 24);
    return both.number;
}

/* Halves to even, saturated; not a number becomes the zero point. */
static int8_t quantised(float real, float scale, int32_t zero)
{
    const float scaled = real / scale;
    int32_t code;
    float rest;

    if (!(scaled > -512.0f)) {
        return (int8_t)(scaled <= -512.0f ? -128 : zero);
    }
    if (scaled >= 512.0f) {
        return 127;
    }
    code = (int32_t)scaled;
    rest = scaled - (float)code;
    if (rest > 0.5f || (rest == 0.5f && (code % 2) != 0)) {
        ++code;
    } else if (rest < -0.5f || (rest == -0.5f && (code % 2) != 0)) {
        --code;
    }
    code += zero;
    return (int8_t)(code > 127 ? 127 : (code < -128 ? -128 : code));
}

static void load_tensor(const xd_mlperf_model *m)
{
    uint32_t i;

    for (i = 0U; i < m->inputs; ++i) {
        if (m->form == XD_MLPERF_FLOAT32) {
            m->input[i] = quantised(loaded_real(m, i), m->input_scale, m->input_zero);
        } else if (m->form == XD_MLPERF_UINT8) {
            m->input[i] = (int8_t)((int)m->buffer[i] - 128);
        } else if ((const void *)m->buffer != (const void *)m->input) {
            m->input[i] = (int8_t)((m->buffer[i] ^ 0x80) - 128);
        }
    }
}

static float output_real(const xd_mlperf_model *m, uint32_t i)
{
    return (float)((int32_t)m->output[i] - m->output_zero) * m->output_scale;
}

static void results(const xd_mlperf *d)
{
    const xd_mlperf_model *m = d->model;
    const int scored = m->score != 0U && m->form == XD_MLPERF_FLOAT32;
    uint32_t i;

    if (d->ran == 0U) {
        line("e-[No inference has been run]");
        return;
    }
    put("m-results-[");
    if (scored) {
        float sum = 0.0f;
        for (i = 0U; i < m->outputs && i < m->inputs; ++i) {
            const float apart = output_real(m, i) - loaded_real(m, i);
            sum += apart * apart;
        }
        put_real(sum / (float)m->outputs);
    }
    for (i = 0U; !scored && i < m->outputs; ++i) {
        if (i != 0U) {
            xd_uart_put(',');
        }
        put_real(output_real(m, i));
    }
    line("]");
}

/* ------------------------------------------------------------------------------------------------------ commands */
static void timestamp(void)
{
    number_line("m-lap-us-", xd_time_us(), "");
}

static void help(const xd_mlperf *d)
{
    (void)d;
    line("name                 who this is");
    line("profile              version of the protocol, and the model");
    line("timestamp            microseconds of the device's clock");
    line("db load N            N bytes of input follow");
    line("db HH[HH]*           bytes of input in hex");
    line("db print [N [AT]]    the input as loaded");
    line("infer [N=1 [W=10]]   W warm-up runs, then N timed ones");
    line("results              the outputs as real numbers");
    line("xd info|crc|codes    the build, the CRC-32 of the input, the outputs as int8 codes");
}

static void db_load(xd_mlperf *d, char **at)
{
    const char *text = word(at);
    const uint32_t n = text != 0 ? number(text) : 0U;

    d->expected = 0U;
    d->loaded = 0U;
    if (text == 0) {
        line("e-[Command 'db load' requires the # of bytes]");
    } else if (n == 0U || n == NUMBER_BAD) {
        line("e-[Command 'db load' must be >0 bytes]");
    } else if (n > input_bytes(d->model)) {
        number_line("e-[Supplied buffer size exceeds maximum of ", input_bytes(d->model), "]");
    } else {
        d->expected = n;
        d->ran = 0U;
        number_line("m-[Expecting ", n, " bytes]");
    }
}

static void db_print(const xd_mlperf *d, char **at)
{
    uint32_t n = number_or(at, d->expected), first = number_or(at, 0U), i;

    if (n == NUMBER_BAD || first == NUMBER_BAD) {
        line("e-[Command 'db print' takes numbers]");
        return;
    }
    first = first < d->expected ? first : d->expected;
    n = n < d->expected - first ? n : d->expected - first;
    for (i = 0U; i < n; ++i) {
        put(i % ROW == 0U ? "m-buffer-" : "-");
        put_hex(d->model->buffer[first + i], 2U);
        if (i % ROW == ROW - 1U || i + 1U == n) {
            line("");
        }
    }
}

static void db_bytes(xd_mlperf *d, const char *hex)
{
    uint32_t digits = 0U, i;

    for (; hex[digits] != '\0'; ++digits) {
        if (digit(hex[digits]) < 0) {
            line("e-[Invalid hex digit]");
            return;
        }
    }
    if (digits % 2U != 0U) {
        line("e-[Insufficent number of hex digits]");
    } else if (d->loaded >= d->expected) {
        line("e-[No bytes are expected; use 'db load' first]");
    } else {
        for (i = 0U; i < digits && d->loaded < d->expected; i += 2U) {
            d->model->buffer[d->loaded] = (uint8_t)(digit(hex[i]) * 16 + digit(hex[i + 1U]));
            ++d->loaded;
        }
        if (d->loaded == d->expected) {
            line("m-load-done");
        }
    }
}

static void db(xd_mlperf *d, char **at)
{
    const char *text = word(at);

    if (text == 0) {
        line("e-[Command 'db' requires a subcommand]");
    } else if (same(text, "load")) {
        db_load(d, at);
    } else if (same(text, "print")) {
        db_print(d, at);
    } else {
        db_bytes(d, text);
    }
}

static uint32_t run_times(const xd_mlperf *d, uint32_t n)
{
    uint32_t failed = 0U;

    while (n > 0U && failed == 0U) {
        failed = d->model->run() != 0 ? 1U : 0U;
        --n;
    }
    return failed;
}

static void timed_runs(xd_mlperf *d, uint32_t n, uint32_t warmups)
{
    uint32_t failed;

    load_tensor(d->model);
    number_line("m-warmup-start-", warmups, "");
    failed = run_times(d, warmups);
    line("m-warmup-done");
    number_line("m-infer-start-", n, "");
    timestamp();
    failed |= run_times(d, n);
    timestamp();
    line("m-infer-done");
    if (failed != 0U) {
        line("e-[The inference failed]");
    } else {
        d->ran = 1U;
        results(d);
    }
}

static void infer(xd_mlperf *d, char **at)
{
    const uint32_t n = number_or(at, 1U), warmups = number_or(at, 10U);

    d->ran = 0U;
    if (n == 0U || n > REPEATS_MOST) {
        number_line("e-[Inference iterations must be >0 and <=", REPEATS_MOST, "]");
    } else if (warmups > REPEATS_MOST) {
        number_line("e-[Inference warmup must be >=0 and <=", REPEATS_MOST, "]");
    } else if (d->expected != input_bytes(d->model) || d->loaded != d->expected) {
        put("e-[Input db has ");
        put_number(d->loaded);
        number_line(" bytes, expected ", input_bytes(d->model), "]");
    } else {
        timed_runs(d, n, warmups);
    }
}

static void info(const xd_mlperf_model *m)
{
    put("m-info-[xdeploy=1,build=");
    put(m->build);
    put(",inputs=");
    put_number(m->inputs);
    put(",outputs=");
    put_number(m->outputs);
    put(",form=");
    put_number(m->form);
    put(",score=");
    put_number(m->score);
    number_line(",command=", XD_MLPERF_COMMAND, "]");
}

static void codes(const xd_mlperf *d)
{
    const uint8_t *bytes = (const uint8_t *)d->model->output;
    uint32_t i;

    if (d->ran == 0U) {
        line("e-[No inference has been run]");
        return;
    }
    for (i = 0U; i < d->model->outputs; ++i) {
        if (i % CODES == 0U) {
            put("m-codes-");
            put_number(i);
            put("-[");
        }
        put_hex(bytes[i], 2U);
        if (i % CODES == CODES - 1U || i + 1U == d->model->outputs) {
            line("]");
        }
    }
    put("m-codes-crc-[");
    put_hex(crc32_of(bytes, d->model->outputs), 8U);
    line("]");
}

static void own(const xd_mlperf *d, char **at)
{
    const char *text = word(at);

    if (text != 0 && same(text, "info")) {
        info(d->model);
    } else if (text != 0 && same(text, "crc")) {
        put("m-crc-[");
        put_hex(crc32_of(d->model->buffer, d->loaded), 8U);
        line("]");
    } else if (text != 0 && same(text, "codes")) {
        codes(d);
    } else {
        line("e-[Command 'xd' requires info, crc or codes]");
    }
}

static void execute(xd_mlperf *d)
{
    char *at = d->command;
    const char *first = word(&at);

    if (first == 0) {
        line("e-[Unknown command: ]");
    } else if (same(first, "name")) {
        quoted_line("m-name-dut-[", d->model->name);
    } else if (same(first, "timestamp")) {
        timestamp();
    } else if (same(first, "profile")) {
        line("m-profile-[ULPMark for tinyML Firmware V0.0.1]");
        quoted_line("m-model-[", d->model->model);
    } else if (same(first, "help")) {
        help(d);
    } else if (same(first, "db")) {
        db(d, &at);
    } else if (same(first, "infer")) {
        infer(d, &at);
    } else if (same(first, "results")) {
        results(d);
    } else if (same(first, "xd")) {
        own(d, &at);
    } else {
        quoted_line("e-[Unknown command: ", first);
    }
}

void xd_mlperf_start(xd_mlperf *device, const xd_mlperf_model *model)
{
    device->model = model;
    device->length = 0U;
    device->expected = 0U;
    device->loaded = 0U;
    device->ran = 0U;
    line("m-timestamp-mode-performance");
    timestamp();
    line("m-init-done");
    line("m-ready");
}

void xd_mlperf_receive(xd_mlperf *device, char c)
{
    if (c == '%') {
        if (device->length > XD_MLPERF_COMMAND) {
            line("e-[Command too long]");
        } else {
            device->command[device->length] = '\0';
            execute(device);
        }
        device->length = 0U;
        line("m-ready");
    } else if (c != '\r' && c != '\n' && c != '\0') {
        if (device->length < XD_MLPERF_COMMAND) {
            device->command[device->length] = c;
        }
        device->length += device->length <= XD_MLPERF_COMMAND ? 1U : 0U;
    }
}
