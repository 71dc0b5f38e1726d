//! Weights in the order that products read them.

use std::fmt;
use std::sync::Arc;

use crate::math::{split_bf16, to_bf16};
use crate::memory::{Buffer, Shared};
use crate::micro::{CHUNK, PANEL};
use crate::parts::parts_of;
use crate::pool::Pool;
use crate::quantised::{self, Step};
use crate::rows::{Rows, StoredParts};
use crate::table::Table;

/// Version of the order below; stored packed weights carry it.
pub const LAYOUT: &str = "panels-of-32/1";

/// Type and order of packed weights. All are panels of 32 output columns, one after the other,
/// the last one filled up with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// f32: for each `k` the 32 columns.
    F32,
    /// f16 bits, as `F32`.
    F16,
    /// bf16 bits, `k` in chunks of 32, filled up with zeros: for each chunk, columns 0 to 15,
    /// then 16 to 31, and of either half 16 pairs of `k`, each with two adjacent values for
    /// every column.
    Bf16,
    /// Two bf16 parts of every weight: a panel of the nearest bf16, then one of the rest.
    Bf16Split,
    /// Not packed: rows stay as they are in a file, see [`PackedMatrix::stored`]. They have no
    /// panels, so none of the sizes here count them.
    Rows,
    /// 8-bit integers with a factor a column.
    Int8,
    /// As `Int8`; what flows into the product is rounded to 8-bit integers too, with a factor a row.
    Int8Dynamic,
    /// As `Int8`; what flows into the product is rounded to 16-bit integers, with a factor a row.
    Int8Wide,
    /// 4-bit integers, each group of 32 `k` of a column with a whole factor and the column with
    /// one more.
    Int4,
    /// As `Int4`, of which it is another way to multiply; what flows into the product is rounded to
    /// 16-bit integers, with a factor a row.
    Int4Wide,
}

impl Storage {
    /// Bytes of a panel of depth `depth`.
    fn panel_bytes(self, depth: usize) -> usize {
        let chunked = depth.next_multiple_of(CHUNK);
        match self {
            Storage::F32 => depth * PANEL * 4,
            Storage::F16 => depth * PANEL * 2,
            Storage::Bf16 => chunked * PANEL * 2,
            Storage::Bf16Split => chunked * PANEL * 4,
            Storage::Rows => 0,
            Storage::Int8
            | Storage::Int8Dynamic
            | Storage::Int8Wide
            | Storage::Int4
            | Storage::Int4Wide => self.codes_bytes(depth) + quantised::FACTORS,
        }
    }

    /// Bytes of a panel's codes up to depth `k`.
    pub(crate) fn codes_bytes(self, k: usize) -> usize {
        k.div_ceil(quantised::CHUNK)
            * match self {
                Storage::Int4 | Storage::Int4Wide => quantised::INT4_CHUNK,
                _ => quantised::INT8_CHUNK,
            }
    }

    /// Whether weights are codes with a factor a column.
    pub(crate) fn is_quantised(self) -> bool {
        matches!(
            self,
            Storage::Int8
                | Storage::Int8Dynamic
                | Storage::Int8Wide
                | Storage::Int4
                | Storage::Int4Wide
        )
    }

    /// Bytes of a value that flows into the product as an integer; `None` if values flow in.
    pub(crate) fn planes(self) -> Option<usize> {
        match self {
            Storage::Int8Dynamic => Some(1),
            Storage::Int8Wide | Storage::Int4Wide => Some(2),
            _ => None,
        }
    }

    /// Whether what flows in becomes integers, whose sums are exact up to
    /// [`MAX_INT_DEPTH`](crate::MAX_INT_DEPTH).
    pub fn sums_integers(self) -> bool {
        self.planes().is_some()
    }

    /// A name such as `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::F16 => "f16",
            Storage::Bf16 => "bf16",
            Storage::Bf16Split => "bf16-split",
            Storage::Rows => "rows",
            Storage::Int8 => "int8",
            Storage::Int8Dynamic => "int8-dynamic",
            Storage::Int8Wide => "int8-wide",
            Storage::Int4 => "int4",
            Storage::Int4Wide => "int4-wide",
        }
    }

    /// The storage of a name, if packed weights can be stored so.
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Storage::F32,
            Storage::F16,
            Storage::Bf16,
            Storage::Bf16Split,
            Storage::Int8,
            Storage::Int8Dynamic,
            Storage::Int8Wide,
            Storage::Int4,
        ]
        .into_iter()
        .find(|storage| storage.name() == name)
    }
}

