//! Products with every epilogue.

use super::inputs::{Made, Reader, base, make, make_noise, noise, picks_of_noise, read, tensor};
use super::{List, Options, SIZES, Subject, Worst, bounds};
use crate::Result;
use crate::backend::reference::{Reference, Rows};
use crate::backend::{Backend, Epilogue, Weights};
use crate::batch::PackedBatch;
use crate::config::Activation;
use crate::tensor::Tensor;

/// Depth and the columns of stacked parts.
type Shape<'a> = (usize, &'a [usize]);

const SHAPES: [Shape<'static>; 8] = [
    (24, &[40]),
    (40, &[24]),
    (8, &[8]),
    (64, &[64, 64, 64]),
    (24, &[16, 8, 40]),
    (128, &[512]),
    (512, &[128]),
    (136, &[72]),
];

pub(super) fn cases<'a, B: Backend + 'a>(list: &mut List<'a, B>, options: &Options) {
    for tokens in SIZES {
        list.add(format!("store, {tokens} tokens"), move |subject, worst| {
            store(subject, worst, tokens, (64, &[72]))
        });
        list.add(format!("add, {tokens} tokens"), move |subject, worst| {
            add(subject, worst, tokens, (64, &[24]))
        });
        list.add(format!("cast, {tokens} tokens"), move |subject, worst| {
            cast(subject, worst, (tokens, 72, 40))
        });
        list.add(format!("gate, {tokens} tokens"), move |subject, worst| {
            gate(subject, worst, (tokens, 24, 40), Activation::GeluTanh)
        });
    }
    for shape in SHAPES {
        let (depth, parts) = shape;
        list.add(format!("store, {depth} to {parts:?}"), move |s, worst| {
            store(s, worst, 17, shape)
        });
        list.add(format!("add, {depth} to {parts:?}"), move |s, worst| {
            add(s, worst, 33, shape)
        });
    }
    for activation in Activation::ALL {
        let name = activation.name();
        list.add(format!("activate, {name}"), move |subject, worst| {
            activate(subject, worst, (9, 64, 128), activation)?;
            activate(subject, worst, (17, 24, 40), activation)
        });
        list.add(format!("gate, {name}"), move |subject, worst| {
            gate(subject, worst, (9, 64, 128), activation)?;
            gate(subject, worst, (17, 40, 24), activation)
        });
    }
    list.add("no tokens", |subject, worst| {
        store(subject, worst, 0, (64, &[40]))?;
        add(subject, worst, 0, (64, &[40]))?;
        gate(subject, worst, (0, 24, 40), Activation::GeluTanh)
    });
    list.add("1000 tokens", |subject, worst| {
        add(subject, worst, 1000, (64, &[40]))
    });
    if options.range {
        list.add("range", range);
    }
}

/// Weights, and for the bounds their magnitudes.
fn parts_of(subject: &Subject<'_, impl Backend>, (depth, columns): Shape<'_>) -> [Weights; 2] {
    let values: Vec<Vec<f32>> = columns
        .iter()
        .enumerate()
        .map(|(part, &n)| noise(subject.dtype(), n * depth, 31 * part + depth + n))
        .collect();
    let stack = |of: fn(f32) -> f32| {
        let parts = values.iter().zip(columns).map(|(values, &n)| {
            let values: Vec<f32> = values.iter().map(|&v| of(v)).collect();
            tensor(n, depth, &values)
        });
        Weights::Stacked(parts.collect())
    };
    [stack(|v| v), stack(f32::abs)]
}

/// The exact product, and the sums of magnitudes.
fn exact(x: &Rows, columns: usize, [weights, magnitudes]: &[Weights; 2]) -> [Rows; 2] {
    let absolute: Vec<f32> = x.data.iter().map(|x| x.abs()).collect();
    let absolute = Rows::new(x.rows, x.columns, absolute);
    [(x, weights), (&absolute, magnitudes)].map(|(x, weights)| {
        let mut out = Rows::zeros(x.rows, columns);
        Reference.linear(x, weights, Epilogue::Store(&mut out));
        out
    })
}

fn copy(weights: &Weights) -> Weights {
    match weights {
        Weights::Stacked(parts) => Weights::Stacked(parts.clone()),
        Weights::Gated { gate, up } => Weights::Gated {
            gate: gate.clone(),
            up: up.clone(),
        },
        Weights::Packed(packed) => Weights::Packed(packed.clone()),
    }
}

