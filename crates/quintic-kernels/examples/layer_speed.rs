//! Where the time of an encoder's pass goes: milliseconds and GFLOP/s of each operation, summed over the
//! layers, of random weights. Passes follow each other. Shown are the floor (the fastest time of each layer, summed), and the
//! tenth and the median pass, since a machine that others share has fast and slow moments.
//!
//! `cargo run --release -p quintic-kernels --example layer_speed [base|large|xl] [tokens] [threads] [isa] [f32|f32-bf16|parts|parts-bf16|split|split-f32|bf16|int8|w8a8] [operation]`
//!
//! With the name of an operation all others are left out after the first pass.

use std::time::{Duration, Instant};

use quintic_kernels::{
    Activation, Attention, Element, Epilogue, Isa, Kernels, KeysValues, NoMask, Operand,
    PackedMatrix, Parts, Plain, Precision, RelativeBias, Storage, Stream,
};

/// Seconds that are measured.
const SECONDS: u64 = 8;

const MAX_LAYERS: usize = 24;

/// Operations of a layer, in their order.
const NAMES: [&str; 7] = ["norm", "qkv", "attend", "o", "norm", "wi", "wo"];

struct Layer {
    qkv: PackedMatrix,
    o: PackedMatrix,
    wi: PackedMatrix,
    wo: PackedMatrix,
}

