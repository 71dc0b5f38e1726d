//! Recorded work: CUDA graphs, by capturing the stream.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::Stream;
use super::status::Done;
use crate::Result;
use crate::device::Recording;

/// A graph that can be launched.
#[derive(Debug)]
pub(super) struct Graph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    /// Launched in this stream alone, so it is waited for before the graph goes.
    stream: Arc<Stream>,
}

// SAFETY: launched and destroyed under the caller's order; the driver's calls are thread-safe for
// different graphs, and one graph's are made one at a time.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Recording for Graph {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

impl Graph {
    /// From now on the stream records. In the relaxed mode, since memory may be allocated
    /// meanwhile, which has nothing to do with what is recorded.
    pub(super) fn begin(stream: &Stream) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive.
        unsafe { result::stream::begin_capture(stream.handle, mode) }.done("starting a recording")
    }

    /// Ends the recording, also if it has failed.
    pub(super) fn end(stream: &Arc<Stream>) -> Result<Self> {
        // SAFETY: the stream is alive; what comes back is this call's.
        let graph =
            unsafe { result::stream::end_capture(stream.handle) }.done("ending a recording")?;
        // SAFETY: the graph is whole.
        let executable = unsafe {
            let mut executable = std::ptr::null_mut();
            sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0)
                .result()
                .map(|()| executable)
        };
        let executable = match executable {
            Ok(executable) => executable,
            Err(error) => {
                // SAFETY: nobody else has it.
                let _ = unsafe { result::graph::destroy(graph) };
                return Err(error).done("preparing a recording");
            }
        };
        Ok(Graph {
            graph,
            executable,
            stream: Arc::clone(stream),
        })
    }

    /// Queues it.
    ///
    /// # Safety
    ///
    /// All addresses in it are what they were.
    pub(super) unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's; both handles are alive.
        unsafe { result::graph::launch(self.executable, stream.handle) }
            .done("running a recorded pass")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.stream.context.bind().is_ok() {
            // SAFETY: nobody else has them. Failures leave nothing to be done.
            unsafe {
                let _ = result::stream::synchronize(self.stream.handle);
                let _ = result::graph::exec_destroy(self.executable);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}