/// Element type of weights as they are in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// f32, little endian.
    F32,
    /// f16, little endian.
    F16,
    /// bf16, little endian.
    Bf16,
}

/// A matrix `[rows, depth]` as it is in a file: row after row, at any address.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// Type of its elements.
    pub element: Element,
    /// `rows * depth` elements.
    pub bytes: &'a [u8],
    /// Output columns of the product.
    pub rows: usize,
}

/// Matrices that one product multiplies with.
#[derive(Clone, Copy, Debug)]
pub enum Parts<'a> {
    /// One below the other.
    Stacked(&'a [Plain<'a>]),
    /// Two halves of a gate, 16 columns of each in a panel.
    Gated {
        /// What the activation is applied to.
        gate: Plain<'a>,
        /// What it is multiplied with.
        up: Plain<'a>,
    },
}

/// Bytes that somebody else keeps, such as a memory-mapped file.
pub trait Bytes: Send + Sync {
    /// The bytes; always the same ones.
    fn bytes(&self) -> &[u8];
}

#[derive(Clone)]
enum Memory {
    Own(Arc<Buffer>),
    Shared(Arc<dyn Bytes>),
    Rows(Arc<Rows>),
}

/// What a packed matrix is, apart from its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedShape {
    /// Type and order of the weights.
    pub storage: Storage,
    /// Columns of the product's result; of a gated one, those after the gate.
    pub columns: usize,
    /// Columns of the product's input.
    pub depth: usize,
    /// Whether panels are half gate, half up.
    pub gated: bool,
}

impl PackedShape {
    /// Columns of the result that a panel makes.
    pub(crate) fn panel_columns(&self) -> usize {
        if self.gated { PANEL / 2 } else { PANEL }
    }

    /// Number of panels.
    pub(crate) fn panels(&self) -> usize {
        self.columns.div_ceil(self.panel_columns())
    }

    /// Bytes of all panels.
    pub fn n_bytes(&self) -> usize {
        self.panels() * self.storage.panel_bytes(self.depth)
    }
}

