/* An example for systems with POSIX terminals: example PORT
 *
 * Says what device is at a serial port, writes and reads back data memory, and runs a program that
 * counts a step. A line of text per result; exit status 0 if all went well.
 */
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "gradiron.h"

static int send_bytes(void *context, const uint8_t *data, size_t count)
{
    const int file = *(const int *)context;
    while (count != 0) {
        ssize_t done = write(file, data, count);
        if (done < 0 && errno != EINTR)
            return -1;
        if (done > 0) {
            data += done;
            count -= (size_t)done;
        }
    }
    return 0;
}

static int receive_byte(void *context, unsigned milliseconds)
{
    struct pollfd wanted;
    uint8_t byte;
    wanted.fd = *(const int *)context;
    wanted.events = POLLIN;
    switch (poll(&wanted, 1, (int)milliseconds)) {
    case 0:
        return -1;
    case 1:
        return read(wanted.fd, &byte, 1) == 1 ? byte : -2;
    default:
        return -2;
    }
}

static int check(const char *what, gradiron_result result)
{
    if (result != GRADIRON_OK)
        fprintf(stderr, "%s: %s\n", what, gradiron_message(result));
    return result == GRADIRON_OK;
}

int main(int count, char **arguments)
{
    static gradiron_device device;
    static uint8_t out[1000], in[1000];
    const uint32_t program[2] = {(uint32_t)GRADIRON_OP_STEP << GRADIRON_OPCODE_SHIFT,
                                 (uint32_t)GRADIRON_OP_HALT << GRADIRON_OPCODE_SHIFT};
    gradiron_machine_status status;
    gradiron_line line = {send_bytes, receive_byte, NULL, 0, 0};
    struct termios settings;
    uint32_t value, at;
    int file;

    if (count != 2) {
        fprintf(stderr, "usage: %s PORT\n", arguments[0]);
        return 2;
    }
    file = open(arguments[1], O_RDWR | O_NOCTTY);
    if (file < 0 || tcgetattr(file, &settings) != 0) {
        perror(arguments[1]);
        return 2;
    }
    settings.c_iflag = 0;
    settings.c_oflag = 0;
    settings.c_lflag = 0;
    settings.c_cflag = CS8 | CREAD | CLOCAL;
    settings.c_cc[VMIN] = 1;
    settings.c_cc[VTIME] = 0;
#ifdef B1000000
    cfsetispeed(&settings, B1000000);
    cfsetospeed(&settings, B1000000);
#endif
    if (tcsetattr(file, TCSANOW, &settings) != 0) {
        perror(arguments[1]);
        return 2;
    }
    line.context = &file;

    if (!check("open", gradiron_open(&device, &line, 0)) ||
        !check("config", gradiron_read_csr(&device, GRADIRON_CSR_CONFIG, &value)))
        return 1;
    printf("config 0x%08lx\n", (unsigned long)value);

    for (at = 0; at < sizeof out; at++)
        out[at] = (uint8_t)(at * 7 + (at >> 8));
    if (!check("write", gradiron_write(&device, GRADIRON_SPACE_MEMORY, 3, sizeof out, out)) ||
        !check("read", gradiron_read(&device, GRADIRON_SPACE_MEMORY, 3, sizeof in, in)))
        return 1;
    if (memcmp(in, out, sizeof in) != 0) {
        printf("memory DIFFERENT\n");
        return 1;
    }
    printf("memory equal\n");

    if (!check("program", gradiron_write_program(&device, 0, program, 2)) ||
        !check("step", gradiron_write_csr(&device, GRADIRON_CSR_STEP, 41)) ||
        !check("start", gradiron_start(&device, 0)) ||
        !check("wait", gradiron_wait(&device, 1000, &status)) ||
        !check("step", gradiron_read_csr(&device, GRADIRON_CSR_STEP, &value)))
        return 1;
    printf("step %lu\n", (unsigned long)value);

    if (gradiron_read(&device, GRADIRON_SPACE_PROGRAM, 0xffff00, 1, in) != GRADIRON_REFUSED) {
        printf("an address that does not exist was NOT REFUSED\n");
        return 1;
    }
    printf("refused\nrequests %lu, retries %lu\n", (unsigned long)device.requests,
           (unsigned long)device.retries);
    close(file);
    return 0;
}
