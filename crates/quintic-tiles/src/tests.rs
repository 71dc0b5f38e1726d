//! Each instruction, as assembled, against plain loops. On a CPU with tiles most of these
//! tests check the hardware against the same loops.

mod refusals;

use std::arch::asm;

use crate::decode::{self, Instruction, Product};
use crate::tiles::{Config, Refusal, Tiles};
use crate::{emulated, install};

#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Debug)]
struct Aligned<T>(T);

/// A configuration of tiles 0, 1, ... as rows and row bytes.
fn config(shapes: &[(u8, u8)]) -> Config {
    let mut config = [0; 64];
    config[0] = 1;
    for (tile, &(rows, row_bytes)) in shapes.iter().enumerate() {
        (config[48 + tile], config[16 + 2 * tile]) = (rows, row_bytes);
    }
    config
}

fn load_config(config: &Config) {
    // SAFETY: reads the 64 bytes of a configuration.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) config,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack));
    }
}

fn stored_config() -> Config {
    let mut config = [0xAA; 64];
    // SAFETY: writes the 64 bytes of a configuration.
    unsafe { asm!("sttilecfg [{}]", in(reg) &mut config, options(nostack)) };
    config
}

fn release() {
    // SAFETY: no tile holds anything that is still wanted.
    unsafe { asm!("tilerelease", options(nostack)) };
}

/// Numbers that look random, the same in every run.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 20
    }
}

fn bytes<const N: usize>(seed: u64) -> Aligned<[u8; N]> {
    let mut next = numbers(seed);
    Aligned(std::array::from_fn(|_| next() as u8))
}

#[test]
fn a_configuration_is_stored_as_it_was_loaded() {
    install();
    assert_eq!(stored_config(), [0; 64]);
    let some = config(&[
        (16, 64),
        (1, 4),
        (0, 0),
        (7, 12),
        (16, 62),
        (0, 0),
        (3, 1),
        (9, 33),
    ]);
    load_config(&some);
    assert_eq!(stored_config(), some);
    load_config(&[0; 64]);
    assert_eq!(stored_config(), [0; 64]);
    load_config(&some);
    release();
    assert_eq!(stored_config(), [0; 64]);
}

#[test]
fn loads_and_stores_copy_the_configured_part_by_rows() {
    install();
    for (rows, row_bytes) in [(16, 64), (16, 20), (1, 64), (5, 4), (11, 60)] {
        for (from_stride, to_stride) in [(64usize, 64usize), (64, 200), (133, 65), (4096, 67)] {
            load_config(&config(&[(rows, row_bytes); 8]));
            let mut next = numbers(from_stride as u64);
            let from: Vec<u8> = (0..16 * from_stride).map(|_| next() as u8).collect();
            let mut to = vec![0xEE; 16 * to_stride];
            let mut expected = to.clone();
            for row in 0..usize::from(rows) {
                let length = usize::from(row_bytes);
                expected[row * to_stride..][..length]
                    .copy_from_slice(&from[row * from_stride..][..length]);
            }
            for hint in [false, true] {
                to.fill(0xEE);
                // SAFETY: sixteen rows of either stride are allocated.
                unsafe {
                    asm!(
                        "test {hint:e}, {hint:e}",
                        "jnz 2f",
                        "tileloadd tmm5, [{from} + {from_stride}]",
                        "jmp 3f",
                        "2: tileloaddt1 tmm5, [{from} + {from_stride}]",
                        "3: tilestored [{to} + {to_stride}], tmm5",
                        hint = in(reg) u32::from(hint),
                        from = in(reg) from.as_ptr(), from_stride = in(reg) from_stride,
                        to = in(reg) to.as_mut_ptr(), to_stride = in(reg) to_stride,
                        out("tmm5") _, options(nostack),
                    );
                }
                assert_eq!(to, expected, "{rows} {row_bytes} {from_stride} {to_stride}");
            }
            release();
        }
    }
}

/// Checks `code`, which copies tile 6 of 16 x 64 bytes from `{from}` to `{to}`.
macro_rules! copies {
    ($from:expr, $stride:expr, [$($code:expr),* $(,)?], $($operands:tt)*) => {{
        load_config(&config(&[(16, 64); 8]));
        let mut to = Aligned([0u8; 1024]);
        // SAFETY: `from` and its strides lie in the caller's memory, `to` holds a tile.
        unsafe {
            asm!(
                $($code,)*
                "tilestored [{to} + {line}], tmm6",
                to = in(reg) &mut to, line = in(reg) 64usize,
                $($operands)*,
                out("tmm6") _, options(nostack),
            );
        }
        release();
        let from: &[u8] = $from;
        let rows = (0..16).flat_map(|row| from[row * $stride..][..64].iter().copied());
        assert!(rows.eq(to.0), "{}", concat!($($code, "; "),*));
    }};
}

