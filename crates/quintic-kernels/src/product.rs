//! Products of activations with packed weights.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (2008), with the packed operand being the static one: a block of rows and a block of `k`
//! of the activations stays in the second-level cache while panels of weights pass by, and a
//! panel stays in the first-level cache while rows pass by. Weights are read from memory once
//! a block of rows, and each thread reads panels of its own.

mod bytes;
mod codes;
mod in_parts;
mod sections;

use std::ops::Range;
use std::sync::Mutex;

pub(crate) use sections::{SECTION, product_in_sections};

use crate::micro::{
    Again, Bf16Block, CHUNK, F32Block, Fetch, First, MicroBf16, MicroSplit, PANEL, SplitBlock,
};
use crate::operand::{Form, Operand, TILE_ROWS};
use crate::pack::{PackedMatrix, Storage};
use crate::parts::{self, InParts, MicroParts};
use crate::pool::Pool;
use crate::rows::Piece;
use crate::rowwise::{Finish, FinishBlock};
use crate::scratch::{Scratch, scratch_of};
use crate::table::Table;

/// Depth of a block: a panel of it is 32 KiB, in f32 as in bf16. A whole number of chunks, of codes
/// too.
///
/// Sums run over a block from zero and are then added to those of the blocks before, which
/// both keeps the error of a long sum small and makes it independent of how rows are grouped.
const F32_DEPTH: usize = 128;
const BF16_DEPTH: usize = 512;

/// Most rows of a block: with the depth above, half a MiB of activations.
const MAX_ROWS: usize = 512;

/// Fewest rows of a block that is kept small for the sake of a near cache: with fewer, panels do not come as fast as they
/// are multiplied.
const MIN_ROWS: usize = 256;

/// Most panels of a task over rows that stay near: so many panels later, other rows take their place.
const MAX_NEAR_PANELS: usize = 8;

/// Below this size all activations of a block of rows stay in the second-level cache by
/// themselves, and a panel is passed over at once.
const SMALL: usize = 256 << 10;

/// Most panels whose sums are held at once while their blocks of `k` pass.
const MAX_PANELS: usize = 4;

/// `x w^T`, finished as `finish` says.
pub(crate) fn product(
    table: &Table,
    pool: &Pool,
    scratch: &[Mutex<Scratch>],
    x: &Operand,
    w: &PackedMatrix,
    finish: Finish,
) {
    let shape = w.shape();
    assert_eq!(
        x.columns, shape.depth,
        "product of [{}, {}] with weights of depth {}",
        x.tokens, x.columns, shape.depth
    );
    if x.tokens == 0 {
        return;
    }
    match shape.storage.planes() {
        Some(planes) => {
            let plan = bytes::Plan::new(table, pool, scratch, x, planes, w);
            run_all(&plan, pool, scratch, &finish);
        }
        None => run_all(
            &Plan::new(table, pool, scratch, x, w),
            pool,
            scratch,
            &finish,
        ),
    }
}

/// A product cut into tasks of some rows and some panels. Tasks that follow each other share panels,
/// then go on to the next ones.
trait Tasks: Sync {
    /// Rows of the result, and most of a task.
    fn tokens(&self) -> usize;
    fn block_tokens(&self) -> usize;

    /// Makes tasks of about so many rows, if they are larger.
    fn cut_to(&mut self, tokens: usize);

    /// Most panels of a task.
    fn panels(&self) -> usize;

    fn weights(&self) -> &PackedMatrix;

    /// # Safety
    ///
    /// The table's instruction set is available, and no other thread touches the elements of
    /// the result that belong to `task`.
    unsafe fn run(&self, task: usize, scratch: &mut Scratch, finish: &Finish);

    fn row_blocks(&self) -> usize {
        self.tokens().div_ceil(self.block_tokens())
    }

    fn n_tasks(&self) -> usize {
        self.row_blocks() * self.weights().shape().panels().div_ceil(self.panels())
    }
}

fn run_all(plan: &impl Tasks, pool: &Pool, scratch: &[Mutex<Scratch>], finish: &Finish) {
    pool.run(plan.n_tasks(), |task, worker| {
        let mut scratch = scratch_of(scratch, worker);
        // SAFETY: the table's instruction set is available; tasks cover different rows or
        // panels of a result that belongs to this operation.
        unsafe { plan.run(task, &mut scratch, finish) }
    });
}

