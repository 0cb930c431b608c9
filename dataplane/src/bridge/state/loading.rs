//! Reading a conversation for the agent: at once where it lies in memory, else on a read thread, so that a disk
//! never holds up a shard.

use std::sync::Arc;

use millrace_agent::{ConversationKey, Event, Fault, Loaded};
use millrace_proto::record::Message;
use millrace_storage::{Here, LoadedSession, ReadError};

use super::State;
use crate::bridge::inlet::Completion;

/// A conversation that a read thread reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Names the answer: one to an earlier reading of the same conversation may still come.
    id: u64,
    messages_max: usize,
    /// Somebody was forgotten meanwhile: what comes may be theirs, so it is read again.
    stale: bool,
    /// What comes has the archived messages in it.
    archived: bool,
}

impl State {
    pub(super) fn load(&mut self, key: ConversationKey, messages_max: usize) {
        let store = self.shared.store.clone();
        let result = match store.load_here(key.tenant, key.conversation, messages_max) {
            Ok(Here::Found(found)) => loaded(Ok(found)),
            Err(error) => loaded(Err(error)),
            Ok(Here::Elsewhere) => {
                self.shared.metrics.shard(self.index).read_from_disk();
                let (id, inlet) = (self.id(), Arc::clone(&self.inlet));
                let done = move |result| inlet.complete(Completion::Loaded { key, id, result: loaded(result) });
                match store.load(key.tenant, key.conversation, messages_max, Box::new(done)) {
                    Ok(()) => {
                        self.loads.insert(key, Load { id, messages_max, stale: false, archived: false });
                        return;
                    }
                    Err(_) => Err(Fault::Busy),
                }
            }
        };
        self.complete_load(key, messages_max, result);
    }

    /// Tells the agent, or first fetches archived messages that belong to what was read.
    fn complete_load(&mut self, key: ConversationKey, messages_max: usize, result: Result<Loaded, Fault>) {
        let store = &self.shared.store;
        let lacks = |found: &Loaded| {
            let conversation = (key.tenant, key.conversation);
            found.head.is_some()
                && store.lacks_archived(conversation, &found.messages, None, messages_max).unwrap_or(true)
        };
        if !result.as_ref().is_ok_and(lacks) {
            return self.events.push_back(Event::Loaded { key, result });
        }
        let head = result.ok().and_then(|found| found.head);
        let (id, inlet) = (self.id(), Arc::clone(&self.inlet));
        let done = move |result: Result<Vec<Message>, String>| {
            let result = result.map(|messages| Loaded { head, messages }).map_err(|why| {
                tracing::error!(why, "the archived messages of a conversation cannot be read");
                Fault::Io(why)
            });
            inlet.complete(Completion::Loaded { key, id, result });
        };
        let reading = self.shared.backups.reading();
        match reading.messages((key.tenant, key.conversation), None, messages_max, Box::new(done)) {
            Ok(()) => drop(self.loads.insert(key, Load { id, messages_max, stale: false, archived: true })),
            Err(_) => self.events.push_back(Event::Loaded { key, result: Err(Fault::Busy) }),
        }
    }

    pub(super) fn loaded(&mut self, key: ConversationKey, id: u64, result: Result<Loaded, Fault>) {
        // The conversation left while it was read and has come back: only its newest reading knows whether somebody was
        // forgotten since, and whether the archive was asked.
        let Some(load) = self.loads.get(&key).copied().filter(|load| load.id == id) else { return };
        self.loads.remove(&key);
        match load {
            Load { messages_max, stale: true, .. } => self.load(key, messages_max),
            Load { messages_max, archived: false, .. } => self.complete_load(key, messages_max, result),
            Load { .. } => self.events.push_back(Event::Loaded { key, result }),
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
