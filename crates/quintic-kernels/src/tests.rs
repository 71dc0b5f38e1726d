//! Every kernel against plain loops in f64, on every instruction set of this machine.

use crate::*;

/// Numbers in [-1, 1) that look random and depend on `seed`.
pub(crate) fn noise(seed: usize) -> impl FnMut() -> f32 {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Runs the test on every instruction set of this machine, on one thread and on three; where
/// only the tile unit is missing, on an emulated one, too.
pub(crate) fn for_each_isa(test: impl Fn(&Kernels)) {
    for isa in Isa::available() {
        for threads in [1, 3] {
            test(&Kernels::new(isa, threads).unwrap());
        }
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if Isa::detect() == Isa::Avx512Bf16 {
        quintic_tiles::install();
        let table = crate::table::Table::of(Isa::Amx);
        test(&Kernels::with_table(table, 2).unwrap());
    }
}

pub(crate) const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Split, Precision::Bf16];

pub(crate) fn fill(operand: &mut Operand, seed: usize) {
    let mut next = noise(seed);
    for token in 0..operand.tokens() {
        for column in 0..operand.columns() {
            operand.set(token, column, next());
        }
    }
}

/// A weight as bytes of a file, and as the numbers that these are.
pub(crate) struct Weight {
    element: Element,
    pub(crate) bytes: Vec<u8>,
    pub(crate) values: Vec<f32>,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

impl Weight {
    pub(crate) fn new(element: Element, rows: usize, depth: usize, seed: usize) -> Self {
        let mut next = noise(seed);
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for _ in 0..rows * depth {
            let value = next();
            match element {
                Element::F32 => {
                    bytes.extend(value.to_le_bytes());
                    values.push(value);
                }
                Element::F16 => {
                    let value = half::f16::from_f32(value);
                    bytes.extend(value.to_le_bytes());
                    values.push(value.to_f32());
                }
                Element::Bf16 => {
                    let value = half::bf16::from_f32(value);
                    bytes.extend(value.to_le_bytes());
                    values.push(value.to_f32());
                }
            }
        }
        Weight {
            element,
            bytes,
            values,
            rows,
            depth,
        }
    }

    pub(crate) fn plain(&self) -> Plain<'_> {
        Plain {
            element: self.element,
            bytes: &self.bytes,
            rows: self.rows,
        }
    }

    /// What the product has in place of row `row`: rounded as the storage does.
    fn stored(&self, storage: Storage, row: usize) -> Vec<f64> {
        self.values[row * self.depth..(row + 1) * self.depth]
            .iter()
            .map(|&value| match storage {
                Storage::F32 => f64::from(value),
                Storage::F16 => half::f16::from_f32(value).to_f64(),
                Storage::Bf16 => half::bf16::from_f32(value).to_f64(),
                Storage::Bf16Split => {
                    let high = half::bf16::from_f32(value);
                    high.to_f64() + half::bf16::from_f32(value - high.to_f32()).to_f64()
                }
                _ => panic!("{} is not a rounding of single values", storage.name()),
            })
            .collect()
    }
}

/// `sum a b`, and the bound of what a sum in f32 may differ from it.
///
/// A sum over a block of at most 512 terms from zero, then over the blocks: each term passes
/// through at most `min(depth, 512) + depth / 256 + 1` additions, each off by 2^-24 relative to
/// partial sums that are at most `sum |a b|`. AVX512_BF16 and AMX add two products of a pair
/// in an order and with roundings of their own: one more for each pair. A split product sums
/// two or three such, and leaves out the product of the small parts, 2^-16 of `|a b|`. In three parts of bf16 a
/// term lacks 2^-24 at most, and passes through seventeen additions in its chunk and six for each later one: fewer.
pub(crate) fn dot(a: &[f64], b: &[f64], precision: Precision) -> (f64, f64) {
    let (sum, magnitude) = a
        .iter()
        .zip(b)
        .fold((0.0, 0.0), |(sum, magnitude), (a, b)| {
            (sum + a * b, magnitude + (a * b).abs())
        });
    let additions = (a.len().min(512) + a.len() / 256 + 1) as f64;
    let mut bound = 1.5 * additions * 2f64.powi(-24) * magnitude;
    if precision == Precision::Split {
        bound = 3.0 * bound + 2f64.powi(-16) * magnitude;
    }
    (sum, bound + 1e-30)
}

pub(crate) fn wide(operand: &Operand, token: usize) -> Vec<f64> {
    (0..operand.columns())
        .map(|column| f64::from(operand.get(token, column)))
        .collect()
}

/// How products are computed: a precision, and whether f32 may be multiplied in parts of bf16.
const WAYS: [(Precision, bool); 4] = [
    (Precision::F32, false),
    (Precision::F32, true),
    (Precision::Split, false),
    (Precision::Bf16, false),
];

#[test]
fn products_equal_plain_loops() {
    let elements = [Element::F32, Element::F16, Element::Bf16];
    for_each_isa(|kernels| {
        for (case, (tokens, depth, columns)) in [
            (0, 8, 8),
            (1, 1, 1),
            (2, 31, 33),
            (13, 32, 31),
            (14, 33, 32),
            (15, 64, 64),
            (17, 96, 65),
            (29, 257, 40),
            (33, 512, 96),
            (5, 1100, 70),
            (65, 160, 33),
            (129, 64, 32),
        ]
        .into_iter()
        .enumerate()
        {
            for (precision, in_parts) in WAYS {
                for element in elements {
                    let mut x = kernels.operand(precision, tokens, depth);
                    fill(&mut x, case);
                    let w = Weight::new(element, columns, depth, case + 100);
                    let storage = kernels.storage(precision, element);
                    let packed = kernels.pack(Parts::Stacked(&[w.plain()]), depth, storage, None);
                    let packed = if in_parts { packed.in_parts() } else { packed };
                    let mut out = Stream::zeroed(tokens, columns);
                    out.values_mut().fill(f32::NAN);
                    kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut out));
                    for token in 0..tokens {
                        for column in 0..columns {
                            let (exact, bound) =
                                dot(&wide(&x, token), &w.stored(storage, column), precision);
                            let found = f64::from(out.values()[token * columns + column]);
                            assert!(
                                (found - exact).abs() <= bound,
                                "{} {precision:?} {in_parts} {element:?} [{tokens}, {depth}] -> {columns}, element {token}, {column}: {found}, expected {exact} to {bound}",
                                kernels.isa()
                            );
                        }
                    }
                }
            }
        }
    });
}