/// What a product multiplies, but for integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Factors {
    F32,
    /// Parts of bf16: one of what flows in, or two, and so many of the weights.
    Bf16 {
        inputs: usize,
        weights: usize,
    },
}

impl Factors {
    /// `None` if there is no such product.
    fn of(form: Form, storage: Storage) -> Option<Self> {
        let weights = match (form, storage) {
            // Codes are exact in bf16.
            (_, Storage::Bf16 | Storage::Int8 | Storage::Int4) => 1,
            (Form::Split, Storage::Bf16Split | Storage::Rows) => 2,
            (Form::F32, Storage::F32 | Storage::F16) | (_, Storage::Rows) => 1,
            _ => return None,
        };
        Some(match form {
            Form::F32 => Factors::F32,
            Form::Bf16 | Form::Bf16Tiles => Factors::Bf16 { inputs: 1, weights },
            Form::Split => Factors::Bf16 { inputs: 2, weights },
        })
    }

    /// Products of bf16 for each of values. That of what is left of both factors is left out.
    fn n_products(self) -> usize {
        match self {
            Factors::F32 => 1,
            Factors::Bf16 { inputs, weights } => inputs + weights - 1,
        }
    }
}

/// Whether activations and weights of these types can be multiplied.
pub(crate) fn has_product(form: Form, storage: Storage) -> bool {
    storage.sums_integers() || Factors::of(form, storage).is_some()
}

/// The innermost product of bf16.
#[derive(Clone, Copy)]
enum MicroOf {
    OnePart(MicroBf16),
    TwoParts(MicroSplit),
}

struct Plan<'a> {
    table: &'a Table,
    x: &'a Operand,
    w: &'a PackedMatrix,
    /// Rows of a block, and of a call of the innermost product.
    block_rows: usize,
    micro_rows: usize,
    /// Panels of a task.
    panels: usize,
    /// Whether a task's rows stay near, so that panels pass one after the other, all of their `k` at once.
    is_near: bool,
    factors: Factors,
    /// `None` in f32.
    bf16: Option<MicroOf>,
    /// What flows in, if f32 is multiplied in parts of bf16.
    parts: Option<(MicroParts, InParts<'a>)>,
}

impl<'a> Plan<'a> {
    fn new(
        table: &'a Table,
        pool: &Pool,
        scratch: &'a [Mutex<Scratch>],
        x: &'a Operand,
        w: &'a PackedMatrix,
    ) -> Self {
        let (storage, threads) = (w.shape().storage, pool.threads());
        let Some(factors) = Factors::of(x.form, storage) else {
            panic!("activations in {:?} with weights in {storage:?}", x.form)
        };
        let is_f32 = factors == Factors::F32;
        let parts = table.parts.filter(|_| is_f32 && w.is_in_parts());
        let bf16 = match (factors, table.bf16, table.split) {
            (Factors::F32, ..) => None,
            (Factors::Bf16 { inputs: 1, .. }, Some(micro), _) => Some(MicroOf::OnePart(micro)),
            (Factors::Bf16 { .. }, Some(_), Some(micro)) => Some(MicroOf::TwoParts(micro)),
            _ => panic!("{} has no products of {:?}", table.isa, x.form),
        };
        let near_bytes = table.bf16.map_or(0, |micro| micro.near_bytes);
        let (micro_rows, near_bytes) = match bf16 {
            Some(MicroOf::OnePart(micro)) => (micro.max_rows, near_bytes),
            Some(MicroOf::TwoParts(micro)) => (micro.max_rows, near_bytes),
            None if parts.is_some() => (2 * TILE_ROWS, 0),
            None => (table.f32.max_rows, 0),
        };
        // Either all columns of a block of rows stay near while all panels of a task pass, or, where that leaves too
        // few rows, a block of `k` of them does.
        let row_bytes = Operand::bytes_per_token(x.form, x.columns);
        let near_rows = near_bytes / row_bytes.max(1) / micro_rows * micro_rows;
        // A row that takes part in several products keeps panels as long as so many rows.
        let is_near = near_rows * factors.n_products() >= MIN_ROWS;
        let most = match is_near {
            true => near_rows.min(MAX_ROWS),
            false => MAX_ROWS,
        };
        let blocks = x.tokens.div_ceil(most);
        let block_rows = x.tokens.div_ceil(blocks).next_multiple_of(micro_rows);
        let n_panels = w.shape().panels();
        // Several tasks a thread, so that none waits long for the last.
        let panels = if block_rows.min(x.tokens) * row_bytes <= SMALL || (is_near && blocks == 1) {
            1
        } else if is_near {
            (n_panels * blocks / (3 * threads)).clamp(1, MAX_NEAR_PANELS)
        } else {
            (n_panels / (4 * threads)).clamp(1, MAX_PANELS)
        };
        Plan {
            table,
            x,
            w,
            block_rows,
            micro_rows,
            panels,
            is_near,
            factors,
            bf16,
            parts: parts.map(|micro| (micro, InParts::of(&micro, pool, scratch, x))),
        }
    }
}

