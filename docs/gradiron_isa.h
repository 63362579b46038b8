/* The Gradiron instruction set for C and C++.
 * Written by `python -m gradiron.manual` from gradiron.arch.isa: change that, not this.
 * Macros cut their arguments to the width of the field; they check no range.
 */
#ifndef GRADIRON_ISA_H
#define GRADIRON_ISA_H

#include <stdint.h>

#define GRADIRON_ISA_VERSION 2u
#define GRADIRON_DEVICE_ID 0x47524431u           /* CSR ID */
#define GRADIRON_OPCODE_SHIFT 24
#define GRADIRON_OPERAND_MASK 0xffffffu
#define GRADIRON_LOOP_DEPTH 2u                   /* nested loops */
#define GRADIRON_TENSORS 64u                     /* entries of the exponent table */
#define GRADIRON_MAX_REGIONS 4u
#define GRADIRON_RATE_MIN (-32)
#define GRADIRON_RATE_MAX 31

/* Opcodes; SET of register r has GRADIRON_OP_SET + r. */
#define GRADIRON_OP_HALT 0x01u
#define GRADIRON_OP_LOOP 0x02u
#define GRADIRON_OP_ENDLOOP 0x03u
#define GRADIRON_OP_WAIT 0x04u
#define GRADIRON_OP_STEP 0x05u
#define GRADIRON_OP_MM 0x10u
#define GRADIRON_OP_LOSS 0x11u
#define GRADIRON_OP_SET 0x40u

/* Fields: masks and shifts within the word, and the names of values. */
#define GRADIRON_LOOP_COUNT_SHIFT 0              /* number of times the body is executed */
#define GRADIRON_LOOP_COUNT_MASK 0x0000ffffu
#define GRADIRON_MM_PASS_SHIFT 0                 /* pass under which cycles are counted */
#define GRADIRON_MM_PASS_MASK 0x00000003u
#define GRADIRON_MM_PASS_FORWARD 0u
#define GRADIRON_MM_PASS_DX 1u
#define GRADIRON_MM_PASS_DW 2u
#define GRADIRON_MM_PASS_OTHER 3u
#define GRADIRON_MM_TRANSPOSED_SHIFT 2           /* reduce over pixels instead of over taps (weight gradient) */
#define GRADIRON_MM_TRANSPOSED_MASK 0x00000004u
#define GRADIRON_MM_B_SHIFT 3                    /* the stationary operand */
#define GRADIRON_MM_B_MASK 0x00000038u
#define GRADIRON_MM_B_ROWS 0u
#define GRADIRON_MM_B_COLUMNS 1u
#define GRADIRON_MM_B_DIAGONAL 2u
#define GRADIRON_MM_B_IDENTITY 3u
#define GRADIRON_MM_B_GATE 4u
#define GRADIRON_MM_OUT_SHIFT 6                  /* what becomes of the accumulators */
#define GRADIRON_MM_OUT_MASK 0x000001c0u
#define GRADIRON_MM_OUT_INT8 0u
#define GRADIRON_MM_OUT_LOGITS 1u
#define GRADIRON_MM_OUT_MASTER 2u
#define GRADIRON_MM_OUT_INT8_WEIGHTS 3u
#define GRADIRON_MM_OUT_MOMENTUM 4u
#define GRADIRON_MM_OUT_POOLED 5u
#define GRADIRON_MM_OUT_MEASURE 6u
#define GRADIRON_MM_OUT_LOSS 7u
#define GRADIRON_MM_ROUND_SHIFT 9                /* rounding of the result */
#define GRADIRON_MM_ROUND_MASK 0x00000600u
#define GRADIRON_MM_ROUND_RN 0u
#define GRADIRON_MM_ROUND_RT 1u
#define GRADIRON_MM_ROUND_SR 2u
#define GRADIRON_MM_RELU_SHIFT 11                /* replace negative accumulators by zero */
#define GRADIRON_MM_RELU_MASK 0x00000800u
#define GRADIRON_MM_BIAS_SHIFT 12                /* add the bias (or, transposed, update it) */
#define GRADIRON_MM_BIAS_MASK 0x00001000u
#define GRADIRON_MM_MASK_SHIFT 13                /* zero the result where the mask tensor is not positive */
#define GRADIRON_MM_MASK_MASK 0x00002000u
#define GRADIRON_MM_SKIP_SHIFT 14                /* a second operand of the result's shape */
#define GRADIRON_MM_SKIP_MASK 0x0000c000u
#define GRADIRON_MM_SKIP_NONE 0u
#define GRADIRON_MM_SKIP_ADD 1u
#define GRADIRON_MM_SKIP_SUBTRACT 2u
#define GRADIRON_MM_TRACK_SHIFT 16               /* last part of its tensor: update the exponent tracker */
#define GRADIRON_MM_TRACK_MASK 0x00030000u
#define GRADIRON_MM_TRACK_NONE 0u
#define GRADIRON_MM_TRACK_TRACK 1u
#define GRADIRON_MM_TRACK_FIT 2u
#define GRADIRON_MM_SCALE_SHIFT 18               /* exponent of an int8 result */
#define GRADIRON_MM_SCALE_MASK 0x000c0000u
#define GRADIRON_MM_SCALE_TRACKER 0u
#define GRADIRON_MM_SCALE_OPERAND 1u
#define GRADIRON_MM_SCALE_PRODUCT 2u
#define GRADIRON_LOSS_PASS_SHIFT 0               /* pass under which cycles are counted */
#define GRADIRON_LOSS_PASS_MASK 0x00000003u
#define GRADIRON_LOSS_PASS_FORWARD 0u
#define GRADIRON_LOSS_PASS_DX 1u
#define GRADIRON_LOSS_PASS_DW 2u
#define GRADIRON_LOSS_PASS_OTHER 3u
#define GRADIRON_LOSS_GRAD_SHIFT 2               /* labels are given: compute loss and gradient */
#define GRADIRON_LOSS_GRAD_MASK 0x00000004u
#define GRADIRON_LOSS_PREDICT_SHIFT 3            /* write the predicted classes */
#define GRADIRON_LOSS_PREDICT_MASK 0x00000008u

