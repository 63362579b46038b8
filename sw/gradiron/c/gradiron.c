/* See gradiron.h. */
#include "gradiron.h"

#define HEADER GRADIRON_LINK_HEADER_BYTES
#define SUM GRADIRON_LINK_CRC_BYTES
#define PAGE GRADIRON_LINK_PAGE

/* A byte more in a checksum. */
static uint32_t crc_step(uint32_t crc, uint8_t byte)
{
    unsigned bit;
    crc ^= byte;
    for (bit = 0; bit < 8; bit++)
        crc = crc >> 1 ^ (crc & 1 ? GRADIRON_LINK_CRC_POLYNOMIAL : 0);
    return crc;
}

/* --- sending -------------------------------------------------------------------------------------
 */

typedef struct {
    const gradiron_line *line;
    uint8_t data[64];
    size_t count;
    uint32_t crc;
    int failed;
} sender;

static void flush(sender *s)
{
    if (s->count != 0 && !s->failed)
        s->failed = s->line->send(s->line->context, s->data, s->count) != 0;
    s->count = 0;
}

static void put_raw(sender *s, uint8_t byte)
{
    if (s->count == sizeof s->data)
        flush(s);
    s->data[s->count++] = byte;
}

static void put(sender *s, uint8_t byte)
{
    s->crc = crc_step(s->crc, byte);
    if (byte == GRADIRON_LINK_FLAG || byte == GRADIRON_LINK_ESCAPE) {
        put_raw(s, GRADIRON_LINK_ESCAPE);
        byte ^= GRADIRON_LINK_ESCAPE_BIT;
    }
    put_raw(s, byte);
}

static int send_request(const gradiron_device *device, const uint8_t *header, const uint8_t *data,
                        size_t count)
{
    sender s;
    size_t at;
    uint32_t crc;
    s.line = &device->line;
    s.count = 0;
    s.crc = 0xffffffffu;
    s.failed = 0;
    put_raw(&s, GRADIRON_LINK_FLAG);
    for (at = 0; at < HEADER; at++)
        put(&s, header[at]);
    for (at = 0; at < count; at++)
        put(&s, data[at]);
    crc = ~s.crc;
    for (at = 0; at < SUM; at++)
        put(&s, (uint8_t)(crc >> 8 * at));
    put_raw(&s, GRADIRON_LINK_FLAG);
    flush(&s);
    return s.failed;
}

/* --- receiving -----------------------------------------------------------------------------------
 */

/* The next right frame: 1 and its length without the checksum, 0 after a pause, -1 on a failure. */
static int receive_frame(gradiron_device *device, size_t *length)
{
    size_t count = 0;
    uint32_t heard = 0;
    int inside = 0, escaped = 0;
    /* Not for ever, whatever the line says. */
    while (heard++ < 1u << 16) {
        int got = device->line.receive(device->line.context, device->line.timeout_milliseconds);
        if (got < 0)
            return got == -1 ? 0 : -1;
        if ((unsigned)got == GRADIRON_LINK_FLAG) {
            if (inside && !escaped && count >= 2 + SUM) {
                uint32_t crc = 0xffffffffu, sum = 0;
                size_t at;
                for (at = 0; at < count - SUM; at++)
                    crc = crc_step(crc, device->body[at]);
                for (at = 0; at < SUM; at++)
                    sum |= (uint32_t)device->body[count - SUM + at] << 8 * at;
                if (sum == (uint32_t)~crc) {
                    *length = count - SUM;
                    return 1;
                }
            }
            inside = 1;
            escaped = 0;
            count = 0;
        } else if ((unsigned)got == GRADIRON_LINK_ESCAPE) {
            escaped = 1;
        } else if (inside) {
            if (count == sizeof device->body) {
                inside = 0;
                continue;
            }
            device->body[count++] = (uint8_t)((unsigned)got ^ (escaped ? GRADIRON_LINK_ESCAPE_BIT : 0u));
            escaped = 0;
        }
    }
    return 0;
}

/* --- requests ------------------------------------------------------------------------------------
 */