impl Tasks for Plan<'_> {
    fn tokens(&self) -> usize {
        self.x.tokens
    }

    fn block_tokens(&self) -> usize {
        self.block_rows
    }

    fn cut_to(&mut self, tokens: usize) {
        let rows = tokens.next_multiple_of(self.micro_rows);
        self.block_rows = self.block_rows.min(rows);
    }

    fn panels(&self) -> usize {
        self.panels
    }

    fn weights(&self) -> &PackedMatrix {
        self.w
    }

    unsafe fn run(&self, task: usize, scratch: &mut Scratch, finish: &Finish) {
        let shape = self.w.shape();
        let row_block = task % self.row_blocks();
        let first_row = row_block * self.block_rows;
        let rows = self.block_rows.min(self.x.tokens - first_row);
        let first_panel = task / self.row_blocks() * self.panels;
        let panels = self.panels.min(shape.panels() - first_panel);

        // Panels whose sums are held at once.
        let at_once = if self.is_near { 1 } else { panels };
        // A kernel may write whole blocks of rows.
        let tile = self.block_rows.next_multiple_of(32) * PANEL;
        let n_wide = match shape.storage.is_quantised() {
            true => codes::ROOM,
            false => self.wide_room(),
        };
        let room = scratch.f32(n_wide + at_once * tile);
        let (enter, leave) = self.around();
        // SAFETY: by the caller's word.
        unsafe { enter() };
        for first in (first_panel..first_panel + panels).step_by(at_once) {
            let pass = Pass {
                panels: first..(first + at_once).min(first_panel + panels),
                first_row,
                rows,
                wide: room,
                // SAFETY: the room was just made; `wide` is in front of the sums.
                sums: unsafe { room.add(n_wide) },
                tile,
                finish,
            };
            // SAFETY: by the caller's word.
            unsafe { self.pass(&pass) };
        }
        // SAFETY: by the caller's word.
        unsafe { leave() };
    }
}

/// Some rows and panels, and the memory for them.
struct Pass<'a> {
    panels: Range<usize>,
    first_row: usize,
    rows: usize,
    wide: *mut f32,
    /// A tile of sums for each panel.
    sums: *mut f32,
    tile: usize,
    finish: &'a Finish,
}

impl Plan<'_> {
    /// All of `k`, block by block, of some panels.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`]; there is room for the sums.
    unsafe fn pass(&self, pass: &Pass<'_>) {
        let shape = self.w.shape();
        let (depth, step) = match self.bf16 {
            Some(_) => (shape.depth.next_multiple_of(CHUNK), BF16_DEPTH),
            None => (shape.depth, F32_DEPTH),
        };
        let mut k = 0;
        // A depth of zero still has sums: zeros.
        loop {
            let step = step.min(depth - k);
            let last = k + step == depth;
            for (at, panel) in pass.panels.clone().enumerate() {
                let block = BlockOf {
                    panel,
                    next: match panel + 1 < pass.panels.end {
                        true => (panel + 1, k),
                        false if last => (pass.panels.end, 0),
                        false => (pass.panels.start, k + step),
                    },
                    first_row: pass.first_row,
                    rows: pass.rows,
                    k,
                    step,
                    // SAFETY: one tile a panel.
                    sums: unsafe { pass.sums.add(at * pass.tile) },
                    wide: pass.wide,
                    finish: last.then_some(pass.finish),
                };
                // SAFETY: by the caller's word.
                unsafe {
                    match self.bf16 {
                        None => self.f32_block(&block),
                        Some(micro) => self.bf16_block(&block, micro),
                    }
                }
            }
            k += step;
            if last {
                break;
            }
        }
    }
}