/// Over blocks of rows and of `k`: where all columns of 512 rows stay in a near cache, where those of 320 do, and where
/// a block of `k` does. Bits: what a row becomes alone is tested above.
#[test]
fn rows_of_large_products_equal_those_alone() {
    let (tokens, columns) = (530, 130);
    for_each_isa(|kernels| {
        for depth in [1000, 2100, 3000] {
            let w = Weight::new(Element::Bf16, columns, depth, depth);
            for (precision, in_parts) in WAYS {
                let mut x = kernels.operand(precision, tokens, depth);
                fill(&mut x, depth);
                let storage = kernels.storage(precision, Element::Bf16);
                let packed = kernels.pack(Parts::Stacked(&[w.plain()]), depth, storage, None);
                let packed = if in_parts { packed.in_parts() } else { packed };
                let mut all = Stream::zeroed(tokens, columns);
                all.values_mut().fill(f32::NAN);
                kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut all));
                for token in [0, 31, 255, 256, 287, 288, 319, 320, 511, 512, 529] {
                    let mut row = kernels.operand(precision, 1, depth);
                    row.copy_columns(0, 0, &x, token, 0, depth);
                    let mut alone = Stream::zeroed(1, columns);
                    kernels.linear(&row, &packed, Epilogue::Scale(1.0, &mut alone));
                    assert_eq!(
                        alone.values(),
                        &all.values()[token * columns..(token + 1) * columns],
                        "{} {precision:?} {in_parts} depth {depth}, token {token}",
                        kernels.isa()
                    );
                }
            }
        }
    });
}

/// Magnitudes that three parts of bf16 hold and two do not. What is left out and the last addition are off by 2^-24 each; two
/// parts would be by 2^-17.
#[test]
fn parts_keep_all_of_f32() {
    let (tokens, depth, columns) = (33, 96, 40);
    for_each_isa(|kernels| {
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let w = Weight::new(element, columns, depth, 5);
            let storage = kernels.storage(Precision::F32, element);
            let pack = || kernels.pack(Parts::Stacked(&[w.plain()]), depth, storage, None);
            for magnitude in [1e-30f32, 1.0, 1e30] {
                let mut x = kernels.operand(Precision::F32, tokens, depth);
                let mut next = noise(7);
                for token in 0..tokens {
                    for column in 0..depth {
                        // One term in each row, so that nothing hides the last bit.
                        let value = if column == token % depth {
                            next() * magnitude
                        } else {
                            0.0
                        };
                        x.set(token, column, value);
                    }
                }
                let mut out = Stream::zeroed(tokens, columns);
                kernels.linear(&x, &pack().in_parts(), Epilogue::Scale(1.0, &mut out));
                for token in 0..tokens {
                    let a = f64::from(x.get(token, token % depth));
                    for column in 0..columns {
                        let b = w.stored(storage, column)[token % depth];
                        let found = f64::from(out.values()[token * columns + column]);
                        assert!(
                            (found - a * b).abs() <= (a * b).abs() * 2.1 * 2f64.powi(-24) + 1e-37,
                            "{} {element:?} {a} * {b} is not {found}",
                            kernels.isa()
                        );
                    }
                }
            }
        }
    });
}

