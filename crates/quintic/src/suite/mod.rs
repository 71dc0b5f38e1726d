//! Cases that every backend has to pass.
//!
//! Each case makes inputs that depend on nothing, gives them to the backend in question and to
//! [`Reference`](crate::backend::reference::Reference), and compares. [`run`] runs the cases on
//! any [`Backend`]; [`run_on`] on one that this build knows by name.
//!
//! ```
//! # fn main() -> quintic::Result<()> {
//! use quintic::backend::cpu::Cpu;
//! use quintic::suite::{self, Options, Verdict};
//! use quintic::{Compute, ComputeType};
//!
//! let backend = Cpu::new(&Compute::default())?;
//! let mut options = Options::new(ComputeType::F32);
//! options.filter = Some("pool/".to_owned());
//! suite::run(&backend, &options, &mut |outcome| {
//!     assert_eq!(outcome.verdict, Verdict::Passed, "{outcome:?}");
//! });
//! # Ok(())
//! # }
//! ```
//!
//! # How operands are made and looked at
//!
//! An [operand](Backend::Operand) is opaque, so it is made and read by operations. A stream whose
//! rows have a mean square of 1 goes through a norm, which leaves it as it is but for a few
//! roundings; a product with a matrix that has a single power of two in each row then picks the
//! operand's columns. To read an operand, its product with the identity is added to zeros. Both
//! products are exact: every sum has one term that is not zero, and that term is a value that
//! the compute type holds. What the norm left is read and becomes the reference's input, so both
//! sides begin with the same numbers, and these are numbers that the compute type holds. So are
//! the weights. Rounding of inputs is thereby no part of any difference.
//!
//! # Bounds
//!
//! Every bound follows from what a backend may do, value by value. `u` is the largest relative
//! error of a rounding to the compute type: 2^-24 for f32, 2^-8 for bf16, 2^-11 for f16 (half the
//! distance from 1 to the next number); `e` is 2^-24, that of f32, in which everything between
//! operands is computed. f16 has a smallest distance of 2^-24, so a rounding to it may be off by
//! 2^-25 where numbers are small: `t`, 0 for the other types.
//!
//! - **Embedding, streams, first and last token**: copies, no error.
//! - **Norm** of `k` values: the sum of squares has `k` roundings and one for each square, all of
//!   one sign, and the root halves the error; division, root, epsilon and gain add less than 10:
//!   `(k / 2 + 10) e |y|`, then `u |y| + t` for the operand.
//! - **Product** of depth `k`: in any order, each of `k` terms takes part in at most `k`
//!   additions; a factor of the whole sum and the sum with the residual add less than 4:
//!   `(k + 4) e sum |x| |w|`, which is `E` below. Stored: `u |y| + t`. Added to a stream: `e |y|`.
//! - **Activation**: a backend may round its argument to the operand type. No activation is
//!   steeper than 1.13 (tanh GELU, at 1.4). Its own evaluation takes at most 16 roundings of
//!   intermediate numbers of the size of 1 or of the argument. With `z` for the argument:
//!   `1.13 (E + u |z| + t) + 16 e max(1, |z|)`, then `u |y| + t`.
//! - **Gate** `g = act(z)` times `v`: the error of `g` is that of an activation, that of `v` is
//!   `E + u |v| + t`; they meet as `|g| dv + |v| dg + dg dv + e |g v|`, then `u |y| + t`.
//! - **Attention** over `m` keys of width `d`: a score is a product of depth `d` and a bias.
//!   `sum |q| |k|` is at most the product of the two lengths (Cauchy and Schwarz), so with
//!   `s = |q| max |k| + max |bias|` a score is off by at most `(d + 10) e s`: sum, bias, and up to
//!   six roundings of scores and biases that are scaled to another base. Two scores, the key's
//!   and the largest, move a weight by the factor `exp(2 (d + 10) e s)`. The exponential and the
//!   division take less than 24 roundings, the sum of weights `m`, and the weighted sum of values
//!   `m`, once more `m` where sums are rescaled on the way. A softmax's weight may be rounded to
//!   the operand type, and the sum that it is divided by may be of rounded weights: `2 u`, and
//!   `t` for each, since the largest weight is 1 before the division. All of it counts as a share
//!   of `sum |weight| |value|`; then `u |y| + t`.
//!   [Attention weights](Backend::attention_weights) are never rounded to the operand type.
//! - **Logits**: a product, then a factor: `2 e |y|` more.
//! - **Choices**: ids are equal; logits are whole numbers times a power of two, so that ties are
//!   ties for everyone. Logarithms: `(n + 16) e` for the sum over `n` tokens, and `4 e` of the
//!   largest logit.
//! - **Mean** of `n` tokens: `(n + 2) e` of the mean magnitude.
//! - **Pass**: the root mean square of the difference as a share of the result's. Errors of many
//!   roundings add as the roots of their squares. Two layers have about twenty roundings to the
//!   operand type on a path, 4.5 `u` together; norms divide by what has the size of the stream,
//!   and scores that are not divided by the root of their width may double an error: `8 u`. In
//!   f32 what counts are the sums: up to 256 terms, 16 `e` a sum in the root mean square, and 4
//!   such sums on a path: `64 e`.
//!
//! A bound that is not zero has `2^-120` added: smaller numbers may be flushed to zero.
//!
//! These bounds are far below what a wrong index does, also in 16 bits: half of an attention's
//! value columns are zero but for every `n`th key, so that a weight shows by itself. The tests of
//! this module break the reference in two dozen ways, one at a time, and find each.

