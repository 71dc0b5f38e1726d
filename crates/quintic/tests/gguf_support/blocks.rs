//! Blocks of every type, with random bytes.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use quintic::BlockType;

/// GGML's number of a block type.
pub fn id(kind: BlockType) -> u32 {
    match kind {
        BlockType::Q4_0 => 2,
        BlockType::Q4_1 => 3,
        BlockType::Q5_0 => 6,
        BlockType::Q5_1 => 7,
        BlockType::Q8_0 => 8,
        BlockType::Q2_K => 10,
        BlockType::Q3_K => 11,
        BlockType::Q4_K => 12,
        BlockType::Q5_K => 13,
        BlockType::Q6_K => 14,
        BlockType::IQ4_NL => 20,
        BlockType::IQ4_XS => 23,
        other => panic!("{other}"),
    }
}

/// Numbers that look random.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 24) as u32
    }

    /// In [-1, 1).
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Blocks for `n` values: random bytes, with scales that keep most values below a quarter.
pub fn random_blocks(kind: BlockType, n: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..kind.bytes_of(n).unwrap())
        .map(|_| random.bits() as u8)
        .collect();
    // Where a block's scales of 16 bits are, and the largest number that each is multiplied with.
    let fields: &[(usize, f32)] = match kind {
        BlockType::Q4_0 => &[(0, 8.0)],
        BlockType::Q4_1 => &[(0, 15.0), (2, 1.0)],
        BlockType::Q5_0 => &[(0, 16.0)],
        BlockType::Q5_1 => &[(0, 31.0), (2, 1.0)],
        BlockType::Q8_0 => &[(0, 128.0)],
        BlockType::Q2_K => &[(80, 45.0), (82, 15.0)],
        BlockType::Q3_K => &[(108, 128.0)],
        BlockType::Q4_K => &[(0, 945.0), (2, 63.0)],
        BlockType::Q5_K => &[(0, 1953.0), (2, 63.0)],
        BlockType::Q6_K => &[(208, 4096.0)],
        BlockType::IQ4_NL => &[(0, 127.0)],
        BlockType::IQ4_XS => &[(0, 4064.0)],
        other => panic!("{other}"),
    };
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        for &(at, most) in fields {
            let scale = half::f16::from_f32(random.value() * 0.25 / most);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}