/// Packed weights of one product.
#[derive(Clone)]
pub struct PackedMatrix {
    shape: PackedShape,
    memory: Memory,
    in_parts: bool,
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedMatrix")
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl PackedMatrix {
    /// See [`Kernels::pack`](crate::Kernels::pack).
    pub(crate) fn pack(
        pool: &Pool,
        table: &Table,
        zeroed: impl FnOnce(usize) -> Buffer,
        parts: Parts<'_>,
        depth: usize,
        storage: Storage,
        gain: Option<&[f32]>,
    ) -> Self {
        let (columns, gated) = match parts {
            Parts::Stacked(parts) => (parts.iter().map(|part| part.rows).sum(), false),
            Parts::Gated { gate, up } => {
                assert_eq!(gate.rows, up.rows, "halves of a gate");
                (gate.rows, true)
            }
        };
        parts.check(depth);
        assert_ne!(storage, Storage::Rows, "rows are not packed");
        if let Some(gain) = gain {
            assert_eq!(gain.len(), depth, "gains of a product");
        }
        let shape = PackedShape {
            storage,
            columns,
            depth,
            gated,
        };
        let mut memory = zeroed(shape.n_bytes());
        let start = Shared::new(memory.as_mut_ptr());
        let panel_bytes = storage.panel_bytes(depth);
        pool.run(shape.panels(), |panel, _| {
            // SAFETY: panels do not overlap, and each is written by one task.
            let out = unsafe {
                std::slice::from_raw_parts_mut(start.get().add(panel * panel_bytes), panel_bytes)
            };
            let mut row = vec![0.0f32; depth];
            for column in 0..PANEL {
                let Some(source) = parts.row(panel, column) else {
                    continue;
                };
                source.read(depth, &mut row);
                if let Some(gain) = gain {
                    for (value, gain) in row.iter_mut().zip(gain) {
                        *value *= gain;
                    }
                }
                // SAFETY: the table is of an instruction set that is there.
                let step = |row: &[f32]| unsafe { (table.quantised.step)(row) };
                write_column(storage, out, column, &row, step);
            }
        });
        PackedMatrix {
            shape,
            memory: Memory::Own(Arc::new(memory)),
            in_parts: false,
        }
    }

    /// Weights that are multiplied from where they are. `gain` multiplies each input column;
    /// with `rounds` each weight is then rounded to bf16 even where products are f32.
    ///
    /// # Numerics
    ///
    /// A product has the bits that it would have if the decoded weights had been packed: in f32,
    /// with `rounds` in bf16, and for products of bf16 in that.
    ///
    /// # Panics
    ///
    /// If a part's bytes are not `rows * depth` values, halves of a gate differ in rows, or there
    /// are not `depth` gains.
    pub fn stored(parts: StoredParts, depth: usize, gain: Option<Vec<f32>>, rounds: bool) -> Self {
        let rows = Rows::new(parts, depth, gain, rounds);
        PackedMatrix {
            shape: PackedShape {
                storage: Storage::Rows,
                columns: rows.columns(),
                depth,
                gated: rows.is_gated(),
            },
            memory: Memory::Rows(Arc::new(rows)),
            in_parts: false,
        }
    }

    /// The rows, if the weights are not packed.
    pub(crate) fn rows(&self) -> Option<&Rows> {
        match &self.memory {
            Memory::Rows(rows) => Some(rows),
            Memory::Own(_) | Memory::Shared(_) => None,
        }
    }

    /// Weights that were packed before and are kept by somebody else.
    ///
    /// # Errors
    ///
    /// If there are not as many bytes as `shape` has, or they are not aligned to
    /// [`ALIGNMENT`](crate::ALIGNMENT): what is wrong, in words.
    pub fn from_packed(shape: PackedShape, bytes: Arc<dyn Bytes>) -> Result<Self, String> {
        let found = bytes.bytes();
        // No weight takes less than half a byte: a shape that claims more is not worth counting,
        // and counting it might overflow.
        let n_weights = shape.columns.checked_mul(shape.depth);
        if n_weights.is_none_or(|n| n.max(shape.columns).max(shape.depth) / 2 > found.len()) {
            return Err(format!(
                "packed weights have {} bytes, too few for {} x {} in {}",
                found.len(),
                shape.columns,
                shape.depth,
                shape.storage.name()
            ));
        }
        if found.len() != shape.n_bytes() {
            return Err(format!(
                "packed weights have {} bytes, expected {} for {} x {} in {}",
                found.len(),
                shape.n_bytes(),
                shape.columns,
                shape.depth,
                shape.storage.name()
            ));
        }
        if !(found.as_ptr() as usize).is_multiple_of(crate::ALIGNMENT) {
            return Err(format!(
                "packed weights are not aligned to {} bytes",
                crate::ALIGNMENT
            ));
        }
        Ok(PackedMatrix {
            shape,
            memory: Memory::Shared(bytes),
            in_parts: false,
        })
    }

    /// The same weights, for products of f32 that multiply parts of bf16 where that is faster for many rows
    /// ([`Kernels::has_fast_parts`](crate::Kernels::has_fast_parts)); one or a few rows take longer so. Integers
    /// are multiplied as ever.
    ///
    /// # Numerics
    ///
    /// As close to the exact product as one of f32, with other bits: see the module `parts`.
    #[must_use]
    pub fn in_parts(self) -> Self {
        let in_parts = parts_of(self.shape.storage).is_some();
        PackedMatrix { in_parts, ..self }
    }

    pub(crate) fn is_in_parts(&self) -> bool {
        self.in_parts
    }

    /// What it is.
    pub fn shape(&self) -> PackedShape {
        self.shape
    }

    /// The packed weights, [`PackedShape::n_bytes`] of them.
    pub fn bytes(&self) -> &[u8] {
        let bytes = match &self.memory {
            Memory::Own(buffer) => buffer.bytes(),
            Memory::Shared(bytes) => bytes.bytes(),
            Memory::Rows(_) => &[],
        };
        &bytes[..self.shape.n_bytes()]
    }

    /// The weights of a panel; of `Bf16Split`, those of one plane.
    pub(crate) fn panel(&self, panel: usize, plane: usize) -> &[u8] {
        let all = self.shape.storage.panel_bytes(self.shape.depth);
        let bytes = &self.bytes()[panel * all..(panel + 1) * all];
        match self.shape.storage {
            Storage::Bf16Split => &bytes[plane * all / 2..(plane + 1) * all / 2],
            _ => bytes,
        }
    }

    /// The factors of a panel's columns, if its weights are codes.
    pub(crate) fn factors(&self, panel: usize) -> Option<&[f32; PANEL]> {
        if !self.shape.storage.is_quantised() {
            return None;
        }
        let bytes = self.panel(panel, 0);
        let factors = &bytes[bytes.len() - quantised::FACTORS..];
        // SAFETY: 32 values of 4 bytes, at a multiple of 64 from an aligned start; every pattern
        // is an f32. Panels are little endian, as the machine is.
        Some(unsafe { &*factors.as_ptr().cast() })
    }
}

impl<'a> Parts<'a> {
    fn check(&self, depth: usize) {
        let check = |part: &Plain<'_>| {
            assert_eq!(
                part.bytes.len(),
                part.rows * depth * part.element.size(),
                "bytes of a matrix of {} x {depth}",
                part.rows
            );
        };
        match self {
            Parts::Stacked(parts) => parts.iter().for_each(check),
            Parts::Gated { gate, up } => [gate, up].into_iter().for_each(check),
        }
    }

