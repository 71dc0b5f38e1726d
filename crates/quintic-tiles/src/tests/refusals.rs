//! What ends a process, as it does on hardware, and what is left to others.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use super::*;

/// Runs the test `name` of this executable in a process of its own, with a variable set that
/// makes it do what should kill it.
fn child(name: &str, case: &str) -> (ExitStatus, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            &format!("tests::refusals::{name}"),
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CASE, case)
        .arg0("child")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status, errors)
}

const CASE: &str = "QUINTIC_TILES_CASE";

#[test]
fn what_the_hardware_refuses_ends_the_process_with_a_reason() {
    const NAME: &str = "what_the_hardware_refuses_ends_the_process_with_a_reason";
    let memory = Aligned([0u8; 1024]);
    let load_tile_2 = || {
        // SAFETY: a tile fits the array, if there is a tile at all.
        unsafe {
            asm!("tileloadd tmm2, [{} + {}]", in(reg) &memory, in(reg) 64usize,
                out("tmm2") _, options(nostack));
        }
    };
    let multiply = || {
        // SAFETY: changes tiles only, or nothing.
        unsafe { asm!("tdpbf16ps tmm0, tmm1, tmm2", out("tmm0") _, options(nostack)) };
    };
    let full = (16, 64);
    type Case<'a> = (&'a str, &'a str, Box<dyn Fn() + 'a>);
    let cases: [Case<'_>; 9] = [
        (
            "unconfigured",
            "invalid `tileloadd` at 0x",
            Box::new(load_tile_2),
        ),
        (
            "tile",
            ": tile 2 is not configured",
            Box::new(|| {
                load_config(&config(&[full, full]));
                load_tile_2();
            }),
        ),
        (
            "part",
            ": rows of tile 2 are not whole groups of 4 bytes",
            Box::new(|| {
                load_config(&config(&[full, full, (5, 3)]));
                load_tile_2();
            }),
        ),
        ("product", "invalid `tdpbf16ps` at 0x", Box::new(multiply)),
        (
            "shapes",
            "shapes 16 x 64 bytes += 15 x 64 bytes * 16 x 64 bytes disagree",
            Box::new(|| {
                load_config(&config(&[full, (15, 64), full]));
                multiply();
            }),
        ),
        (
            "depth",
            "shapes 16 x 64 bytes += 16 x 60 bytes * 16 x 64 bytes disagree",
            Box::new(|| {
                load_config(&config(&[full, (16, 60), full]));
                multiply();
            }),
        ),
        (
            "columns",
            "shapes 16 x 64 bytes += 16 x 64 bytes * 16 x 60 bytes disagree",
            Box::new(|| {
                load_config(&config(&[full, full, (16, 60)]));
                multiply();
            }),
        ),
        (
            "too large",
            "tile 1 cannot be 17 rows of 64 bytes",
            Box::new(|| load_config(&config(&[full, (17, 64)]))),
        ),
        (
            "palette",
            "there is no palette 7",
            Box::new(|| {
                let mut config = config(&[full]);
                config[0] = 7;
                load_config(&config);
            }),
        ),
    ];
    if let Ok(case) = std::env::var(CASE) {
        install();
        let (_, _, run) = cases.iter().find(|(name, _, _)| *name == case).unwrap();
        run();
        return;
    }
    install();
    let before = emulated();
    release();
    let in_software = emulated() > before;
    for (case, reason, _) in &cases {
        let (status, errors) = child(NAME, case);
        assert!(status.signal().is_some(), "{case}: {status}");
        if in_software {
            assert_eq!(status.signal(), Some(libc::SIGABRT), "{case}");
            assert!(errors.contains(reason), "{case}: {errors}");
        }
    }
}

/// Refusals that no assembler accepts, or that need more than one tile.
#[test]
fn refusals_are_complete() {
    let mut tiles = Tiles::new();
    assert_eq!(tiles.zero(0), Err(Refusal::NotConfigured));
    let mut bad = config(&[(16, 64)]);
    bad[1] = 1;
    assert_eq!(tiles.load_config(&bad), Err(Refusal::StartRow));
    for reserved in [2, 15, 32, 47, 56, 63] {
        let mut bad = config(&[(16, 64)]);
        bad[reserved] = 1;
        assert_eq!(tiles.load_config(&bad), Err(Refusal::Reserved(reserved)));
    }
    for (rows, row_bytes) in [(0, 1), (1, 0), (17, 1), (1, 65)] {
        let shape = Refusal::TileShape {
            tile: 0,
            rows: rows.into(),
            row_bytes: row_bytes.into(),
        };
        assert_eq!(tiles.load_config(&config(&[(rows, row_bytes)])), Err(shape));
    }
    tiles
        .load_config(&config(&[(4, 16), (4, 16), (4, 16), (4, 15)]))
        .unwrap();
    for (sum, a, b) in [(0, 0, 1), (0, 1, 0), (1, 0, 0)] {
        let result = tiles.product(Product::Signed, sum, a, b);
        assert_eq!(result, Err(Refusal::SameTile));
    }
    let result = tiles.product(Product::Signed, 0, 1, 3);
    let partial = Err(Refusal::PartialElement(3));
    assert_eq!(result, partial);
    assert_eq!(tiles.load(3, |_, _| ()), partial);
    assert_eq!(tiles.store(3, |_, _| ()), partial);
    assert_eq!(tiles.product(Product::Signed, 0, 1, 2), Ok(()));
}