/// What is not finite is never a finite number in the end, and stays in its row and its column.
#[test]
fn parts_of_what_is_not_finite() {
    let (tokens, depth, columns) = (20, 40, 33);
    let bad_values = [
        f32::NAN,
        -f32::NAN,
        f32::from_bits(0x7fff_ffff),
        f32::INFINITY,
    ];
    for_each_isa(|kernels| {
        let storage = kernels.storage(Precision::F32, Element::F32);
        let run = |w: &Weight, bad_token: Option<f32>| {
            let packed = kernels.pack(Parts::Stacked(&[w.plain()]), depth, storage, None);
            let mut x = kernels.operand(Precision::F32, tokens, depth);
            fill(&mut x, 3);
            if let Some(bad) = bad_token {
                x.set(7, 11, bad);
            }
            let mut out = Stream::zeroed(tokens, columns);
            kernels.linear(&x, &packed.in_parts(), Epilogue::Scale(1.0, &mut out));
            out.values().to_vec()
        };
        let good = Weight::new(Element::F32, columns, depth, 4);
        let expected = run(&good, None);
        for bad in bad_values.into_iter().chain([f32::NEG_INFINITY]) {
            let mut weight = Weight::new(Element::F32, columns, depth, 4);
            let at = 5 * depth + 9;
            weight.bytes[4 * at..][..4].copy_from_slice(&bad.to_le_bytes());
            for (found, is_bad_row) in [(run(&good, Some(bad)), true), (run(&weight, None), false)]
            {
                for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let is_bad = match is_bad_row {
                        true => at / columns == 7,
                        false => at % columns == 5,
                    };
                    match is_bad {
                        true => assert!(!found.is_finite(), "{} {bad} {at}", kernels.isa()),
                        false => assert_eq!(found.to_bits(), expected.to_bits(), "{bad} {at}"),
                    }
                }
            }
        }
    });
}

/// Every epilogue, with the sums that `Scale` shows as its input.
#[test]
fn epilogues_do_what_they_say() {
    let (tokens, depth, columns) = (37, 70, 83);
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            let storage = kernels.storage(precision, Element::F32);
            let mut x = kernels.operand(precision, tokens, depth);
            fill(&mut x, 1);
            let gate = Weight::new(Element::F32, columns, depth, 2);
            let up = Weight::new(Element::F32, columns, depth, 3);
            let pack =
                |w: &Weight| kernels.pack(Parts::Stacked(&[w.plain()]), depth, storage, None);
            let sums = |w: &PackedMatrix| {
                let mut out = Stream::zeroed(tokens, columns);
                kernels.linear(&x, w, Epilogue::Scale(1.0, &mut out));
                out
            };
            let (gate_packed, up_packed) = (pack(&gate), pack(&up));
            let (gates, ups) = (sums(&gate_packed), sums(&up_packed));
            // What storing rounds to: f32 exactly, bf16 to 2^-8, split to 2^-16.
            let rounding = match precision {
                _ if kernels.form(precision) == crate::operand::Form::F32 => 0.0,
                Precision::Split => 2f64.powi(-16),
                _ => 2f64.powi(-8),
            };
            let check = |out: &Operand, expected: &dyn Fn(f64, f64) -> f64, relative: f64| {
                for token in 0..tokens {
                    for column in 0..columns {
                        let at = token * columns + column;
                        let expected =
                            expected(f64::from(gates.values()[at]), f64::from(ups.values()[at]));
                        let found = f64::from(out.get(token, column));
                        assert!(
                            (found - expected).abs()
                                <= (rounding + relative) * expected.abs() + 1e-30,
                            "{} {precision:?} {token}, {column}: {found}, expected {expected}",
                            kernels.isa()
                        );
                    }
                }
            };
            let mut out = kernels.operand(precision, tokens, columns);
            kernels.linear(&x, &gate_packed, Epilogue::Store(&mut out));
            check(&out, &|gate, _| gate, 0.0);
            kernels.linear(
                &x,
                &gate_packed,
                Epilogue::Activate(Activation::Relu, &mut out),
            );
            check(&out, &|gate, _| gate.max(0.0), 0.0);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            kernels.linear(
                &x,
                &gate_packed,
                Epilogue::Activate(Activation::Silu, &mut out),
            );
            check(&out, &|gate, _| silu(gate), 3e-6);
            let gated = kernels.pack(
                Parts::Gated {
                    gate: gate.plain(),
                    up: up.plain(),
                },
                depth,
                storage,
                None,
            );
            kernels.linear(&x, &gated, Epilogue::Gate(Activation::Silu, &mut out));
            check(&out, &|gate, up| silu(gate) * up, 3e-6);

            let mut stream = Stream::zeroed(tokens, columns);
            let mut next = noise(9);
            stream.values_mut().fill_with(&mut next);
            let before = stream.values().to_vec();
            kernels.linear(&x, &gate_packed, Epilogue::Add(&mut stream));
            for (at, &found) in stream.values().iter().enumerate() {
                assert_eq!(found, before[at] + gates.values()[at]);
            }
            kernels.linear(&x, &gate_packed, Epilogue::Scale(0.25, &mut stream));
            for (found, sum) in stream.values().iter().zip(gates.values()) {
                assert_eq!(*found, 0.25 * sum);
            }
        }
    });
}