#[test]
fn every_form_of_address_is_understood() {
    install();
    let memory = bytes::<8192>(3);
    let at = memory.0.as_ptr();
    let all = &memory.0[..];

    // The same bases and indices in all registers that an operand can be in.
    macro_rules! registers {
        ($($register:tt)*) => {$(
            copies!(all, 64,
                [concat!("tileloadd tmm6, [", $register, " + {stride}]")],
                in($register) at, stride = in(reg) 64usize);
            copies!(&all[100..], 64,
                [concat!("tileloadd tmm6, [", $register, " + {stride} + 100]")],
                in($register) at, stride = in(reg) 64usize);
            copies!(&all[1000..], 96,
                [concat!("tileloadd tmm6, [{base} + ", $register, " * 2 + 1000]")],
                in($register) 48usize, base = in(reg) at);
        )*};
    }
    registers!("rax" "rcx" "rdx" "rsi" "rdi" "r8" "r9" "r10" "r11" "r12" "r13" "r14" "r15");

    // Those that cannot, by exchange. Without a displacement RBP needs one of zero.
    copies!(all, 64,
        ["xchg {b}, rbp", "tileloadd tmm6, [rbp + {s}]", "xchg {b}, rbp"],
        b = inout(reg) at => _, s = in(reg) 64usize);
    copies!(all, 64,
        ["xchg {s}, rbp", "tileloadd tmm6, [{b} + rbp]", "xchg {s}, rbp"],
        b = in(reg) at, s = inout(reg) 64usize => _);
    copies!(all, 128,
        ["xchg {b}, rbx", "tileloadd tmm6, [rbx + {s}]", "xchg {b}, rbx"],
        b = inout(reg) at => _, s = in(reg) 128usize);
    copies!(all, 128,
        ["xchg {s}, rbx", "tileloadd tmm6, [{b} + rbx * 8]", "xchg {s}, rbx"],
        b = in(reg) at, s = inout(reg) 16usize => _);
    let mut stack = on_a_stack(&memory);
    copies!(all, 64,
        ["xchg {b}, rsp", "tileloadd tmm6, [rsp + {s}]", "xchg {b}, rsp"],
        b = inout(reg) &mut stack[FRAMES] => _, s = in(reg) 64usize);

    // No index: every row is the first.
    copies!(&all[8..], 0, ["tileloadd tmm6, [{b} + 8]"], b = in(reg) at);
    copies!(&all[8..], 0, ["tileloadd tmm6, [r13 + 8]"], in("r13") at);
    copies!(&all[8..], 0, ["tileloadd tmm6, [r12 + 8]"], in("r12") at);
    // Both displacements, of either sign, and every scale.
    copies!(&all[1024 - 128..], 64, ["tileloadd tmm6, [{b} + {s} - 128]"],
        b = in(reg) &all[1024], s = in(reg) 64usize);
    copies!(&all[1024 + 127..], 64, ["tileloadd tmm6, [{b} + {s} + 127]"],
        b = in(reg) &all[1024], s = in(reg) 64usize);
    copies!(&all[24..], 64, ["tileloadd tmm6, [{b} + {s} - 1000]"],
        b = in(reg) &all[1024], s = in(reg) 64usize);
    copies!(&all[2024..], 132, ["tileloaddt1 tmm6, [{b} + 4 * {s} + 1000]"],
        b = in(reg) &all[1024], s = in(reg) 33usize);
    copies!(&all[2024..], 136, ["tileloaddt1 tmm6, [{b} + 8 * {s} + 1000]"],
        b = in(reg) &all[1024], s = in(reg) 17usize);
    // Rows in falling order.
    let upside_down: Vec<u8> = all[..1024].rchunks(64).flatten().copied().collect();
    copies!(&upside_down, 64, ["tileloadd tmm6, [{b} + {s}]"],
        b = in(reg) &all[15 * 64], s = in(reg) -64isize);

    // Stores name their addresses the same way.
    load_config(&config(&[(16, 64); 8]));
    let mut to = Aligned([0u8; 4096]);
    // SAFETY: both tiles lie in their arrays.
    unsafe {
        asm!(
            "tileloadd tmm1, [{from} + {line}]",
            "tilestored [r12 + 2 * r13 + 640], tmm1",
            from = in(reg) at, line = in(reg) 64usize,
            in("r12") &mut to, in("r13") 70usize, out("tmm1") _, options(nostack),
        );
    }
    release();
    for row in 0..16 {
        assert_eq!(to.0[640 + 140 * row..][..64], all[64 * row..][..64]);
    }
}

