//! Codes and products with them, against plain loops, on every instruction set.

use crate::micro::{Again, Fetch, PANEL};
use crate::quantised::{self, MICRO_PLAIN, MicroInt8, RowCodes};
use crate::tests::{PRECISIONS, Weight, dot, fill, for_each_isa, noise, wide};
use crate::*;

const STORAGES: [Storage; 2] = [Storage::Int8, Storage::Int4];

/// Those whose products are of integers.
const INTEGERS: [Storage; 3] = [Storage::Int8Dynamic, Storage::Int8Wide, Storage::Int4Wide];

/// Tokens, depth and columns around the sizes of blocks, chunks, groups and panels.
const SHAPES: [(usize, usize, usize); 14] = [
    (0, 8, 8),
    (1, 1, 1),
    (1, 64, 32),
    (2, 31, 33),
    (3, 0, 5),
    (8, 128, 40),
    (9, 128, 40),
    (13, 32, 31),
    (14, 33, 32),
    (15, 64, 64),
    (17, 96, 65),
    (29, 257, 40),
    (33, 512, 96),
    (5, 1100, 70),
];

/// Codes of a column of packed weights and its factor, by what the module's docs say of their
/// order.
fn column(w: &PackedMatrix, column: usize) -> (Vec<i32>, f32) {
    let shape = w.shape();
    let bytes = w.panel(column / PANEL, 0);
    let column = column % PANEL;
    let (half, lane) = (column / 16, column % 16);
    let codes = (0..shape.depth).map(|k| {
        let (chunk, within) = (k / 64, k % 64);
        let (quad, byte) = (within / 4, within % 4);
        match shape.storage {
            Storage::Int4 | Storage::Int4Wide => {
                let chunk = &bytes[chunk * 1088..][..1088];
                let two = chunk[half * 512 + quad / 2 * 64 + lane * 4 + byte];
                let q = i32::from(two >> (quad % 2 * 4) & 15) - 8;
                let multiplier = chunk[1024 + half * 32 + within / 32 * 16 + lane] as i8;
                q * i32::from(multiplier)
            }
            _ => {
                let at = chunk * 2048 + half * 1024 + quad * 64 + lane * 4 + byte;
                i32::from(bytes[at] as i8)
            }
        }
    });
    let factor = &bytes[bytes.len() - 128 + column * 4..][..4];
    let factor = f32::from_le_bytes(factor.try_into().unwrap());
    (codes.collect(), factor)
}

fn pack(kernels: &Kernels, w: &Weight, storage: Storage) -> PackedMatrix {
    kernels.pack(Parts::Stacked(&[w.plain()]), w.depth, storage, None)
}

/// A row of a matrix.
fn row(w: &Weight, row: usize) -> &[f32] {
    &w.values[row * w.depth..(row + 1) * w.depth]
}

/// Squared errors of a column of int8, and of the plain choice: a step with which the largest weight is the code -128.
fn errors_of_bytes(weights: &[f32]) -> (f64, f64) {
    let kernels = Kernels::new(Isa::Portable, 1).unwrap();
    let bytes: Vec<u8> = weights.iter().flat_map(|v| v.to_le_bytes()).collect();
    let plain = Plain {
        element: Element::F32,
        bytes: &bytes,
        rows: 1,
    };
    let packed = kernels.pack(Parts::Stacked(&[plain]), weights.len(), Storage::Int8, None);
    let (codes, factor) = column(&packed, 0);
    let largest = weights
        .iter()
        .copied()
        .max_by(|a, b| a.abs().total_cmp(&b.abs()));
    let step = f64::from(largest.unwrap()) / -128.0;
    let (mut found, mut expected) = (0.0, 0.0);
    for (code, &value) in codes.iter().zip(weights) {
        let value = f64::from(value);
        found += (value - f64::from(factor) * f64::from(*code)).powi(2);
        let code = (value / step).round_ties_even().clamp(-128.0, 127.0);
        expected += (value - step * code).powi(2);
    }
    (found, expected)
}