fn main() {
    let argument = |n: usize, default: &str| std::env::args().nth(n).unwrap_or(default.into());
    let (d_model, d_ff, n_layers, n_heads) = match argument(1, "base").as_str() {
        "base" => (768, 2048, 12, 12),
        "large" => (1024, 2816, 24, 16),
        "xl" => (2048, 5120, 24, 32),
        other => panic!("no shape {other}"),
    };
    let tokens: usize = argument(2, "512").parse().expect("a number of tokens");
    let threads: usize = argument(3, "2").parse().expect("a number of threads");
    let best = Isa::available()
        .last()
        .expect("one is always there")
        .to_string();
    let wanted = argument(4, &best);
    let isa = Isa::available()
        .into_iter()
        .find(|isa| isa.to_string() == wanted)
        .expect("an instruction set of this machine");
    let (precision, element) = match argument(5, "bf16").as_str() {
        "bf16" | "int8" | "w8a8" => (Precision::Bf16, Element::Bf16),
        "split" => (Precision::Split, Element::Bf16),
        "split-f32" => (Precision::Split, Element::F32),
        "f32" | "parts" => (Precision::F32, Element::F32),
        "f32-bf16" | "parts-bf16" => (Precision::F32, Element::Bf16),
        other => panic!("no precision {other}"),
    };
    let kernels = Kernels::new(isa, threads).expect("an available instruction set");
    // Of all products but the last, and of that.
    let [storage, storage_of_wo] = match argument(5, "bf16").as_str() {
        "int8" => [Storage::Int8Wide; 2],
        "w8a8" => [Storage::Int8Dynamic, Storage::Int8Wide],
        _ => [kernels.storage(precision, element); 2],
    };
    let in_parts = argument(5, "bf16").starts_with("parts");
    let only = std::env::args().nth(6);
    let d_kv = 64;
    let inner = n_heads * d_kv;

    let matrix = |rows: usize, depth: usize| -> Vec<u8> {
        let mut state = 1u32;
        let scale = (depth as f32).sqrt().recip() * 1e-9;
        let values = (0..rows * depth).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as i32 as f32 * scale
        });
        match element {
            Element::Bf16 => values
                .flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes())
                .collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        }
    };
    let pack = |rows: usize, depth: usize, gated: bool, storage: Storage| {
        let bytes = matrix(rows, depth);
        let plain = Plain {
            element,
            bytes: &bytes,
            rows,
        };
        let parts = [plain];
        let parts = match gated {
            true => Parts::Gated {
                gate: plain,
                up: plain,
            },
            false => Parts::Stacked(&parts),
        };
        let packed = kernels.pack(parts, depth, storage, None);
        match in_parts {
            true => packed.in_parts(),
            false => packed,
        }
    };
    let layers: Vec<Layer> = (0..n_layers)
        .map(|_| Layer {
            qkv: pack(3 * inner, d_model, false, storage),
            o: pack(d_model, inner, false, storage),
            wi: pack(d_ff, d_model, true, storage),
            wo: pack(d_model, d_ff, false, storage_of_wo),
        })
        .collect();

    let products = |rows: usize, depth: usize| 2.0 * (n_layers * tokens * rows * depth) as f64;
    let flops = [
        0.0,
        products(3 * inner, d_model),
        4.0 * (n_layers * tokens * tokens * inner) as f64,
        products(d_model, inner),
        0.0,
        products(2 * d_ff, d_model),
        products(d_model, d_ff),
    ];
    let bias = RelativeBias::new(n_heads, 128, |head, d| {
        (head as f32 - d as f32 / 64.0) / 8.0
    });
    let mut x = Stream::zeroed(tokens, d_model);
    let row_starts = [0, tokens];
    let mut times: [Vec<f64>; NAMES.len()] = Default::default();
    let mut passes = Vec::new();
    let mut floors = [[f64::INFINITY; NAMES.len()]; MAX_LAYERS];
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(SECONDS) {
        let mut state = 7u32;
        for value in x.values_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *value = state as i32 as f32 * 5e-10;
        }
        let mut pass = [0.0; NAMES.len()];
        let whole = Instant::now();
        let operand = |columns| kernels.operand(precision, tokens, columns);
        let mut normed: Operand = operand(d_model);
        let mut heads = operand(inner);
        let mut hidden = operand(d_ff);
        let mut qkv = kernels.attention_operand(precision, tokens, 3 * inner, d_kv);
        for (layer, floors) in layers.iter().zip(&mut floors) {
            let mut op = 0;
            let is_left_out = |op: usize| {
                !passes.is_empty() && only.as_ref().is_some_and(|only| only != NAMES[op])
            };
            let mut timed = |run: &mut dyn FnMut()| {
                if is_left_out(op) {
                    op += 1;
                    return;
                }
                let start = Instant::now();
                run();
                let time = start.elapsed().as_secs_f64() * 1e3;
                pass[op] += time;
                floors[op] = floors[op].min(time);
                op += 1;
            };
            timed(&mut || kernels.rms_norm(&x, None, 1e-6, &mut normed));
            timed(&mut || kernels.linear(&normed, &layer.qkv, Epilogue::Store(&mut qkv)));
            timed(&mut || {
                let attention = Attention {
                    n_heads,
                    d_kv,
                    queries: &qkv,
                    row_starts: &row_starts,
                    keys: KeysValues {
                        keys: &qkv,
                        key_column: inner,
                        values: &qkv,
                        value_column: 2 * inner,
                        starts: &row_starts[..1],
                        ends: &row_starts[1..],
                    },
                    queries_are_last: false,
                    head_gains: None,
                };
                kernels.attend(&attention, &bias, &NoMask, &mut heads);
            });
            timed(&mut || kernels.linear(&heads, &layer.o, Epilogue::Add(&mut x)));
            timed(&mut || kernels.rms_norm(&x, None, 1e-6, &mut normed));
            timed(&mut || {
                let gate = Epilogue::Gate(Activation::GeluTanh, &mut hidden);
                kernels.linear(&normed, &layer.wi, gate);
            });
            timed(&mut || kernels.linear(&hidden, &layer.wo, Epilogue::Add(&mut x)));
        }
        passes.push(whole.elapsed().as_secs_f64() * 1e3);
        for (times, time) in times.iter_mut().zip(pass) {
            times.push(time);
        }
    }
    assert!(
        x.values().iter().all(|value| value.is_finite()),
        "a pass over finite values is finite"
    );
    let summary = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        (times[times.len() / 10], times[times.len() / 2])
    };
    println!(
        "{isa}, {threads} threads, {tokens} tokens, {} passes; ms of floor, tenth and median, GFLOP/s of the floor",
        passes.len()
    );
    let floor = |op: usize| {
        floors[..n_layers]
            .iter()
            .map(|floors| floors[op])
            .sum::<f64>()
    };
    let row = |name: &str, floor: f64, times: Vec<f64>, flops: f64| {
        let (tenth, median) = summary(times);
        println!(
            "{name:>8} {floor:8.2} {tenth:8.2} {median:8.2} {:8.0}",
            flops / floor / 1e6
        );
    };
    row(
        "pass",
        (0..NAMES.len()).map(floor).sum(),
        passes,
        flops.iter().sum(),
    );
    for (op, (name, times)) in NAMES.iter().zip(times).enumerate() {
        row(name, floor(op), times, flops[op]);
    }
}
