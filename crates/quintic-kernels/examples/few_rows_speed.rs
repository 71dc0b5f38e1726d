//! How fast few rows pass over weights: from the second-level cache, where arithmetic is the limit,
//! and from memory, where reading is. GB/s of weights; the f32 products of a step of a decoder are
//! limited by the same.
//!
//! `cargo run --release -p quintic-kernels --example few_rows_speed [threads]`

use std::time::Instant;

use quintic_kernels::{Element, Epilogue, Isa, Kernels, Parts, Plain, Precision, Storage, Stream};

const DEPTH: usize = 768;
const REPEATS: usize = 7;

fn main() {
    let threads = std::env::args()
        .nth(1)
        .map_or(1, |n| n.parse().expect("a number of threads"));
    let isa = Isa::choose().expect("QUINTIC_ISA names an instruction set that is there");
    let kernels = Kernels::new(isa, threads).expect("an available instruction set");
    println!("{isa}, {threads} threads; GB/s of weights by rows");
    let mut kinds = Vec::new();
    for (precision, element) in [
        (Precision::Bf16, Element::Bf16),
        (Precision::F32, Element::Bf16),
        (Precision::F32, Element::F32),
    ] {
        kinds.push((precision, element, kernels.storage(precision, element)));
    }
    for (precision, storage) in [
        (Precision::Bf16, Storage::Int8),
        (Precision::Bf16, Storage::Int4),
        (Precision::F32, Storage::Int8),
        (Precision::F32, Storage::Int4),
        (Precision::F32, Storage::Int8Dynamic),
        (Precision::F32, Storage::Int8Wide),
        (Precision::F32, Storage::Int4Wide),
    ] {
        kinds.push((precision, Element::Bf16, storage));
    }
    for (precision, element, storage) in kinds {
        for (from, mebibytes) in [("cache ", threads as f64 * 0.375), ("memory", 240.0)] {
            print!("{precision:?} over {} from {from}:", storage.name());
            // As many weights as fill so much memory in bf16, whose panels have a size to compare.
            let columns = (mebibytes * f64::from(1 << 20)) as usize / (DEPTH * element.size());
            let bytes = vec![0u8; columns * DEPTH * element.size()];
            let plain = [Plain {
                element,
                bytes: &bytes,
                rows: columns,
            }];
            let w = kernels.pack(Parts::Stacked(&plain), DEPTH, storage, None);
            for rows in [1, 2, 3, 4, 5, 6, 8, 10, 12, 13, 14, 16, 28] {
                let x = kernels.operand(precision, rows, DEPTH);
                let mut out = Stream::zeroed(rows, columns);
                let n_bytes = w.shape().n_bytes() as f64;
                let runs = (100e6 / n_bytes).ceil() as usize;
                let mut best = f64::INFINITY;
                for _ in 0..REPEATS {
                    let started = Instant::now();
                    for _ in 0..runs {
                        kernels.linear(&x, &w, Epilogue::Scale(1.0, &mut out));
                    }
                    best = best.min(started.elapsed().as_secs_f64() / runs as f64);
                }
                print!(" {rows}: {:.1}", n_bytes / best / 1e9);
            }
            println!();
        }
    }
}