#[test]
fn other_instructions_are_not_taken_for_tile_instructions() {
    let decode = |bytes: &[u8]| decode::decode(|at| bytes[at]);
    // tdpbf16ps tmm1, tmm3, tmm6, as the assembler encodes it.
    let product = [0xC4, 0xE2, 0x4A, 0x5C, 0xCB];
    let decoded = Instruction::Product {
        kind: Product::Bf16,
        sum: 1,
        a: 3,
        b: 6,
    };
    assert_eq!(decode(&product), Some((decoded, 5)));
    let with = |at: usize, byte: u8| {
        let mut other = product;
        other[at] = byte;
        decode(&other)
    };
    assert_eq!(with(0, 0xC5), None);
    assert_eq!(with(1, 0xE1), None, "map 0F");
    assert_eq!(with(1, 0x62), None, "tile 8 as a sum");
    assert_eq!(with(1, 0xC2), None, "tile 8 as a factor");
    assert_eq!(with(2, 0xCA), None, "W");
    assert_eq!(with(2, 0x4E), None, "L");
    assert_eq!(with(2, 0x0A), None, "tile 8 as a second factor");
    assert_eq!(with(2, 0x48), None, "no prefix");
    assert_eq!(with(3, 0x5D), None, "opcode");
    assert_eq!(with(4, 0x0B), None, "memory");
    // tilezero with operands that it does not have, and tilerelease likewise.
    assert_eq!(
        decode(&[0xC4, 0xE2, 0x7B, 0x49, 0xC8]),
        Some((Instruction::Zero(1), 5))
    );
    assert_eq!(decode(&[0xC4, 0xE2, 0x7B, 0x49, 0xC9]), None);
    assert_eq!(decode(&[0xC4, 0xE2, 0x73, 0x49, 0xC8]), None);
    assert_eq!(
        decode(&[0xC4, 0xE2, 0x78, 0x49, 0xC0]),
        Some((Instruction::Release, 5))
    );
    assert_eq!(decode(&[0xC4, 0xE2, 0x78, 0x49, 0xC1]), None);
    // tileloadd without a SIB byte.
    assert_eq!(decode(&[0xC4, 0xE2, 0x7B, 0x4B, 0x08]), None);
    assert_eq!(decode(&[0x0F, 0x0B]), None);
}

fn undefined() {
    // SAFETY: raises SIGILL, which the tests below expect.
    unsafe { asm!("ud2") };
}

#[test]
fn another_invalid_instruction_still_kills() {
    if std::env::var_os(CASE).is_some() {
        install();
        undefined();
        return;
    }
    let (status, errors) = child("another_invalid_instruction_still_kills", "ud2");
    assert_eq!(status.signal(), Some(libc::SIGILL), "{errors}");
}

#[test]
fn a_signal_that_a_process_sends_still_kills() {
    if std::env::var_os(CASE).is_some() {
        install();
        // SAFETY: a plain system call.
        unsafe { libc::raise(libc::SIGILL) };
        return;
    }
    let (status, errors) = child("a_signal_that_a_process_sends_still_kills", "raise");
    assert_eq!(status.signal(), Some(libc::SIGILL), "{errors}");
}

#[test]
fn another_invalid_instruction_reaches_the_handler_before() {
    extern "C" fn handler(_: libc::c_int) {
        // SAFETY: ends the process, which is allowed in a handler.
        unsafe { libc::_exit(42) };
    }
    if std::env::var_os(CASE).is_some() {
        let handler: extern "C" fn(libc::c_int) = handler;
        // SAFETY: the handler does nothing that is not allowed in one.
        unsafe { libc::signal(libc::SIGILL, handler as libc::sighandler_t) };
        install();
        load_config(&config(&[(16, 64)]));
        undefined();
        return;
    }
    let (status, errors) = child(
        "another_invalid_instruction_reaches_the_handler_before",
        "ud2",
    );
    assert_eq!(status.code(), Some(42), "{errors}");
}