#[test]
fn steps_of_bytes_err_no_more_than_the_plain_one() {
    for seed in 0..20 {
        for depth in [1, 7, 64, 301] {
            let mut next = noise(seed);
            let mut weights: Vec<f32> = (0..depth).map(|_| next()).collect();
            for largest in [weights[0], 3.0, -30.0] {
                weights[0] = largest;
                let (found, plain) = errors_of_bytes(&weights);
                // Codes are computed in f32: a quotient of up to 128 errs by 2^-17, twice, where 1/2 is what a code may err by;
                // a single weight has no error but that.
                let size: f64 = weights.iter().map(|&v| f64::from(v).powi(2)).sum();
                assert!(
                    found <= plain * 1.0001 + 1e-13 * size,
                    "{depth}: {found} {plain}"
                );
            }
        }
    }
    // Of 40,000 weights up to 1.7 and one of 6, a step of 0.87 of the plain one takes 24 % of the squared error, 1.8, and adds
    // (0.13 * 6)^2 = 0.6 by what it cuts off: of 7.3, 16 % are left out.
    for largest in [6.0, -6.0] {
        let mut weights: Vec<f32> = (0..40_000).map(|i| (i as f32 / 4e4 - 0.5) * 3.4).collect();
        weights[17] = largest;
        let (found, plain) = errors_of_bytes(&weights);
        assert!((0.7..0.9).contains(&(found / plain)), "{found} {plain}");
    }
}

#[test]
fn bytes_are_the_nearest_codes() {
    let kernels = Kernels::new(Isa::Portable, 2).unwrap();
    for (rows, depth) in [(1, 1), (33, 31), (40, 64), (70, 200)] {
        let w = Weight::new(Element::F32, rows, depth, rows);
        for storage in [Storage::Int8, Storage::Int8Dynamic, Storage::Int8Wide] {
            let packed = pack(&kernels, &w, storage);
            for at in 0..rows {
                let (codes, factor) = column(&packed, at);
                for (code, value) in codes.iter().zip(row(&w, at)) {
                    // Half a step, and as much again where the factor that fits all codes is off a single one; what lies
                    // beyond the last code is cut off.
                    let error = (value - factor * *code as f32).abs();
                    let is_cut = match code {
                        -128 => value / factor < -128.0,
                        127 => value / factor > 127.0,
                        _ => false,
                    };
                    assert!(is_cut || error <= factor.abs(), "{value} {code}");
                }
            }
        }
    }
}

/// A multiplier that reaches the largest value of a group with `q` of 7 errs by at most half of
/// itself a value; the chosen one errs no more over the group.
#[test]
fn four_bits_err_no_more_than_the_plain_choice() {
    let kernels = Kernels::new(Isa::Portable, 2).unwrap();
    for (rows, depth) in [(1, 1), (33, 31), (40, 64), (70, 200)] {
        let mut w = Weight::new(Element::F32, rows, depth, rows);
        // Groups of different sizes, whole zeros among them.
        for (at, value) in w.values.iter_mut().enumerate() {
            *value *= [1.0, 0.3, 0.0, 0.05][at % depth / 32 % 4];
        }
        w.bytes = w
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let packed = pack(&kernels, &w, Storage::Int4);
        for at in 0..rows {
            let (codes, factor) = column(&packed, at);
            assert!(codes.iter().all(|code| code.abs() <= 120));
            for (codes, values) in codes.chunks(32).zip(row(&w, at).chunks(32)) {
                let scaled: Vec<f32> = values.iter().map(|value| value / factor).collect();
                let error = |code: f32, value: f32| (code - value) * (code - value);
                let found: f32 = (codes.iter().zip(&scaled))
                    .map(|(&code, &value)| error(code as f32, value))
                    .sum();
                let largest = scaled
                    .iter()
                    .fold(0.0, |most: f32, value| most.max(value.abs()));
                let plain = (largest / 7.0).ceil().clamp(1.0, 15.0);
                let expected: f32 = (scaled.iter())
                    .map(|&value| {
                        let q = (value / plain).round_ties_even().clamp(-8.0, 7.0);
                        error(q * plain, value)
                    })
                    .sum();
                assert!(found <= expected * 1.001 + 1e-3, "{found} {expected}");
            }
        }
    }
}