impl Plan<'_> {
    /// What is to be called on a thread before its first block and after its last.
    fn around(&self) -> (unsafe fn(), unsafe fn()) {
        unsafe fn nothing() {}
        match (&self.parts, self.bf16, self.table.bf16) {
            (Some((micro, _)), ..) => (micro.enter, micro.leave),
            (None, Some(_), Some(micro)) => (micro.enter, micro.leave),
            _ => (nothing, nothing),
        }
    }

    /// # Safety
    ///
    /// As [`Plan::run`].
    unsafe fn f32_block(&self, block: &BlockOf<'_>) {
        if let Some((micro, x)) = &self.parts {
            // SAFETY: by the caller's word.
            return unsafe { self.parts_block(block, micro, x) };
        }
        let panel = self.w.panel(block.panel, 0);
        // SAFETY: by the caller's word.
        if unsafe { self.few_f32(block) } {
            return;
        }
        if let Some((run, most)) = self.narrow(block) {
            let b = panel.as_ptr().cast::<u16>();
            // SAFETY: `k` is inside the panel. What comes next is fetched by the product itself.
            unsafe { self.in_calls(block, run, most, b.add(block.k * PANEL), &[]) };
            return;
        }
        // SAFETY: `k + step <= depth`, so all ranges are inside the panel; packed bytes are
        // aligned to cache lines, and whole elements.
        let b = unsafe {
            match self.w.shape().storage {
                Storage::F32 => panel.as_ptr().cast::<f32>().add(block.k * PANEL),
                Storage::Rows => {
                    self.expand_rows(block);
                    block.wide.cast_const()
                }
                storage if storage.is_quantised() => self.expand_f32(block),
                storage => {
                    let n = PANEL
                        * if storage == Storage::F16 {
                            block.step
                        } else {
                            block.step.next_multiple_of(CHUNK)
                        };
                    let bits = panel.as_ptr().cast::<u16>().add(block.k * PANEL);
                    let bits = std::slice::from_raw_parts(bits, n);
                    let wide = std::slice::from_raw_parts_mut(block.wide, n);
                    let widen = match storage {
                        Storage::F16 => self.table.rows.widen_f16,
                        _ => self.table.rows.widen_bf16,
                    };
                    widen(bits, wide);
                    block.wide.cast_const()
                }
            }
        };
        let next = self.next_bytes(block);
        // SAFETY: as above.
        unsafe { self.in_calls(block, self.table.f32.run, self.micro_rows, b, next) }
    }

    /// Multiplies a block's rows with the weights that begin at `b`, in equal calls of at most `most`, finishes
    /// them, and fetches the bytes of the block that comes next.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`]; there are weights of the block's depth at `b`, and `run` takes `most` rows.
    unsafe fn in_calls<T>(
        &self,
        block: &BlockOf<'_>,
        run: unsafe fn(&F32Block<T>),
        most: usize,
        b: *const T,
        next: &[u8],
    ) {
        // A call of one or two rows has so few sums that each multiply-add waits for the one before.
        let calls = block.rows.div_ceil(most).max(1);
        let rows_of_call = block.rows.div_ceil(calls).max(1);
        let mut ahead = Ahead::of(next, calls);
        for (call, row) in (0..block.rows).step_by(rows_of_call).enumerate() {
            ahead.fetch();
            let at = self.x.stride.at(block.first_row + row, 0) + block.k;
            // SAFETY: rows and `k` are inside the operand, rows inside the tile of sums.
            unsafe {
                run(&F32Block {
                    a: self.x.as_f32().add(at),
                    a_row: self.x.stride.row,
                    b,
                    depth: block.step,
                    c: block.sums.add(row * PANEL),
                    c_row: PANEL,
                    rows: rows_of_call.min(block.rows - row),
                    accumulate: block.k > 0,
                    fetch: match calls {
                        // What follows in memory is what is read next.
                        1 => Fetch::along(b),
                        _ => Fetch::part(next, call, calls),
                    },
                });
                self.finish(block, row, rows_of_call);
            }
        }
    }

    /// # Safety
    ///
    /// As [`Plan::run`].
    unsafe fn bf16_block(&self, block: &BlockOf<'_>, micro: MicroOf) {
        // SAFETY: by the caller's word.
        if unsafe { self.few_bf16(block) } {
            return;
        }
        // SAFETY: as above.
        let (b, rest) = unsafe { self.weights_of(block) };
        let calls = block.rows.div_ceil(self.micro_rows);
        let (next, chunks) = (self.next_bytes(block), block.step / CHUNK);
        let mut ahead = match micro {
            MicroOf::OnePart(micro) if !micro.fetches => Ahead::of(next, calls),
            _ => Ahead::of(&[], calls),
        };
        for (call, row) in (0..block.rows).step_by(self.micro_rows).enumerate() {
            ahead.fetch();
            let at = self.x.stride.at(block.first_row + row, block.k);
            let (rows, is_continued) = (self.micro_rows.min(block.rows - row), block.k > 0);
            let (again, fetch) = again_of(next, call, calls, chunks);
            // SAFETY: as in `f32_block`; operands have whole tiles of rows and chunks.
            unsafe {
                let (a, c) = (self.x.as_bf16(0).add(at), block.sums.add(row * PANEL));
                match micro {
                    MicroOf::OnePart(micro) => (micro.run)(&Bf16Block {
                        a,
                        a_row: self.x.stride.row,
                        a_group: self.x.stride.group,
                        a_chunk: self.x.stride.chunk,
                        b,
                        chunks,
                        c,
                        c_row: PANEL,
                        rows,
                        accumulate: is_continued,
                        again,
                        fetch,
                    }),
                    MicroOf::TwoParts(micro) => (micro.run)(&SplitBlock {
                        a,
                        a_group: self.x.stride.group,
                        b,
                        rest,
                        chunks,
                        c,
                        c_row: PANEL,
                        rows,
                        first: is_continued.then_some(First {
                            at: c,
                            row: PANEL as isize,
                        }),
                        again,
                        fetch,
                    }),
                }
                self.finish(block, row, self.micro_rows);
            }
        }
    }

    /// The weights of a block in bf16, and what is left of them in a second part, or null.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`].
    unsafe fn weights_of(&self, block: &BlockOf<'_>) -> (*const u16, *const u16) {
        let storage = self.w.shape().storage;
        let has_rest = matches!(self.factors, Factors::Bf16 { weights: 2, .. });
        // SAFETY: by the caller's word; `k` is inside the panel; parts are inside the room for expanded ones.
        unsafe {
            if storage.is_quantised() {
                return (self.expand_bf16(block), std::ptr::null());
            }
            let part = |part: usize| match storage {
                Storage::Rows => block.wide.cast::<u16>().add(part * BF16_DEPTH * PANEL),
                _ => {
                    let panel = self.w.panel(block.panel, part).as_ptr();
                    panel.cast::<u16>().add(block.k * PANEL).cast_mut()
                }
            };
            if storage == Storage::Rows {
                self.expand_rows(block);
            }
            let rest = match has_rest {
                true => part(1),
                false => std::ptr::null_mut(),
            };
            (part(0), rest)
        }
    }
}

