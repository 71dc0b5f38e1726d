//! Passes that come again, and passes that have to be run again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quintic_cuda as cuda;
use quintic_cuda::device::{Element, Recording};
use quintic_cuda::kernels;
use quintic_cuda::memory::Lease;

use super::inputs::Inputs;
use super::scales::Verdict;
use super::{Cuda, Stream, failed, form};
use crate::batch::{Mask, PackedBatch};
use crate::{Error, Result};

/// Recorded passes that are kept. Each holds its result and its inputs, and the graph.
const KEPT: usize = 64;
/// How often a pass is run again with other scales: a layer may ask for a few.
const ATTEMPTS: usize = 512;

/// What passes have to have in common to be one recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    encoder: u64,
    tokens: usize,
    tile_blocks: usize,
    has_mask: bool,
    has_positions: bool,
}

/// A pass that has come before.
#[derive(Debug)]
struct Known {
    used: u64,
    /// `None` after the first time: that one tunes products and is not recorded.
    recorded: Option<Recorded>,
}

#[derive(Debug)]
struct Recorded {
    recording: Arc<dyn Recording>,
    inputs: Inputs,
    result: Stream,
    _scratch: Lease,
}

/// The passes that have come before, by form.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    n_passes: u64,
    known: HashMap<Form, Known>,
}

impl Recordings {
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    /// Makes room for one more.
    fn make_room(&mut self) {
        while self.known.len() >= KEPT {
            let oldest = self
                .known
                .iter()
                .min_by_key(|(_, known)| known.used)
                .map(|(&form, _)| form);
            match oldest {
                Some(form) => self.known.remove(&form),
                None => return,
            };
        }
    }
}

type Queue<'a> = dyn FnMut(&PackedBatch) -> Result<Stream> + 'a;

/// Runs a pass; in f16, until 16 bits have held everything.
pub(super) fn run(
    cuda: &Cuda,
    encoder: u64,
    batch: &PackedBatch,
    repeatable: bool,
    queue: &mut Queue<'_>,
) -> Result<Stream> {
    for _ in 0..ATTEMPTS {
        if cuda.element == Element::F16 {
            cuda.scales.reset().map_err(failed)?;
        }
        let result = once(cuda, encoder, batch, repeatable, queue)?;
        if cuda.element != Element::F16 {
            return Ok(result);
        }
        let verdict = cuda.scales.look().map_err(failed)?;
        if verdict == Verdict::Lost {
            break;
        }
        if verdict != Verdict::Held {
            // Scales are numbers inside what was recorded.
            cuda.recordings.lock().clear();
        }
        if verdict != Verdict::Again {
            return Ok(result);
        }
    }
    Err(Error::unsupported(
        "an activation left the range of f16 where no scale helps: in the queries, keys or values \
         of an attention, or in embeddings that are not finite",
    )
    .hint("compute in bf16 or f32"))
}

fn once(
    cuda: &Cuda,
    encoder: u64,
    batch: &PackedBatch,
    repeatable: bool,
    queue: &mut Queue<'_>,
) -> Result<Stream> {
    if !repeatable || batch.n_tokens() == 0 {
        return queue(batch);
    }
    let Some(filled) = batch.filled_up(form::round_up(batch.n_tokens())) else {
        return queue(batch);
    };
    let form = Form {
        encoder,
        tokens: filled.n_tokens(),
        tile_blocks: form::round_up_tiles(kernels::tiles(filled.row_starts()).len()),
        has_mask: *filled.mask() != Mask::Full,
        has_positions: filled.positions().is_some(),
    };
    let mut recordings = cuda.recordings.lock();
    recordings.n_passes += 1;
    let used = recordings.n_passes;
    let Some(mut known) = recordings.known.remove(&form) else {
        recordings.make_room();
        let first = Known {
            used,
            recorded: None,
        };
        recordings.known.insert(form, first);
        drop(recordings);
        let inputs = Inputs::of_pass(cuda, &filled, form.tile_blocks).map_err(failed)?;
        *cuda.inputs.lock() = Some(Arc::new(inputs));
        let result = queue(&filled)?;
        return cut(cuda, &result, batch.n_tokens()).map_err(failed);
    };
    drop(recordings);
    known.used = used;
    let recorded = match &mut known.recorded {
        Some(recorded) => {
            recorded.inputs.replace(&filled).map_err(failed)?;
            recorded
        }
        none => none.insert(record(cuda, &filled, form.tile_blocks, queue)?),
    };
    // SAFETY: inputs and result are held by `recorded`, everything between by the lease; weights
    // belong to the encoder that the form names.
    unsafe { cuda.device().replay(&recorded.recording) }.map_err(failed)?;
    let result = cut(cuda, &recorded.result, batch.n_tokens()).map_err(failed)?;
    cuda.recordings.lock().known.insert(form, known);
    Ok(result)
}

/// A recording that is under way; ends with it, however that comes about.
struct Running<'a>(Option<&'a Cuda>);

impl<'a> Running<'a> {
    fn begin(cuda: &'a Cuda) -> Result<Self> {
        cuda.device().begin_recording().map_err(failed)?;
        cuda.is_recording.store(true, Ordering::Relaxed);
        Ok(Running(Some(cuda)))
    }

    fn end(mut self) -> cuda::Result<Arc<dyn Recording>> {
        self.stop()
            .unwrap_or_else(|| Err(cuda::Error::Failed("nothing is recorded".to_owned())))
    }

    fn stop(&mut self) -> Option<cuda::Result<Arc<dyn Recording>>> {
        let cuda = self.0.take()?;
        cuda.is_recording.store(false, Ordering::Relaxed);
        Some(cuda.device().end_recording())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Records what `queue` queues for inputs that stay where they are.
fn record(
    cuda: &Cuda,
    batch: &PackedBatch,
    tile_blocks: usize,
    queue: &mut Queue<'_>,
) -> Result<Recorded> {
    let lease = cuda.scratch.lease();
    let inputs = Inputs::of_pass(cuda, batch, tile_blocks).map_err(failed)?;
    let inputs = Arc::new(inputs);
    *cuda.inputs.lock() = Some(Arc::clone(&inputs));
    let running = Running::begin(cuda)?;
    let result = queue(batch);
    let recording = running.end();
    // The memory of what was recorded is this pass's alone from now on.
    *cuda.inputs.lock() = None;
    let result = result?;
    result.contents().map_err(failed)?;
    let inputs = Arc::into_inner(inputs).ok_or_else(|| {
        failed(cuda::Error::Failed(
            "the inputs of a recorded pass are held by somebody else".to_owned(),
        ))
    })?;
    Ok(Recorded {
        recording: recording.map_err(failed)?,
        inputs,
        result,
        _scratch: lease,
    })
}

/// The first tokens of a stream, in memory of their own.
fn cut(cuda: &Cuda, stream: &Stream, tokens: usize) -> cuda::Result<Stream> {
    let bytes = tokens * stream.columns * 4;
    let out = cuda.buffer(bytes)?;
    out.copy_from(0, stream.contents()?, 0, bytes)?;
    Ok(Stream::new(tokens, stream.columns, Ok(out)))
}
