//! Taking a model's tensors with accounts: nothing missing, nothing left over unnoticed.

use std::collections::BTreeSet;

use super::entry::list_names;
use super::{Checkpoint, Packed};
use crate::backend::PackedWeights;
use crate::{DType, Error, Result, Tensor};

/// How many names an error lists.
const LISTED: usize = 12;

/// Hands out the tensors of a [`Checkpoint`] by name and expected shape, and remembers
/// which were asked for.
///
/// A missing tensor fails its own [`take`](TensorSource::take) at once. To name all gaps in
/// one error, call [`require`](TensorSource::require) first with everything the config
/// implies.
pub struct TensorSource<'a> {
    checkpoint: &'a Checkpoint,
    shapes_from: String,
    taken: BTreeSet<String>,
    missing: BTreeSet<String>,
}

impl<'a> TensorSource<'a> {
    /// A source over `checkpoint`. `shapes_from` says where the expected shapes come from,
    /// such as `config.json`; errors quote it.
    pub fn new(checkpoint: &'a Checkpoint, shapes_from: impl Into<String>) -> Self {
        TensorSource {
            checkpoint,
            shapes_from: shapes_from.into(),
            taken: BTreeSet::new(),
            missing: BTreeSet::new(),
        }
    }

    /// The checkpoint behind it.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// How the matrices are packed, if they are.
    pub fn packed(&self) -> Option<&'a Packed> {
        self.checkpoint.packed()
    }

    /// The packed matrix `name`.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::take`], and
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if it is not packed.
    pub fn take_packed(&mut self, name: &str) -> Result<PackedWeights> {
        let described = self
            .packed()
            .and_then(|packed| Some((&packed.layout, packed.matrices.get(name)?)));
        let bytes = self.checkpoint.take(name)?;
        let wrong = |what: String| {
            Err(self.at_path(Error::checkpoint(what).at(format!("tensor `{name}`"))))
        };
        let Some((layout, matrix)) = described else {
            return wrong("the metadata does not say how it is packed".to_owned());
        };
        if (bytes.dtype(), bytes.shape().len()) != (DType::U8, 1) {
            return wrong(format!("found {bytes:?}, expected packed bytes in u8"));
        }
        self.taken.insert(name.to_owned());
        Ok(PackedWeights {
            layout: layout.clone(),
            matrix: matrix.clone(),
            bytes,
        })
    }

    /// Whether there is such a tensor. Asking is not taking.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(name)
    }

    /// Checks that tensors of all these names and shapes are there, without taking any.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) naming every missing tensor
    /// up to a limit, or the first of another shape.
    pub fn require<N: AsRef<str>, S: AsRef<[usize]>>(
        &mut self,
        wanted: impl IntoIterator<Item = (N, S)>,
    ) -> Result<()> {
        let mut misshapen = None;
        for (name, shape) in wanted {
            let name = name.as_ref();
            match self.checkpoint.entry(name) {
                None => {
                    self.missing.insert(name.to_owned());
                }
                Some(entry) if entry.shape() != shape.as_ref() => {
                    misshapen.get_or_insert(self.shape_error(name, shape.as_ref(), ""));
                }
                Some(_) => {}
            }
        }
        self.check_missing()?;
        misshapen.map_or(Ok(()), Err)
    }

    /// The tensor `name`, which must have this shape.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::take`], and
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) if the shape differs.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.take_as(name, shape, "")
    }

    /// [`take`](TensorSource::take) for a shape that errors spell out as `meaning`, such as
    /// `[n_heads * d_kv, d_model]`.
    ///
    /// # Errors
    ///
    /// As [`take`](TensorSource::take).
    pub fn take_as(&mut self, name: &str, shape: &[usize], meaning: &str) -> Result<Tensor> {
        match self.take_optional_as(name, shape, meaning)? {
            Some(tensor) => Ok(tensor),
            None => {
                self.missing.insert(name.to_owned());
                // The checkpoint's own error; it has no such tensor.
                self.checkpoint.take(name)
            }
        }
    }

    /// The tensor `name` if it is there; if so, it must have this shape.
    ///
    /// # Errors
    ///
    /// As [`take`](TensorSource::take), but for absence.
    pub fn take_optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        self.take_optional_as(name, shape, "")
    }

    fn take_optional_as(
        &mut self,
        name: &str,
        shape: &[usize],
        meaning: &str,
    ) -> Result<Option<Tensor>> {
        let Some(entry) = self.checkpoint.entry(name) else {
            return Ok(None);
        };
        if entry.shape() != shape {
            return Err(self.shape_error(name, shape, meaning));
        }
        let tensor = self.checkpoint.take(name)?;
        self.taken.insert(name.to_owned());
        Ok(Some(tensor))
    }

    /// Ends the accounts. Returns the names that were not taken and that `ignorable` allows,
    /// sorted, so that a report can list them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Checkpoint`](crate::ErrorKind::Checkpoint) naming all tensors that were
    /// asked for in vain, or all that were left over and are not ignorable, up to a limit.
    pub fn finish(self, ignorable: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        self.check_missing()?;
        let left: Vec<_> = self
            .checkpoint
            .names()
            .filter(|&name| !self.taken.contains(name))
            .collect();
        let (ignored, surplus): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|name| ignorable(name));
        if !surplus.is_empty() {
            return Err(self.at_path(Error::checkpoint(format!(
                "{} tensors have no place in the model that {} describes: {}",
                surplus.len(),
                self.shapes_from,
                list_names(surplus, LISTED)
            ))));
        }
        Ok(ignored.into_iter().map(str::to_owned).collect())
    }

    fn check_missing(&self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        Err(self.at_path(Error::checkpoint(format!(
            "{} of the tensors that {} implies are missing: {}",
            self.missing.len(),
            self.shapes_from,
            list_names(&self.missing, LISTED)
        ))))
    }

    /// `... has shape [512, 384], expected [512, 512] = meaning from config.json`
    fn shape_error(&self, name: &str, expected: &[usize], meaning: &str) -> Error {
        let entry = self.checkpoint.entry(name);
        let found = entry.map_or(&[][..], |entry| entry.shape());
        let stored_as = entry.map_or(name, |entry| entry.name());
        let meaning = match meaning {
            "" => String::new(),
            meaning => format!(" = {meaning}"),
        };
        let file = self
            .checkpoint
            .file_of(name)
            .unwrap_or(self.checkpoint.path());
        Error::checkpoint(format!(
            "has shape {found:?}, expected {expected:?}{meaning} from {}",
            self.shapes_from
        ))
        .at(format!("tensor `{stored_as}`"))
        .at(file.display())
        .hint(format!(
            "do the weights and {} belong to the same model?",
            self.shapes_from
        ))
    }

    fn at_path(&self, error: Error) -> Error {
        error.at(self.checkpoint.path().display())
    }
}