/* One request; of a read the data are in device->body + 1. */
static gradiron_result ask(gradiron_device *device, unsigned space, uint32_t address,
                           uint32_t count, const uint8_t *data, size_t expected)
{
    uint8_t header[HEADER];
    unsigned attempt;
    if (data != NULL && !device->in_step) {
        /* The device takes a write for a repetition by the number of the request before. */
        gradiron_result first = ask(device, GRADIRON_SPACE_CSR, GRADIRON_CSR_ID, 1, NULL, 4);
        if (first != GRADIRON_OK)
            return first;
    }
    device->number++;
    device->in_step = 0;
    header[0] = (uint8_t)count;
    header[1] = device->number;
    header[2] = (uint8_t)(GRADIRON_LINK_VERSION << GRADIRON_LINK_VERSION_SHIFT |
                          space << GRADIRON_LINK_SPACE_SHIFT |
                          (data != NULL ? GRADIRON_LINK_WRITE : 0));
    header[3] = (uint8_t)address;
    header[4] = (uint8_t)(address >> 8);
    header[5] = (uint8_t)(address >> 16);
    for (attempt = 0; attempt < device->line.attempts; attempt++) {
        size_t length;
        int got;
        if (attempt != 0)
            device->retries++;
        if (send_request(device, header, data, data != NULL ? count : 0))
            return GRADIRON_LINE_FAILED;
        while ((got = receive_frame(device, &length)) > 0) {
            unsigned status = device->body[length - 1];
            unsigned code = status & 0xf;
            if (device->body[0] != device->number)
                continue; /* the answer to one before */
            if (status >> GRADIRON_LINK_VERSION_SHIFT != GRADIRON_LINK_VERSION)
                return GRADIRON_WRONG_LINK;
            if (code == GRADIRON_LINK_DONE && length - 2 != expected)
                continue;
            device->in_step = 1;
            device->requests++;
            return code == GRADIRON_LINK_DONE      ? GRADIRON_OK
                   : code == GRADIRON_LINK_REFUSED ? GRADIRON_REFUSED
                                                   : GRADIRON_MALFORMED;
        }
        if (got < 0)
            return GRADIRON_LINE_FAILED;
    }
    return GRADIRON_NO_ANSWER;
}

static int is_bad(unsigned space, uint32_t address, uint32_t units)
{
    return space > GRADIRON_SPACE_EXPONENTS || address >= 1u << 24 || units > (1u << 24) - address;
}

gradiron_result gradiron_read(gradiron_device *device, unsigned space, uint32_t address,
                              uint32_t units, uint8_t *data)
{
    const uint32_t unit = space == GRADIRON_SPACE_MEMORY ? 1 : GRADIRON_LINK_WORD_BYTES;
    if (is_bad(space, address, units))
        return GRADIRON_BAD_ARGUMENT;
    while (units != 0) {
        uint32_t at, some = PAGE - address % PAGE;
        gradiron_result result;
        /* As short as writes: a longer answer is disturbed more often than it saves time. */
        if (some > PAGE / unit)
            some = PAGE / unit;
        if (some > units)
            some = units;
        result = ask(device, space, address, some, NULL, some * unit);
        if (result != GRADIRON_OK)
            return result;
        for (at = 0; at < some * unit; at++)
            *data++ = device->body[1 + at];
        address += some;
        units -= some;
    }
    return GRADIRON_OK;
}

gradiron_result gradiron_write(gradiron_device *device, unsigned space, uint32_t address,
                               uint32_t units, const uint8_t *data)
{
    const uint32_t unit = space == GRADIRON_SPACE_MEMORY ? 1 : GRADIRON_LINK_WORD_BYTES;
    if (is_bad(space, address, units))
        return GRADIRON_BAD_ARGUMENT;
    while (units != 0) {
        uint32_t some = PAGE - address % PAGE;
        gradiron_result result;
        if (some > PAGE / unit)
            some = PAGE / unit;
        if (some > units)
            some = units;
        result = ask(device, space, address, some * unit, data, 0);
        if (result != GRADIRON_OK)
            return result;
        data += some * unit;
        address += some;
        units -= some;
    }
    return GRADIRON_OK;
}

