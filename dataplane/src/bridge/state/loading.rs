//! Reading a conversation for the agent: at once where it lies in memory, else on a read thread, so that a disk
//! never holds up a shard.

use std::sync::Arc;

use millrace_agent::{ConversationKey, Event, Fault, Loaded};
use millrace_storage::{Here, LoadedSession, ReadError};

use super::State;
use crate::bridge::inlet::Completion;

/// A conversation that a read thread reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    messages_max: usize,
    /// Somebody was forgotten meanwhile: what comes may be theirs, so it is read again.
    stale: bool,
}

impl State {
    pub(super) fn load(&mut self, key: ConversationKey, messages_max: usize) {
        let store = self.shared.store.clone();
        let result = match store.load_here(key.tenant, key.conversation, messages_max) {
            Ok(Here::Found(found)) => loaded(Ok(found)),
            Err(error) => loaded(Err(error)),
            Ok(Here::Elsewhere) => {
                self.shared.metrics.shard(self.index).read_from_disk();
                let inlet = Arc::clone(&self.inlet);
                let done = move |result| inlet.complete(Completion::Loaded { key, result: loaded(result) });
                match store.load(key.tenant, key.conversation, messages_max, Box::new(done)) {
                    Ok(()) => {
                        self.loads.insert(key, Load { messages_max, stale: false });
                        return;
                    }
                    Err(_) => Err(Fault::Busy),
                }
            }
        };
        self.events.push_back(Event::Loaded { key, result });
    }

    pub(super) fn loaded(&mut self, key: ConversationKey, result: Result<Loaded, Fault>) {
        match self.loads.remove(&key) {
            Some(Load { messages_max, stale: true }) => self.load(key, messages_max),
            _ => self.events.push_back(Event::Loaded { key, result }),
        }
    }

    /// A user was forgotten: what read threads read now may be older than that.
    pub(super) fn distrust_loads(&mut self) {
        self.loads.values_mut().for_each(|load| load.stale = true);
    }
}

fn loaded(result: Result<LoadedSession, ReadError>) -> Result<Loaded, Fault> {
    let (head, messages) = result.map_err(|error| {
        tracing::error!(%error, "a conversation cannot be read");
        Fault::Io(error.to_string())
    })?;
    Ok(Loaded { head: head.map(Box::new), messages })
}
