//! A submitted request on its way through the engine, with the promise that its outlet hears exactly one `Done`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::constrain::Guide;
use crate::request::{CancelHandle, FinishReason, Outlet, Output, Request, Timings, Usage};

/// A request, its cancel flag and when it came.
pub(crate) struct Job {
    pub request: Request,
    /// The compiled form of the request's constraint.
    pub guide: Option<Guide>,
    pub cancel: CancelHandle,
    pub submitted: Instant,
    /// Predicted time to the first token, where a prediction was possible.
    pub forecast: Option<Duration>,
    /// Cleared once `Done` is out.
    armed: bool,
}

impl Job {
    pub fn new(request: Request, cancel: CancelHandle, forecast: Option<Duration>) -> Self {
        Self { request, guide: None, cancel, submitted: Instant::now(), forecast, armed: true }
    }

    pub fn outlet(&self) -> &Arc<dyn Outlet> {
        &self.request.outlet
    }

    pub fn push(&self, output: Output) {
        self.request.outlet.push(self.request.ticket, output);
    }

    /// Sends the final output. Waking the outlet stays with the caller.
    pub fn finish(&mut self, reason: FinishReason, usage: Usage, timings: Timings) {
        assert!(self.armed, "a request ends once");
        self.armed = false;
        self.push(Output::Done { reason, usage, timings });
    }

    /// The request was never accepted, so nobody waits for its end.
    pub fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for Job {
    /// The last line of defence: whatever drops a job early, its caller does not wait for ever.
    fn drop(&mut self) {
        if self.armed {
            self.armed = false;
            let usage = Usage { prompt: self.request.prompt.len() as u32, ..Usage::default() };
            let reason = FinishReason::Error("the engine stopped before this request was done".to_owned());
            self.push(Output::Done { reason, usage, timings: Timings::default() });
            self.request.outlet.wake();
        }
    }
}