/// A stream that is multiplied without a norm between: its values are rounded once, to the
/// type of an operand, which holds these exactly.
fn cast<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    (tokens, depth, columns): (usize, usize, usize),
) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let x = Rows::new(tokens, depth, noise(dtype, tokens * depth, tokens));
    let w = noise(dtype, columns * depth, columns);
    let weights = |values: &[f32]| Weights::Stacked(vec![tensor(columns, depth, values)]);
    let magnitudes = |values: &[f32]| -> Vec<f32> { values.iter().map(|v| v.abs()).collect() };
    let mut expected = Rows::zeros(tokens, columns);
    Reference.linear(&x, &weights(&w), Epilogue::Store(&mut expected));
    let mut sizes = Rows::zeros(tokens, columns);
    Reference.linear(
        &Rows::new(tokens, depth, magnitudes(&x.data)),
        &weights(&magnitudes(&w)),
        Epilogue::Store(&mut sizes),
    );
    let mut operand = backend.operand(tokens, depth);
    backend.cast(&backend.stream(tokens, depth, &x.data), &mut operand);
    let mut out = backend.stream(tokens, columns, &vec![0.0; tokens * columns]);
    let matrix = backend.prepare_matrix(weights(&w), None)?;
    backend.linear(&operand, &matrix, Epilogue::Add(&mut out));
    let found = backend.read_stream(&out)?;
    worst.compare("product", &found, &expected.data, |at| {
        bounds::sum(depth, sizes.data[at])
            + 2.0 * bounds::SINGLE * f64::from(expected.data[at].abs())
    });
    Ok(())
}

fn store<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    tokens: usize,
    shape: Shape<'_>,
) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let (depth, columns) = (shape.0, shape.1.iter().sum());
    let x = make_noise(subject, worst, tokens, depth, tokens)?;
    let weights = parts_of(subject, shape);
    let [expected, sizes] = exact(&x.exact, columns, &weights);
    let matrix = backend.prepare_matrix(copy(&weights[0]), None)?;
    let mut out = backend.operand(tokens, columns);
    backend.linear(&x.own, &matrix, Epilogue::Store(&mut out));
    let found = read(subject, &out, tokens, columns)?;
    worst.compare("product", &found, &expected.data, |at| {
        bounds::sum(depth, sizes.data[at]) + bounds::stored(dtype, expected.data[at])
    });
    Ok(())
}

fn add<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    tokens: usize,
    shape: Shape<'_>,
) -> Result<()> {
    let backend = subject.backend;
    let (depth, columns) = (shape.0, shape.1.iter().sum());
    let x = make_noise(subject, worst, tokens, depth, tokens + 1)?;
    let weights = parts_of(subject, shape);
    let [_, sizes] = exact(&x.exact, columns, &weights);
    let residual = noise(crate::ComputeType::F32, tokens * columns, 5);
    let mut expected = Rows::new(tokens, columns, residual.clone());
    Reference.linear(&x.exact, &weights[0], Epilogue::Add(&mut expected));
    let matrix = backend.prepare_matrix(copy(&weights[0]), None)?;
    let mut out = backend.stream(tokens, columns, &residual);
    backend.linear(&x.own, &matrix, Epilogue::Add(&mut out));
    let found = backend.read_stream(&out)?;
    worst.compare("sum", &found, &expected.data, |at| {
        let size = sizes.data[at] + residual[at].abs();
        bounds::sum(depth, size) + bounds::SINGLE * f64::from(expected.data[at].abs())
    });
    Ok(())
}

/// Tokens, depth, columns.
type Sizes = (usize, usize, usize);

fn activate<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    (tokens, depth, columns): Sizes,
    activation: Activation,
) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let x = make_noise(subject, worst, tokens, depth, depth)?;
    let weights = parts_of(subject, (depth, &[columns]));
    let [arguments, sizes] = exact(&x.exact, columns, &weights);
    let mut expected = Rows::zeros(tokens, columns);
    let epilogue = Epilogue::Activate(activation, &mut expected);
    Reference.linear(&x.exact, &weights[0], epilogue);
    let matrix = backend.prepare_matrix(copy(&weights[0]), None)?;
    let mut out = backend.operand(tokens, columns);
    backend.linear(&x.own, &matrix, Epilogue::Activate(activation, &mut out));
    let found = read(subject, &out, tokens, columns)?;
    worst.compare("activated", &found, &expected.data, |at| {
        let sum = bounds::sum(depth, sizes.data[at]);
        bounds::activated(dtype, activation, arguments.data[at], sum)
            + bounds::stored(dtype, expected.data[at])
    });
    Ok(())
}

/// Both halves of a gated product with what their bounds need.
struct Halves {
    weights: Weights,
    gates: Rows,
    ups: Rows,
    gate_sizes: Rows,
    up_sizes: Rows,
    expected: Rows,
}

impl Halves {
    fn of(x: &Rows, gate: Tensor, up: Tensor, activation: Activation) -> Self {
        let columns = gate.shape()[0];
        let pair = |half: &Tensor| {
            let magnitudes: Vec<f32> = half.to_f32().iter().map(|v| v.abs()).collect();
            let magnitudes = tensor(columns, half.shape()[1], &magnitudes);
            let weights = [half.clone(), magnitudes].map(|part| Weights::Stacked(vec![part]));
            exact(x, columns, &weights)
        };
        let ([gates, gate_sizes], [ups, up_sizes]) = (pair(&gate), pair(&up));
        let weights = Weights::Gated { gate, up };
        let mut expected = Rows::zeros(x.rows, columns);
        Reference.linear(x, &weights, Epilogue::Gate(activation, &mut expected));
        Halves {
            weights,
            gates,
            ups,
            gate_sizes,
            up_sizes,
            expected,
        }
    }