/* Descriptor registers. */
#define GRADIRON_REG_A_BASE 0u                   /* streamed operand: address of row 0, column 0 of image 0 */
#define GRADIRON_REG_A_SN 1u                     /* streamed operand: bytes from one image to the next */
#define GRADIRON_REG_A_SY 2u                     /* streamed operand: bytes per step in y */
#define GRADIRON_REG_A_SX 3u                     /* streamed operand: bytes per step in x */
#define GRADIRON_REG_A_TY 4u                     /* streamed operand: bytes per tap in ky */
#define GRADIRON_REG_A_TX 5u                     /* streamed operand: bytes per tap in kx */
#define GRADIRON_REG_A_Y0 6u                     /* streamed operand: row offset of the first pixel and tap (padding: < 0) */
#define GRADIRON_REG_A_X0 7u                     /* streamed operand: column offset of the first pixel and tap */
#define GRADIRON_REG_A_HB 8u                     /* streamed operand: row offsets are valid from 0 to A_HB - 1 */
#define GRADIRON_REG_A_WB 9u                     /* streamed operand: column offsets are valid from 0 to A_WB - 1 */
#define GRADIRON_REG_N_P 10u                     /* pixels in all images together */
#define GRADIRON_REG_N_Y 11u                     /* pixels in y of one image */
#define GRADIRON_REG_N_X 12u                     /* pixels in x of one image (dense layers, LOSS: samples) */
#define GRADIRON_REG_N_TY 13u                    /* taps in ky */
#define GRADIRON_REG_N_TX 14u                    /* taps in kx */
#define GRADIRON_REG_N_J 15u                     /* contiguous bytes per tap (by channel: without a meaning) */
#define GRADIRON_REG_N_C 16u                     /* columns of the result (LOSS: classes) */
#define GRADIRON_REG_N_G 17u                     /* pixels per group; at most the accumulator depth */
#define GRADIRON_REG_B_BASE 18u                  /* stationary operand: address of its first element (gate: as A_BASE) */
#define GRADIRON_REG_B_R 19u                     /* stationary operand: bytes per row (b=columns: per column) */
#define GRADIRON_REG_B_TY 20u                    /* stationary operand: bytes per tap in ky */
#define GRADIRON_REG_B_TX 21u                    /* stationary operand: bytes per tap in kx */
#define GRADIRON_REG_O_BASE 22u                  /* result: address of its element 0 (high plane) */
#define GRADIRON_REG_O_LO 23u                    /* result: address of element 0 of the low plane */
#define GRADIRON_REG_O_OFF 24u                   /* result: number of the first element computed */
#define GRADIRON_REG_O_S2 25u                    /* result: elements per image (transposed: per ky) */
#define GRADIRON_REG_O_S1 26u                    /* result: elements per step in y (transposed: per kx) */
#define GRADIRON_REG_O_S0 27u                    /* result: elements per step in x (transposed: per j) */
#define GRADIRON_REG_M_BASE 28u                  /* mask tensor, element by element as the result (LOSS: labels) */
#define GRADIRON_REG_BIAS 29u                    /* int32 biases, little-endian, one per column */
#define GRADIRON_REG_V_HI 30u                    /* momentum: high plane, element by element as the result */
#define GRADIRON_REG_V_LO 31u                    /* momentum: low plane */
#define GRADIRON_REG_V_BIAS 32u                  /* momentum of the biases: int32, little-endian */
#define GRADIRON_REG_P_BASE 33u                  /* LOSS: predicted classes, one byte per sample */
#define GRADIRON_REG_EXP 34u                     /* exponent table indices: A 5:0, B 11:6, result 17:12, skip 23:18 */
#define GRADIRON_REG_PAD 35u                     /* value read outside the bounds */
#define GRADIRON_REG_SHIFT 36u                   /* added to update shifts: ceil(log2 batch) */
#define GRADIRON_REG_S_BASE 37u                  /* skip tensor, element by element as the result */
#define GRADIRON_REG_GATE 38u                    /* gate: low four bits of the bytes that open it */