#[test]
fn weights_that_are_zero_tiny_or_not_finite() {
    let kernels = Kernels::new(Isa::Portable, 1).unwrap();
    for storage in STORAGES.into_iter().chain(INTEGERS) {
        for (value, expected) in [
            (0.0, Some(0.0)),
            (1e-40, Some(0.0)),
            (f32::NAN, None),
            (f32::INFINITY, None),
        ] {
            let mut w = Weight::new(Element::F32, 2, 40, 3);
            w.bytes[..160].fill(0);
            w.bytes[20..24].copy_from_slice(&value.to_le_bytes());
            let packed = pack(&kernels, &w, storage);
            let mut x = kernels.operand(Precision::F32, 1, 40);
            fill(&mut x, 4);
            let mut out = Stream::zeroed(1, 2);
            kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut out));
            match expected {
                Some(expected) => assert_eq!(out.values()[0], expected),
                None => assert!(out.values()[0].is_nan(), "{value}"),
            }
            assert!(out.values()[1].is_finite() && out.values()[1] != 0.0);
        }
    }
}

/// The bound of a sum of codes, and one rounding more for the factor.
#[test]
fn products_equal_plain_loops() {
    for_each_isa(|kernels| {
        for (case, (tokens, depth, columns)) in SHAPES.into_iter().enumerate() {
            for (precision, storage) in PRECISIONS
                .into_iter()
                .flat_map(|precision| STORAGES.map(|storage| (precision, storage)))
            {
                let mut x = kernels.operand(precision, tokens, depth);
                fill(&mut x, case);
                let w = Weight::new(Element::Bf16, columns, depth, case + 100);
                let packed = pack(kernels, &w, storage);
                let mut out = Stream::zeroed(tokens, columns);
                out.values_mut().fill(f32::NAN);
                kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut out));
                for at in 0..columns {
                    let (codes, factor) = column(&packed, at);
                    let codes: Vec<f64> = codes.into_iter().map(f64::from).collect();
                    for token in 0..tokens {
                        let (exact, bound) = dot(&wide(&x, token), &codes, precision);
                        let exact = f64::from(factor) * exact;
                        let bound = f64::from(factor).abs() * bound + exact.abs() * 2f64.powi(-23);
                        let found = f64::from(out.values()[token * columns + at]);
                        assert!(
                            (found - exact).abs() <= bound + 1e-30,
                            "{} {precision:?} {storage:?} [{tokens}, {depth}] -> {columns}, \
                             element {token}, {at}: {found}, expected {exact} to {bound}",
                            kernels.isa()
                        );
                    }
                }
            }
        }
    });
}

/// What a row of f32 becomes, and the product of that.
fn bytes_product(x: &[f32], codes: &[i32], factor: f32, storage: Storage) -> f32 {
    let largest = x.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    let is_wide = storage != Storage::Int8Dynamic;
    let most = if is_wide { 32639.0 } else { 127.0 };
    let x = (x.iter()).map(|value| (value * (most / largest)).round_ties_even() as i32);
    let sum = |part: fn(i32) -> i32| -> f32 {
        let products = x.clone().zip(codes).map(|(x, code)| part(x) * code);
        products.sum::<i32>() as f32
    };
    let sum = match is_wide {
        // The low byte is from -128 to 127.
        true => {
            sum(|x| (x + 128).div_euclid(256)) * 256.0 + sum(|x| (x + 128).rem_euclid(256) - 128)
        }
        false => sum(|x| x),
    };
    sum * (largest / most) * factor
}

