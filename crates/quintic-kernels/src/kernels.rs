//! The safe way in: shapes are checked here, instruction sets were when `Kernels` was made.

use std::sync::Mutex;

use crate::arena::Arena;
use crate::memory::{Buffer, Shared};
use crate::micro::CHUNK;
use crate::operand::{Form, Operand};
use crate::pack::{PackedMatrix, Parts, Storage};
use crate::product::{has_product, product};
use crate::rowwise::{Finish, NormBlock};
use crate::scratch::Scratch;
use crate::table::Table;
use crate::{Activation, Element, Isa, IsaError, Pool};

/// The kernels of an instruction set, and the threads that they run on.
///
/// Holding it is the proof that the instruction set is available.
#[derive(Debug)]
pub struct Kernels {
    pub(crate) table: Table,
    pub(crate) pool: Pool,
    /// One for each thread.
    pub(crate) scratch: Vec<Mutex<Scratch>>,
    /// Memory of packed weights.
    arena: Arena,
}

/// Type that products are computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32.
    F32,
    /// f32 factors as two bf16 parts where that is faster than f32 products, else f32.
    Split,
    /// bf16 where there are products of bf16, else f32.
    Bf16,
}

/// The f32 residual stream, `[tokens, columns]`, rows adjacent.
#[derive(Debug)]
pub struct Stream {
    tokens: usize,
    columns: usize,
    memory: Buffer,
}

impl Stream {
    /// Zeros.
    pub fn zeroed(tokens: usize, columns: usize) -> Self {
        Stream {
            tokens,
            columns,
            memory: Buffer::zeroed(tokens * columns * 4),
        }
    }

    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values.
    pub fn values(&self) -> &[f32] {
        // SAFETY: that many values were allocated, aligned and initialised.
        unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.tokens * self.columns)
        }
    }

    /// All values.
    pub fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed mutably.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.memory.as_mut_ptr().cast(),
                self.tokens * self.columns,
            )
        }
    }
}

