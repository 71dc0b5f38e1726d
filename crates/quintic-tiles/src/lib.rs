//! Runs AMX tile instructions in software, so that kernels written in them are tested on any
//! x86-64 Linux machine.
//!
//! A CPU without a tile unit answers a tile instruction with an invalid-opcode fault, which
//! Linux delivers as `SIGILL`. After [`install`], a handler decodes the instruction that
//! faulted, executes it on a tile state of the faulting thread, and continues behind it. What
//! runs is thus the machine code that a CPU with tiles would run: its encodings, addresses,
//! loop counts and order are all under test. On a CPU with tiles the handler never fires, and
//! the same tests check the hardware.
//!
//! It is for tests only: a fault for every instruction, some microseconds, makes it thousands of
//! times slower than a tile unit, and the handler belongs to the whole process.
//!
//! # What is executed
//!
//! LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILELOADDT1, TILESTORED, TDPBF16PS,
//! TDPBSSD and TDPBUSD, with palette 1: eight tiles of at most 16 rows of 64 bytes. Encodings
//! and operations are those of the Intel 64 and IA-32 Architectures Software Developer's
//! Manual, volume 2 ("Intel AMX Instruction Set Reference"), with the exception classes of
//! its section 2.10. Whatever those classes forbid (a tile that is not configured, shapes that
//! disagree, one tile as two operands of a product) ends the process with `SIGABRT` and a
//! message that names the instruction and the reason. Any other invalid opcode goes to the
//! handler that was there before, or to the default action.
//!
//! # Limits
//!
//! - A configuration with a nonzero start row, which only an interrupted load or store
//!   leaves behind, is refused.
//! - Segment overrides and 32-bit addresses are not decoded, so they count as any other
//!   invalid opcode.
//! - TDPBF16PS takes the order of the manual's operation section. Its NaN payloads are the
//!   CPU's own, and a sum that is tiny before and normal after it is rounded to the precision
//!   of denormals is kept: hardware would flush it.
//! - A bad address faults inside the handler, which kills the process as it would have
//!   outside.
//! - The tile state is thread-local and reached without allocation as long as this crate is
//!   linked into the executable. A signal handler that itself uses tiles shares the state of
//!   its thread.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod decode;
mod signal;
mod tiles;

#[cfg(test)]
mod tests;

pub use signal::{emulated, install};
