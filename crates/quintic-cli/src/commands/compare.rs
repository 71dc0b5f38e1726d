//! `quintic compare`.

use quintic::checkpoint::SafetensorsFile;
use quintic::verify::Distance;
use quintic::{Error, Result, Tensor};
use serde_json::{Value, json};

use crate::args::CompareArgs;
use crate::show::thousands;
use crate::sink::print;

/// The quantiles of the absolute difference that are shown.
const QUANTILES: [f64; 7] = [0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999];

/// How far two tensors are apart.
struct Difference {
    name: String,
    /// Of the second from the first.
    distance: Distance,
}

/// Shows the differences; a failure's exit code if one is above `--max`.
pub(crate) fn run(args: &CompareArgs) -> Result<u8> {
    let (a, b) = (
        SafetensorsFile::open(&args.a)?,
        SafetensorsFile::open(&args.b)?,
    );
    let differences = names(&a, &b, args.tensor.as_deref())?
        .into_iter()
        .map(|name| compare(&a.take(&name)?, &b.take(&name)?))
        .collect::<Result<Vec<_>>>()?;
    if args.json {
        print(&as_json(&differences))?;
    } else {
        for difference in &differences {
            show(difference)?;
        }
    }
    let Some(limit) = args.max else {
        return Ok(0);
    };
    // NaN is above every limit.
    let above: Vec<&Difference> = differences
        .iter()
        .filter(|d| d.distance.max > limit || d.distance.max.is_nan())
        .collect();
    for difference in &above {
        eprintln!(
            "tensor `{}`: {:.3e} is above {limit:e}",
            difference.name, difference.distance.max
        );
    }
    Ok(u8::from(!above.is_empty()))
}

/// Tensors in both files. One that is in a single file is an error, unless one was named.
fn names(a: &SafetensorsFile, b: &SafetensorsFile, only: Option<&str>) -> Result<Vec<String>> {
    if let Some(name) = only {
        return Ok(vec![name.to_owned()]);
    }
    for (here, there) in [(a, b), (b, a)] {
        if let Some(entry) = here
            .entries()
            .iter()
            .find(|e| there.entry(e.name()).is_none())
        {
            return Err(Error::input(format!(
                "tensor `{}` is missing, but {} has it",
                entry.name(),
                here.path().display()
            ))
            .at(there.path().display())
            .hint("compare one tensor with `--tensor`"));
        }
    }
    let names: Vec<String> = a.entries().iter().map(|e| e.name().to_owned()).collect();
    if names.is_empty() {
        return Err(Error::input("there are no tensors").at(a.path().display()));
    }
    Ok(names)
}

fn compare(a: &Tensor, b: &Tensor) -> Result<Difference> {
    if a.shape() != b.shape() {
        return Err(
            Error::input(format!("shapes {:?} and {:?} differ", a.shape(), b.shape()))
                .at(format!("tensor `{}`", a.name())),
        );
    }
    let pairs = values(a)?.into_iter().zip(values(b)?);
    Ok(Difference {
        name: a.name().to_owned(),
        distance: Distance::between(pairs, &QUANTILES),
    })
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    if tensor.dtype().is_float() {
        return Ok(tensor.to_f32().into_iter().map(f64::from).collect());
    }
    Ok(crate::batches::integers(tensor)?
        .into_iter()
        .map(|value| value as f64)
        .collect())
}

fn show(difference: &Difference) -> Result<()> {
    let distance = &difference.distance;
    print(&format_args!(
        "{} ({} elements)\n  max {:.3e}   relative rms {:.3e}",
        difference.name,
        thousands(distance.n_values as u128),
        distance.max,
        distance.relative_rms
    ))?;
    let columns: Vec<String> = QUANTILES
        .iter()
        .zip(&distance.quantiles)
        .map(|(q, value)| format!("{q}: {value:.3e}"))
        .collect();
    print(&format_args!("  quantiles  {}", columns.join("   ")))
}

fn as_json(differences: &[Difference]) -> Value {
    differences
        .iter()
        .map(|d| {
            let quantiles: serde_json::Map<String, Value> = QUANTILES
                .iter()
                .zip(&d.distance.quantiles)
                .map(|(q, v)| (q.to_string(), json!(v)))
                .collect();
            let body = json!({
                "elements": d.distance.n_values, "max": d.distance.max,
                "relative_rms": d.distance.relative_rms,
                "quantiles": quantiles,
            });
            (d.name.clone(), body)
        })
        .collect::<serde_json::Map<String, Value>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_f32("x", vec![values.len()], values)
    }

    #[test]
    fn tensors_of_one_shape_are_compared() {
        let difference = compare(&tensor(&[1.0, 2.0]), &tensor(&[1.0, 2.5])).unwrap();
        assert_eq!(difference.distance.max, 0.5);
        assert_eq!(
            difference.distance.quantiles,
            [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
        );
        assert!(compare(&tensor(&[1.0]), &tensor(&[1.0, 2.0])).is_err());
    }
}
