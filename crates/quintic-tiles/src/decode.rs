//! From bytes to tile instructions.

/// General registers in the order of their encoding.
pub(crate) const RSP: u8 = 4;

/// An address as an instruction names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) base: Base,
    /// Number of the index register.
    pub(crate) index: Option<u8>,
    /// The index is shifted left by this.
    pub(crate) scale: u8,
    pub(crate) displacement: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    None,
    /// The address behind the instruction.
    Next,
    /// Number of a general register.
    Register(u8),
}

/// The dot products, by the type of their elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    Bf16,
    /// Signed bytes times signed bytes.
    Signed,
    /// Unsigned bytes of the first source times signed bytes of the second.
    UnsignedSigned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instruction {
    LoadConfig(Address),
    StoreConfig(Address),
    Release,
    Zero(usize),
    /// In a tile's address, base and displacement are where its first row is, and the scaled
    /// index is the distance of its rows.
    Load {
        tile: usize,
        at: Address,
    },
    Store {
        tile: usize,
        at: Address,
    },
    Product {
        kind: Product,
        sum: usize,
        a: usize,
        b: usize,
    },
}

impl Instruction {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Instruction::LoadConfig(_) => "ldtilecfg",
            Instruction::StoreConfig(_) => "sttilecfg",
            Instruction::Release => "tilerelease",
            Instruction::Zero(_) => "tilezero",
            Instruction::Load { .. } => "tileloadd",
            Instruction::Store { .. } => "tilestored",
            Instruction::Product { kind, .. } => match kind {
                Product::Bf16 => "tdpbf16ps",
                Product::Signed => "tdpbssd",
                Product::UnsignedSigned => "tdpbusd",
            },
        }
    }
}

/// The tile instruction whose bytes `fetch` gives, and its length; `None` for anything else.
///
/// No byte is fetched that is not part of the instruction: the next one may lie in a page
/// that cannot be read.
pub(crate) fn decode(fetch: impl Fn(usize) -> u8) -> Option<(Instruction, usize)> {
    // A three-byte VEX prefix that selects opcode map 0F38; its R, X, B and vvvv are inverted.
    if fetch(0) != 0xC4 {
        return None;
    }
    let first = !fetch(1);
    let (r, x, b) = (first >> 7 & 1, first >> 6 & 1, first >> 5 & 1);
    if first & 0x1F != !0x02 & 0x1F {
        return None;
    }
    let second = fetch(2);
    let (wide, length, prefix) = (second >> 7, second >> 2 & 1, second & 3);
    let v = usize::from(!second >> 3 & 0xF);
    // There are eight tiles, so the fourth bit of a tile's number is never set.
    if wide != 0 || length != 0 || r != 0 {
        return None;
    }
    const NONE: u8 = 0;
    const P66: u8 = 1;
    const PF3: u8 = 2;
    const PF2: u8 = 3;

    let opcode = fetch(3);
    if !matches!(opcode, 0x49 | 0x4B | 0x5C | 0x5E) {
        return None;
    }
    let modrm = fetch(4);
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), modrm & 7);
    let registers = mode == 3;
    let memory = || address(&fetch, x, b);

    match (opcode, prefix) {
        (0x49, NONE) if modrm == 0xC0 && v == 0 => Some((Instruction::Release, 5)),
        (0x49, PF2) if registers && rm == 0 && v == 0 => Some((Instruction::Zero(reg), 5)),
        (0x49, NONE) if !registers && reg == 0 && v == 0 => {
            let (at, end) = memory();
            Some((Instruction::LoadConfig(at), end))
        }
        (0x49, P66) if !registers && reg == 0 && v == 0 => {
            let (at, end) = memory();
            Some((Instruction::StoreConfig(at), end))
        }
        // Tiles are addressed through a SIB byte only.
        (0x4B, PF2 | P66) if !registers && rm == 4 && v == 0 => {
            let (at, end) = memory();
            Some((Instruction::Load { tile: reg, at }, end))
        }
        (0x4B, PF3) if !registers && rm == 4 && v == 0 => {
            let (at, end) = memory();
            Some((Instruction::Store { tile: reg, at }, end))
        }
        (0x5C, PF3) | (0x5E, PF2 | P66) if registers && b == 0 && v < 8 => {
            let kind = match (opcode, prefix) {
                (0x5C, _) => Product::Bf16,
                (_, PF2) => Product::Signed,
                _ => Product::UnsignedSigned,
            };
            let (sum, a, b) = (reg, usize::from(rm), v);
            Some((Instruction::Product { kind, sum, a, b }, 5))
        }
        _ => None,
    }
}

/// The address that the ModRM byte at 4 begins, and where the instruction ends. `x` and `b`
/// are the fourth bits of the index and base registers.
fn address(fetch: &impl Fn(usize) -> u8, x: u8, b: u8) -> (Address, usize) {
    let modrm = fetch(4);
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let mut end = 5;
    let (mut base, mut index, mut scale) = (rm | b << 3, None, 0);
    // Without a displacement, the code of RBP and R13 stands for "no base" after a SIB byte
    // and for "relative to the next instruction" without one.
    let without_base;
    if rm == 4 {
        let sib = fetch(end);
        end += 1;
        let number = sib >> 3 & 7 | x << 3;
        index = (number != RSP).then_some(number);
        scale = sib >> 6;
        base = sib & 7 | b << 3;
        without_base = mode == 0 && base & 7 == 5;
    } else {
        without_base = mode == 0 && rm == 5;
    }
    let displacement = match mode {
        1 => {
            end += 1;
            i32::from(fetch(end - 1).cast_signed())
        }
        _ if mode == 2 || without_base => {
            end += 4;
            i32::from_le_bytes([4, 3, 2, 1].map(|back| fetch(end - back)))
        }
        _ => 0,
    };
    let base = match (without_base, rm) {
        (false, _) => Base::Register(base),
        (true, 4) => Base::None,
        (true, _) => Base::Next,
    };
    let at = Address {
        base,
        index,
        scale,
        displacement,
    };
    (at, end)
}