/* Control and status registers. */
#define GRADIRON_CSR_ID 0u                       /* 0x47524431 ('GRD1') */
#define GRADIRON_CSR_VERSION 1u                  /* instruction set version */
#define GRADIRON_CSR_CONFIG 2u                   /* digest of the machine's Config */
#define GRADIRON_CSR_STATUS 3u                   /* state 3:0, error cause 11:4, program counter 31:16 */
#define GRADIRON_CSR_CONTROL 4u                  /* write: bit 0 start at ENTRY, 1 resume after WAIT or a pause, 2 reset (leave the error state, stop a program at its next instruction), 3 clear the counters */
#define GRADIRON_CSR_ENTRY 5u                    /* program counter at which CONTROL.start begins, modulo program words */
#define GRADIRON_CSR_MODE 6u                     /* bit 0: pause after every instruction */
#define GRADIRON_CSR_SEED 7u                     /* seed of the random numbers */
#define GRADIRON_CSR_STEP 8u                     /* training step, counted by the STEP instruction */
#define GRADIRON_CSR_RATE 9u                     /* learning rate 2**-k: k in 7:0 (signed), added to update shifts */
#define GRADIRON_CSR_LOSS 10u                    /* loss of the last LOSS with gradient, summed over its batch, 2**-8 bits; or the sum of the last MM with `out` = loss */
#define GRADIRON_CSR_CYCLES 16u                  /* cycles in RUNNING */
#define GRADIRON_CSR_WAIT_CYCLES 17u             /* cycles in WAITING or PAUSED */
#define GRADIRON_CSR_CYCLES_FORWARD 18u          /* cycles of MM and LOSS counted as forward */
#define GRADIRON_CSR_CYCLES_DX 19u               /* cycles of MM and LOSS counted as dx */
#define GRADIRON_CSR_CYCLES_DW 20u               /* cycles of MM and LOSS counted as dw */
#define GRADIRON_CSR_CYCLES_OTHER 21u            /* cycles of MM and LOSS counted as other */
#define GRADIRON_CSR_BUSY 22u                    /* cycles in which the array multiplied a streamed row */
#define GRADIRON_CSR_STALL_EMIT 23u              /* cycles the array stood still for the vector path */
#define GRADIRON_CSR_STALL_WRITE 24u             /* cycles the array stood still for a memory write */
#define GRADIRON_CSR_STALL_LOAD 25u              /* cycles without a streamed row: the stationary tile was loading, or an accumulator row was still in flight */
#define GRADIRON_CSR_STALL_FILL 26u              /* cycles of an MM before its first and after its last streamed row */
#define GRADIRON_CSR_INSTRUCTIONS 27u            /* instructions completed */
#define GRADIRON_CSR_DESCRIPTOR 28u              /* cycles of the sequencer: SET and control, decoding, the start */

