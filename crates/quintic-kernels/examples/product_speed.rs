//! GFLOP/s of single products, warm, by instruction set and precision.
//!
//! `cargo run --release -p quintic-kernels --example product_speed [threads]`

use std::time::Instant;

use quintic_kernels::{Element, Epilogue, Isa, Kernels, Parts, Plain, Precision, Stream};

fn main() {
    let threads = std::env::args()
        .nth(1)
        .map_or(2, |n| n.parse().expect("a number of threads"));
    for isa in Isa::available() {
        let kernels = Kernels::new(isa, threads).expect("an available instruction set");
        for (precision, element) in [
            (Precision::F32, Element::F32),
            (Precision::F32, Element::Bf16),
            (Precision::F32, Element::F16),
            (Precision::Split, Element::Bf16),
            (Precision::Bf16, Element::Bf16),
        ] {
            print!("{isa:>10} {precision:?} over {element:?}:");
            for (tokens, depth, columns) in [
                (512, 768, 2304),
                (512, 2048, 6144),
                (512, 5120, 2048),
                (2048, 1024, 2816),
                (32, 2048, 6144),
                (1, 2048, 6144),
            ] {
                let bytes = vec![0u8; columns * depth * element.size()];
                let plain = [Plain {
                    element,
                    bytes: &bytes,
                    rows: columns,
                }];
                let storage = kernels.storage(precision, element);
                let w = kernels.pack(Parts::Stacked(&plain), depth, storage, None);
                let x = kernels.operand(precision, tokens, depth);
                let mut out = Stream::zeroed(tokens, columns);
                let mut times: Vec<f64> = Vec::new();
                let started = Instant::now();
                while times.len() < 5 || started.elapsed().as_millis() < 150 {
                    let run = Instant::now();
                    kernels.linear(&x, &w, Epilogue::Add(&mut out));
                    times.push(run.elapsed().as_secs_f64());
                }
                times.sort_by(f64::total_cmp);
                let median = times[times.len() / 2];
                let flops = 2.0 * tokens as f64 * depth as f64 * columns as f64;
                print!(" {tokens}x{depth}x{columns} {:.0}", flops / median / 1e9);
            }
            println!();
        }
    }
}