/// A copy of `memory` that can stand at the top of a stack: the system writes the frame of a
/// signal, and the handler its own, below RSP.
fn on_a_stack(memory: &Aligned<[u8; 8192]>) -> Vec<u8> {
    let mut stack = vec![0; FRAMES];
    stack.extend(memory.0);
    stack
}

const FRAMES: usize = 256 << 10;

#[test]
fn a_configuration_has_any_address() {
    install();
    static FULL: Aligned<Config> = {
        let mut config = [0; 64];
        config[0] = 1;
        (config[48], config[16]) = (16, 64);
        Aligned(config)
    };
    let mut stored = [[0xAAu8; 64]; 3];
    // SAFETY: reads the static, and writes to the array.
    unsafe {
        asm!("ldtilecfg [rip + {full}]", "sttilecfg [{to} + {index} * 8 + 64]",
            full = sym FULL, to = in(reg) &mut stored, index = in(reg) 8usize,
            out("tmm0") _, options(nostack));
    }
    assert_eq!(stored, [[0xAA; 64], [0xAA; 64], FULL.0]);
    release();
    // SAFETY: as above.
    unsafe {
        asm!("ldtilecfg [r13]", "sttilecfg [r12 + 64]",
            in("r13") &FULL, in("r12") &mut stored, out("tmm0") _, options(nostack));
    }
    assert_eq!(stored, [[0xAA; 64], FULL.0, FULL.0]);
    release();
}

#[test]
fn tiles_are_zero_after_configuration_and_by_tilezero() {
    install();
    let full = config(&[(16, 64); 8]);
    let from = bytes::<1024>(4);
    for again in [false, true] {
        let mut to = Aligned([1u8; 1024]);
        load_config(&full);
        // SAFETY: one tile is read and one written.
        unsafe {
            asm!(
                "tileloadd tmm3, [{from} + {line}]",
                "test {again:e}, {again:e}",
                "jz 2f",
                "ldtilecfg [{full}]",
                "jmp 3f",
                "2: tilezero tmm3",
                "3: tilestored [{to} + {line}], tmm3",
                again = in(reg) u32::from(again), full = in(reg) &full,
                from = in(reg) &from, to = in(reg) &mut to, line = in(reg) 64usize,
                out("tmm3") _, options(nostack),
            );
        }
        release();
        assert_eq!(to.0, [0; 1024]);
    }
}

/// `c += a * b`, one instruction with distinct tiles for its operands.
macro_rules! product {
    ($name:literal, $shapes:expr, $c:expr, $a:expr, $b:expr) => {{
        let (c, a, b): (&mut Aligned<[u8; 1024]>, _, _) = ($c, $a, $b);
        let (a, b): (&Aligned<[u8; 1024]>, &Aligned<[u8; 1024]>) = (a, b);
        let [c_shape, a_shape, b_shape] = $shapes;
        load_config(&config(&[(0, 0), c_shape, (0, 0), a_shape, (0, 0), (0, 0), b_shape]));
        // SAFETY: reads three tiles and writes one, each in its own array.
        unsafe {
            asm!(
                "tileloadd tmm1, [{c} + {line}]",
                "tileloadd tmm3, [{a} + {line}]",
                "tileloadd tmm6, [{b} + {line}]",
                concat!($name, " tmm1, tmm3, tmm6"),
                "tilestored [{c} + {line}], tmm1",
                c = in(reg) c, a = in(reg) a, b = in(reg) b, line = in(reg) 64usize,
                out("tmm1") _, out("tmm3") _, out("tmm6") _, options(nostack),
            );
        }
        release();
    }};
}

/// Rows, depth and columns in groups of four bytes.
const SHAPES: [(u8, u8, u8); 6] = [
    (16, 16, 16),
    (1, 16, 16),
    (16, 1, 16),
    (16, 16, 1),
    (7, 5, 3),
    (2, 9, 13),
];

fn shapes((rows, depth, columns): (u8, u8, u8)) -> [(u8, u8); 3] {
    [(rows, 4 * columns), (rows, 4 * depth), (depth, 4 * columns)]
}

/// The group at a row and column.
fn group(tile: &Aligned<[u8; 1024]>, row: usize, column: usize) -> [u8; 4] {
    tile.0[64 * row + 4 * column..][..4].try_into().unwrap()
}