impl Plan<'_> {
    /// How many f32 a worker needs for a block of a panel that is not read as it is stored.
    fn wide_room(&self) -> usize {
        let n_parts = match (self.w.rows(), self.factors) {
            (Some(_), Factors::Bf16 { weights, .. }) => Some(weights),
            _ => None,
        };
        match n_parts {
            Some(n) => n * BF16_DEPTH * PANEL / 2,
            None if self.parts.is_some() => F32_DEPTH * PANEL + parts::room(F32_DEPTH),
            None => F32_DEPTH * PANEL,
        }
    }

    /// Writes a block of a panel in the order that its product reads.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`].
    unsafe fn expand_rows(&self, block: &BlockOf<'_>) {
        let Some(rows) = self.w.rows() else {
            unreachable!("weights that are packed")
        };
        let piece = Piece {
            rows,
            panel: block.panel,
            first: block.k,
            n: block.step.min(rows.depth - block.k),
        };
        let high = block.wide.cast::<u16>();
        // SAFETY: by the caller's word; `wide_room` has made room for a block in all parts.
        unsafe {
            match self.factors {
                Factors::F32 => (self.table.expand.f32)(&piece, block.wide),
                Factors::Bf16 { weights, .. } => {
                    let low = match weights {
                        1 => std::ptr::null_mut(),
                        _ => high.add(BF16_DEPTH * PANEL),
                    };
                    (self.table.expand.bf16)(&piece, high, low);
                }
            }
        }
    }

    /// What multiplies a block of few rows with narrow weights, and how many of them at most in a call.
    fn narrow(&self, block: &BlockOf<'_>) -> Option<(RunNarrow, usize)> {
        let narrow = self.table.f32.narrow?;
        let micro = match self.w.shape().storage {
            Storage::Bf16 if block.step.is_multiple_of(CHUNK) => narrow.bf16,
            Storage::F16 => narrow.f16,
            _ => return None,
        };
        (block.rows <= narrow.worth_rows).then_some((micro, narrow.max_rows))
    }

    /// Hands the sums of some rows on while they are in the nearest cache.
    ///
    /// # Safety
    ///
    /// As [`Plan::run`].
    unsafe fn finish(&self, block: &BlockOf<'_>, row: usize, rows: usize) {
        let Some(finish) = block.finish else { return };
        let shape = self.w.shape();
        let rows = rows.min(block.rows - row);
        // SAFETY: by the caller's word; the row is inside the tile of sums.
        unsafe {
            let sums = block.sums.add(row * PANEL);
            if let Some(factors) = self.w.factors(block.panel) {
                (self.table.quantised.scale_columns)(sums, rows, factors);
            }
            (self.table.rows.finish)(&FinishBlock {
                sums,
                rows,
                token: block.first_row + row,
                column: block.panel * shape.panel_columns(),
                columns: shape.columns,
                finish: *finish,
            });
        }
    }

    /// The weights of the next block, as they stand in memory; none if they are not packed.
    fn next_bytes(&self, block: &BlockOf<'_>) -> &[u8] {
        let shape = self.w.shape();
        if block.next.0 >= shape.panels() || self.w.rows().is_some() {
            return &[];
        }
        let panel = self.w.panel(block.next.0, 0);
        let row_bytes = PANEL * if shape.storage == Storage::F32 { 4 } else { 2 };
        let bytes_to = |k: usize| match shape.storage.is_quantised() {
            true => shape.storage.codes_bytes(k),
            false => k * row_bytes,
        };
        let start = bytes_to(block.next.1).min(panel.len());
        let end = (start + bytes_to(block.step)).min(panel.len());
        &panel[start..end]
    }
}