#[test]
fn stacked_parts_stand_side_by_side() {
    for_each_isa(|kernels| {
        let parts = [5, 40, 1].map(|rows| Weight::new(Element::F32, rows, 20, rows));
        let plain: Vec<Plain<'_>> = parts.iter().map(Weight::plain).collect();
        let together = kernels.pack(Parts::Stacked(&plain), 20, Storage::F32, None);
        let mut x = kernels.operand(Precision::F32, 3, 20);
        fill(&mut x, 0);
        let mut out = Stream::zeroed(3, 46);
        kernels.linear(&x, &together, Epilogue::Scale(1.0, &mut out));
        let mut first = 0;
        for part in &parts {
            let alone = kernels.pack(Parts::Stacked(&[part.plain()]), 20, Storage::F32, None);
            let mut expected = Stream::zeroed(3, part.rows);
            kernels.linear(&x, &alone, Epilogue::Scale(1.0, &mut expected));
            for token in 0..3 {
                let found = &out.values()[token * 46 + first..][..part.rows];
                assert_eq!(found, &expected.values()[token * part.rows..][..part.rows]);
            }
            first += part.rows;
        }
    });
}

#[test]
fn gains_fold_into_weights() {
    for_each_isa(|kernels| {
        let (depth, columns) = (50, 33);
        let w = Weight::new(Element::F32, columns, depth, 4);
        let mut next = noise(5);
        let gain: Vec<f32> = (0..depth).map(|_| next()).collect();
        let mut scaled = Weight::new(Element::F32, columns, depth, 4);
        scaled.bytes.clear();
        for (at, value) in scaled.values.iter().enumerate() {
            scaled
                .bytes
                .extend((value * gain[at % depth]).to_le_bytes());
        }
        for storage in [
            Storage::F32,
            Storage::F16,
            Storage::Bf16,
            Storage::Bf16Split,
        ] {
            let folded = kernels.pack(Parts::Stacked(&[w.plain()]), depth, storage, Some(&gain));
            let expected = kernels.pack(Parts::Stacked(&[scaled.plain()]), depth, storage, None);
            assert_eq!(folded.bytes(), expected.bytes());
        }
    });
}

/// A row's bits, whatever stands beside it and wherever it stands.
#[test]
fn rows_do_not_depend_on_their_company() {
    let (depth, columns) = (700, 90);
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            let w = Weight::new(Element::F32, columns, depth, 7);
            let storage = kernels.storage(precision, Element::F32);
            let packed = kernels.pack(Parts::Stacked(&[w.plain()]), depth, storage, None);
            let row_at = |tokens: usize, at: usize, others: usize| {
                let mut x = kernels.operand(precision, tokens, depth);
                fill(&mut x, others);
                let mut next = noise(1);
                for column in 0..depth {
                    x.set(at, column, next());
                }
                let mut out = Stream::zeroed(tokens, columns);
                kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut out));
                out.values()[at * columns..(at + 1) * columns].to_vec()
            };
            let alone = row_at(1, 0, 0);
            for (tokens, at) in [(2, 1), (14, 13), (15, 14), (33, 20), (600, 0), (600, 599)] {
                assert_eq!(
                    row_at(tokens, at, 100 + tokens),
                    alone,
                    "{} {precision:?} {at} of {tokens}",
                    kernels.isa()
                );
            }
        }
    });
}