/* Causes of an error. */
#define GRADIRON_ERROR_NONE 0u
#define GRADIRON_ERROR_ILLEGAL_OPCODE 1u
#define GRADIRON_ERROR_ILLEGAL_FIELDS 2u
#define GRADIRON_ERROR_OPERAND_RANGE 3u
#define GRADIRON_ERROR_ADDRESS_RANGE 4u
#define GRADIRON_ERROR_MISALIGNED 5u
#define GRADIRON_ERROR_PROGRAM_END 6u
#define GRADIRON_ERROR_LOOP_STACK 7u
#define GRADIRON_ERROR_LABEL_RANGE 8u
#define GRADIRON_ERROR_ACCUMULATOR_DEPTH 9u
#define GRADIRON_ERROR_UNSUPPORTED 10u
#define GRADIRON_ERROR_REGION_CONFLICT 11u

/* States of the machine. */
#define GRADIRON_STATE_IDLE 0u
#define GRADIRON_STATE_RUNNING 1u
#define GRADIRON_STATE_WAITING 2u
#define GRADIRON_STATE_PAUSED 3u
#define GRADIRON_STATE_HALTED 4u
#define GRADIRON_STATE_ERROR 5u

/* Address spaces of the host. */
#define GRADIRON_SPACE_CSR 0u
#define GRADIRON_SPACE_MEMORY 1u
#define GRADIRON_SPACE_PROGRAM 2u
#define GRADIRON_SPACE_EXPONENTS 3u

/* The registers CONTROL and STATUS; the state of the latter begins at bit 0. */
#define GRADIRON_CONTROL_START 1u
#define GRADIRON_CONTROL_RESUME 2u
#define GRADIRON_CONTROL_RESET 4u
#define GRADIRON_CONTROL_CLEAR 8u
#define GRADIRON_STATUS_CAUSE_SHIFT 4
#define GRADIRON_STATUS_PC_SHIFT 16

/* Word t of the exponent space is the entry of tensor t: exponent of the stored data 7:0
 * (signed), tracker exponent 15:8 (signed), tracker count 18:16, the others are 0; word 64 + t
 * is the number of saturated elements (32 bits, stops at 2**32 - 1). */
#define GRADIRON_EXPONENT_VALUE_SHIFT 0
#define GRADIRON_EXPONENT_VALUE_MASK 0xffu
#define GRADIRON_EXPONENT_TRACKER_SHIFT 8
#define GRADIRON_EXPONENT_TRACKER_MASK 0xff00u
#define GRADIRON_EXPONENT_COUNT_SHIFT 16
#define GRADIRON_EXPONENT_COUNT_MASK 0x70000u

/* Words and operands. */
#define GRADIRON_FIELD(value, shift, mask) (((uint32_t)(value) << (shift)) & (mask))
#define GRADIRON_ADDRESS(region, offset) \
    ((uint32_t)(region) << 22 | (uint32_t)(offset))