#[test]
fn byte_products_are_those_of_plain_loops() {
    install();
    for (seed, shape) in (0u64..).zip(SHAPES) {
        let (a, b) = (bytes(seed + 10), bytes(seed + 20));
        let old = bytes(seed + 30);
        let (mut signed, mut mixed) = (old, old);
        product!("tdpbssd", shapes(shape), &mut signed, &a, &b);
        product!("tdpbusd", shapes(shape), &mut mixed, &a, &b);
        let (rows, depth, columns) = shape;
        for row in 0..16 {
            for column in 0..16 {
                let before = i32::from_le_bytes(group(&old, row, column));
                let (mut signed_sum, mut mixed_sum) = (i64::from(before), i64::from(before));
                if row < rows.into() && column < columns.into() {
                    for k in 0..usize::from(depth) {
                        for (a, b) in group(&a, row, k).into_iter().zip(group(&b, k, column)) {
                            signed_sum += i64::from(a.cast_signed()) * i64::from(b.cast_signed());
                            mixed_sum += i64::from(a) * i64::from(b.cast_signed());
                        }
                    }
                }
                let at = (shape, row, column);
                // Sums wrap around.
                assert_eq!(
                    group(&signed, row, column),
                    (signed_sum as i32).to_le_bytes(),
                    "{at:?}"
                );
                assert_eq!(
                    group(&mixed, row, column),
                    (mixed_sum as i32).to_le_bytes(),
                    "{at:?}"
                );
            }
        }
    }
}

/// Small integers, whose sums are exact in any order, as bf16 pairs or f32.
fn integers(seed: u64) -> (Aligned<[u8; 1024]>, Aligned<[u8; 1024]>) {
    let mut next = numbers(seed);
    let (mut pairs, mut singles) = (Aligned([0; 1024]), Aligned([0; 1024]));
    let mut integer = || ((next() % 33) as f32 - 16.0).to_bits().to_le_bytes();
    for at in (0..1024).step_by(4) {
        singles.0[at..at + 4].copy_from_slice(&integer());
        pairs.0[at..at + 2].copy_from_slice(&integer()[2..]);
        pairs.0[at + 2..at + 4].copy_from_slice(&integer()[2..]);
    }
    (pairs, singles)
}

fn pair(group: [u8; 4]) -> [f32; 2] {
    let [low, high, next_low, next_high] = group;
    [[low, high], [next_low, next_high]].map(|[low, high]| f32::from_le_bytes([0, 0, low, high]))
}

#[test]
fn bf16_products_are_those_of_plain_loops() {
    install();
    for (seed, shape) in (40u64..).zip(SHAPES) {
        let ((a, _), (b, _)) = (integers(seed), integers(seed + 10));
        let (_, old) = integers(seed + 20);
        let mut new = old;
        product!("tdpbf16ps", shapes(shape), &mut new, &a, &b);
        let (rows, depth, columns) = shape;
        for row in 0..16 {
            for column in 0..16 {
                let mut sum = f32::from_le_bytes(group(&old, row, column));
                if row < rows.into() && column < columns.into() {
                    for k in 0..usize::from(depth) {
                        let (a, b) = (pair(group(&a, row, k)), pair(group(&b, k, column)));
                        sum += a[0] * b[0] + a[1] * b[1];
                    }
                }
                let new = f32::from_le_bytes(group(&new, row, column));
                assert_eq!(new, sum, "{shape:?} {row} {column}");
            }
        }
    }
}

