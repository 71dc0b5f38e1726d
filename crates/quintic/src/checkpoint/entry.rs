//! What a weight file says about one tensor.

use crate::{DType, Error};

/// Name, type, shape and size of a stored tensor, whether or not it can be taken.
///
/// The element type is kept as the text of the file, so that a tensor of a type that
/// [`DType`] lacks (`F64`, `IQ2_XXS`) can still be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) n_bytes: u64,
    /// First byte in the file; unused by formats that do not map it.
    pub(crate) start: usize,
}

impl Entry {
    /// Name in the file, with its prefix.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type as safetensors spells it, such as `BF16` or `F8_E4M3`, or as GGUF does, such
    /// as `Q4_K`.
    pub fn dtype_name(&self) -> &str {
        &self.dtype
    }

    /// Element type, or `None` if tensors of this type can be listed but not taken.
    pub fn dtype(&self) -> Option<DType> {
        DType::all().find(|dtype| dtype.safetensors_name() == self.dtype)
    }

    /// Extents, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of the values in bytes.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// [`Entry::dtype`], or the error that says which types there are.
    pub(crate) fn supported_dtype(&self) -> crate::Result<DType> {
        self.dtype().ok_or_else(|| {
            let supported: Vec<_> = DType::all().map(DType::safetensors_name).collect();
            Error::unsupported(format!(
                "element type `{}` cannot be loaded, supported are {}",
                self.dtype,
                supported.join(", ")
            ))
            .at(format!("tensor `{}`", self.name))
        })
    }
}

/// Joins the first few of `names` in backticks and counts the rest.
pub(crate) fn list_names<S: AsRef<str>>(
    names: impl IntoIterator<Item = S>,
    limit: usize,
) -> String {
    let mut names = names.into_iter();
    let mut text = String::new();
    for name in names.by_ref().take(limit) {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push('`');
        text.push_str(name.as_ref());
        text.push('`');
    }
    match names.count() {
        0 => text,
        rest => format!("{text} and {rest} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_names_up_to_a_limit() {
        assert_eq!(list_names(["a", "b"], 2), "`a`, `b`");
        assert_eq!(list_names(["a", "b", "c", "d"], 2), "`a`, `b` and 2 more");
        assert_eq!(list_names([] as [&str; 0], 2), "");
    }
}
