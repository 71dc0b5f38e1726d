//! GB/s at which products of few rows read weights that come from memory, as a decoder's do, and GFLOP/s;
//! first the same from a cache. Compare with the read bandwidth of `quintic bench --machine`.
//!
//! `cargo run --release -p quintic-kernels --example few_rows_speed [threads] [isa] [f32|bf16|f16]`

use std::time::Instant;

use quintic_kernels::{Element, Epilogue, Isa, Kernels, Parts, Plain, Precision, Stream};

/// Columns, depth, and how many such matrices are read in turns.
const MATRICES: [(usize, usize, usize); 4] = [
    (512, 768, 1),
    (768, 768, 200),
    (4096, 768, 40),
    (768, 2048, 80),
];

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let argument = |n| std::env::args().nth(n);
    let threads = argument(1).map_or(2, |n| n.parse().expect("a number of threads"));
    let isa_wanted = argument(2);
    let element = match argument(3).as_deref() {
        None | Some("bf16") => Element::Bf16,
        Some("f16") => Element::F16,
        Some("f32") => Element::F32,
        Some(other) => panic!("{other} is not f32, bf16 or f16"),
    };
    for isa in Isa::available() {
        let name = isa.to_string();
        if isa_wanted.as_ref().is_some_and(|wanted| *wanted != name) {
            continue;
        }
        let kernels = Kernels::new(isa, threads).expect("an available instruction set");
        let storage = kernels.storage(Precision::F32, element);
        for (columns, depth, copies) in MATRICES {
            let n_bytes = columns * depth * element.size();
            let bytes = vec![0u8; n_bytes];
            let plain = [Plain {
                element,
                bytes: &bytes,
                rows: columns,
            }];
            let pack = |_| kernels.pack(Parts::Stacked(&plain), depth, storage, None);
            let weights: Vec<_> = (0..copies).map(pack).collect();
            print!("{isa:>10} {copies:>3} x {columns} x {depth} {storage:?}:");
            for rows in [
                1, 2, 4, 6, 8, 10, 13, 16, 20, 26, 32, 39, 48, 52, 64, 100, 128,
            ] {
                let x = kernels.operand(Precision::F32, rows, depth);
                let mut out = Stream::zeroed(rows, columns);
                let passes = if copies == 1 { 100 } else { 1 };
                let run = |_| {
                    let started = Instant::now();
                    for _ in 0..passes {
                        for w in &weights {
                            kernels.linear(&x, w, Epilogue::Add(&mut out));
                        }
                    }
                    started.elapsed().as_secs_f64()
                };
                let read = (n_bytes * copies * passes) as f64 / 1e9;
                let rate = read / median((0..12).map(run).collect());
                let flops = 2.0 * rows as f64 / element.size() as f64;
                print!("  {rows}: {rate:.1} ({:.0})", rate * flops);
            }
            println!();
        }
    }
}