/// The order of the manual, and denormals, told apart by single elements.
#[test]
fn bf16_products_round_and_flush_as_documented() {
    install();
    // A row of pairs (depth 3) times a column of pairs, added to `old`.
    let one = |old: f32, a: [[f32; 2]; 3], b: [[f32; 2]; 3]| {
        let mut tiles = [Aligned([0u8; 1024]); 3];
        tiles[0].0[..4].copy_from_slice(&old.to_le_bytes());
        for k in 0..3 {
            for half in 0..2 {
                let bf16 = |value: f32| {
                    assert_eq!(value.to_bits() & 0xFFFF, 0, "{value} is no bf16");
                    [value.to_le_bytes()[2], value.to_le_bytes()[3]]
                };
                tiles[1].0[4 * k + 2 * half..][..2].copy_from_slice(&bf16(a[k][half]));
                tiles[2].0[64 * k + 2 * half..][..2].copy_from_slice(&bf16(b[k][half]));
            }
        }
        let [mut c, a, b] = tiles;
        product!("tdpbf16ps", shapes((1, 3, 1)), &mut c, &a, &b);
        f32::from_le_bytes(group(&c, 0, 0))
    };
    let p = |power: i32| 2.0f32.powi(power);
    let ones = [[1.0; 2]; 3];

    // 2^24 + 1 + 1: the ones are lost one by one, unless they meet first. As second factors
    // they meet in their own sum, and as part of the product they meet before `old`.
    assert_eq!(
        one(0.0, [[p(24), 0.0], [1.0, 0.0], [1.0, 0.0]], ones),
        p(24)
    );
    assert_eq!(
        one(0.0, [[p(24), 0.0], [0.0, 1.0], [0.0, 1.0]], ones),
        p(24) + 2.0
    );
    assert_eq!(
        one(p(24), [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], ones),
        p(24) + 2.0
    );
    // Ties go to even.
    assert_eq!(
        one(p(24) + 2.0, [[1.0, 0.0], [0.0; 2], [0.0; 2]], ones),
        p(24) + 4.0
    );

    // Denormal factors, `old` and sums count as zeros; the sign of a flushed sum is kept, and
    // so is a normal sum of small products.
    let tiny = p(-130);
    assert_eq!(one(0.0, [[tiny, 0.0]; 3], [[p(100), 0.0]; 3]), 0.0);
    assert_eq!(one(tiny, [[0.0; 2]; 3], ones), 0.0);
    assert_eq!(one(0.0, [[p(-70), 0.0]; 3], [[p(-60), 0.0]; 3]), 0.0);
    let normal = one(0.0, [[p(-70), 0.0]; 3], [[p(-56), 0.0]; 3]);
    assert_eq!(normal, 3.0 * p(-126));

    let infinite = f32::INFINITY;
    assert_eq!(one(1.0, [[infinite, 1.0]; 3], ones), infinite);
    assert!(one(1.0, [[infinite, 1.0]; 3], [[0.0, 1.0]; 3]).is_nan());
    assert!(one(f32::NAN, [[0.0; 2]; 3], ones).is_nan());
    assert_eq!(one(0.0, [[p(100), 0.0]; 3], [[p(100), 0.0]; 3]), infinite);
}

/// A program cannot see these bytes, so the state itself is checked.
#[test]
fn what_is_not_configured_stays_zero() {
    let mut tiles = Tiles::new();
    tiles
        .load_config(&config(&[(3, 8), (3, 8), (2, 8)]))
        .unwrap();
    for tile in 0..3 {
        let infinite = 0x7F80u16.to_le_bytes();
        tiles
            .load(tile, |_, row| {
                row.chunks_exact_mut(2)
                    .for_each(|value| value.copy_from_slice(&infinite));
            })
            .unwrap();
    }
    tiles.product(Product::Bf16, 0, 1, 2).unwrap();
    for tile in 0..3 {
        let (rows, row_bytes) = tiles.shape(tile).unwrap();
        for (number, row) in tiles.whole(tile).iter().enumerate() {
            let kept = if number < rows { row_bytes } else { 0 };
            assert!(row[kept..].iter().all(|&byte| byte == 0), "{tile} {number}");
            assert!(row[..kept].iter().any(|&byte| byte != 0) || kept == 0);
        }
    }
}

#[test]
fn every_thread_has_its_own_tiles() {
    install();
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let barrier = &barrier;
            scope.spawn(move || {
                assert_eq!(stored_config(), [0; 64]);
                let own = config(&[(thread + 1, 4 * (thread + 1)); 8]);
                load_config(&own);
                let from = bytes::<1024>(thread.into());
                // SAFETY: reads one tile.
                unsafe {
                    asm!("tileloadd tmm7, [{} + {}]", in(reg) &from, in(reg) 64usize,
                        out("tmm7") _, options(nostack));
                }
                for _ in 0..100 {
                    barrier.wait();
                    assert_eq!(stored_config(), own);
                    let mut to = Aligned([0u8; 1024]);
                    // SAFETY: writes one tile.
                    unsafe {
                        asm!("tilestored [{} + {}], tmm7", in(reg) &mut to, in(reg) 64usize,
                            options(nostack));
                    }
                    for row in 0..16 {
                        for column in 0..64 {
                            let shape = usize::from(thread) + 1;
                            let inside = row < shape && column < 4 * shape;
                            let at = 64 * row + column;
                            assert_eq!(to.0[at], if inside { from.0[at] } else { 0 });
                        }
                    }
                }
                release();
            });
        }
    });
}

/// Either all of a thread's tile instructions are executed in software, or none.
#[test]
fn emulated_instructions_are_counted() {
    install();
    let before = emulated();
    load_config(&config(&[(16, 64); 8]));
    release();
    let count = emulated() - before;
    let tiles = std::fs::read_to_string("/proc/cpuinfo")
        .unwrap()
        .contains("amx_tile");
    assert_eq!(count, if tiles { 0 } else { 2 });
}