#[test]
fn a_norm_divides_by_the_root_mean_square() {
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            for (tokens, columns) in [
                (0, 4),
                (1, 1),
                (3, 15),
                (17, 16),
                (18, 64),
                (40, 100),
                (2, 4096),
            ] {
                let mut x = Stream::zeroed(tokens, columns);
                let mut next = noise(columns);
                x.values_mut().fill_with(|| 100.0 * next());
                let gain: Vec<f32> = (0..columns).map(|_| next()).collect();
                let mut out = kernels.operand(precision, tokens, columns);
                for gains in [Some(&gain[..]), None] {
                    kernels.rms_norm(&x, gains, 1e-6, &mut out);
                    for token in 0..tokens {
                        let row = &x.values()[token * columns..(token + 1) * columns];
                        let mean =
                            row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / columns as f64;
                        for column in 0..columns {
                            let gain = gains.map_or(1.0, |gain| f64::from(gain[column]));
                            let exact = f64::from(row[column]) / (mean + 1e-6).sqrt() * gain;
                            // The mean's error is halved by the root; root, quotient and two
                            // products round once each.
                            let additions = columns as f64 / 64.0 + 8.0;
                            let rounding = match kernels.form(precision) {
                                crate::operand::Form::F32 => 0.0,
                                crate::operand::Form::Split => 2f64.powi(-16),
                                _ => 2f64.powi(-8),
                            };
                            let bound = (rounding + (additions / 2.0 + 5.0) * 2f64.powi(-24))
                                * exact.abs()
                                + 1e-30;
                            let found = f64::from(out.get(token, column));
                            assert!(
                                (found - exact).abs() <= bound,
                                "{} {found} {exact}",
                                kernels.isa()
                            );
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn widening_is_exact() {
    for_each_isa(|kernels| {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let mut wide = vec![0.0; all.len()];
        // SAFETY: `Kernels` has checked the instruction set.
        unsafe { (kernels.table.rows.widen_f16)(&all, &mut wide) };
        for (&bits, &found) in all.iter().zip(&wide) {
            let expected = half::f16::from_bits(bits).to_f32();
            assert!(
                found.to_bits() == expected.to_bits() || (expected.is_nan() && found.is_nan()),
                "{bits:x}: {found} {expected}"
            );
        }
    });
}

#[test]
#[should_panic(expected = "gated weights go with a gating epilogue")]
fn gated_weights_cannot_be_stored_plainly() {
    let kernels = Kernels::new(Isa::Portable, 1).unwrap();
    let w = Weight::new(Element::F32, 1, 1, 0);
    let gated = Parts::Gated {
        gate: w.plain(),
        up: w.plain(),
    };
    let packed = kernels.pack(gated, 1, Storage::F32, None);
    let x = kernels.operand(Precision::F32, 1, 1);
    kernels.linear(
        &x,
        &packed,
        Epilogue::Store(&mut kernels.operand(Precision::F32, 1, 1)),
    );
}

#[test]
fn packed_weights_of_others_are_checked() {
    struct Kept(Buffer, usize);
    impl Bytes for Kept {
        fn bytes(&self) -> &[u8] {
            &self.0.bytes()[self.1..self.1 + 256]
        }
    }
    let shape = PackedShape {
        storage: Storage::F32,
        columns: 2,
        depth: 2,
        gated: false,
    };
    assert_eq!(shape.n_bytes(), 256);
    let keep = |from: usize| std::sync::Arc::new(Kept(Buffer::zeroed(1024), from));
    assert!(PackedMatrix::from_packed(shape, keep(64)).is_ok());
    let error = PackedMatrix::from_packed(shape, keep(4)).unwrap_err();
    assert!(error.contains("not aligned"), "{error}");
    let longer = PackedShape { depth: 3, ..shape };
    let error = PackedMatrix::from_packed(longer, keep(0)).unwrap_err();
    assert!(error.contains("256 bytes, expected 384"), "{error}");
}
