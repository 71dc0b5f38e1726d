//! Products with weights that stay as they are in a file, against the same weights packed.

use std::sync::Arc;

use crate::tests::{for_each_isa, noise};
use crate::*;

impl Bytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Where a block's scales of 16 bits are, and what they are at most multiplied with.
fn scales(kind: BlockType) -> &'static [(usize, f32)] {
    match kind {
        BlockType::Q4_0 => &[(0, 8.0)],
        BlockType::Q4_1 => &[(0, 15.0), (2, 1.0)],
        BlockType::Q5_0 => &[(0, 16.0)],
        BlockType::Q5_1 => &[(0, 31.0), (2, 1.0)],
        BlockType::Q8_0 => &[(0, 128.0)],
        BlockType::Q2_K => &[(80, 45.0), (82, 15.0)],
        BlockType::Q3_K => &[(108, 128.0)],
        BlockType::Q4_K => &[(0, 945.0), (2, 63.0)],
        BlockType::Q5_K => &[(0, 1953.0), (2, 63.0)],
        BlockType::Q6_K => &[(208, 4096.0)],
        BlockType::IQ4_NL => &[(0, 127.0)],
        BlockType::IQ4_XS => &[(0, 4064.0)],
    }
}

/// A matrix of random values: as it is stored, and in f32.
fn matrix(encoding: Encoding, rows: usize, depth: usize, seed: usize) -> (StoredMatrix, Vec<u8>) {
    let mut next = noise(seed);
    let n = rows * depth;
    let mut values = vec![0.0f32; n];
    let bytes: Vec<u8> = match encoding {
        Encoding::F32 => {
            values.fill_with(&mut next);
            values.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        Encoding::F16 => {
            values.fill_with(|| half::f16::from_f32(next()).to_f32());
            let bits = values.iter().map(|&x| half::f16::from_f32(x));
            bits.flat_map(half::f16::to_le_bytes).collect()
        }
        Encoding::Bf16 => {
            values.fill_with(|| half::bf16::from_f32(next()).to_f32());
            let bits = values.iter().map(|&x| half::bf16::from_f32(x));
            bits.flat_map(half::bf16::to_le_bytes).collect()
        }
        Encoding::Fp8 {
            kind,
            scale,
            nan_as_zero,
        } => {
            // Below 2, so that sums stay finite; now and then NaN.
            let bytes: Vec<u8> = (0..n)
                .map(|at| match at % 101 {
                    100 if nan_as_zero => 0x7f,
                    _ => {
                        let byte = (next() * 128.0) as i8 as u8;
                        if kind.decode(byte).abs() < 2.0 {
                            byte
                        } else {
                            byte & 0x9f
                        }
                    }
                })
                .collect();
            for (value, &byte) in values.iter_mut().zip(&bytes) {
                let wide = kind.decode(byte);
                *value = if wide.is_nan() { 0.0 } else { wide * scale };
            }
            bytes
        }
        Encoding::Blocks(kind) => {
            let mut bytes = vec![0u8; kind.bytes_of(n).unwrap()];
            bytes.fill_with(|| (next() * 128.0) as i8 as u8);
            for block in bytes.chunks_exact_mut(kind.bytes()) {
                for &(at, most) in scales(kind) {
                    let scale = half::f16::from_f32(next() / most);
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
            kind.decode(&bytes, &mut values);
            bytes
        }
    };
    assert!(values.iter().all(|x| x.is_finite()));
    let stored = StoredMatrix {
        encoding,
        bytes: Arc::new(bytes),
        rows,
    };
    let plain = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    (stored, plain)
}

fn fp8(kind: Fp8, nan_as_zero: bool) -> Encoding {
    Encoding::Fp8 {
        kind,
        scale: 0.37,
        nan_as_zero,
    }
}

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Split, Precision::Bf16];

/// A product's result, bit by bit.
fn result(kernels: &Kernels, x: &Operand, w: &PackedMatrix) -> Vec<u32> {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    if !w.shape().gated {
        let mut out = Stream::zeroed(x.tokens(), w.shape().columns);
        kernels.linear(x, w, Epilogue::Scale(1.0, &mut out));
        return bits(out.values());
    }
    let mut out = kernels.operand(Precision::F32, x.tokens(), w.shape().columns);
    let epilogue = Epilogue::Gate(Activation::Linear, &mut out);
    kernels.linear(x, w, epilogue);
    (0..out.tokens())
        .flat_map(|token| (0..out.columns()).map(move |column| (token, column)))
        .map(|(token, column)| out.get(token, column).to_bits())
        .collect()
}

/// Stored and packed, with the same bits, in every precision and on every instruction set.
fn check(
    encodings: &[Encoding],
    rows: &[usize],
    gated: bool,
    depth: usize,
    folds: bool,
    tokens: &[usize],
) {
    let mut next = noise(depth);
    let gain: Option<Vec<f32>> = folds.then(|| (0..depth).map(|_| next()).collect());
    let matrices: Vec<(StoredMatrix, Vec<u8>)> = rows
        .iter()
        .enumerate()
        .map(|(at, &rows)| matrix(encodings[at % encodings.len()], rows, depth, at + depth))
        .collect();
    let stored: Vec<StoredMatrix> = matrices.iter().map(|(stored, _)| stored.clone()).collect();
    let plain: Vec<Plain<'_>> = matrices
        .iter()
        .map(|(stored, bytes)| Plain {
            element: Element::F32,
            bytes,
            rows: stored.rows,
        })
        .collect();
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            let storage = kernels.storage(precision, Element::F32);
            let parts = match gated {
                true => Parts::Gated {
                    gate: plain[0],
                    up: plain[1],
                },
                false => Parts::Stacked(&plain),
            };
            let packed = kernels.pack(parts, depth, storage, gain.as_deref());
            let parts = match gated {
                true => StoredParts::Gated {
                    gate: stored[0].clone(),
                    up: stored[1].clone(),
                },
                false => StoredParts::Stacked(stored.clone()),
            };
            assert!(kernels.reads(precision, Storage::Rows));
            let rounds = precision == Precision::Bf16;
            let w = PackedMatrix::stored(parts, depth, gain.clone(), rounds);
            assert_eq!(
                PackedShape {
                    storage,
                    ..w.shape()
                },
                packed.shape(),
                "{encodings:?}"
            );
            for &tokens in tokens {
                let mut x = kernels.operand(precision, tokens, depth);
                let mut next = noise(tokens);
                for token in 0..tokens {
                    for column in 0..depth {
                        x.set(token, column, next());
                    }
                }
                let found = result(kernels, &x, &w);
                assert!(
                    found == result(kernels, &x, &packed),
                    "{} {precision:?} {encodings:?} {rows:?} x {depth}, {tokens} tokens",
                    kernels.isa()
                );
                assert!(found.iter().any(|&bits| bits != 0));
            }
        }
    });
}