gradiron_result gradiron_read_csr(gradiron_device *device, unsigned csr, uint32_t *value)
{
    uint8_t data[4];
    gradiron_result result = gradiron_read(device, GRADIRON_SPACE_CSR, csr, 1, data);
    if (result == GRADIRON_OK)
        *value = (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 |
                 (uint32_t)data[3] << 24;
    return result;
}

static void to_bytes(uint32_t word, uint8_t *data)
{
    unsigned at;
    for (at = 0; at < 4; at++)
        data[at] = (uint8_t)(word >> 8 * at);
}

gradiron_result gradiron_write_csr(gradiron_device *device, unsigned csr, uint32_t value)
{
    uint8_t data[4];
    to_bytes(value, data);
    return gradiron_write(device, GRADIRON_SPACE_CSR, csr, 1, data);
}

gradiron_result gradiron_write_program(gradiron_device *device, uint32_t origin,
                                       const uint32_t *words, uint32_t count)
{
    uint8_t data[4 * 16];
    while (count != 0) {
        uint32_t at, some = count < 16 ? count : 16;
        gradiron_result result;
        for (at = 0; at < some; at++)
            to_bytes(words[at], data + 4 * at);
        result = gradiron_write(device, GRADIRON_SPACE_PROGRAM, origin, some, data);
        if (result != GRADIRON_OK)
            return result;
        words += some;
        origin += some;
        count -= some;
    }
    return GRADIRON_OK;
}

/* --- the machine ---------------------------------------------------------------------------------
 */

gradiron_result gradiron_open(gradiron_device *device, const gradiron_line *line, uint32_t config)
{
    uint32_t found = 0;
    gradiron_result result;
    device->line = *line;
    if (device->line.timeout_milliseconds == 0)
        device->line.timeout_milliseconds = 500;
    if (device->line.attempts == 0)
        device->line.attempts = 10;
    device->number = device->in_step = 0;
    device->requests = device->retries = 0;
    result = gradiron_read_csr(device, GRADIRON_CSR_ID, &found);
    if (result != GRADIRON_OK)
        return result;
    if (found != GRADIRON_DEVICE_ID)
        return GRADIRON_WRONG_ID;
    result = gradiron_read_csr(device, GRADIRON_CSR_VERSION, &found);
    if (result != GRADIRON_OK)
        return result;
    if (found != GRADIRON_ISA_VERSION)
        return GRADIRON_WRONG_ISA;
    result = gradiron_read_csr(device, GRADIRON_CSR_CONFIG, &found);
    if (result != GRADIRON_OK)
        return result;
    return config != 0 && found != config ? GRADIRON_WRONG_CONFIG : GRADIRON_OK;
}

gradiron_result gradiron_status(gradiron_device *device, gradiron_machine_status *status)
{
    uint32_t word = 0;
    gradiron_result result = gradiron_read_csr(device, GRADIRON_CSR_STATUS, &word);
    if (result == GRADIRON_OK) {
        status->state = (uint8_t)(word & ((1u << GRADIRON_STATUS_CAUSE_SHIFT) - 1));
        status->cause = (uint8_t)(word >> GRADIRON_STATUS_CAUSE_SHIFT);
        status->pc = (uint16_t)(word >> GRADIRON_STATUS_PC_SHIFT);
    }
    return result;
}

gradiron_result gradiron_start(gradiron_device *device, uint32_t entry)
{
    gradiron_result result = gradiron_write_csr(device, GRADIRON_CSR_ENTRY, entry);
    if (result != GRADIRON_OK)
        return result;
    return gradiron_write_csr(device, GRADIRON_CSR_CONTROL, GRADIRON_CONTROL_START);
}

gradiron_result gradiron_resume(gradiron_device *device)
{
    return gradiron_write_csr(device, GRADIRON_CSR_CONTROL, GRADIRON_CONTROL_RESUME);
}

gradiron_result gradiron_reset(gradiron_device *device)
{
    return gradiron_write_csr(device, GRADIRON_CSR_CONTROL, GRADIRON_CONTROL_RESET);
}

gradiron_result gradiron_wait(gradiron_device *device, uint32_t polls,
                              gradiron_machine_status *status)
{
    while (polls-- != 0) {
        gradiron_result result = gradiron_status(device, status);
        if (result != GRADIRON_OK)
            return result;
        if (status->state == GRADIRON_STATE_ERROR)
            return GRADIRON_MACHINE_ERROR;
        if (status->state != GRADIRON_STATE_RUNNING)
            return GRADIRON_OK;
    }
    return GRADIRON_STILL_RUNNING;
}

const char *gradiron_message(gradiron_result result)
{
    switch (result) {
    case GRADIRON_OK:
        return "done";
    case GRADIRON_NO_ANSWER:
        return "no right answer: is the device connected and powered, has it a Gradiron bitstream, "
               "and does the bit rate agree with that of its build?";
    case GRADIRON_LINE_FAILED:
        return "the serial line failed: was the device unplugged?";
    case GRADIRON_REFUSED:
        return "refused: the address does not exist, or the machine is running";
    case GRADIRON_MALFORMED:
        return "the device calls a request malformed: a fault of the driver or of the device";
    case GRADIRON_WRONG_LINK:
        return "the device speaks another version of the link; build it from this driver's version";
    case GRADIRON_WRONG_ID:
        return "the device speaks the link, but is not Gradiron";
    case GRADIRON_WRONG_ISA:
        return "the device has another version of the instruction set; build it from this driver's "
               "version";
    case GRADIRON_WRONG_CONFIG:
        return "the device was built with another configuration; compile the program for that one";
    case GRADIRON_BAD_ARGUMENT:
        return "an address or a number of units that no device can have";
    case GRADIRON_STILL_RUNNING:
        return "the program is still running; ask more often, or reset the device";
    case GRADIRON_MACHINE_ERROR:
        return "the program stopped in the error state; correct it, then reset the device";
    }
    return "unknown result";
}