mod attention;
mod bounds;
mod cache;
mod embed;
mod inputs;
mod known;
mod logits;
mod norm;
mod pass;
mod pool;
mod product;
mod worst;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Result;
use crate::backend::Backend;
use crate::compute::ComputeType;

pub use known::{Ran, dtypes, run_on};

use worst::Worst;

/// Numbers of tokens around which something may end: a vector, a tile, a block.
const SIZES: [usize; 15] = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200];

/// What is checked, and what the backend promises beyond the trait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The type that the backend computes in.
    pub dtype: ComputeType,
    /// Runs only cases whose `group/name` contains this.
    pub filter: Option<String>,
    /// Whether a row has the same bits alone and among others. Otherwise they have to agree as
    /// two backends do.
    pub row_bits: bool,
    /// Whether products of gate and up beyond the range of the compute type are held.
    pub range: bool,
}

impl Options {
    /// All cases, and every promise.
    pub fn new(dtype: ComputeType) -> Self {
        Options {
            dtype,
            filter: None,
            row_bits: true,
            range: true,
        }
    }

    fn wants(&self, group: Group, name: &str) -> bool {
        let whole = format!("{group}/{name}");
        self.filter
            .as_deref()
            .is_none_or(|filter| whole.contains(filter))
    }
}

/// What a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Embeddings, and streams from and to the host.
    Embed,
    /// Norms.
    Norm,
    /// Products with every epilogue.
    Product,
    /// Attention inside rows.
    Attention,
    /// Attention to cached keys and values.
    Cache,
    /// Scores of a vocabulary, and choices by them.
    Logits,
    /// Pooling.
    Pool,
    /// Whole encoders.
    Pass,
}

impl Group {
    /// Every group, in the order in which they run.
    pub const ALL: [Group; 8] = [
        Group::Embed,
        Group::Norm,
        Group::Product,
        Group::Attention,
        Group::Cache,
        Group::Logits,
        Group::Pool,
        Group::Pass,
    ];

