/* Host driver for a Gradiron device: C99, no dependencies, no memory allocation.
 *
 * Give it two functions that send and receive bytes, and it speaks the link: requests are framed,
 * checked, numbered, and repeated until their answer is right. A write is done exactly once.
 *
 * gradiron_link.h and gradiron_isa.h have the numbers. Not safe for use from two threads at once.
 */
#ifndef GRADIRON_H
#define GRADIRON_H

#include <stddef.h>
#include <stdint.h>

#include "gradiron_isa.h"
#include "gradiron_link.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    GRADIRON_OK = 0,
    GRADIRON_NO_ANSWER,   /* no right answer in all attempts; whether the request was done is open */
    GRADIRON_LINE_FAILED, /* the carrier's function reported a failure */
    GRADIRON_REFUSED,     /* the address does not exist, or the machine is running */
    GRADIRON_MALFORMED,   /* the device did not understand the request */
    GRADIRON_WRONG_LINK,  /* the device speaks another version of the link */
    GRADIRON_WRONG_ID,    /* the device is not Gradiron */
    GRADIRON_WRONG_ISA,   /* the device has another version of the instruction set */
    GRADIRON_WRONG_CONFIG,/* the device was built with another configuration */
    GRADIRON_BAD_ARGUMENT,
    GRADIRON_STILL_RUNNING,
    GRADIRON_MACHINE_ERROR /* the program stopped in the error state; gradiron_status says why */
} gradiron_result;

/* What the driver needs of a serial line, a socket or whatever carries bytes.
 *
 * send: sends all bytes; 0, or another value if that is not possible.
 * receive: waits for a byte, at most so long; the byte, or -1 if none came, or -2 on a failure.
 */
typedef struct {
    int (*send)(void *context, const uint8_t *data, size_t count);
    int (*receive)(void *context, unsigned milliseconds);
    void *context;
    unsigned timeout_milliseconds; /* without a byte, until a request is sent again; 0: 500 */
    unsigned attempts;             /* 0: 10 */
} gradiron_line;

typedef struct {
    gradiron_line line;
    uint8_t number;
    uint8_t in_step;
    uint32_t requests, retries;
    uint8_t body[2 + 4 * GRADIRON_LINK_PAGE + GRADIRON_LINK_CRC_BYTES];
} gradiron_device;

typedef struct {
    uint8_t state; /* GRADIRON_STATE_... */
    uint8_t cause; /* GRADIRON_ERROR_... */
    uint16_t pc;
} gradiron_machine_status;

/* Make contact, and compare identity and versions; with `config` also the digest of the machine's
 * configuration (0: any). */
gradiron_result gradiron_open(gradiron_device *device, const gradiron_line *line, uint32_t config);

/* A space's units: bytes in GRADIRON_SPACE_MEMORY, else words of 4 bytes, lowest byte first. */
gradiron_result gradiron_read(gradiron_device *device, unsigned space, uint32_t address,
                              uint32_t units, uint8_t *data);
gradiron_result gradiron_write(gradiron_device *device, unsigned space, uint32_t address,
                               uint32_t units, const uint8_t *data);

gradiron_result gradiron_read_csr(gradiron_device *device, unsigned csr, uint32_t *value);
gradiron_result gradiron_write_csr(gradiron_device *device, unsigned csr, uint32_t value);
gradiron_result gradiron_write_program(gradiron_device *device, uint32_t origin,
                                       const uint32_t *words, uint32_t count);
gradiron_result gradiron_status(gradiron_device *device, gradiron_machine_status *status);

/* Start a program; resume it after a WAIT; stop it or leave the error state. None of them waits. */
gradiron_result gradiron_start(gradiron_device *device, uint32_t entry);
gradiron_result gradiron_resume(gradiron_device *device);
gradiron_result gradiron_reset(gradiron_device *device);

/* Ask for the state, at most so many times, until the machine does not run. */
gradiron_result gradiron_wait(gradiron_device *device, uint32_t polls,
                              gradiron_machine_status *status);

const char *gradiron_message(gradiron_result result);

#ifdef __cplusplus
}
#endif

#endif