/// What a product does with its result.
#[derive(Debug)]
pub enum Epilogue<'a> {
    /// Stores it.
    Store(&'a mut Operand),
    /// Adds it to the residual stream.
    Add(&'a mut Stream),
    /// Stores it in f32, scaled.
    Scale(f32, &'a mut Stream),
    /// Stores `act(result)`.
    Activate(Activation, &'a mut Operand),
    /// Stores `act(gate) * up`, for gated weights.
    Gate(Activation, &'a mut Operand),
}

impl Kernels {
    /// Kernels of `isa` on `threads` threads.
    ///
    /// # Errors
    ///
    /// [`KernelsError`]: the machine does not have the instruction set, or refuses a thread.
    pub fn new(isa: Isa, threads: usize) -> Result<Self, KernelsError> {
        if !isa.is_available() {
            return Err(KernelsError::Isa(IsaError::Missing(isa)));
        }
        Self::with_table(Table::of(isa), threads)
    }

    /// Kernels of a table whose instruction set the caller answers for.
    pub(crate) fn with_table(table: Table, threads: usize) -> Result<Self, KernelsError> {
        let pool = Pool::new(threads).map_err(KernelsError::Threads)?;
        Ok(Kernels {
            table,
            scratch: (0..pool.threads()).map(|_| Mutex::default()).collect(),
            pool,
            arena: Arena::default(),
        })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.table.isa
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How activations flow into products of this precision.
    pub(crate) fn form(&self, precision: Precision) -> Form {
        match precision {
            Precision::Bf16 if self.table.bf16.is_some() => self.table.bf16_form,
            Precision::Split if self.table.split.is_some() => Form::Split,
            Precision::F32 | Precision::Split | Precision::Bf16 => Form::F32,
        }
    }

    /// How weights of type `element` are kept for products of this precision, so that nothing
    /// is lost that the precision keeps.
    pub fn storage(&self, precision: Precision, element: Element) -> Storage {
        match (precision, element) {
            (Precision::Bf16, _) | (_, Element::Bf16) => Storage::Bf16,
            (Precision::Split, _) if self.table.split.is_some() => Storage::Bf16Split,
            (_, Element::F32) => Storage::F32,
            (_, Element::F16) => Storage::F16,
        }
    }

    /// Whether the CPU has dot products of bytes, so that [`Storage::Int8Wide`] should be faster than
    /// [`Storage::Int8`]. Measured on AVX-512 without AMX (faster) and by AVX2 (many rows 1.8 times slower);
    /// expected, not measured, on AMX and Zen 4.
    pub fn has_fast_bytes(&self) -> bool {
        self.table.has_fast_bytes
    }

    /// Whether products of f32 with many rows are faster with weights [in parts](PackedMatrix::in_parts).
    pub fn has_fast_parts(&self) -> bool {
        self.table.parts.is_some()
    }

    /// Whether products of this precision read weights that are kept so. All read
    /// [`Storage::Bf16`]; whether they read the others depends on the instruction set.
    pub fn reads(&self, precision: Precision, storage: Storage) -> bool {
        has_product(self.form(precision), storage)
    }

    /// Packs `parts` of depth `depth`, panels in parallel. `gain` multiplies each input column.
    ///
    /// # Numerics
    ///
    /// Weights are rounded once to the storage's type, after the multiplication by the gain in
    /// f32; a type that holds them exactly changes nothing. What integers round to stands in
    /// the module `quantised`. The same bits on every machine.
    ///
    /// # Panics
    ///
    /// If a part's bytes are not `rows * depth` elements, or halves of a gate differ in rows.
    pub fn pack(
        &self,
        parts: Parts<'_>,
        depth: usize,
        storage: Storage,
        gain: Option<&[f32]>,
    ) -> PackedMatrix {
        let memory = |n_bytes| self.arena.zeroed(n_bytes);
        PackedMatrix::pack(&self.pool, &self.table, memory, parts, depth, storage, gain)
    }

    /// An operand of zeros.
    pub fn operand(&self, precision: Precision, tokens: usize, columns: usize) -> Operand {
        Operand::zeroed(self.form(precision), tokens, columns)
    }

    /// An operand of zeros for queries, keys and values of heads of width `d_kv`, of an attention whose result is an
    /// operand of `precision`: f32, or the two parts of bf16 that its products read, side by side.
    ///
    /// # Numerics
    ///
    /// Products of queries and keys in two parts of bf16 read the same bits from either.
    pub fn attention_operand(
        &self,
        precision: Precision,
        tokens: usize,
        columns: usize,
        d_kv: usize,
    ) -> Operand {
        let form = match self.form(precision) {
            // A tile is one head's.
            Form::Bf16Tiles | Form::Split
                if self.table.split.is_some() && d_kv.is_multiple_of(CHUNK) =>
            {
                Form::Split
            }
            _ => Form::F32,
        };
        Operand::zeroed(form, tokens, columns)
    }

    /// Bytes that an operand holds for a token.
    pub fn operand_bytes_per_token(&self, precision: Precision, columns: usize) -> usize {
        Operand::bytes_per_token(self.form(precision), columns)
    }

    /// `out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * gain`; without a gain, it has been folded
    /// into the next product.
    ///
    /// # Numerics
    ///
    /// Squares are summed in f32, in 64 partial sums and then pairwise.
    ///
    /// # Panics
    ///
    /// If shapes disagree.
    pub fn rms_norm(&self, x: &Stream, gain: Option<&[f32]>, eps: f32, out: &mut Operand) {
        assert_eq!(
            (x.tokens, x.columns),
            (out.tokens, out.columns),
            "norm of a stream into an operand"
        );
        if let Some(gain) = gain {
            assert_eq!(gain.len(), x.columns, "gains of a norm");
        }
        self.norm_into(x, gain, eps, out.sink());
    }

    /// `rms_norm` into f32.
    ///
    /// # Panics
    ///
    /// As [`Kernels::rms_norm`].
    pub fn rms_norm_f32(&self, x: &Stream, gain: &[f32], eps: f32) -> Stream {
        assert_eq!(gain.len(), x.columns, "gains of a norm");
        let mut out = Operand::zeroed(Form::F32, x.tokens, x.columns);
        self.norm_into(x, Some(gain), eps, out.sink());
        let mut last = Stream::zeroed(x.tokens, x.columns);
        let row = out.stride.row;
        for (token, values) in last.values_mut().chunks_exact_mut(x.columns).enumerate() {
            // SAFETY: the row is inside the operand.
            values.copy_from_slice(unsafe {
                std::slice::from_raw_parts(out.as_f32().add(token * row), x.columns)
            });
        }
        last
    }

    fn norm_into(&self, x: &Stream, gain: Option<&[f32]>, eps: f32, out: crate::operand::Sink) {
        const ROWS: usize = 16;
        if x.columns == 0 {
            return;
        }
        self.pool.run(x.tokens.div_ceil(ROWS), |task, _| {
            let token = task * ROWS;
            let rows = ROWS.min(x.tokens - token);
            let values = &x.values()[token * x.columns..(token + rows) * x.columns];
            // SAFETY: the instruction set is available; rows of different tasks differ.
            unsafe {
                (self.table.rows.norm)(&NormBlock {
                    x: values,
                    columns: x.columns,
                    gain,
                    eps,
                    token,
                    out,
                });
            }
        });
    }

    /// `x w^T`, then the epilogue. A row's bits depend on that row alone.
    ///
    /// # Numerics
    ///
    /// Sums are f32: over blocks of `k` one term after the other, then over the blocks. The
    /// error of a sum is at most `(min(depth, 512) + depth / 256 + 1) * 2^-24 * sum |x| |w|`;
    /// what rounding activations and weights to the precision's type adds comes on top.
    ///
    /// # Panics
    ///
    /// If shapes disagree, or if a gate's weights are used without [`Epilogue::Gate`] or
    /// others with it.
    pub fn linear(&self, x: &Operand, w: &PackedMatrix, epilogue: Epilogue<'_>) {
        let shape = w.shape();
        assert_eq!(
            shape.gated,
            matches!(epilogue, Epilogue::Gate(..)),
            "gated weights go with a gating epilogue, and only they"
        );
        let check = |tokens: usize, columns: usize| {
            assert_eq!(
                (tokens, columns),
                (x.tokens, shape.columns),
                "result of a product"
            );
        };
        let finish = match epilogue {
            Epilogue::Store(out) => {
                check(out.tokens, out.columns);
                Finish::Store(out.sink())
            }
            Epilogue::Activate(activation, out) => {
                check(out.tokens, out.columns);
                Finish::Activate(activation, out.sink())
            }
            Epilogue::Gate(activation, out) => {
                check(out.tokens, out.columns);
                Finish::Gate(activation, out.sink())
            }
            Epilogue::Add(out) => {
                check(out.tokens, out.columns);
                let row = out.columns;
                Finish::Add {
                    out: Shared::new(out.memory.as_mut_ptr().cast()),
                    row,
                }
            }
            Epilogue::Scale(scale, out) => {
                check(out.tokens, out.columns);
                let row = out.columns;
                Finish::Scale {
                    out: Shared::new(out.memory.as_mut_ptr().cast()),
                    row,
                    scale,
                }
            }
        };
        product(&self.table, &self.pool, &self.scratch, x, w, finish);
    }
}

/// Why there are no kernels.
#[derive(Debug)]
pub enum KernelsError {
    /// The machine does not have the instruction set.
    Isa(IsaError),
    /// The system refused a thread.
    Threads(std::io::Error),
}

impl std::fmt::Display for KernelsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KernelsError::Isa(error) => error.fmt(f),
            KernelsError::Threads(error) => write!(f, "no threads to compute on: {error}"),
        }
    }
}

impl std::error::Error for KernelsError {}