#[test]
fn every_block_type_multiplies_as_its_values_do() {
    for kind in BlockType::ALL {
        // More than a block of `k`, and no whole number of them.
        let depth = if kind.values() == 32 { 608 } else { 768 };
        let encoding = [Encoding::Blocks(kind)];
        check(&encoding, &[37], false, depth, false, &[1, 6]);
        check(&encoding, &[19, 19], true, depth, true, &[3]);
    }
}

#[test]
fn every_plain_type_multiplies_as_its_values_do() {
    for encoding in [
        Encoding::F32,
        Encoding::F16,
        Encoding::Bf16,
        fp8(Fp8::E4M3, false),
        fp8(Fp8::E4M3, true),
        fp8(Fp8::E5M2, false),
    ] {
        // A depth that ends inside a chunk.
        check(&[encoding], &[37], false, 677, true, &[1, 5]);
        check(&[encoding], &[8, 8], true, 33, false, &[2]);
    }
}

#[test]
fn parts_may_differ_and_rows_may_be_any_number() {
    let mixed = [
        Encoding::Blocks(BlockType::Q4_K),
        Encoding::F16,
        Encoding::Blocks(BlockType::Q6_K),
        fp8(Fp8::E4M3, false),
    ];
    let tokens = [1, 2, 4, 5, 7, 16, 17, 31, 33, 515];
    check(&mixed, &[40, 5, 30, 3], false, 512, false, &tokens);
    check(&mixed[1..], &[16, 16], true, 256, true, &[1, 13, 32]);
    check(&mixed, &[32, 32, 32], false, 256, true, &[1, 48]);
}

#[test]
#[should_panic(expected = "bytes of a matrix of 2 x 64 in Blocks(Q8_0)")]
fn rows_that_are_not_there_are_refused() {
    let (stored, _) = matrix(Encoding::Blocks(BlockType::Q8_0), 1, 64, 0);
    let parts = StoredParts::Stacked(vec![StoredMatrix { rows: 2, ..stored }]);
    let _ = PackedMatrix::stored(parts, 64, None, false);
}