/// Bit by bit, on every instruction set.
#[test]
fn products_of_bytes_are_those_of_plain_loops() {
    for_each_isa(|kernels| {
        for (precision, storage) in PRECISIONS
            .into_iter()
            .flat_map(|precision| INTEGERS.map(|storage| (precision, storage)))
        {
            let shapes = (1..41)
                .map(|tokens| (tokens, 130, 33))
                .chain([(70, 2100, 64)]);
            for (case, (tokens, depth, columns)) in SHAPES.into_iter().chain(shapes).enumerate() {
                let mut x = kernels.operand(precision, tokens, depth);
                fill(&mut x, case);
                let w = Weight::new(Element::F32, columns, depth, case + 100);
                let packed = pack(kernels, &w, storage);
                let mut out = Stream::zeroed(tokens, columns);
                out.values_mut().fill(f32::NAN);
                kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut out));
                for at in 0..columns {
                    let (codes, factor) = column(&packed, at);
                    for token in 0..tokens {
                        let x: Vec<f32> = (0..depth).map(|column| x.get(token, column)).collect();
                        let found = out.values()[token * columns + at];
                        assert_eq!(
                            found,
                            bytes_product(&x, &codes, factor, storage),
                            "{} {precision:?} {storage:?} [{tokens}, {depth}] -> {columns}, {token}, {at}",
                            kernels.isa()
                        );
                    }
                }
            }
        }
    });
}

/// Sums at the ends of their range, where saturating instructions would show.
#[test]
fn largest_bytes_are_summed_exactly() {
    for_each_isa(|kernels| {
        let (tokens, depth, columns) = (5, 4096, 32);
        for (sign, storage) in [1.0, -1.0]
            .into_iter()
            .flat_map(|sign| INTEGERS.map(|storage| (sign, storage)))
        {
            let mut w = Weight::new(Element::F32, columns, depth, 0);
            w.values.fill(2.0 * sign);
            w.bytes = w
                .values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            let packed = pack(kernels, &w, storage);
            let (codes, factor) = column(&packed, 7);
            // The second has a low byte of -128 in 16 bits: 32,639 / 0.5 times it is -32,384.
            for value in [-0.5f32, -0.5 * 32384.0 / 32639.0] {
                let mut row = vec![value; depth];
                row[0] = -0.5;
                let mut x = kernels.operand(Precision::F32, tokens, depth);
                for token in 0..tokens {
                    (0..depth).for_each(|k| x.set(token, k, row[k]));
                }
                let mut out = Stream::zeroed(tokens, columns);
                kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut out));
                let expected = bytes_product(&row, &codes, factor, storage);
                let exact: f32 = row.iter().map(|x| 2.0 * sign * x).sum();
                assert!((expected - exact).abs() < exact.abs() * 0.01);
                assert!(out.values().iter().all(|&value| value == expected));
            }
        }
    });
}

/// Kernels that this machine's tables may not hold.
#[cfg(target_arch = "x86_64")]
#[test]
fn every_kernel_of_bytes_sums_the_same() {
    use crate::x86::{avx2_int8, avx512_bytes};
    let mut micros: Vec<(&str, MicroInt8)> = vec![("plain", MICRO_PLAIN)];
    if Isa::Avx2.is_available() {
        micros.push(("avx2", avx2_int8::MICRO));
    }
    if Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vnni") {
        micros.push(("vnni", avx512_bytes::MICRO_VNNI));
    }
    for (name, micro) in micros {
        for rows in 1..=micro.max_rows {
            for chunks in [0, 1, 3] {
                for accumulate in [false, true] {
                    let mut next = noise(rows + chunks);
                    let mut random = |n: usize| -> Vec<i8> {
                        (0..n).map(|_| (next() * 128.0).floor() as i8).collect()
                    };
                    let a_row = chunks * quantised::CHUNK + 6;
                    let a = random(rows * a_row);
                    let b = random(chunks * quantised::INT8_CHUNK);
                    let mut found: Vec<i32> = (0..rows * PANEL).map(|at| at as i32).collect();
                    let mut expected = found.clone();
                    for row in 0..rows {
                        let sum: i32 = (0..chunks * quantised::CHUNK)
                            .map(|k| i32::from(a[row * a_row + k]))
                            .sum();
                        for (at, c) in expected[row * PANEL..][..PANEL].iter_mut().enumerate() {
                            *c = if accumulate { *c } else { 0 } + micro.offset * sum;
                            for k in 0..chunks * quantised::CHUNK {
                                let line = k / 64 * 32 + at / 16 * 16 + k % 64 / 4;
                                let b = b[line * 64 + at % 16 * 4 + k % 4];
                                *c += i32::from(a[row * a_row + k]) * i32::from(b);
                            }
                        }
                    }
                    // SAFETY: everything was allocated; the instruction set is there.
                    unsafe {
                        (micro.run)(&quantised::Int8Block {
                            a: a.as_ptr(),
                            a_row,
                            b: b.as_ptr(),
                            chunks,
                            c: found.as_mut_ptr(),
                            rows,
                            accumulate,
                            again: [Again::B, Again::Memory, Again::Next][rows % 3],
                            fetch: Fetch::firsts(b.as_ptr().cast()),
                        });
                    }
                    assert_eq!(found, expected, "{name}: {rows} rows, {chunks} chunks");
                }
            }
        }
    }
}

