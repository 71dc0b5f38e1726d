//! What quantised weights cost that stay in their blocks: nanoseconds a weight of a product on one
//! thread, with one row and with many, beside the same product over packed bf16.
//!
//! `cargo run --release -p quintic-kernels --example expand_speed`

use std::sync::Arc;
use std::time::Instant;

use quintic_kernels::{
    BlockType, Bytes, Element, Encoding, Epilogue, Isa, Kernels, PackedMatrix, Parts, Plain,
    Precision, Storage, StoredMatrix, StoredParts, Stream,
};

const ROWS: usize = 2048;
const DEPTH: usize = 2048;
const REPEATS: usize = 7;

struct Stored(Vec<u8>);

impl Bytes for Stored {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn main() {
    let isa = Isa::choose().expect("QUINTIC_ISA names an instruction set that is there");
    let kernels = Kernels::new(isa, 1).expect("an available instruction set");
    println!("{isa}; nanoseconds a weight");
    for precision in [Precision::F32, Precision::Bf16] {
        let plain = Plain {
            element: Element::Bf16,
            bytes: &vec![0; ROWS * DEPTH * 2],
            rows: ROWS,
        };
        let packed = kernels.pack(Parts::Stacked(&[plain]), DEPTH, Storage::Bf16, None);
        print("packed bf16", &kernels, precision, &packed);
        for block in BlockType::ALL {
            // Zeros take as long as other codes.
            let n_bytes = ROWS * DEPTH / block.values() * block.bytes();
            let stored = StoredMatrix {
                encoding: Encoding::Blocks(block),
                rows: ROWS,
                bytes: Arc::new(Stored(vec![0; n_bytes])),
            };
            let rounds = precision == Precision::Bf16;
            let parts = StoredParts::Stacked(vec![stored]);
            let w = PackedMatrix::stored(parts, DEPTH, None, rounds);
            print(&format!("{block:?}"), &kernels, precision, &w);
        }
    }
}

fn print(name: &str, kernels: &Kernels, precision: Precision, w: &PackedMatrix) {
    let [one, many] = [1, 512].map(|tokens| {
        let x = kernels.operand(precision, tokens, DEPTH);
        let mut out = Stream::zeroed(tokens, ROWS);
        let mut best = f64::INFINITY;
        for _ in 0..REPEATS {
            let start = Instant::now();
            kernels.linear(&x, w, Epilogue::Scale(1.0, &mut out));
            best = best.min(start.elapsed().as_secs_f64());
        }
        best * 1e9 / (ROWS * DEPTH) as f64
    });
    println!("{precision:?} {name:12} 1 row: {one:.3}, 512 rows: {many:.3}");
}