    /// Error of the value at `at` before it is stored.
    fn bound(&self, subject: &Subject<'_, impl Backend>, act: Activation, at: usize) -> f64 {
        let (dtype, depth) = (subject.dtype(), self.depth());
        let up = f64::from(self.ups.data[at].abs());
        let gated = f64::from(self.expected.data[at].abs());
        let up_error =
            bounds::sum(depth, self.up_sizes.data[at]) + bounds::stored(dtype, self.ups.data[at]);
        let sum = bounds::sum(depth, self.gate_sizes.data[at]);
        let gate_error = bounds::activated(dtype, act, self.gates.data[at], sum);
        // |act(z)| is at most |z| or 1.
        let gate = match up > 0.0 {
            true => gated / up,
            false => f64::from(self.gates.data[at].abs()).max(1.0),
        };
        gate * up_error + up * gate_error + gate_error * up_error + bounds::SINGLE * gated
    }

    fn depth(&self) -> usize {
        match &self.weights {
            Weights::Gated { gate, .. } => gate.shape()[1],
            Weights::Stacked(_) | Weights::Packed(_) => 0,
        }
    }
}

fn gate<B: Backend>(
    subject: &Subject<'_, B>,
    worst: &mut Worst,
    (tokens, depth, columns): Sizes,
    activation: Activation,
) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let x = make_noise(subject, worst, tokens, depth, depth + 3)?;
    let half = |seed| tensor(columns, depth, &noise(dtype, columns * depth, seed));
    let halves = Halves::of(&x.exact, half(1), half(2), activation);
    let matrix = backend.prepare_matrix(copy(&halves.weights), None)?;
    let mut out = backend.operand(tokens, columns);
    backend.linear(&x.own, &matrix, Epilogue::Gate(activation, &mut out));
    let found = read(subject, &out, tokens, columns)?;
    let expected = &halves.expected.data;
    worst.compare("gated", &found, expected, |at| {
        halves.bound(subject, activation, at) + bounds::stored(dtype, expected[at])
    });
    Ok(())
}

/// Products of gate and up of more than 1e6, which f16 cannot hold. It is inside of passes that
/// they are held, since a backend may have to run one again.
fn range<B: Backend>(subject: &Subject<'_, B>, worst: &mut Worst) -> Result<()> {
    let (backend, dtype) = (subject.backend, subject.dtype());
    let (tokens, depth, columns) = (17, 64, 40);
    let values = base(dtype, tokens, 0, 8, |_, _| ());
    let half = |seed| {
        let values = noise(dtype, columns * depth, seed);
        let large: Vec<f32> = values.iter().map(|v| 256.0 * v).collect();
        tensor(columns, depth, &large)
    };
    let (gate, up) = (half(1), half(2));
    let matrix = backend.prepare_matrix(
        Weights::Gated {
            gate: gate.clone(),
            up: up.clone(),
        },
        None,
    )?;
    let ids: Vec<u32> = vec![0; tokens];
    let batch = PackedBatch::from_rows(&[ids], 1)?;
    let mut kept: Option<Rows> = None;
    let mut inner = Worst::default();
    let encoder = u64::MAX;
    let found = backend.pass(encoder, &batch, false, &mut |_| {
        let picks = picks_of_noise(depth, 8);
        let Made { own, exact } = make(subject, &mut inner, &values, &picks, Reader::Product)?;
        let mut out = backend.operand(tokens, columns);
        backend.linear(
            &own,
            &matrix,
            Epilogue::Gate(Activation::GeluTanh, &mut out),
        );
        let mut identity = vec![0.0; columns * columns];
        for column in 0..columns {
            identity[column * columns + column] = 1.0;
        }
        let identity = Weights::Stacked(vec![tensor(columns, columns, &identity)]);
        let identity = backend.prepare_matrix(identity, None)?;
        let mut stream = backend.stream(tokens, columns, &vec![0.0; tokens * columns]);
        backend.linear(&out, &identity, Epilogue::Add(&mut stream));
        kept = Some(exact);
        Ok(stream)
    })?;
    let found = backend.read_stream(&found)?;
    let Some(x) = kept else {
        worst.mismatch("the pass was not run".to_owned());
        return Ok(());
    };
    let halves = Halves::of(&x, gate, up, Activation::GeluTanh);
    let expected = &halves.expected.data;
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    worst.equal("values above 1e6", &(largest > 1.0e6), &true);
    // Scaled so that the largest value fits, numbers 2^-30 as large are the smallest: half of
    // the distance between them.
    let smallest = f64::from(largest) / f64::from(1u32 << 30);
    worst.compare("gated", &found, expected, |at| {
        halves.bound(subject, Activation::GeluTanh, at)
            + bounds::stored(dtype, expected[at])
            + smallest
    });
    Ok(())
}
