//! Hidden states to one vector a row.

use quintic::backend::Pool;
use quintic::sentence::normalize;
use quintic::{Error, Result, TextEncoder};

use crate::args::{EncodeArgs, PoolArg};
use crate::job::Batch;

/// How rows become one vector each, if they do.
pub(crate) struct Pooling {
    pool: Pool,
    sentence: bool,
    normalize: bool,
    pub(crate) width: usize,
}

impl Pooling {
    pub(crate) fn of(args: &EncodeArgs, encoder: &TextEncoder) -> Result<Option<Self>> {
        let Some(arg) = args.pool else {
            return Ok(None);
        };
        let d_model = encoder.config().d_model;
        let (pool, width) = match (arg.plain(), encoder.sentence_head()) {
            (Some(pool), _) => (pool, d_model),
            (None, Some(head)) => (head.pool(), head.width(d_model)),
            (None, None) => {
                return Err(Error::input(
                    "`--pool sentence` needs a modules.json beside the model",
                )
                .at(encoder.path().display())
                .hint("`--pool mean` pools without one"));
            }
        };
        let sentence = arg == PoolArg::Sentence;
        Ok(Some(Pooling {
            pool,
            sentence,
            normalize: args.normalize,
            width,
        }))
    }

    pub(crate) fn apply(&self, encoder: &TextEncoder, batch: &Batch) -> Vec<f32> {
        let mut vectors = encoder.pooled(&batch.packed, self.pool);
        if let (true, Some(head)) = (self.sentence, encoder.sentence_head()) {
            vectors = head.apply(vectors, encoder.config().d_model);
        }
        if self.normalize {
            normalize(&mut vectors, self.width);
        }
        vectors
    }
}