/// How call `call` of `calls` over chunks of a block's weights reads them, and what it asks for of the next block's.
fn again_of(next: &[u8], call: usize, calls: usize, chunks: usize) -> (Again, Fetch) {
    let some = Fetch::part_of_chunks(next, call, calls, chunks);
    match (call, calls) {
        // Nothing else could ask for them in time.
        (_, 1) => (Again::Memory, some),
        // Both calls that ask do so all the time, so that memory does not rest while rows pass over what has come.
        (0 | 1, 2..FETCH_CALLS) => (Again::Next, Fetch::half(next, call)),
        _ => (Again::B, some),
    }
}

type RunNarrow = unsafe fn(&F32Block<u16>);

/// From so many calls on a block of weights is fetched between those of the one before. With fewer, each
/// would ask for more lines at once than a core can wait for; then the innermost product fetches them.
const FETCH_CALLS: usize = 6;

/// Lines of memory that will be read soon.
struct Ahead {
    at: *const u8,
    lines: usize,
    a_call: usize,
}

impl Ahead {
    /// These bytes, over so many calls.
    fn of(bytes: &[u8], calls: usize) -> Self {
        let lines = match calls < FETCH_CALLS {
            true => 0,
            false => bytes.len().div_ceil(64),
        };
        Ahead {
            at: bytes.as_ptr(),
            lines,
            a_call: lines.div_ceil(calls.max(1)),
        }
    }

    /// Asks for the next few lines.
    fn fetch(&mut self) {
        let n = self.a_call.min(self.lines);
        for _ in 0..n {
            crate::memory::prefetch(self.at);
            self.at = self.at.wrapping_add(64);
        }
        self.lines -= n;
    }
}

/// What one pass over the rows of a block works on.
struct BlockOf<'a> {
    panel: usize,
    /// Panel and first `k` of the block that comes after this one.
    next: (usize, usize),
    first_row: usize,
    rows: usize,
    k: usize,
    step: usize,
    /// The panel's sums, `[rows, 32]`.
    sums: *mut f32,
    /// Room for a block of a panel in f32.
    wide: *mut f32,
    /// What becomes of the sums, if this is the last `k`.
    finish: Option<&'a Finish>,
}
