/* The link between host and Gradiron device, for C and C++.
 * Written by `python -m gradiron.link_manual` from gradiron.arch.link: change that.
 */
#ifndef GRADIRON_LINK_H
#define GRADIRON_LINK_H

#define GRADIRON_LINK_VERSION          1
#define GRADIRON_LINK_VERSION_SHIFT    4
#define GRADIRON_LINK_FLAG             0x7eu
#define GRADIRON_LINK_ESCAPE           0x7du
#define GRADIRON_LINK_ESCAPE_BIT       0x20u
#define GRADIRON_LINK_CRC_POLYNOMIAL   0xedb88320u
#define GRADIRON_LINK_CRC_BYTES        4
#define GRADIRON_LINK_PAGE             0x100u
#define GRADIRON_LINK_WORD_BYTES       4
#define GRADIRON_LINK_HEADER_BYTES     6
#define GRADIRON_LINK_WRITE            1
#define GRADIRON_LINK_SPACE_SHIFT      1
#define GRADIRON_LINK_DONE             0
#define GRADIRON_LINK_REFUSED          1
#define GRADIRON_LINK_MALFORMED        2

/* A request:
 *   count (1): of a read: units to read; of a write: bytes of data that follow, in whole units.
 *       0 is 256
 *   number (1): of the request: that of the one before plus 1, the same when repeated
 *   command (1): bit 0: 1 write, 0 read; bits 2:1: address space; bit 3: 0; bits 7:4: version
 *       of the link
 *   address (3): of the first unit: in MEMORY region << 22 | offset, else a number of words
 *   data (1 to 256): of a write; a read has none
 *   checksum (4): CRC-32 of all before
 * An answer:
 *   number (1): of the request
 *   data (0 to 1024): of a read: the units up to the first that was refused
 *   status (1): bits 3:0: code; bits 7:4: version of the link in the device
 *   checksum (4): CRC-32 of all before
 */

#endif
