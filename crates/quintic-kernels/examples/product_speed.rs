//! GFLOP/s of single products, warm, by instruction set and precision, and in brackets their share in percent
//! of what the multiplying unit did in registers just before each run.
//!
//! `cargo run --release -p quintic-kernels --example product_speed [threads] [isa] [storage]`

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use quintic_kernels::machine::{Effort, Unit};
use quintic_kernels::{Element, Epilogue, Isa, Kernels, Parts, Plain, Precision, Storage, Stream};

/// Operations a second from registers, of whatever multiplies in this product.
fn peak(isa: Isa, precision: Precision, storage: Storage, threads: usize) -> Option<f64> {
    let bytes = matches!(
        storage,
        Storage::Int8Dynamic | Storage::Int8Wide | Storage::Int4Wide
    );
    let unit = match (bytes, precision) {
        (true, _) if isa >= Isa::Avx512 => Unit::Avx512Vnni,
        (_, Precision::Bf16) => Unit::of_bf16(isa)?,
        _ => Unit::of_f32(isa),
    };
    let effort = Effort {
        repetitions: 1,
        duration: Duration::from_millis(20),
    };
    let rate = unit.peak(NonZeroUsize::new(threads)?, effort)?;
    Some(rate.best)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let threads = std::env::args()
        .nth(1)
        .map_or(2, |n| n.parse().expect("a number of threads"));
    let (isa_wanted, storage_wanted) = (std::env::args().nth(2), std::env::args().nth(3));
    for isa in Isa::available() {
        if isa_wanted
            .as_ref()
            .is_some_and(|wanted| *wanted != isa.to_string())
        {
            continue;
        }
        let kernels = Kernels::new(isa, threads).expect("an available instruction set");
        let in_floats = [
            (Precision::F32, Element::F32),
            (Precision::F32, Element::Bf16),
            (Precision::F32, Element::F16),
            (Precision::Split, Element::Bf16),
            (Precision::Bf16, Element::Bf16),
        ]
        .map(|(precision, element)| (precision, element, kernels.storage(precision, element)));
        let in_integers = [
            Storage::Int8,
            Storage::Int8Dynamic,
            Storage::Int8Wide,
            Storage::Int4,
            Storage::Int4Wide,
        ]
        .map(|storage| (Precision::F32, Element::F32, storage));
        for (precision, element, storage) in in_floats.into_iter().chain(in_integers) {
            let name = format!("{storage:?}");
            if storage_wanted
                .as_ref()
                .is_some_and(|wanted| *wanted != name)
            {
                continue;
            }
            print!("{isa:>10} {precision:?} over {element:?} as {name}:");
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
                let w = kernels.pack(Parts::Stacked(&plain), depth, storage, None);
                let x = kernels.operand(precision, tokens, depth);
                let mut out = Stream::zeroed(tokens, columns);
                let flops = 2.0 * tokens as f64 * depth as f64 * columns as f64;
                let (mut rates, mut shares) = (Vec::new(), Vec::new());
                let started = Instant::now();
                while rates.len() < 9 || started.elapsed().as_millis() < 600 {
                    let limit = peak(isa, precision, storage, threads);
                    kernels.linear(&x, &w, Epilogue::Add(&mut out));
                    let run = Instant::now();
                    kernels.linear(&x, &w, Epilogue::Add(&mut out));
                    let rate = flops / run.elapsed().as_secs_f64();
                    shares.extend(limit.map(|limit| rate / limit * 100.0));
                    rates.push(rate);
                }
                print!(" {tokens}x{depth}x{columns} {:.0}", median(rates) / 1e9);
                if !shares.is_empty() {
                    print!(" ({:.0})", median(shares));
                }
            }
            println!();
        }
    }
}