    /// What stands in a column of a panel; `None` beyond the last.
    fn row(&self, panel: usize, column: usize) -> Option<RowOf<'a>> {
        match *self {
            Parts::Stacked(parts) => {
                let mut row = panel * PANEL + column;
                for part in parts {
                    if row < part.rows {
                        return Some(RowOf { part: *part, row });
                    }
                    row -= part.rows;
                }
                None
            }
            Parts::Gated { gate, up } => {
                let half = PANEL / 2;
                let part = if column < half { gate } else { up };
                let row = panel * half + column % half;
                (row < part.rows).then_some(RowOf { part, row })
            }
        }
    }
}

struct RowOf<'a> {
    part: Plain<'a>,
    row: usize,
}

impl RowOf<'_> {
    fn read(&self, depth: usize, out: &mut [f32]) {
        let n_bytes = depth * self.part.element.size();
        let bytes = &self.part.bytes[self.row * n_bytes..(self.row + 1) * n_bytes];
        match self.part.element {
            Element::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Element::F16 => {
                for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *out = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Element::Bf16 => {
                for (out, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *out = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
    }
}

impl Element {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }
}

/// Writes the weights of one output column into a panel. Panels are little endian, as the
/// files that keep them and every machine that has kernels. `step` finds a step of int8.
fn write_column(
    storage: Storage,
    panel: &mut [u8],
    column: usize,
    weights: &[f32],
    step: impl Fn(&[f32]) -> Step,
) {
    match storage {
        Storage::F32 => {
            for (row, weight) in panel.chunks_exact_mut(PANEL * 4).zip(weights) {
                row[column * 4..][..4].copy_from_slice(&weight.to_le_bytes());
            }
        }
        Storage::F16 => {
            for (row, &weight) in panel.chunks_exact_mut(PANEL * 2).zip(weights) {
                let bytes = half::f16::from_f32(weight).to_le_bytes();
                row[column * 2..][..2].copy_from_slice(&bytes);
            }
        }
        Storage::Bf16 => write_pairs(panel, column, weights, to_bf16),
        Storage::Rows => unreachable!("has no panels"),
        Storage::Bf16Split => {
            let (high, low) = panel.split_at_mut(panel.len() / 2);
            write_pairs(high, column, weights, |weight| split_bf16(weight).0);
            write_pairs(low, column, weights, |weight| split_bf16(weight).1);
        }
        Storage::Int8 | Storage::Int8Dynamic | Storage::Int8Wide => {
            quantised::write_int8(panel, column, weights, step(weights));
        }
        Storage::Int4 | Storage::Int4Wide => quantised::write_int4(panel, column, weights),
    }
}

fn write_pairs(panel: &mut [u8], column: usize, weights: &[f32], round: impl Fn(f32) -> u16) {
    for (chunk, weights) in weights.chunks(CHUNK).enumerate() {
        for (pair, weights) in weights.chunks(2).enumerate() {
            let at = (((chunk * 2 + column / 16) * 16 + pair) * 16 + column % 16) * 4;
            for (k, &weight) in weights.iter().enumerate() {
                panel[at + 2 * k..][..2].copy_from_slice(&round(weight).to_le_bytes());
            }
        }
    }
}
