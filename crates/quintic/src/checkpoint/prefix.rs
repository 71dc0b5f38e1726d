//! Where in a file the T5 encoder is: the prefix of its names.

use super::entry::list_names;
use crate::{Error, Result};

/// A tensor that every T5 encoder has, and nothing else is named like.
const MARKER: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";

/// The only prefix P for which `P + MARKER` is a name; or `wanted`, if some name has it.
///
/// `names` are sorted.
pub(super) fn find<'a>(
    names: impl Iterator<Item = &'a str>,
    wanted: Option<&str>,
) -> Result<String> {
    let names: Vec<_> = names.collect();
    if let Some(wanted) = wanted {
        return match names.iter().any(|name| name.starts_with(wanted)) {
            true => Ok(wanted.to_owned()),
            false => Err(Error::input(format!(
                "no tensor has the prefix `{wanted}`, the first names are {}",
                list_names(&names, 5)
            ))),
        };
    }
    let prefixes: Vec<_> = names
        .iter()
        .filter_map(|name| name.strip_suffix(MARKER))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    match prefixes.as_slice() {
        [prefix] => Ok((*prefix).to_owned()),
        [] => Err(none(&names)),
        several => Err(Error::checkpoint(format!(
            "{} T5 encoders in one file, under the prefixes {}",
            several.len(),
            list_names(several, 8)
        ))
        .hint("choose one by `prefix`")),
    }
}

fn none(names: &[&str]) -> Error {
    if names.is_empty() {
        return Error::checkpoint("the file holds no tensors");
    }
    Error::checkpoint(format!(
        "no T5 encoder found: no name ends in `{MARKER}`; the first of {} names are {}",
        names.len(),
        list_names(names, 5)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T5XXL: &str =
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight";

    #[test]
    fn finds_bare_and_prefixed_encoders() {
        let bare = ["decoder.block.0.layer.0.SelfAttention.q.weight", MARKER];
        assert_eq!(find(bare.into_iter(), None).unwrap(), "");
        let all_in_one = ["model.diffusion_model.x", T5XXL, "vae.y"];
        assert_eq!(
            find(all_in_one.into_iter(), None).unwrap(),
            "text_encoders.t5xxl.transformer."
        );
    }

    #[test]
    fn does_not_guess() {
        let two = [MARKER, T5XXL];
        let error = find(two.into_iter(), None).unwrap_err();
        assert_eq!(
            error.message(),
            "2 T5 encoders in one file, under the prefixes ``, `text_encoders.t5xxl.transformer.`"
        );
        assert_eq!(find(two.into_iter(), Some("")).unwrap(), "");
        let error = find(two.into_iter(), Some("clip.")).unwrap_err();
        assert!(
            error
                .message()
                .starts_with("no tensor has the prefix `clip.`"),
            "{error}"
        );
    }

    #[test]
    fn lists_what_there_is_if_nothing_fits() {
        let error = find(["a", "my_encoder.block.0"].into_iter(), None).unwrap_err();
        assert!(
            error
                .message()
                .ends_with("the first of 2 names are `a`, `my_encoder.block.0`")
        );
        // A name that merely ends like the marker is no encoder.
        let glued = format!("my_{MARKER}");
        assert!(find([glued.as_str()].into_iter(), None).is_err());
        assert!(
            find([].into_iter(), None)
                .unwrap_err()
                .message()
                .contains("no tensors")
        );
    }
}
