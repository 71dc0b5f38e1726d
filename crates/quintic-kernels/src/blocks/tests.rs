//! Against the values of the Python package `gguf`.

use super::*;

/// `testdata/blocks/NAME.bin`: blocks, then their values in f32.
fn golden(kind: BlockType) -> (Vec<u8>, Vec<f32>) {
    let path = format!(
        "{}/../../testdata/blocks/{kind}.bin",
        env!("CARGO_MANIFEST_DIR")
    );
    let bytes = std::fs::read(path).unwrap();
    let n = bytes.len() / (kind.bytes() + 4 * kind.values());
    let (blocks, values) = bytes.split_at(n * kind.bytes());
    assert_eq!(values.len(), 4 * n * kind.values());
    let values = values
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    (blocks.to_vec(), values)
}

#[test]
fn values_are_those_of_the_reference_bit_for_bit() {
    for kind in BlockType::ALL {
        let (blocks, expected) = golden(kind);
        assert!(expected.len() >= 2048, "{kind}");
        let mut found = vec![0.0; expected.len()];
        kind.decode(&blocks, &mut found);
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(
                found.to_bits(),
                expected.to_bits(),
                "{kind}, value {at}: {found} {expected}"
            );
        }
    }
}

#[test]
fn a_range_is_a_part_of_the_whole() {
    for kind in BlockType::ALL {
        let (blocks, expected) = golden(kind);
        for (from, n) in [(0, 1), (31, 2), (5, 300), (256, 256), (expected.len(), 0)] {
            let mut found = vec![0.0; n];
            kind.decode_from(&blocks, from, &mut found);
            assert_eq!(found, expected[from..from + n], "{kind} {from} {n}");
        }
    }
}

#[test]
fn sizes_are_those_of_whole_blocks() {
    for kind in BlockType::ALL {
        assert_eq!(kind.values() % GROUP, 0);
        assert_eq!(kind.bytes_of(3 * kind.values()), Some(3 * kind.bytes()));
        assert_eq!(kind.bytes_of(kind.values() + 1), None);
    }
}
