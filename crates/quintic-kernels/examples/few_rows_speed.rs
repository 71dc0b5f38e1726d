//! How fast few rows pass over weights: from the second-level cache, where arithmetic is the limit,
//! and from memory, where reading is, in one matrix and in as many of 768 columns as fill the same.
//! GB/s of weights, medians; the f32 products of a step of a decoder are limited by the same.
//!
//! `cargo run --release -p quintic-kernels --example few_rows_speed [threads] [part of a kind's name]`,
//! on the instruction set that `QUINTIC_ISA` names.

use std::time::Instant;

use quintic_kernels::{Element, Epilogue, Isa, Kernels, Parts, Plain, Precision, Storage, Stream};

const DEPTH: usize = 768;
const REPEATS: usize = 9;

/// Bytes of weights from memory, if they were bf16.
const MEMORY: usize = 240 << 20;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let threads = std::env::args()
        .nth(1)
        .map_or(1, |n| n.parse().expect("a number of threads"));
    let wanted = std::env::args().nth(2);
    let isa = Isa::choose().expect("QUINTIC_ISA names an instruction set that is there");
    let kernels = Kernels::new(isa, threads).expect("an available instruction set");
    println!("{isa}, {threads} threads; GB/s of weights by rows");
    let mut kinds = Vec::new();
    for (precision, element) in [
        (Precision::Bf16, Element::Bf16),
        (Precision::F32, Element::Bf16),
        (Precision::F32, Element::F16),
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
        let name = format!("{precision:?} over {}", storage.name());
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted)) {
            continue;
        }
        // As many weights as fill so much memory in bf16, whose panels have a size to compare.
        let columns_of = |n_bytes: usize| n_bytes / (DEPTH * element.size());
        let small = DEPTH * DEPTH * element.size();
        for (from, columns, copies) in [
            ("cache ", columns_of(threads * (384 << 10)), 1),
            ("memory", columns_of(MEMORY), 1),
            ("pieces", DEPTH, MEMORY / small),
        ] {
            print!("{name} from {from}:");
            let bytes = vec![0u8; columns * DEPTH * element.size()];
            let plain = [Plain {
                element,
                bytes: &bytes,
                rows: columns,
            }];
            let pack = |_| kernels.pack(Parts::Stacked(&plain), DEPTH, storage, None);
            let weights: Vec<_> = (0..copies).map(pack).collect();
            let n_bytes = (weights[0].shape().n_bytes() * copies) as f64;
            for rows in [1, 2, 4, 6, 8, 10, 13, 14, 16, 20, 26, 32, 48, 64, 96, 128] {
                let x = kernels.operand(precision, rows, DEPTH);
                let mut out = Stream::zeroed(rows, columns);
                let runs = (100e6 / n_bytes).ceil() as usize;
                let run = |_| {
                    let started = Instant::now();
                    for _ in 0..runs {
                        for w in &weights {
                            kernels.linear(&x, w, Epilogue::Scale(1.0, &mut out));
                        }
                    }
                    started.elapsed().as_secs_f64() / runs as f64
                };
                let seconds = median((0..REPEATS).map(run).collect());
                print!(" {rows}: {:.1}", n_bytes / seconds / 1e9);
            }
            println!();
        }
    }
}