    /// Its name, such as `norm`.
    pub fn name(self) -> &'static str {
        match self {
            Group::Embed => "embed",
            Group::Norm => "norm",
            Group::Product => "product",
            Group::Attention => "attention",
            Group::Cache => "cache",
            Group::Logits => "logits",
            Group::Pool => "pool",
            Group::Pass => "pass",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every value is within its bound.
    Passed,
    /// A value is not; which one.
    Failed(String),
    /// The backend reported an error.
    Refused(String),
    /// The backend panicked, with this message.
    Panicked(String),
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What it is about.
    pub group: Group,
    /// What is special about it.
    pub name: String,
    /// The absolute difference from the reference at the value that is nearest to its bound or
    /// farthest beyond it, as a share of the largest value of the case.
    pub error: f64,
    /// The bound of that value, as a share of the same.
    pub bound: f64,
    /// How it ended.
    pub verdict: Verdict,
}

impl Outcome {
    /// Whether it passed.
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }

    /// How much of its bound the error takes; above 1 it fails.
    pub fn share(&self) -> f64 {
        match (self.error, self.bound) {
            (0.0, _) => 0.0,
            (error, bound) => error / bound,
        }
    }
}

/// The backend in question.
struct Subject<'a, B> {
    backend: &'a B,
    options: &'a Options,
}

impl<B> Subject<'_, B> {
    fn dtype(&self) -> ComputeType {
        self.options.dtype
    }
}

type Check<'a, B> = Box<dyn Fn(&Subject<'_, B>, &mut Worst) -> Result<()> + 'a>;

struct Case<'a, B> {
    group: Group,
    name: String,
    check: Check<'a, B>,
}

/// The cases of one group, while they are written down.
struct List<'a, B> {
    group: Group,
    cases: Vec<Case<'a, B>>,
}

impl<'a, B> List<'a, B> {
    fn add(
        &mut self,
        name: impl Into<String>,
        check: impl Fn(&Subject<'_, B>, &mut Worst) -> Result<()> + 'a,
    ) {
        self.cases.push(Case {
            group: self.group,
            name: name.into(),
            check: Box::new(check),
        });
    }
}

fn cases<'a, B: Backend + 'a>(options: &Options) -> Vec<Case<'a, B>> {
    let mut all = Vec::new();
    for group in Group::ALL {
        let mut list = List {
            group,
            cases: Vec::new(),
        };
        match group {
            Group::Embed => embed::cases(&mut list),
            Group::Norm => norm::cases(&mut list),
            Group::Product => product::cases(&mut list, options),
            Group::Attention => attention::cases(&mut list),
            Group::Cache => cache::cases(&mut list),
            Group::Logits => logits::cases(&mut list),
            Group::Pool => pool::cases(&mut list),
            Group::Pass => pass::cases(&mut list),
        }
        all.append(&mut list.cases);
    }
    all.retain(|case| options.wants(case.group, &case.name));
    all
}

/// Runs the cases on a backend that computes in `options.dtype`, and tells `on_case` of each
/// when it has ended. A case that panics is over; the others run.
pub fn run<B: Backend>(backend: &B, options: &Options, on_case: &mut dyn FnMut(&Outcome)) {
    let subject = Subject { backend, options };
    for case in cases::<B>(options) {
        let mut worst = Worst::default();
        let ended = catch_unwind(AssertUnwindSafe(|| (case.check)(&subject, &mut worst)));
        let verdict = match ended {
            Ok(Ok(())) => worst.verdict(),
            Ok(Err(error)) => Verdict::Refused(error.to_string()),
            Err(panic) => Verdict::Panicked(message(panic.as_ref())),
        };
        let (error, bound) = match verdict {
            Verdict::Passed | Verdict::Failed(_) => worst.relative(),
            // There is nothing to measure.
            Verdict::Refused(_) | Verdict::Panicked(_) => (f64::INFINITY, 0.0),
        };
        on_case(&Outcome {
            group: case.group,
            name: case.name,
            error,
            bound,
            verdict,
        });
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without a message".to_owned(),
    }
}

#[cfg(test)]
mod tests;