/// A row's bits, whatever stands beside it and wherever it stands: few rows are multiplied
/// otherwise than many.
#[test]
fn rows_do_not_depend_on_their_company() {
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            for (storage, depth) in [
                (Storage::Int8, 704),
                (Storage::Int4, 704),
                (Storage::Int4, 700),
                (Storage::Int8Dynamic, 1100),
                (Storage::Int8Wide, 1100),
                (Storage::Int4Wide, 1100),
            ] {
                let columns = 90;
                let w = Weight::new(Element::F32, columns, depth, 7);
                let packed = pack(kernels, &w, storage);
                let row_at = |tokens: usize, at: usize| {
                    let mut x = kernels.operand(precision, tokens, depth);
                    fill(&mut x, 100 + tokens);
                    let mut next = noise(1);
                    (0..depth).for_each(|column| x.set(at, column, next()));
                    let mut out = Stream::zeroed(tokens, columns);
                    kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut out));
                    out.values()[at * columns..(at + 1) * columns].to_vec()
                };
                let alone = row_at(1, 0);
                for tokens in (2..41).chain([600]) {
                    assert_eq!(
                        row_at(tokens, tokens * 7 % tokens.min(13)),
                        alone,
                        "{} {precision:?} {storage:?} {tokens}",
                        kernels.isa()
                    );
                }
            }
        }
    });
}

#[test]
fn gates_and_stacks_are_products_of_their_parts() {
    let (tokens, depth, columns) = (9, 128, 50);
    for_each_isa(|kernels| {
        for precision in PRECISIONS {
            for storage in STORAGES.into_iter().chain(INTEGERS) {
                let parts = [1, 2].map(|seed| Weight::new(Element::F16, columns, depth, seed));
                let mut x = kernels.operand(precision, tokens, depth);
                fill(&mut x, 5);
                let sums = |w: &PackedMatrix| {
                    let mut out = Stream::zeroed(tokens, w.shape().columns);
                    kernels.linear(&x, w, Epilogue::Scale(1.0, &mut out));
                    out
                };
                let [gates, ups] = [0, 1].map(|part| sums(&pack(kernels, &parts[part], storage)));
                let plain = [parts[0].plain(), parts[1].plain()];
                let stacked = kernels.pack(Parts::Stacked(&plain), depth, storage, None);
                let stacked = sums(&stacked);
                let [gate, up] = plain;
                let gated = kernels.pack(Parts::Gated { gate, up }, depth, storage, None);
                let mut out = Operand::zeroed(crate::operand::Form::F32, tokens, columns);
                kernels.linear(&x, &gated, Epilogue::Gate(Activation::Relu, &mut out));
                for token in 0..tokens {
                    for column in 0..columns {
                        let at = token * columns + column;
                        let (gate, up) = (gates.values()[at], ups.values()[at]);
                        let found = stacked.values()[token * 2 * columns + column];
                        assert_eq!(found, gate);
                        let found = stacked.values()[(token * 2 + 1) * columns + column];
                        assert_eq!(found, up);
                        assert_eq!(out.get(token, column), gate.max(0.0) * up);
                    }
                }
            }
        }
    });
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let (tokens, depth, columns) = (20, 64, 33);
    for_each_isa(|kernels| {
        for storage in STORAGES.into_iter().chain(INTEGERS) {
            let w = Weight::new(Element::F32, columns, depth, 3);
            let packed = pack(kernels, &w, storage);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = kernels.operand(Precision::F32, tokens, depth);
                fill(&mut x, 5);
                x.set(7, 20, bad);
                (0..depth).for_each(|column| x.set(11, column, 0.0));
                let mut out = Stream::zeroed(tokens, columns);
                kernels.linear(&x, &packed, Epilogue::Scale(1.0, &mut out));
                for (at, value) in out.values().iter().enumerate() {
                    match at / columns {
                        // A factor of zero times infinity, or a sum of that.
                        7 => assert!(!value.is_finite()),
                        11 => assert_eq!(*value, 0.0),
                        _ => assert!(value.is_finite()),
                    }
                }
            }
        }
    });
}