#define GRADIRON_TENSOR_NUMBERS(a, b, o, s) \
    ((uint32_t)(a) << 0 | (uint32_t)(b) << 6 | (uint32_t)(o) << 12 | (uint32_t)(s) << 18)
#define GRADIRON_SET(reg, value) \
    ((GRADIRON_OP_SET + (uint32_t)(reg)) << GRADIRON_OPCODE_SHIFT | \
     ((uint32_t)(value) & GRADIRON_OPERAND_MASK))
#define GRADIRON_HALT() \
    ((uint32_t)GRADIRON_OP_HALT << GRADIRON_OPCODE_SHIFT)
#define GRADIRON_LOOP(count) \
    ((uint32_t)GRADIRON_OP_LOOP << GRADIRON_OPCODE_SHIFT | \
     GRADIRON_FIELD(count, GRADIRON_LOOP_COUNT_SHIFT, GRADIRON_LOOP_COUNT_MASK))
#define GRADIRON_ENDLOOP() \
    ((uint32_t)GRADIRON_OP_ENDLOOP << GRADIRON_OPCODE_SHIFT)
#define GRADIRON_WAIT() \
    ((uint32_t)GRADIRON_OP_WAIT << GRADIRON_OPCODE_SHIFT)
#define GRADIRON_STEP() \
    ((uint32_t)GRADIRON_OP_STEP << GRADIRON_OPCODE_SHIFT)
#define GRADIRON_MM(pass, transposed, b, out, round, relu, bias, mask, skip, track, scale) \
    ((uint32_t)GRADIRON_OP_MM << GRADIRON_OPCODE_SHIFT | \
     GRADIRON_FIELD(pass, GRADIRON_MM_PASS_SHIFT, GRADIRON_MM_PASS_MASK) | \
     GRADIRON_FIELD(transposed, GRADIRON_MM_TRANSPOSED_SHIFT, GRADIRON_MM_TRANSPOSED_MASK) | \
     GRADIRON_FIELD(b, GRADIRON_MM_B_SHIFT, GRADIRON_MM_B_MASK) | \
     GRADIRON_FIELD(out, GRADIRON_MM_OUT_SHIFT, GRADIRON_MM_OUT_MASK) | \
     GRADIRON_FIELD(round, GRADIRON_MM_ROUND_SHIFT, GRADIRON_MM_ROUND_MASK) | \
     GRADIRON_FIELD(relu, GRADIRON_MM_RELU_SHIFT, GRADIRON_MM_RELU_MASK) | \
     GRADIRON_FIELD(bias, GRADIRON_MM_BIAS_SHIFT, GRADIRON_MM_BIAS_MASK) | \
     GRADIRON_FIELD(mask, GRADIRON_MM_MASK_SHIFT, GRADIRON_MM_MASK_MASK) | \
     GRADIRON_FIELD(skip, GRADIRON_MM_SKIP_SHIFT, GRADIRON_MM_SKIP_MASK) | \
     GRADIRON_FIELD(track, GRADIRON_MM_TRACK_SHIFT, GRADIRON_MM_TRACK_MASK) | \
     GRADIRON_FIELD(scale, GRADIRON_MM_SCALE_SHIFT, GRADIRON_MM_SCALE_MASK))
#define GRADIRON_LOSS(pass, grad, predict) \
    ((uint32_t)GRADIRON_OP_LOSS << GRADIRON_OPCODE_SHIFT | \
     GRADIRON_FIELD(pass, GRADIRON_LOSS_PASS_SHIFT, GRADIRON_LOSS_PASS_MASK) | \
     GRADIRON_FIELD(grad, GRADIRON_LOSS_GRAD_SHIFT, GRADIRON_LOSS_GRAD_MASK) | \
     GRADIRON_FIELD(predict, GRADIRON_LOSS_PREDICT_SHIFT, GRADIRON_LOSS_PREDICT_MASK))

#endif
