//! Hidden states to one vector a row.

use quintic::backend::Pool;
use quintic::sentence::{SentenceHead, normalize};
use quintic::{Error, Result, TextEncoder};

use crate::args::EncodeArgs;
use crate::job::Batch;

/// How rows become one vector each, if they do.
pub(crate) struct Pooling {
    pool: Pool,
    /// The model's own modules, with `--pool sentence`.
    head: Option<SentenceHead>,
    normalize: bool,
    pub(crate) width: usize,
}

impl Pooling {
    pub(crate) fn of(args: &EncodeArgs, encoder: &TextEncoder) -> Result<Option<Self>> {
        let Some(arg) = args.pool else {
            return Ok(None);
        };
        let d_model = encoder.config().d_model;
        let normalize = args.normalize;
        if let Some(pool) = arg.plain() {
            return Ok(Some(Pooling {
                pool,
                head: None,
                normalize,
                width: d_model,
            }));
        }
        let head = encoder.sentence_head()?.ok_or_else(|| {
            Error::input("`--pool sentence` needs a modules.json beside the model")
                .at(encoder.path().display())
                .hint("`--pool mean` pools without one")
        })?;
        Ok(Some(Pooling {
            pool: head.pool(),
            width: head.width(d_model),
            head: Some(head),
            normalize,
        }))
    }

    /// Tokens that the model was trained to read, if its modules say so.
    pub(crate) fn max_length(&self) -> Option<usize> {
        self.head.as_ref().and_then(SentenceHead::max_length)
    }

    pub(crate) fn apply(&self, encoder: &TextEncoder, batch: &Batch) -> Result<Vec<f32>> {
        let mut vectors = encoder.pooled(&batch.packed, self.pool)?;
        if let Some(head) = &self.head {
            vectors = head.apply(vectors, encoder.config().d_model);
        }
        if self.normalize {
            normalize(&mut vectors, self.width);
        }
        Ok(vectors)
    }
}