#[test]
fn rows_become_the_nearest_codes() {
    for_each_isa(|kernels| {
        for n in [0, 1, 31, 32, 33, 100] {
            for size in [1.0, 1e30, 1e-30, 1e-39] {
                let mut next = noise(n);
                let row: Vec<f32> = (0..n).map(|_| size * next()).collect();
                let mut codes = vec![99i8; n + 7];
                // SAFETY: the instruction set is there.
                let found = unsafe { (kernels.table.quantised.quantise)(&row, &mut codes) };
                let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                assert_eq!(found.sum, sum);
                assert!(codes[n..].iter().all(|&code| code == 0));
                for (value, &code) in row.iter().zip(&codes) {
                    let error = (value - found.factor * f32::from(code)).abs();
                    // So small a value is a zero.
                    let least = 127.0 / f32::MAX;
                    assert!(
                        error <= found.factor * (0.5 + 127.0 * 2f32.powi(-22)) + least,
                        "{value} {code} {}",
                        found.factor
                    );
                }
            }
        }
        // Half a step is rounded to the even code.
        let mut codes = [0i8; 4];
        // SAFETY: as above.
        let found =
            unsafe { (kernels.table.quantised.quantise)(&[127.0, 0.5, 1.5, -2.5], &mut codes) };
        assert_eq!(codes, [127, 0, 2, -2]);
        assert_eq!(
            found,
            RowCodes {
                factor: 1.0,
                sum: 127
            }
        );
    });
}

#[test]
fn rows_become_the_nearest_codes_of_sixteen_bits() {
    for_each_isa(|kernels| {
        for n in [0, 1, 31, 32, 33, 100] {
            for size in [1.0, 1e30, 1e-30, 1e-39] {
                let mut next = noise(n);
                let row: Vec<f32> = (0..n).map(|_| size * next()).collect();
                let mut bytes = [vec![99i8; n + 7], vec![99i8; n + 7]];
                let [high, low] = &mut bytes;
                let quantise = kernels.table.quantised.quantise_wide;
                // SAFETY: the instruction set is there.
                let found = unsafe { quantise(&row, [high, low]) };
                assert_eq!(found[0].factor, found[1].factor);
                for (bytes, found) in bytes.iter().zip(found) {
                    let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
                    assert_eq!(found.sum, sum);
                    assert!(bytes[n..].iter().all(|&byte| byte == 0));
                }
                let [high, low] = &bytes;
                for ((value, &high), &low) in row.iter().zip(high).zip(low) {
                    let code = i32::from(high) * 256 + i32::from(low);
                    assert!(code.abs() <= 32639);
                    let factor = found[0].factor;
                    let error = (value - factor * code as f32).abs();
                    // So small a value is a zero. Factor, quotient and product are rounded.
                    let least = 32639.0 / f32::MAX;
                    assert!(
                        error <= factor * (0.5 + 32639.0 * 3.0 * 2f32.powi(-24)) + least,
                        "{value} {code} {factor}"
                    );
                }
            }
        }
    });
}
