//! Attention with a bias and a mask of one's own: ALiBi and a sliding window, checked against
//! plain loops and then timed beside what the crate brings.
//!
//! `cargo run --release -p quintic-kernels --example score_mods [threads]`

mod mods;
mod plain;

use std::time::Instant;

use mods::{Alibi, Window};
use plain::Case;
use quintic_kernels::{Isa, Kernels, NoBias, NoMask, Operand, Precision, RelativeBias};

const HEADS: usize = 16;
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

fn main() {
    let threads = std::env::args()
        .nth(1)
        .map_or(1, |n| n.parse().expect("a number of threads"));
    let isa = Isa::choose().expect("an instruction set of this machine");
    let kernels = Kernels::new(isa, threads).expect("threads");
    let alibi = Alibi::new(HEADS);

    let small = Case::new(&kernels, HEADS, 64, &[1, 33, 600, 0, 64]);
    for precision in PRECISIONS {
        small.check(
            &kernels,
            precision,
            &alibi,
            &NoMask,
            |h, q, k| alibi.exact(h, q, k),
            |_, _| true,
        );
        for window in [0, 5, 100, 1000] {
            let window = Window(window);
            small.check(
                &kernels,
                precision,
                &NoBias,
                &window,
                |_, _, _| 0.0,
                |q, k| window.sees(q, k),
            );
        }
    }
    println!("{isa}: ALiBi and windows equal plain loops; {threads} threads, {HEADS} heads of 64");

    // As in T5: constant from 128 tokens on.
    let relative = RelativeBias::new(HEADS, 128, |head, distance| {
        (head as i64 + distance) as f32 / 100.0
    });
    let ragged: Vec<usize> = (0..32).map(|row| 8 + row * 37 % 120).collect();
    for precision in PRECISIONS {
        for (name, lengths) in [
            ("512", &[512][..]),
            ("4096", &[4096]),
            ("32 ragged rows", &ragged),
        ] {
            let case = Case::new(&kernels, HEADS, 64, lengths);
            let attention = case.attention();
            let times = interleaved(
                case.out(&kernels, precision),
                &mut [
                    &mut |out| kernels.attend(&attention, &relative, &NoMask, out),
                    &mut |out| kernels.attend(&attention, &alibi, &NoMask, out),
                    &mut |out| kernels.attend(&attention, &NoBias, &NoMask, out),
                ],
            );
            println!(
                "{precision:?}, {name}: built-in bias {:.2} ms, ALiBi {:.2} ms ({:.0} % of its speed), no bias {:.2} ms",
                times[0],
                times[1],
                100.0 * times[0] / times[1],
                times[2]
            );
        }
        let case = Case::new(&kernels, HEADS, 64, &[4096]);
        let attention = case.attention();
        let times = interleaved(
            case.out(&kernels, precision),
            &mut [
                &mut |out| kernels.attend(&attention, &NoBias, &NoMask, out),
                &mut |out| kernels.attend(&attention, &NoBias, &Window(64), out),
                &mut |out| kernels.attend(&attention, &NoBias, &Window(256), out),
                &mut |out| kernels.attend(&attention, &NoBias, &Window(1024), out),
            ],
        );
        print!("{precision:?}, 4096, no mask {:.2} ms; window of", times[0]);
        for (window, time) in [64, 256, 1024].into_iter().zip(&times[1..]) {
            // Queries near the ends of the row see fewer keys.
            let seen: usize = (0..4096usize)
                .map(|query| (query + window).min(4095) - query.saturating_sub(window) + 1)
                .sum();
            print!(
                " {window}: {time:.2} ms, {:.1} % of the time for {:.1} % of the keys;",
                100.0 * time / times[0],
                100.0 * seen as f64 / (4096.0 * 4096.0)
            );
        }
        println!();
    }
}

/// Median milliseconds of each run, after one to warm up; the runs take turns, so that all meet
/// the same disturbances.
fn interleaved(mut out: Operand, runs: &mut [&mut dyn FnMut(&mut Operand)]) -> Vec<f64> {
    let mut times = vec![Vec::new(); runs.len()];
    let started = Instant::now();
    for round in 0.. {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            let begun = Instant::now();
            run(&mut out);
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        if round >= 7 && started.elapsed().as_millis() > 1500 {
            break;
        }
    }
    times
        .into_iter()
        .map(|mut times| {
            times.remove(0);
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
        .collect()
}
